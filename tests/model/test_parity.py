"""Recorded outputs of the public implementation: matched, and misses noticed."""

import json
import shutil

import pytest
import torch
from parity_folder import write_folder
from safetensors.torch import load_file, save_file

from lab.parity import trajectories as parity
from lab.parity.case import split_numbers
from lab.parity.trajectories import FAMILIES, compare_folder
from model.domain.errors import CheckpointError

SLOW = ("mmps", "samp", "piece", "traj.mmps")


def statuses(outcomes):
    return {(o.name, o.run): o.status for o in outcomes}


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the families that guide, which take minutes in float64."""
    chosen = tuple(f for f in FAMILIES if not any(s in f.pattern for s in SLOW))
    monkeypatch.setattr(parity, "FAMILIES", chosen)


@pytest.fixture
def few(monkeypatch):
    """Only the families that the changed arrays belong to."""
    names = ("vit", "den", "ae", "sched", "date")
    chosen = tuple(
        f for f in FAMILIES if f.pattern.removeprefix("traj").strip("\\.").startswith(names)
    )
    monkeypatch.setattr(parity, "FAMILIES", chosen)


def is_quick(name):
    return not name.startswith(("mmps", "samp", "piece", "traj.mmps"))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_networks_schedules_solvers_orbits_and_trajectories_match(parity_dir, quick, precision):
    outcomes = [o for o in compare_folder(parity_dir, [precision]) if is_quick(o.name)]
    assert [o for o in outcomes if o.status == "missed"] == []
    assert {o.name for o in outcomes if o.status == "not carried"} == {
        "ae_periodic.decode",
        "vit_window.y",
        "w2c.s0.05",
        "w2c.s1.0",
        "w2c.s50.0",
    }
    assert sum(o.status == "matched" for o in outcomes) > 80


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_matches(parity_dir):
    outcomes = compare_folder(parity_dir)
    assert [o for o in outcomes if o.status == "missed"] == []
    recorded = set(load_file(parity_dir / "golden.safetensors"))
    assert {o.name for o in outcomes if o.run == "float32"} == recorded


@pytest.fixture
def copy(parity_dir, tmp_path):
    folder = tmp_path / "parity"
    folder.mkdir()
    for path in parity_dir.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def change(folder, file, function):
    path = folder / file
    arrays = load_file(path)
    function(arrays)
    save_file(arrays, path)


def test_a_small_change_of_weights_is_noticed(copy, few):
    def nudge(arrays):
        arrays["out_proj.bias"] += 1e-4

    change(copy, "tiny_backbone.safetensors", nudge)
    found = statuses(compare_folder(copy, ["float32"]))
    assert found["vit.y", "float32"] == "missed"
    assert found["vit.block0", "float32"] == "matched"
    assert found["ae.encode", "float32"] == "matched"


def test_a_changed_nan_or_unknown_array_is_missed(copy, few):
    def spoil(arrays):
        arrays["den.out.3"][0, 7] += 1e-3
        arrays["ae.decode"][0, 0, 0] = float("nan")
        arrays["novel.y"] = torch.zeros(3)
        arrays["vit_alt.y"] = arrays["vit_alt.y"][:, :-1].contiguous()

    change(copy, "golden.safetensors", spoil)
    outcomes = {o.name: o for o in compare_folder(copy, ["float32"])}
    for name in ("den.out.3", "ae.decode", "novel.y", "vit_alt.y"):
        assert outcomes[name].status == "missed", name
    assert outcomes["den.out.2"].status == "matched"
    assert "shape" in outcomes["vit_alt.y"].note
    assert "unknown" in outcomes["novel.y"].note


def test_noise_is_measured_where_no_file_tells_it(copy, few):
    (copy / "float_noise.json").unlink()
    kept = ("ae.", "vit.", "den.", "sched.")
    outcomes = [o for o in compare_folder(copy, ["float32"]) if o.name.startswith(kept)]
    assert [o for o in outcomes if o.status == "missed"] == []


def test_another_trajectory_start_and_number_of_cases_are_read(copy, few):
    config = json.loads((copy / "config.json").read_text())
    sizes = next(v for v in config.values() if isinstance(v, dict) and "ae" in v)
    sizes["trajectory"]["start"] = "2020-02-27"
    (copy / "config.json").write_text(json.dumps({"renamed": sizes, "orbits": config["orbits"]}))

    def fewer(arrays):
        for name in [n for n in arrays if n.startswith(("sched.", "orbit.1", "orbit.2"))]:
            if name != "sched.t":
                arrays.pop(name)
        t = arrays["sched.t"].double()
        arrays["sched.loglinear.0.5.2.0"] = (0.5 * 4**t).float()[:, None].contiguous()

    change(copy, "golden.safetensors", fewer)
    found = statuses(compare_folder(copy, ["float32"]))
    assert found["traj.date", "float32"] == "missed"
    assert found["sched.loglinear.0.5.2.0", "float32"] == "matched"
    assert ("orbit.1", "float32") not in found


def test_a_folder_without_weights_is_explained(copy, few):
    (copy / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="sections 'ae' and 'backbone'"):
        compare_folder(copy)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.001.1000.0", (0.001, 1000.0)),
        ("0.02.80.0", (0.02, 80.0)),
        ("1e-05.80.0", (1e-5, 80.0)),
        ("0.5.2.0", (0.5, 2.0)),
    ],
)
def test_two_numbers_in_a_name(text, numbers):
    assert split_numbers(text) == numbers


def test_every_family_runs_at_other_sizes(tmp_path):
    write_folder(tmp_path)
    outcomes = compare_folder(tmp_path)
    compared = [o for o in outcomes if o.status in ("matched", "missed")]
    assert len(compared) > 90
    # Placeholders do not match, but each must have been compared: an error and no excuse.
    assert [o for o in compared if o.error is None] == []
    matched = {o.name for o in compared if o.status == "matched"}
    assert {"layer.rope.q_out", "lin.y.scalar", "masks.variable_1_2"} & matched == {
        "layer.rope.q_out",
        "lin.y.scalar",
    }
