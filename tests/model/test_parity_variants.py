"""Recordings with other grids, step counts and dates: read from the set, or named as not compared."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from deploy.commands.checkpoint import app
from lab.parity import trajectories as parity
from lab.parity.case import ParityCase
from lab.parity.trajectories import FAMILIES, compare_folder

KEPT = ("samp.grid8", "samp.ddim", "traj.date")
LOW, HIGH = 0.02, 40.0


@pytest.fixture
def variant(parity_dir, tmp_path, monkeypatch):
    """A copy of the set, and only the families of grids, dates and unguided samplers."""
    folder = tmp_path / "variant"
    shutil.copytree(parity_dir, folder)
    chosen = tuple(f for f in FAMILIES if any(parity.re.fullmatch(f.pattern, n) for n in KEPT))
    monkeypatch.setattr(parity, "FAMILIES", chosen)
    return folder


def configure(folder, **changes):
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for section, values in changes.items():
        whole["cfg"][section] = {**whole["cfg"].get(section, {}), **values}
        whole["cfg"][section] = {k: v for k, v in whole["cfg"][section].items() if v is not None}
    path.write_text(json.dumps(whole))


def record(folder, arrays, only=None):
    """Put arrays into both recordings; drop the sampler runs that are not among them."""
    for file, dtype in (("golden", torch.float32), ("golden_f64", torch.float64)):
        path = folder / f"{file}.safetensors"
        held = {k: v for k, v in load_file(path).items() if only is None or k in only}
        for name, value in arrays.items():
            value = torch.as_tensor(np.asarray(value))
            held[name] = value.to(dtype) if value.is_floating_point() else value
        save_file({k: v.contiguous().clone() for k, v in held.items()}, path)


def status(folder, run="float32"):
    return {o.name: (o.status, o.note) for o in compare_folder(folder, [run])}


def rectified(t):
    """The authors' schedule in numpy, float32 where t is."""
    low, high = (np.asarray(v, dtype=t.dtype) for v in (LOW, HIGH))
    return (t + (1 - t) * low) / (t * (1 / high - 1) + 1)


@pytest.mark.parametrize("run", ["float32", "float64"])
def test_grids_levels_and_dates_of_another_set_match(variant, run):
    configure(
        variant,
        schedule={"sigma_min": LOW, "sigma_max": HIGH},
        trajectory={"start": [2019, 12, 30, 22], "start_hour": None, "dt_hours": 3},
    )
    eight, three = (np.linspace(1, 0, n + 1, dtype=np.float32) for n in (8, 3))
    days = [(2019, 12, 30, 22)] + [
        (2019, 12, 31, h) if h < 24 else (2020, 1, 1, h - 24) for h in range(1, 34, 3)
    ]
    arrays = {
        "samp.grid3": three,
        "samp.grid8": eight,
        "samp.grid8.t": eight[:, None],
        "samp.grid8.sigma": rectified(eight),
        "samp.lms8.sigma": rectified(eight),
        "samp.sigma_max": rectified(np.ones((), dtype=np.float32)),
        "samp.sigma_min": np.float32(LOW),
        "traj.date": torch.tensor([days]),
    }
    record(variant, arrays, only=())
    found = status(variant, run)
    assert {name: found[name] for name in arrays} == dict.fromkeys(arrays, ("matched", ""))


def test_a_grid_of_other_values_or_another_day_is_missed(variant):
    configure(variant, trajectory={"start": "2020-02-28T18:00", "start_hour": None})
    grid = np.linspace(1, 0, 9, dtype=np.float32)
    record(variant, {"samp.grid8": grid**2, "samp.grid4": grid, "samp.lms8.sigma": 2 * grid})
    found = status(variant)
    assert found["samp.grid8"][0] == "missed"
    assert found["samp.grid4"] == ("missed", "shape (5,) instead of (9,)")
    assert found["samp.lms8.sigma"][0] == "missed"
    assert found["traj.date"] == ("matched", "")


def ddim(folder, steps):
    """The deterministic sampler written out: towards the denoised state in proportion to sigma."""
    case = ParityCase(folder, torch.float32)
    t = torch.linspace(1, 0, steps + 1)
    sigma = (t + (1 - t) * 0.001) / (t * (1 / 1000 - 1) + 1)
    x = sigma[0] * case.blankets(case.array("samp.x1_unit"))
    with torch.no_grad():
        for now, then in zip(sigma, sigma[1:], strict=False):
            clean = case.denoise(x, now, case.dates[:1])
            x = clean + then / now * (x - clean)
    return case.flat(x)


INPUTS = ("samp.x1_unit", "vit.date", "samp.ddpm.noise")


def test_the_number_of_steps_is_what_the_configuration_says(variant):
    record(variant, {"samp.ddim": ddim(variant, 5)}, only=INPUTS)
    assert status(variant)["samp.ddim"][0] == "missed"  # eight draws of another run say eight
    configure(variant, samplers={"steps": 5})
    assert status(variant)["samp.ddim"] == ("matched", "")
    configure(variant, samplers={"steps": 8, "ddim": {"steps": 5}})
    assert status(variant)["samp.ddim"] == ("matched", "")


def test_what_cannot_be_compared_is_named_and_fails(variant):
    configure(variant, trajectory={"start": None})
    record(
        variant,
        {
            "samp.ddim": ddim(variant, 5),
            "samp.grid8": np.linspace(1, 0, 9),
            "traj.date": torch.zeros(1, 12, 4, dtype=torch.int64),
        },
        only=INPUTS[:2],
    )
    found = status(variant)
    assert found["samp.ddim"][0] == found["traj.date"][0] == "not compared"
    assert "samplers.steps" in found["samp.ddim"][1]
    assert "trajectory.start" in found["traj.date"][1]
    arguments = ["parity", str(variant), "--only", "float32"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.endswith("0 missed, 0 not carried, 2 not compared (samp.ddim, traj.date)")
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert sorted(document["not_compared"]) == ["samp.ddim", "traj.date"]


def test_a_miss_names_the_settings_that_the_configuration_does_not_say(variant, parity_dir):
    runs = load_file(parity_dir / "golden.safetensors")
    spoilt = {
        "samp.rewind": runs["samp.rewind"] + 1,
        "samp.rewind.noise": runs["samp.rewind.noise"],
    }
    record(variant, spoilt, only=INPUTS[:2])
    assert "samplers.rewind.rewind_after (2)" in status(variant)["samp.rewind"][1]
    configure(variant, samplers={"rewind": {"rewind_after": 2, "jump": True}})
    assert status(variant)["samp.rewind"] == ("missed", "")


def test_two_hours_of_the_start_contradict(variant):
    configure(variant, trajectory={"start": "2020-02-28T06:00", "start_hour": 18})
    found = status(variant)["traj.date"]
    assert found == ("not compared", "config.json gives two hours of the start: 6 and 18")
