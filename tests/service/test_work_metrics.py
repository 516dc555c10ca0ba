"""What `/metrics` shows of workers, devices and cycles, from real records in a real server."""

import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError

from service.work_metrics import WorkMetrics
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.cycles import CycleRecord, CycleState, Flavour, cycle_key
from worker.contract.layout import Layout
from worker.contract.measures import Measures
from worker.contract.queues import ProcessFigures, WorkerReport
from worker.contract.store import Stores, open_stores

MINUTE = timedelta(minutes=1)
NOW = datetime.now(UTC)
HOUR = NOW.replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def stores(valkey_url_shared: str) -> Iterator[Stores]:
    opened = open_stores(valkey_url_shared, f"test-{secrets.token_hex(4)}")
    yield opened
    opened.redis.close()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path).create()


def shown(work: WorkMetrics) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(work)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def put(stores: Stores, hours_ago: int, flavour: Flavour, *states: str, **values) -> CycleRecord:
    """A cycle whose cut-off was `hours_ago` hours and ten minutes ago, and its states."""
    time = HOUR - timedelta(hours=hours_ago + 4)
    cycle, _ = stores.cycles.create(
        CycleRecord(
            id=cycle_key(time, flavour),
            valid_time=time,
            flavour=flavour,
            cut_off=NOW - timedelta(hours=hours_ago) - 10 * MINUTE,
            revision=1 if flavour is Flavour.EARLY else 2,
        )
    )
    for state in states:
        assert stores.cycles.change(cycle, CycleState(state), **values)
        cycle = stores.cycles.get(cycle.id)
    return cycle


def minutes_since_now() -> float:
    """Cut-offs are set from when this module was imported."""
    return (datetime.now(UTC) - NOW) / MINUTE


def lateness(stores: Stores, layout: Layout) -> dict[str, float]:
    """Minutes by flavour."""
    work = WorkMetrics(stores, layout)
    work.read()
    found = shown(work)
    return {
        flavour.value: found[("appa_cycle_lateness_seconds", flavour.value)] / 60
        for flavour in Flavour
    }


def test_a_cycle_is_late_by_its_own_cut_off(stores, layout):
    put(stores, 30, Flavour.EARLY, "due", "submitted", "published")
    assert lateness(stores, layout) == {"early": 0, "final": 0}  # old results are not late
    put(stores, 0, Flavour.EARLY, "due")
    put(stores, 1, Flavour.FINAL, "due", "submitted")
    since = minutes_since_now()
    wanted = {"early": 10 + since, "final": 70 + since}
    assert lateness(stores, layout) == pytest.approx(wanted, abs=0.5)


def test_cycles_that_are_caught_up_or_made_again_are_not_late(stores, layout):
    put(stores, 20, Flavour.EARLY, "due", caught_up=True)
    put(stores, 12, Flavour.FINAL, "due", "submitted", caught_up=True)
    done = put(stores, 40, Flavour.EARLY, "due", "submitted", "published")
    stores.cycles.rerun(done, NOW, NOW)
    assert lateness(stores, layout) == {"early": 0, "final": 0}
    work = WorkMetrics(stores, layout)
    work.read()
    assert shown(work)[("appa_cycles_catching_up",)] == 2


def test_a_cycle_nobody_decides_about_is_late_while_cycles_are_asked_for(stores, layout):
    put(stores, 2, Flavour.EARLY)  # announced; then the scheduler stopped
    assert lateness(stores, layout)["early"] == 0  # nothing is cycled any more
    layout.cycles_file.write_text("start: 2025-01-01T00:00Z\n")
    assert lateness(stores, layout)["early"] == pytest.approx(130 + minutes_since_now(), abs=0.5)


def report(stores: Stores, name: str, queues: list[str], seconds: float = 60, **figures) -> None:
    worker = WorkerReport(
        name=name,
        queues=queues,
        ready=True,
        host="node-1",
        device="cuda:0 (NVIDIA H100)" if queues == ["gpu"] else "cpu",
        version="1.1" if queues == ["gpu"] else "1.0",
        figures=ProcessFigures(**figures),
    )
    stores.workers.register(worker, timedelta(seconds=seconds))


def test_workers_and_devices_are_as_they_report_and_go_with_them(stores, layout):
    gib = 2**30
    device = {"device_used_bytes": 30 * gib, "device_total_bytes": 80 * gib}
    report(stores, "a", ["gpu"], resident_bytes=4 * gib, device_utilisation=0.75, **device)
    report(stores, "b", ["ingest", "products"], resident_bytes=gib)
    report(stores, "c", ["ingest", "products"], resident_bytes=gib)
    report(stores, "d", ["sources"], announcements=3, announcement_age=90.0, turned=NOW)
    work = WorkMetrics(stores, layout)
    work.read()
    found = shown(work)
    where = ("cuda:0 (NVIDIA H100)", "node-1")
    assert found[("appa_device_memory_used_bytes", *where)] == 30 * gib
    assert found[("appa_device_memory_total_bytes", *where)] == 80 * gib
    assert found[("appa_device_utilisation_ratio", *where)] == 0.75
    assert found[("appa_process_resident_memory_bytes", "node-1", "ingest-products")] == 2 * gib
    assert [found[("appa_workers", q)] for q in ("gpu", "ingest", "scheduler")] == [1, 2, 0]
    assert found[("appa_worker_versions", "1.0")] == 3
    assert found[("appa_worker_versions", "1.1")] == 1
    assert (found[("appa_wis2_waiting",)], found[("appa_wis2_oldest_seconds",)]) == (3, 90)
    turned = found[("appa_process_last_turn_timestamp_seconds", "sources")]
    assert turned == pytest.approx(NOW.timestamp(), abs=0.01)
    for name in "acd":
        report(stores, name, ["gpu"], seconds=-1)  # no heartbeat came
    work.read()
    found = shown(work)
    assert [found[("appa_workers", q)] for q in ("gpu", "ingest")] == [0, 1]
    names = {name for name, *_ in found}
    assert not {"appa_device_memory_used_bytes", "appa_wis2_waiting"} & names


def test_networks_are_shown_with_the_time_of_their_last_values(stores, layout):
    measures = Measures(stores.redis, stores.keys)
    batch = BatchRecord(id="batch-1", sha256="0" * 64, size=700, container="bufr")
    measures.ingested(batch, IngestSummary(by_report_type={"synop": 3}))
    assert measures.push()
    work = WorkMetrics(stores, layout)
    work.read()
    name = "appa_network_last_stored_timestamp_seconds"
    found = {key: when for key, when in shown(work).items() if key[0] == name}
    assert found == {(name, "synop"): pytest.approx(time.time(), abs=60)}


def test_without_a_server_only_that_is_shown(tmp_path, layout):
    lost = open_stores("unix:///nowhere/broker.sock")
    lost.redis.connection_pool.connection_kwargs["retry"] = None
    work = WorkMetrics(lost, layout)
    with pytest.raises(RedisError):
        work.read()
    found = shown(work)
    assert found.pop(("appa_broker_up",)) == 0
    assert {name for name, *_ in found} == {"appa_build_info"}
