"""Cycles through a real model worker: what their analyses used, and from what they started.

Two hours, noon and one o'clock; the observations of noon arrive in three uploads: in time for the
early analysis, in time for the final one, and long after both. One o'clock has none.
"""

import json
from datetime import UTC, datetime, timedelta

import netCDF4
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from model.checkpoints.bundle import load_checkpoint
from service.keys import OPEN
from service.routes.cycles import explain
from service.schemas import CycleView
from tests.worker.processes import Processes, wait_for
from tests.worker.tables import make_table
from worker.contract.cycles import CycleState
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.cycling.policy import read_policy
from worker.cycling.tick import Cycling
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore
from worker.process import message_sender
from worker.results.manifest import read_manifest
from worker.settings import WorkerSettings

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ARRIVALS = {"b1": NOON + HOUR / 6, "b2": NOON + HOUR, "b3": NOON + 10 * HOUR}
PREFIX = "test-cycled"


@pytest.fixture(scope="module")
def system(shared_broker, checkpoint, tmp_path_factory):
    """Stores, data folder and scheduler, after both hours were cycled and noon was made again."""
    data = tmp_path_factory.mktemp("data")
    layout = Layout(data).create()
    mean = float(load_checkpoint(checkpoint).state_normalisation.mean[0])
    for number, (batch, received) in enumerate(ARRIVALS.items()):
        stations = [f"{number}{i:03d}" for i in range(10)]
        table = make_table(
            10, batch_id=batch, received=received, station_id=stations,
            lat=np.linspace(-60.0, 60.0, 10) + 3 * number, obs_value=np.full(10, mean),
        )  # fmt: skip
        store = ObservationStore(str(layout.observations))
        store.publish(assign_errors(table), batch, received)
    policy = {
        "start": NOON.isoformat(),
        "end": (NOON + HOUR).isoformat(),
        "early_cut_off_minutes": 20,
        "final_cut_off_minutes": 180,
        "window_hours": 1,
        "members": 2,
        "steps": 2,
        "outputs": ["netcdf", "feedback"],
        "forecast": {"hours": [13], "lead_hours": 2},
    }
    layout.cycles_file.write_text(yaml.safe_dump(policy))
    processes = Processes(shared_broker.url, PREFIX, data)
    stores = open_stores(shared_broker.url, PREFIX)
    try:
        processes.appa("worker", "gpu", APPA_MODELS=str(checkpoint), APPA_DISK_LOW_BYTES="0")
        first_final = _cycle_twice(stores, layout, shared_broker.url, processes.log)
        yield stores, layout, first_final
    finally:
        processes.end()
        stores.redis.close()


def _cycle_twice(stores, layout, url, log) -> str:
    """Both hours, then noon again; the id of the first final analysis of noon."""
    settings = WorkerSettings(
        redis_url=url, redis_prefix=PREFIX, data_dir=layout.root, disk_low_bytes=0
    )
    with message_sender(settings) as sender:
        scheduler = Cycling(stores, layout, sender, settings)
        _run_until(scheduler, NOON + 5 * HOUR, published=4, log=log)
        wait_for(lambda: len(_forecasts(layout)) == 1, 120)
        final = stores.cycles.get("20240101T12Z_final")
        stores.cycles.rerun(final, cut_off=NOON + 11 * HOUR, decided=NOON + 11 * HOUR)
        _run_until(scheduler, NOON + 11 * HOUR, published=4, log=log)
    return final.analysis_id


def _run_until(scheduler, now, *, published, log) -> None:
    def all_published() -> bool:
        scheduler.tick(now)
        assert not scheduler.stores.cycles.count(CycleState.FAILED), log()
        return scheduler.stores.cycles.count(CycleState.PUBLISHED) == published

    scheduler.tick(now)
    wait_for(all_published, 120)


def _forecasts(layout):
    found = [read_manifest(layout, path.name) for path in layout.analyses.iterdir()]
    return [manifest for manifest in found if manifest.kind == "forecast"]


def _manifest(system, key: str):
    stores, layout, _ = system
    return read_manifest(layout, stores.cycles.get(key).analysis_id)


