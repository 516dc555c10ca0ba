"""Training: resuming is exact, and a fitted model beats where it started."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from deploy.commands import train
from lab.training.datasets import Splits, StateStore, channel_statistics
from lab.training.loop import TrainingRun
from lab.training.train_autoencoder import AutoencoderTraining, train_autoencoder
from lab.training.train_denoiser import load_autoencoder, train_denoiser
from model.diagnostics.realism import power_spectrum
from model.domain.errors import ConfigurationError, InvalidInput
from model.domain.grids import Grid
from model.domain.variables import channels
from tests.model.training.tiny_runs import denoiser_training

LEVELS = (500, 850)
GRID = Grid("tiny", "gaussian", 8, 16)


class Interrupted(Exception):
    pass


def stop_at(step: int):
    def on_step(done: int, total: int) -> None:
        if done == step:
            raise Interrupted

    return on_step


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Waves that travel, sampled hourly for 12 days, in the layout of WeatherBench2."""
    path = tmp_path_factory.mktemp("store") / "states.zarr"
    hours = np.arange(12 * 24)
    lat, lon = np.deg2rad(GRID.latitude)[:, None], np.deg2rad(GRID.longitude)
    data = {}
    for number, channel in enumerate(channels(LEVELS)):
        phase = 0.1 * number + hours[:, None, None] * 2 * np.pi / (24 + 5 * number)
        field = 280 + number + np.cos(lat) * np.sin((1 + number % 3) * lon - phase)
        data.setdefault(channel.variable, []).append(field.astype(np.float32))
    times = np.datetime64("2000-01-01", "ns") + hours.astype("timedelta64[h]")
    surface = ("time", "latitude", "longitude")
    variables = {
        name: (surface, fields[0])
        if len(fields) == 1
        else (("time", "level", "latitude", "longitude"), np.stack(fields, 1))
        for name, fields in data.items()
    }
    variables["sea_surface_temperature"][1][:, :, :4] = np.nan
    coords = {"time": times, "level": list(LEVELS)}
    coords |= {"latitude": GRID.latitude, "longitude": GRID.longitude}
    xr.Dataset(variables, coords).to_zarr(path, zarr_format=2, consolidated=True)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Standardised states and statistics of the training period, which the first training writes."""
    return tmp_path_factory.mktemp("cache")


def autoencoder_config(store: Path, cache: Path, **changes) -> AutoencoderTraining:
    values = {
        "data": {
            "store": str(store),
            "cache": str(cache),
            "grid": {"name": "tiny", "kind": "gaussian", "nlat": 8, "nlon": 16},
            "levels": LEVELS,
            "every_hours": 1,
            "cached": True,
            "sample_states": 24,
            "splits": {
                "train": {"start": "2000-01-01", "end": "2000-01-06"},
                "validation": {"start": "2000-01-07", "end": "2000-01-08"},
                "test": {"start": "2000-01-09", "end": "2000-01-12"},
                "gap_days": 1,
            },
        },
        "autoencoder": {
            "in_channels": 16,
            "lat_channels": 6,
            "shape": (8, 16),
            "resize": 4,
            "patch_size": (4, 4),
            "hid_channels": (12,),
            "hid_blocks": (1,),
            "halo": 1,
        },
        "optimisation": {
            "steps": 8,
            "batch": 4,
            "accumulate": 2,
            "precision": "float32",
            "warmup": 2,
            "log_every": 4,
            "learning_rate": 1e-4,
        },
    }
    values["optimisation"] |= changes
    return AutoencoderTraining.model_validate(values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    parts = torch.load(folder / "last.pt", weights_only=True)["parts"]
    return {f"{i}.{k}": v for i in (0, 1) for k, v in parts[i].items()}


def assert_same(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_an_interrupted_autoencoder_run_ends_where_an_uninterrupted_one_does(
    store, cache, tmp_path
):
    train_autoencoder(autoencoder_config(store, cache), tmp_path / "whole")
    config = autoencoder_config(store, cache, save_minutes=0.0)
    with pytest.raises(Interrupted):
        train_autoencoder(config, tmp_path / "parts", stop_at(4))
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"] == 4
    train_autoencoder(config, tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_commands_answer_programs_with_json_alone(store, cache, tmp_path):
    config = autoencoder_config(store, cache, steps=4)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = ["autoencoder", "--config", str(tmp_path / "a.yaml"), str(tmp_path / "run")]
    plain = CliRunner().invoke(train.app, command)
    assert plain.exit_code == 0 and "step 4/4" in plain.stdout
    done = CliRunner().invoke(train.app, [*command, "--set", "optimisation.steps=8", "--json"])
    assert done.exit_code == 0 and "step 8/8" in done.stderr
    answer = json.loads(done.stdout)
    assert torch.load(answer["checkpoint"], weights_only=True)["step"] == 8


def test_training_lowers_the_reconstruction_error_and_writes_metrics(store, cache, tmp_path):
    config = autoencoder_config(store, cache, steps=60, log_every=10, learning_rate=2e-3)
    train_autoencoder(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    errors = [float(line.split('"rmse": ')[1].split(",")[0].rstrip("}")) for line in lines]
    assert errors[-1] < 0.9 * errors[0]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_a_second_run_of_the_decoder_keeps_the_encoder_and_raises_the_damped_power(
    store, cache, tmp_path
):
    first = autoencoder_config(store, cache)
    train_autoencoder(first, tmp_path / "both")
    second = first.model_copy(
        update={
            "decoder_of": tmp_path / "both",
            "amplitude_weight": 1.0,
            "spectral_largest": 3,
            "optimisation": first.optimisation.model_copy(
                update={"steps": 40, "learning_rate": 2e-3}
            ),
        }
    )
    train_autoencoder(second, tmp_path / "decoder")
    before, after = load_autoencoder(tmp_path / "both"), load_autoencoder(tmp_path / "decoder")
    for name, value in before.encoder.state_dict().items():
        assert torch.equal(value, after.encoder.state_dict()[name]), name
    data = first.data
    states = torch.tensor(data.states(data.open(), "train", 1).array).float()
    whole = [i for i, c in enumerate(channels(LEVELS)) if c.variable != "sea_surface_temperature"]
    wanted, deviations = power_spectrum(states, GRID).mean(0)[whole, 1:4], []
    for model in (before, after):
        with torch.no_grad():
            found = power_spectrum(model.decode(model.encode(states)), GRID).mean(0)[whole, 1:4]
        held = wanted > 1e-6
        deviations.append(float((found[held] / wanted[held] - 1).square().mean()))
    assert deviations[1] < deviations[0]


@pytest.mark.parametrize("prior", [None, {"modes": 4, "dense": 6, "blankets": 40}])
def test_an_interrupted_denoiser_run_ends_where_an_uninterrupted_one_does(
    store, cache, tmp_path, prior
):
    data = autoencoder_config(store, cache)
    train_autoencoder(data, tmp_path / "ae")
    optimisation = data.optimisation.model_dump() | {"save_minutes": 0.0}
    config = denoiser_training(data, tmp_path / "ae", prior=prior, optimisation=optimisation)
    train_denoiser(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_denoiser(config, tmp_path / "parts", stop_at(3))
    train_denoiser(config, tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_refuses_another_configuration(store, tmp_path):
    TrainingRun(tmp_path / "run", autoencoder_config(store, tmp_path))
    TrainingRun(tmp_path / "run", autoencoder_config(store, tmp_path, steps=99))
    with pytest.raises(ConfigurationError, match=r"optimisation\.batch"):
        TrainingRun(tmp_path / "run", autoencoder_config(store, tmp_path, batch=5))


def test_statistics_are_those_of_the_fields_weighted_by_area(store):
    reader = StateStore(str(store), channels(LEVELS))
    found = channel_statistics(reader, range(0, len(reader), 6), GRID, count=10_000)
    states = reader.read(slice(None, None, 6)).astype(np.float64)
    weight = np.broadcast_to(GRID.area_weights[:, None], states.shape)
    for c in range(len(reader.channels)):
        seen = np.isfinite(states[:, c])
        mean = np.average(states[:, c][seen], weights=weight[:, c][seen])
        variance = np.average((states[:, c][seen] - mean) ** 2, weights=weight[:, c][seen])
        assert found.mean[c] == pytest.approx(mean, rel=1e-9)
        assert found.std[c] == pytest.approx(variance**0.5, rel=1e-6)
    standardised = found.standardise(reader.read([0]))
    assert np.all(standardised[0, 4][:, :4] == 0)


def test_a_store_without_what_is_asked_says_all_that_is_missing(store):
    with pytest.raises(InvalidInput, match=r"missing levels \(hPa\): 700"):
        StateStore(str(store), channels((500, 700)))
    with pytest.raises(InvalidInput, match="8 x 16"):
        StateStore(str(store), channels(LEVELS)).check_grid(Grid("t31", "gaussian", 48, 96))
    with pytest.raises(InvalidInput, match="absent"):
        StateStore(str(store.parent / "absent.zarr"), channels(LEVELS))


def test_rows_leave_from_north_to_south_whatever_the_order_of_the_store(store, tmp_path):
    dataset = xr.open_zarr(store, chunks=None)
    turned = dataset.isel(latitude=slice(None, None, -1)).transpose(..., "longitude", "latitude")
    for variable in turned.variables.values():
        variable.encoding.clear()
    turned.to_zarr(tmp_path / "turned.zarr", zarr_format=2, consolidated=True)
    a = StateStore(str(store), channels(LEVELS))
    b = StateStore(str(tmp_path / "turned.zarr"), channels(LEVELS))
    np.testing.assert_array_equal(a.read([3]), b.read([3]))
    b.check_grid(GRID)


def test_periods_must_lie_apart():
    period = {"start": "2000-01-01", "end": "2001-01-01"}
    later = {"start": "2001-01-05", "end": "2002-01-01"}
    last = {"start": "2003-01-01", "end": "2004-01-01"}
    with pytest.raises(ValidationError, match=r"10\.0 days between the train and validation"):
        Splits(train=period, validation=later, test=last)


def test_a_split_may_have_several_periods_around_another():
    before = {"start": "2000-01-01", "end": "2001-01-01"}
    after = {"start": "2004-01-01", "end": "2005-01-01"}
    splits = Splits(
        train=[before, after],
        validation={"start": "2001-02-01", "end": "2001-03-01"},
        test={"start": "2002-01-01", "end": "2003-01-01"},
    )
    assert splits.bounds("train")[1] == ("2004-01-01T00:00:00", "2005-01-01T00:00:00")
    with pytest.raises(ValidationError, match=r"between the test and train periods"):
        Splits(
            train=[before, after],
            validation={"start": "2001-02-01", "end": "2001-03-01"},
            test={"start": "2002-01-01", "end": "2003-12-31"},
        )


def test_states_of_several_periods_are_cached_one_after_another(store, tmp_path):
    config = autoencoder_config(store, tmp_path / "cache").data
    days = [
        {"start": "2000-01-01", "end": "2000-01-02"},
        {"start": "2000-01-04", "end": "2000-01-05"},
    ]
    splits = Splits(**(config.splits.model_dump() | {"train": days}))
    data = config.model_copy(update={"splits": splits})
    reader = data.open()
    cached = data.states(reader, "train", 5)
    hours = [0, 5, 10, 15, 20, 72, 77, 82, 87, 92]
    start = np.datetime64("2000-01-01T00", "h")
    np.testing.assert_array_equal(cached.times, start + np.array(hours).astype("timedelta64[h]"))
    expected = data.statistics(reader).standardise(reader.read(hours))
    np.testing.assert_allclose(cached.array[:], expected, atol=2e-3)


def test_a_real_reanalysis_state_is_read(realdata_dir):
    path = realdata_dir / "reanalysis" / "neuralgcm__era5_tl31_19590102T00.nc"
    wanted = [c for c in channels((500, 850)) if c.variable in ("temperature", "geopotential")]
    reader = StateStore(str(path), wanted)
    state = reader.read(slice(None))
    assert state.shape == (1, 4, 32, 64)
    assert reader.latitude[0] > 85
    # January: the north pole is colder than the equator, geopotential at 500 hPa near 5500 m.
    assert state[0, 0, 0].mean() < state[0, 0, 16].mean() - 15
    assert 4800 < state[0, 2].mean() / 9.80665 < 5900
