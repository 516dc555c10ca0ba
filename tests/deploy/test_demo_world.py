"""What the demo sends: real messages that decode to what was observed."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xarray as xr
from PIL import Image

from lab.demo.picture import draw_demo
from lab.demo.run import DemoResult
from lab.demo.world import SHOWN, Scorer, StateErrors, World, observation_files
from worker.observations.decoders.decode import decode_file
from worker.observations.qc.run import run_checks


@pytest.fixture(scope="module")
def world() -> World:
    return World("appa-t31")


@pytest.fixture(scope="module")
def table(world) -> pa.Table:
    # 12 UTC: radiosondes report.
    first = world.span[0]
    end = first + timedelta(hours=(12 - first.hour) % 24)
    return world.observe(end, 1)


def test_files_decode_to_the_values_that_were_observed(world, table, tmp_path):
    found = []
    for file in observation_files(table, "hour"):
        path = tmp_path / file.name
        path.write_bytes(file.content)
        found.append(decode_file(path).table)
    decoded = pa.concat_tables(found)
    for kind in ("synop", "ship", "temp", "aircraft", "scatterometer", "satellite"):
        sent = table.filter(pc.equal(table["report_type"].cast(pa.string()), kind))
        got = decoded.filter(pc.equal(decoded["report_type"].cast(pa.string()), kind))
        for variable, tolerance in (("2m_temperature", 0.006), ("temperature", 0.06)):
            a, b = (
                np.sort(t.filter(pc.equal(t["variable"].cast(pa.string()), variable))["obs_value"])
                for t in (sent, got)
            )
            assert len(a) == len(b), (kind, variable)
            np.testing.assert_allclose(a, b, atol=tolerance)


def test_hours_of_aircraft_pass_the_checks_of_identity_and_track(world, tmp_path):
    """Six hours in one window: each report is of a flight of its own, none is a jump or a repeat."""
    end = world.span[0] + timedelta(hours=6)
    rows = []
    for hour in range(6):
        table = world.observe(end - timedelta(hours=hour), 1)
        (bufr, _) = observation_files(table, f"hour-{hour}")
        path = tmp_path / bufr.name
        path.write_bytes(bufr.content)
        rows.append(run_checks(decode_file(path).table, "pre")[0])
    window = run_checks(pa.concat_tables(rows).unify_dictionaries(), "window")[0]
    aircraft = window.filter(pc.equal(window["report_type"].cast(pa.string()), "aircraft"))
    assert len(aircraft) == 6 * 200 * 3
    assert len(pc.unique(aircraft["station_id"].cast(pa.string()))) == 6 * 200
    assert set(aircraft["rejected_by"].to_pylist()) == {None}


def test_the_picture_says_what_it_shows(world, tmp_path):
    time = world.span[0]
    errors = {"analysis": StateErrors(0.2, {})}
    result = DemoResult(analyses=[(time, errors)], fields={time: world.state(time).numpy()})
    with Image.open(draw_demo(result, world, tmp_path / "demo.png")) as picture:
        title = picture.info["Title"]
    assert title == (
        f"2 m temperature and 500 hPa height · {time:%Y-%m-%d %H} UTC · appa-t31 · "
        "simulated atmosphere, not for real decisions"
    )


def test_the_picture_shows_members_and_the_forecast(world, tmp_path):
    time = world.span[0]
    state, later = (world.state(time + timedelta(hours=h)).numpy() for h in (0, 6))
    errors = {"analysis": StateErrors(0.2, {})}
    result = DemoResult(analyses=[(time, errors)], fields={time: state})
    z500 = [c.name for c in world.channels].index("geopotential_500hPa")
    members = np.stack([field[z500] for field in (state, later)])
    panels = []
    for shown, forecast in ((members, later), (members, state), (members[:1], state)):
        spread = np.ptp(shown, axis=0) / 2
        dims = ("latitude", "longitude")
        values = {"z": (("realization", *dims), shown), "z_spread": (dims, spread)}
        result.geopotential = xr.Dataset(values)
        result.forecast = time + timedelta(hours=6), forecast
        with Image.open(draw_demo(result, world, tmp_path / "demo.png")) as picture:
            width, height = picture.size
            rows = [picture.crop((0, int(y * height), width // 2, int((y + 0.2) * height)))
                    for y in (0.03, 0.27, 0.52)]  # fmt: skip
            panels.append([np.asarray(row.convert("RGB")) for row in rows])
    first, second, third = panels
    assert [np.array_equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True, False]
    assert [np.array_equal(a, b) for a, b in zip(second, third, strict=True)] == [True, False, True]
    assert len(np.unique(first[1].reshape(-1, 3), axis=0)) > 100  # spread, coasts and contours


def test_the_truth_has_no_error_and_a_shifted_one_has_the_shift(world):
    state = world.state(world.span[0])
    std = state.flatten(1).nan_to_num().std(1).clamp(min=1e-9)
    score = Scorer(world.grid, world.channels, std)
    exact = score(state, state)
    assert exact.standardised == 0
    shifted = score(state + 1.0, state)
    for column, _, _, factor in SHOWN:
        assert shifted.shown[column] == pytest.approx(factor, rel=1e-3)