def _used(system, manifest) -> set[str]:
    names = [f.name for f in manifest.files if f.role == "feedback"]
    [name] = [name for name in names if name.endswith(".parquet")]
    table = pq.read_table(system[1].analysis_file(manifest.id, name)).to_pylist()
    assert len(table) == 30  # every value of the window is there, whenever it came
    late = {row["batch_id"] for row in table if row["rejected_by"] == "late"}
    used = {row["batch_id"] for row in table if row["rejected_by"] is None}
    assert used | late == set(ARRIVALS)
    assert not used & late
    return used


def test_each_analysis_uses_what_had_arrived_by_its_cut_off(system):
    _, layout, first_final = system
    assert _used(system, _manifest(system, "20240101T12Z_early")) == {"b1"}
    assert _used(system, read_manifest(layout, first_final)) == {"b1", "b2"}
    assert _used(system, _manifest(system, "20240101T12Z_final")) == {"b1", "b2", "b3"}


def test_revisions_count_on(system):
    _, layout, first_final = system
    early, rerun = (_manifest(system, f"20240101T12Z_{name}") for name in ("early", "final"))
    final = read_manifest(layout, first_final)
    assert [(m.flavour, m.revision) for m in (early, final, rerun)] == [
        ("early", 1), ("final", 2), ("final", 3),
    ]  # fmt: skip


def test_the_background_is_the_newest_revision_of_the_hour_before(system):
    _, _, first_final = system
    early = _manifest(system, "20240101T13Z_early")
    final = _manifest(system, "20240101T13Z_final")
    before = _manifest(system, "20240101T12Z_early")
    # both were due at once, in the order of valid times: the final noon before the early one o'clock
    for manifest in (early, final):
        assert manifest.background["analysis_id"] == first_final
        assert manifest.background["revision"] == 2
        assert manifest.background["age_hours"] == 1.0
        assert "cold_start" not in manifest.flags
        assert "zero_observations" in manifest.flags
    assert "cold_start" in before.flags


def test_a_revision_does_not_start_from_the_analysis_of_its_own_hour(system):
    _, layout, first_final = system
    rerun = _manifest(system, "20240101T12Z_final")
    for manifest in (read_manifest(layout, first_final), rerun):
        assert manifest.background["source"] == "climatology"
        assert "cold_start" in manifest.flags


def test_manifest_and_file_say_what_happened_to_the_cycle(system):
    _, layout, _ = system
    manifest = _manifest(system, "20240101T12Z_early")
    assert manifest.cycle["key"] == "20240101T12Z_early"
    assert manifest.cycle["caught_up"] and "caught_up" in manifest.flags
    assert manifest.cycle["behind_seconds"] == (5 * HOUR - HOUR / 3).total_seconds()
    assert manifest.cycle["policy"] == read_policy(layout.cycles_file).digest
    assert manifest.cut_off == NOON + HOUR / 3
    [name] = [f.name for f in manifest.files if f.name.startswith("appa_an_")]
    assert name == "appa_an_20240101T12Z_early_v1.nc"
    with netCDF4.Dataset(layout.analysis_file(manifest.id, name)) as dataset:
        assert dataset.flavour == "early"
        assert json.loads(dataset.cycle)["caught_up"] is True


def test_the_final_analysis_of_a_named_hour_has_started_its_forecast(system):
    stores, layout, _ = system
    [forecast] = _forecasts(layout)
    final = stores.cycles.get("20240101T13Z_final")
    assert forecast.id == final.forecast_id
    assert forecast.background["analysis_id"] == final.analysis_id
    assert forecast.times == [NOON + 2 * HOUR, NOON + 3 * HOUR]


def test_explain_reads_the_real_feedback(system):
    stores, layout, first_final = system
    manifests = [read_manifest(layout, path.name) for path in layout.analyses.iterdir()]
    of_noon = [m for m in manifests if m.valid_time == NOON]
    record = CycleView.of(stores.cycles.get("20240101T12Z_final"), OPEN)
    found = explain(layout, record, of_noon)
    assert found.late == []
    assert found.changed.from_analysis == first_final
    assert found.changed.added == {"synop": 10}
    record = CycleView.of(stores.cycles.get("20240101T12Z_early"), OPEN)
    early = explain(layout, record, of_noon)
    [late] = early.late
    assert (late.network, late.count) == ("synop", 20)
    assert (late.first, late.last) == (ARRIVALS["b2"], ARRIVALS["b3"])
