"""`appa checkpoint`: what it prints, and how it exits."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.commands.checkpoint import app
from lab.parity import trajectories as parity

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
