"""`appa checkpoint`: what it prints, and how it exits."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from deploy.commands.checkpoint import app
from lab.parity import trajectories as parity
from model.checkpoints.bundle import load_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
from checkpoint_parts import write_layout, write_run
from parity_folder import write_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("import")
    write_run(root / "run")
    result = CliRunner().invoke(
        app, ["import", str(root / "run"), str(root / "bundle"), "--licence", "MIT", "--json"]
    )
    assert result.exit_code == 0, result.output
    card = json.loads(result.output)
    assert (card["licence"], card["blanket"]["size"]) == ("MIT", 6)
    return root / "bundle"


def test_show_prints_the_card(bundle):
    result = CliRunner().invoke(app, ["show", str(bundle)])
    assert result.exit_code == 0
    assert "regular, 9 x 14" in result.output
    card = json.loads(CliRunner().invoke(app, ["show", str(bundle), "--json"]).output)
    assert card["files"].keys() == {"autoencoder", "backbone", "statistics"}


def test_verify_accepts_a_whole_bundle_and_names_what_is_wrong(bundle):
    assert CliRunner().invoke(app, ["verify", str(bundle)]).exit_code == 0
    path = bundle / "statistics.safetensors"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    try:
        result = CliRunner().invoke(app, ["verify", str(bundle), "--json"])
    finally:
        path.write_bytes(content)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["code"] == "checkpoint_error"
    assert found["file"] == str(path)


def test_import_lists_what_it_found_and_names_the_option_where_two_remain(tmp_path):
    write_layout(tmp_path / "run")
    arguments = ["import", str(tmp_path / "run"), str(tmp_path / "new"), "--json"]
    card = json.loads(CliRunner().invoke(app, arguments).output)
    taken = {Path(f["path"]).name for f in card["found"] if f["taken"]}
    assert taken == {"ae", "run1", "stats.pth", "stats_era5.zarr"}
    assert {Path(f["path"]).name: f["why"] for f in card["found"] if not f["taken"]} == {
        "run0": "no weights (model*.pth)",
        "masks.zarr": "no dimension 'statistic'",
    }
    shutil.copytree(tmp_path / "run" / "stats_era5.zarr", tmp_path / "run" / "other.zarr")
    arguments[2] = str(tmp_path / "second")
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["option"] == "--state-statistics"
    chosen = ["--state-statistics", str(tmp_path / "run" / "other.zarr")]
    assert CliRunner().invoke(app, [*arguments, *chosen]).exit_code == 0


def test_importing_nothing_is_explained(tmp_path):
    result = CliRunner().invoke(app, ["import", str(tmp_path), str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "Expected one autoencoder" in result.stderr
    assert not (tmp_path / "new").exists()


def test_parity_counts_in_its_last_line_and_fails_on_a_miss(tmp_path, monkeypatch):
    chosen = tuple(f for f in parity.FAMILIES if f.pattern.startswith(("layer", "masks")))
    monkeypatch.setattr(parity, "FAMILIES", chosen)
    write_folder(tmp_path)
    result = CliRunner().invoke(app, ["parity", str(tmp_path), "--only", "float32"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    matched, missed = (
        sum(f"  {word} " in line for line in lines) for word in ("matched", "missed")
    )
    assert lines[-1] == f"{matched} matched, {missed} missed, 0 not carried"
    assert matched >= 2
    document = json.loads(
        CliRunner().invoke(app, ["parity", str(tmp_path), "--only", "float32", "--json"]).output
    )
    assert (document["matched"], document["missed"]) == (matched, missed)
    assert len(document["arrays"]) == len(lines) - 1


def test_parity_of_a_recording_exits_with_zero(parity_dir, monkeypatch):
    chosen = tuple(f for f in parity.FAMILIES if f.pattern.startswith(("layer", "date", "sched")))
    monkeypatch.setattr(parity, "FAMILIES", chosen)
    names = ("layer.", "date.", "sched.")
    load = parity.ParityCase

    def only_layers(folder, dtype):
        case = load(folder, dtype)
        case.outputs = {k: v for k, v in case.outputs.items() if k.startswith(names)}
        return case

    monkeypatch.setattr(parity, "ParityCase", only_layers)
    result = CliRunner().invoke(app, ["parity", str(parity_dir)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "18 matched, 0 missed, 0 not carried"


def test_weigh_puts_weighting_functions_beside_the_weights(bundle, tmp_path):
    target = tmp_path / "new"
    arguments = ["weigh", str(bundle), str(target), "--sensor", "amsu-a", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    channels = {c["channel"]: c for c in json.loads(result.stdout)["channels"]}
    assert channels[14]["left_out"].endswith("within the levels of the model")  # peaks at 2 hPa
    model = load_checkpoint(target)
    found = model.statics.weighting_functions
    assert ("amsu-a", 14) not in found and ("amsu-a", 6) in found
    weights = found["amsu-a", 6]
    assert weights.sum() == pytest.approx(1.0, abs=1e-6)
    assert model.card.levels[int(weights.argmax())] == 400
    before = load_checkpoint(bundle).autoencoder.state_dict()
    assert all((before[k] == v).all() for k, v in model.autoencoder.state_dict().items())
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1 and json.loads(again.stdout)["code"] == "checkpoint_error"


def test_weigh_fits_what_a_sounder_saw_above_known_states(bundle, tmp_path):
    """Temperatures drawn at random, brightness temperatures by known weights: they come back."""
    model = load_checkpoint(bundle)
    levels, generator = list(model.card.levels), np.random.default_rng(0)
    times = np.datetime64("2024-01-01T00") + np.arange(6) * np.timedelta64(1, "h")
    latitude, longitude = model.grid.latitude, model.grid.longitude
    shape = (len(times), len(levels), len(latitude), len(longitude))
    states = xr.Dataset(
        coords={"time": times, "level": levels, "latitude": latitude, "longitude": longitude}
    )
    for variable in dict.fromkeys(c.variable for c in model.channels):
        upper = any(c.variable == variable and c.level for c in model.channels)
        size, dims = (shape, 4) if upper else ((shape[0], *shape[2:]), 3)
        names = (
            ("time", "level", "latitude", "longitude")
            if dims == 4
            else ("time", "latitude", "longitude")
        )
        states[variable] = (names, 250.0 + 5.0 * generator.normal(size=size).astype(np.float32))
    states.to_netcdf(tmp_path / "states.nc")
    true = np.zeros(len(levels))
    true[[levels.index(300), levels.index(500), levels.index(700)]] = 0.3, 0.5, 0.2
    seen = np.tensordot(true, states["temperature"].values, (0, 1)) + 0.8
    rows = [
        "time,lat,lon,report_type,station_id,platform,vertical_kind,vertical,variable,obs_value"
    ]
    for t, y, x in np.ndindex(seen.shape):
        place = f"{times[t]}:10Z,{latitude[y]:.10f},{longitude[x]:.10f}"
        rows.append(
            f"{place},satellite,sat003,amsu-a,channel,6,brightness_temperature,{seen[t, y, x]:.5f}"
        )
    (tmp_path / "seen.csv").write_text("\n".join(rows).replace(":10Z", ":10:00Z"))
    target = tmp_path / "new"
    result = CliRunner().invoke(
        app,
        ["weigh", str(bundle), str(target), "--observations", str(tmp_path / "seen.csv"),
         "--states", str(tmp_path / "states.nc"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (channel,) = json.loads(result.stdout)["channels"]
    assert (channel["sensor"], channel["channel"], channel["profiles"]) == ("amsu-a", 6, seen.size)
    weights = load_checkpoint(target).statics.weighting_functions["amsu-a", 6]
    # Without noise in the measurements the prior holds nothing back.
    assert weights == pytest.approx(true, abs=1e-3)
    assert channel["bias_k"] == pytest.approx(0.8, abs=0.1)


def test_weigh_wants_observations_and_states_together(bundle, tmp_path):
    result = CliRunner().invoke(
        app, ["weigh", str(bundle), str(tmp_path / "x"), "--states", "a.nc"]
    )
    assert result.exit_code == 2 and "or neither" in result.output
