"""A job on a tiny model from stored observations to its manifest, and on to the time series."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoints.bundle import load_checkpoint
from model.domain.observations import station_draw
from tests.worker.tables import RECEIVED, make_table
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.contract.layout import Layout
from worker.loaded_models import LoadedModel, LoadedModels
from worker.observations.columns import category_codes
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore
from worker.pipeline.assimilation import assimilate_window
from worker.results.manifest import read_manifest
from worker.results.verification.series import (
    SERIES_NAME,
    SeriesEntry,
    StatisticRow,
    append_to_series,
    find_series,
    read_series,
    series_table,
)

STATIONS = 60
WITHHELD = [f"{i:05d}" for i in range(STATIONS) if station_draw(f"{i:05d}", "appa") < 0.3]
NAMED = "00059"


class Quiet:
    """Progress of a job that nobody watches."""

    def phase(self, *_):
        pass

    def __call__(self, *_):
        pass


@pytest.fixture(scope="module")
def models(checkpoint):
    model = load_checkpoint(checkpoint)
    return LoadedModels((LoadedModel("tiny", "ab" * 32, model, checkpoint),), torch.device("cpu"))


@pytest.fixture
def layout(tmp_path, models):
    layout = Layout(tmp_path).create()
    mean = float(models.models[0].model.state_normalisation.mean[0])
    table = assign_errors(make_table(STATIONS, obs_value=np.full(STATIONS, mean)))
    ObservationStore(str(layout.observations)).publish(table, "b1", RECEIVED)
    return layout


NOON = make_table(1)["time"][0].as_py().to_pydatetime()


def run(layout: Layout, models, name="an-1", spec=None, **values):
    """The published manifest of a job."""
    if spec is None:
        chosen = {"withhold": 0.3, "withhold_stations": [NAMED]}
        spec = FilteringSpec(
            valid_time=NOON, members=3, steps=3, outputs=["feedback"], observations=chosen
        )
    job = JobRecord(id="job-1", spec=spec, analysis_id=name, **values)
    folder: Path = layout.tmp / name
    folder.mkdir()
    assimilate_window(job, layout, models, Quiet(), folder)
    folder.rename(layout.analysis(name))
    return read_manifest(layout, name)


def test_manifest_and_series_hold_the_scores(layout, models):
    manifest = run(layout, models, flavour="early")
    scores = manifest.scores
    assert set(scores) == {
        "version", "chi2", "used", "used_new", "departures", "withheld", "states", "control", "impact",
    }  # fmt: skip
    kept_back = set(WITHHELD) | {NAMED}
    assert manifest.observations["withheld"] == len(kept_back)
    (line,) = scores["withheld"]
    assert (line["network"], line["variable"], line["count"]) == (
        "synop", "2m_temperature", len(kept_back),
    )  # fmt: skip
    assert sum(line["analysis"]["ranks"]) == sum(line["background"]["ranks"]) == len(kept_back)
    assert line["analysis"]["rmse"] > 0 and line["analysis"]["crps"] > 0
    assert scores["used"] == scores["used_new"] == {"synop": manifest.observations["used"]}
    assert [d["layer"] for d in scores["departures"]] == ["all"]
    assert scores["departures"][0]["count"] == manifest.observations["used"]
    assert scores["chi2"] == pytest.approx(scores["departures"][0]["chi2"])
    quantities = {s["quantity"] for s in scores["states"]}
    assert {"geostrophic", "hydrostatic", "pressure_tendency", "mass_tendency"} <= quantities
    assert scores["control"] == {"cycles": 0, "checked": 0, "outside": []}
    assert manifest.flags == ["simulated", "cold_start"]

    assert append_to_series(layout, manifest)
    table = read_series(layout, find_series(layout, NOON, NOON))
    found = {(r["network"], r["layer"], r["statistic"]): r for r in table.to_pylist()}
    rmse = found["synop", "all", "withheld_rmse_analysis"]
    assert (rmse["value"], rmse["count"]) == (line["analysis"]["rmse"], len(kept_back))
    assert found["all", "all", "chi2"]["value"] == scores["chi2"]
    assert ("synop", "surface", "error_ratio") in found
    assert {r["flavour"] for r in table.to_pylist()} == {"early"}


def test_a_job_that_denies_a_network_keeps_what_it_withholds_of_it(layout, models):
    mean = float(models.models[0].model.state_normalisation.mean[0])
    names = [f"CALL{i}" for i in range(8)]
    ships = make_table(
        8, batch_id="b2", report_type="ship", station_id=names, obs_value=np.full(8, mean)
    )
    ships = assign_errors(ships)
    ObservationStore(str(layout.observations)).publish(ships, "b2", RECEIVED)
    chosen = {"withhold": 0.3, "withhold_stations": [NAMED], "deny": ["synop"]}
    denying = FilteringSpec(
        valid_time=NOON, members=3, steps=3, outputs=["feedback"], observations=chosen
    )
    with_it, without = run(layout, models), run(layout, models, "an-2", denying)
    assert without.observations["used"] == 8 < with_it.observations["used"]
    assert without.observations["withheld"] == with_it.observations["withheld"] == len(WITHHELD) + 1
    assert without.observations["passive"] == with_it.observations["used"] - 8 > 40
    (kept,), (denied,) = (m.scores["withheld"] for m in (with_it, without))
    assert kept["count"] == denied["count"] and kept["analysis"] != denied["analysis"]
    assert set(without.scores["impact"]) == {"ship"}


def test_departures_in_the_feedback_give_the_withheld_error(layout, models):
    manifest = run(layout, models)
    (path,) = layout.analysis(manifest.id).glob("*obsfb*.parquet")
    table = pq.read_table(path)
    stations, names = category_codes(table, "station_id")
    mask = np.isin(np.array(names)[stations], [*WITHHELD, NAMED])
    departure = table["analysis_departure"].to_numpy()[mask]
    (line,) = manifest.scores["withheld"]
    assert line["analysis"]["rmse"] == pytest.approx(np.sqrt(np.mean(departure**2)), rel=1e-6)
    assert line["analysis"]["bias"] == pytest.approx(departure.mean(), rel=1e-6)
    assert "control" not in manifest.scores  # outside the cycles


def test_values_that_the_background_had_seen_are_no_innovations(layout, models):
    first = run(layout, models, "an-first")
    mean = float(models.models[0].model.state_normalisation.mean[0])
    later = np.datetime64(NOON.replace(tzinfo=None), "ns") + np.timedelta64(50, "m")
    table = make_table(STATIONS, batch_id="b2", time=later, obs_value=np.full(STATIONS, mean + 0.5))
    store = ObservationStore(str(layout.observations))
    store.publish(assign_errors(table), "b2", RECEIVED)
    spec = FilteringSpec(
        valid_time=NOON + timedelta(hours=1),
        members=3,
        steps=3,
        window_hours=3,
        outputs=["feedback"],
        observations={"withhold": 0.3, "withhold_stations": [NAMED]},
    )
    second = run(layout, models, "an-second", spec=spec)
    assert second.background["analysis_id"] == first.id
    used = first.observations["used"]
    assert second.observations["used"] == 2 * used
    assert second.scores["used"] == {"synop": 2 * used}
    assert second.scores["used_new"] == {"synop": used}
    assert second.scores["departures"][0]["count"] == used
    assert second.scores["withheld"][0]["count"] == first.scores["withheld"][0]["count"]


def past_cycles(layout, count, chi2):
    for hour in range(1, count + 1):
        entry = SeriesEntry(NOON - timedelta(hours=hour), "early", 1, f"an-past-{hour}")
        entry.path(layout).parent.mkdir(parents=True, exist_ok=True)
        rows = [StatisticRow("all", "all", "all", "chi2", chi2 * (1 + 0.01 * (hour % 5)), 500)]
        pq.write_table(series_table(entry, rows), entry.path(layout))


def test_a_cycle_outside_its_limits_is_flagged_in_its_manifest(layout, models):
    usual = run(layout, models, "an-usual").scores["chi2"]
    past_cycles(layout, 30, 50 * usual)
    manifest = run(layout, models, flavour="early")
    assert "outside_control_limits" in manifest.flags
    control = manifest.scores["control"]
    (line,) = control["outside"]
    assert (control["cycles"], control["checked"], line["statistic"]) == (30, 1, "chi2")
    assert line["value"] == manifest.scores["chi2"] < line["low"] < 51 * usual < line["high"]
    series = pq.read_table(layout.analysis("an-1") / SERIES_NAME).to_pylist()
    limits = {r["statistic"]: (r["value"], r["count"]) for r in series if r["network"] == "all"}
    assert limits["chi2_limit_low"] == (line["low"], 30)
    assert limits["chi2_limit_high"] == (line["high"], 30)
    past_cycles(layout, 30, usual)
    again = run(layout, models, "an-2", flavour="early")
    assert "outside_control_limits" not in again.flags
    assert again.scores["control"]["checked"] == 1
    # The final analyses have a series of their own, which is empty.
    assert run(layout, models, "an-3", flavour="final").scores["control"]["cycles"] == 0


def test_a_faulty_policy_does_not_cost_the_analysis(layout, models):
    layout.verification_file.write_text("sigma: 3")
    manifest = run(layout, models, flavour="early")
    assert "control_limits_not_checked" in manifest.flags
    assert "control" not in manifest.scores and manifest.scores["withheld"]


def test_no_observations_and_forecasts(layout, models):
    run(layout, models)
    later = FilteringSpec(valid_time=NOON + timedelta(hours=9), members=3, steps=3)
    empty = run(layout, models, "an-empty", spec=later, flavour="early")
    assert "zero_observations" in empty.flags
    assert empty.scores["used"] == {} and empty.scores["withheld"] == []
    assert empty.scores["states"]
    assert append_to_series(layout, empty)
    ahead = ForecastSpec(valid_time=NOON, lead_hours=2, members=3, steps=3)
    forecast = run(layout, models, "fc-1", spec=ahead)
    assert forecast.scores == {}
    assert SERIES_NAME not in [f.name for f in forecast.files]
