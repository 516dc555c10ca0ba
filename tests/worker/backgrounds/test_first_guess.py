"""An uploaded first guess as the background of jobs, on the worker's own pipeline."""

import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import netCDF4
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoints.bundle import load_checkpoint
from model.domain.errors import InvalidInput
from model.domain.variables import Channel
from tests.worker.decoders.grib_messages import message
from tests.worker.replay.runs import NOON, SMALL, Installation, make_installation
from worker.backgrounds.load import consecutive
from worker.backgrounds.restarts import RESTART_NAME, read_restart
from worker.contract.kinds import FilteringSpec, ForecastSpec, ReanalysisSpec
from worker.replay.comparison import ReplayOutcome
from worker.replay.replay import replay
from worker.results.manifest import AnalysisManifest

HOUR = timedelta(hours=1)
LAT, LON = np.linspace(90.0, -90.0, 7), np.arange(0.0, 360.0, 20.0)
SHORT = {"temperature": "t", "u_component_of_wind": "u", "v_component_of_wind": "v",
         "geopotential": "z", "specific_humidity": "q", "2m_temperature": "2t",
         "10m_u_component_of_wind": "10u", "10m_v_component_of_wind": "10v",
         "mean_sea_level_pressure": "msl", "sea_surface_temperature": 34,
         "total_precipitation": "tp"}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Installation:
    return make_installation(tmp_path_factory.mktemp("guess"))


def values(channel: Channel, number: int, hour: int, lat: np.ndarray) -> np.ndarray:
    """A plausible field for each channel and hour, linear in latitude: interpolation leaves it as
    it is. The air is near 255 K throughout, with the heights that follow from it.
    """
    p = channel.level or 1000
    mean, slope = {
        "temperature": (255.0, 2.0),
        "geopotential": (287.05 * 255.0 * np.log(1000.0 / p), 50.0),
        "specific_humidity": (min(0.5, p / 1000) * 0.9 / p if p >= 300 else 1e-5, 1e-6),
        "2m_temperature": (285.0, 20.0),
        "sea_surface_temperature": (290.0, 10.0),
        "mean_sea_level_pressure": (101_000.0, 500.0),
        "total_precipitation": (2e-4, 1e-5),
    }.get(channel.variable, (0.0, 10.0))
    return mean + slope * (1.0 + 0.01 * number + 0.001 * (hour % 100)) * lat / 90.0


def upload(made: Installation, batch: str, hours: range, skip: str = "") -> Path:
    """States valid `hours` after NOON, as one GRIB file."""
    parts = []
    for hour in hours:
        for number, channel in enumerate(made.models.get(None).model.channels):
            if channel.name == skip:
                continue
            time, keys = NOON + hour * HOUR, {}
            if channel.variable == "total_precipitation":  # in the hour that ends then
                time, keys = time - HOUR, {"stepRange": "0-1"}
            parts.append(
                message(
                    np.repeat(values(channel, number, hour, LAT)[:, None], len(LON), axis=1),
                    short=SHORT[channel.variable],
                    level=channel.level or 0,
                    kind="surface" if channel.level is None else "isobaricInhPa",
                    lat=LAT,
                    lon=LON,
                    time=time.replace(tzinfo=None),
                    **keys,
                )
            )
    path = made.layout.raw_file(batch)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(parts))
    return path


def encoded(made: Installation, hours: range) -> torch.Tensor:
    """What the model's own encoder makes of those states, with shape (T, c, h, w)."""
    model = load_checkpoint(made.checkpoint)

    def field(n: int, hour: int) -> torch.Tensor:
        rows = values(model.channels[n], n, hour, model.grid.latitude)
        return torch.tensor(np.repeat(rows[:, None], model.grid.nlon, axis=1)).float()

    states = torch.stack(
        [torch.stack([field(n, h) for n in range(len(model.channels))]) for h in hours]
    )
    with torch.no_grad():
        return model.encode(states)


def filtering(hour: int, **values) -> FilteringSpec:
    return FilteringSpec(valid_time=NOON + hour * HOUR, **SMALL, **values)


def latents(made: Installation, name: str) -> torch.Tensor:
    return read_restart(made.layout.analysis_file(name, RESTART_NAME)).latents


@pytest.fixture(scope="module")
def window(made) -> AnalysisManifest:
    """An analysis without observations, from an upload with every hour of its window."""
    upload(made, "b-window", range(96, 103))  # some hours too many: they are not looked at
    return made.run("an-window", filtering(100, background_batch="b-window"))


def test_without_observations_the_analysis_is_the_first_guess(made, window):
    assert {"uploaded_background", "zero_observations"} <= set(window.flags)
    assert "cold_start" not in window.flags
    about = window.background
    assert (about["source"], about["batch_id"], about["age_hours"]) == ("uploaded", "b-window", 0.0)
    assert about["valid_time"] == (NOON + 100 * HOUR).isoformat()
    digest = hashlib.sha256(made.layout.raw_file("b-window").read_bytes()).hexdigest()
    assert about["batch_sha256"] == digest
    expected = encoded(made, range(97, 101))
    for member in latents(made, "an-window"):
        torch.testing.assert_close(member, expected, rtol=1e-4, atol=1e-4)


def test_an_older_state_is_brought_forward(made):
    upload(made, "b-one", range(200, 201))
    result = made.run("an-one", filtering(203, background_batch="b-one"))
    assert (result.background["source"], result.background["age_hours"]) == ("uploaded", 3.0)
    found = latents(made, "an-one")
    expected = encoded(made, range(200, 201))[0]
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, 0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found[0, 3], found[1, 3])  # forecasts of two members


def test_a_forecast_from_an_upload_is_that_from_an_analysis_of_the_same_states(made, window):
    common = {"valid_time": window.valid_time, "lead_hours": 3, **SMALL}
    made.run("fc-analysis", ForecastSpec(analysis_id=window.id, **common))
    result = made.run("fc-upload", ForecastSpec(background_batch="b-window", **common))
    assert result.background["source"] == "uploaded"
    fields = []
    for name in ("fc-analysis", "fc-upload"):
        [path] = made.layout.analysis(name).glob("*.nc")
        with netCDF4.Dataset(path) as data:
            fields.append(data["t"][:].filled(np.nan))
    np.testing.assert_array_equal(*fields)


def test_observations_are_compared_with_the_first_guess(made):
    """All members start from one state, so that the background has no spread where they observe."""
    upload(made, "b-noon", range(-3, 1))
    result = made.run("an-noon", filtering(0, background_batch="b-noon"))
    assert result.background["source"] == "uploaded"
    assert result.observations["used"] > 0
    [path] = made.layout.analysis("an-noon").glob("*obsfb*.parquet")
    feedback = pq.read_table(path)
    assert np.abs(feedback["background_spread"].to_numpy()).max() < 1e-3
    assert np.isfinite(feedback["background_departure"].to_numpy()).all()


def test_what_is_no_first_guess_is_said(made):
    upload(made, "b-lacks", range(400, 401), skip="geopotential_500hPa")
    with pytest.raises(InvalidInput, match="geopotential_500hPa") as refused:
        made.run("an-lacks", filtering(401, background_batch="b-lacks"))
    assert refused.value.context["field"] == "background_batch"
    upload(made, "b-old", range(400, 401))
    with pytest.raises(InvalidInput, match="background_max_age_hours"):
        made.run("an-old", filtering(403, background_batch="b-old", background_max_age_hours=1))
    with pytest.raises(InvalidInput, match="has been deleted"):
        made.run("an-gone", filtering(400, background_batch="b-none"))
    path = made.layout.raw_file("b-text")
    path.parent.mkdir()
    path.write_bytes(b"GRIB but nothing else")
    with pytest.raises(InvalidInput, match="all of them"):
        made.run("an-text", filtering(400, background_batch="b-text"))


def test_a_replay_reads_the_upload_again(made, window, tmp_path):
    def again():
        return replay(made.layout, window.id, checkpoints=[str(made.checkpoint)])

    verdict = again()
    assert verdict.outcome is ReplayOutcome.IDENTICAL, verdict.findings
    [about] = [f for f in verdict.findings if f.name == "background"]
    assert (about.same, about.note) == (True, "b-window")
    path = made.layout.raw_file("b-window")
    path.rename(tmp_path / "away")
    try:
        verdict = again()
    finally:
        (tmp_path / "away").rename(path)
    assert verdict.outcome is ReplayOutcome.IMPOSSIBLE
    assert "b-window" in verdict.missing[0]


@pytest.mark.parametrize(
    ("hours", "start", "until", "oldest", "taken"),
    [
        ([3, 4, 5, 6, 7], 5, 6, 0, [3, 4, 5, 6]),  # what leads there, and on to the end
        ([1, 2, 4], 5, 6, 0, [4]),  # not across a gap
        ([1, 2], 5, 6, 2, [1, 2]),
        ([1, 2], 5, 6, 3, None),  # too old
        ([6, 7], 5, 6, 0, None),  # begins too late
        ([], 5, 6, 0, None),
        ([5], 5, 5, 5, [5]),
        ([4, 6], 5, 5, 5, None),  # a forecast needs its very hour
    ],
)
def test_which_hours_are_taken(hours, start, until, oldest, taken):
    def at(hour: int) -> datetime:
        return NOON + hour * HOUR

    def choose():
        return consecutive([at(h) for h in hours], at(start), at(until), at(oldest), "b")

    if taken is None:
        with pytest.raises(InvalidInput, match="'b'"):
            choose()
    else:
        assert choose() == tuple(at(h) for h in taken)


def test_a_job_has_one_background():
    with pytest.raises(ValueError, match="background_batch"):
        filtering(0, background_batch="b", background="climatology")
    with pytest.raises(ValueError, match="one start"):
        ForecastSpec(valid_time=NOON, analysis_id="an", background_batch="b")
    plain = ReanalysisSpec(start=NOON, end=NOON + HOUR)
    assert plain.background_batch is None
