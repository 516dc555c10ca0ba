"""docs/quarter-degree.md: every command, in order, on a tiny tree of the authors' layout."""

import os
import re
import shlex
import socket
import subprocess
import sys

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr

from model.checkpoints.bundle import load_checkpoint
from model.domain.variables import ATMOSPHERIC, LEVELS_ERA5_13, SURFACE
from tests.model.checkpoint_parts import write_layout
from tests.model.parity_folder import write_folder
from tests.warm_start import REPOSITORY, run_warm
from tests.worker.processes import wait_for
from tests.worker.tables import make_table

PAGE = (REPOSITORY / "docs" / "quarter-degree.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line
]
LAT, LON = np.linspace(90, -90, 9), np.arange(14) * 360 / 14


def write_states(path):
    """Three states of white noise, of which a tiny autoencoder loses much."""
    generator = np.random.default_rng(0)
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h"),
        "level": list(LEVELS_ERA5_13),
        "latitude": LAT,
        "longitude": LON,
    }
    flat, deep = ("time", "latitude", "longitude"), ("time", "level", "latitude", "longitude")
    shape = {d: len(v) for d, v in coords.items()}
    fields = {n: (flat, generator.normal(size=[shape[d] for d in flat])) for n in SURFACE}
    fields |= {n: (deep, generator.normal(size=[shape[d] for d in deep])) for n in ATMOSPHERIC}
    xr.Dataset(fields, coords).to_netcdf(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page takes for granted: the release, static fields, states, reports, a parity set."""
    folder = tmp_path_factory.mktemp("page")
    write_layout(folder / "appa-release")
    land = np.zeros((9, 14))
    land[2:5, 3:8] = 1.0
    dims = ("latitude", "longitude")
    fields = {"z": (dims, 4903.325 * land, {"units": "m**2 s**-2"}), "lsm": (dims, land)}
    xr.Dataset(fields, {"latitude": LAT, "longitude": LON}).to_netcdf(folder / "era5-static.nc")
    write_states(folder / "era5-states.nc")
    pq.write_table(make_table(10), folder / "reports.parquet")
    write_folder(folder / "parity-set")
    return folder


@pytest.fixture(scope="module")
def environment():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "client")))
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "APPA_PORT": str(port),
        "APPA_URL": f"http://127.0.0.1:{port}",
    }


def run(command, folder, environment):
    program, *words = shlex.split(command)
    if program == "python":
        _, *words = words  # -m
    else:
        words = ["deploy.cli", *words]
    return run_warm("model", words[0], words[1:], environment, folder=folder, timeout=240)


def of(*words):
    return [c for c in COMMANDS if shlex.split(c)[: len(words)] == list(words)]


def test_no_command_of_the_page_is_left_out():
    known = [
        *of("appa", "checkpoint"),
        *of("appa", "up"),
        *of("appa", "upload"),
        *of("appa", "submit"),
        *of("python", "-m", "benchmarks.released_cost"),
    ]
    assert sorted(known) == sorted(COMMANDS)
    assert len(COMMANDS) == 9


@pytest.fixture(scope="module")
def bundle(folder, environment):
    """The first three commands; what the import and `verify` print is checked here."""
    done = [run(c, folder, environment) for c in of("appa", "checkpoint")[:3]]
    assert [d.returncode for d in done] == [0, 0, 0], [d.stderr for d in done]
    imported, shown, verified = (d.stdout for d in done)
    lines = [line for line in imported.splitlines() if "appa-release" in line]
    taken = [line.split()[-2] for line in lines if line.endswith("taken")]
    dump = "appa-release/autoencoders/run0/latents/dump0"
    assert sorted(taken) == [
        f"{dump}/ae",
        f"{dump}/denoisers/run1",
        f"{dump}/stats.pth",
        "appa-release/stats_era5.zarr",
    ]
    assert any("masks.zarr" in line and "left: no dimension" in line for line in lines)
    assert "era5-static.nc" in shown and "era5-states.nc" in shown
    assert "valid" in verified and "without effect" not in verified
    return folder / "appa-0p25"


@pytest.mark.timeout(600)
def test_the_bundle_holds_what_the_autoencoder_loses(bundle, folder):
    model = load_checkpoint(bundle)
    assert model.inactive_features == ()
    assert float(model.static["orography"].max()) == pytest.approx(500.0)  # 4903.325 / 9.80665
    with xr.open_dataset(folder / "era5-states.nc") as states:
        t850 = states["temperature"].sel(level=850).values
        every = np.stack(
            [
                *(states[n].values for n in SURFACE),
                *(
                    states[n].sel(level=level).values
                    for n in ATMOSPHERIC
                    for level in LEVELS_ERA5_13
                ),
            ],
            axis=1,
        )
    channel = [c.name for c in model.channels].index("temperature_850hPa")
    assert np.array_equal(every[:, channel], t850)
    restored = model.decode(model.encode(torch.from_numpy(every))).numpy()[:, channel]
    expected = np.sqrt(((restored - t850) ** 2).mean(axis=(0, 2)))
    found = model.static["reconstruction_residual"][channel].numpy()
    assert np.allclose(found, expected, rtol=1e-4)


@pytest.mark.timeout(600)
def test_the_other_import_takes_other_weights(bundle, folder, environment):
    (command,) = [c for c in of("appa", "checkpoint", "import") if "last" in c]
    assert run(command, folder, environment).returncode == 0
    result = run(f"appa checkpoint verify {shlex.split(command)[4]}", folder, environment)
    assert "station heights" in result.stdout  # imported without static fields


@pytest.mark.timeout(600)
def test_parity_names_each_array_and_fails_on_a_set_of_placeholders(folder, environment):
    (command,) = of("appa", "checkpoint", "parity")
    result = run(command, folder, environment)
    assert result.returncode == 1
    assert re.search(r"^\d+ matched, \d+ missed", result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_table_of_memory_and_time_is_printed(folder, environment):
    (command,) = of("python", "-m", "benchmarks.released_cost")
    if (REPOSITORY / "benchmarks" / "released_cost.py").is_file():
        result = run(command, folder, environment)
        assert result.returncode == 0, result.stderr
        assert "bfloat16" in result.stdout


@pytest.fixture
def running(bundle, folder, environment):
    (command,) = of("appa", "up")
    log = (folder / "up.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *shlex.split(command)[1:]],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: "ready in" in (folder / "up.log").read_text(), 150)
        yield environment["APPA_URL"]
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@pytest.mark.timeout(600)
def test_from_start_to_analysis(running, folder, environment):
    capabilities = httpx.get(f"{running}/v1/capabilities", timeout=30).json()
    assert "dump0" in str(capabilities)
    assert "checks without effect" not in (folder / "up.log").read_text()
    for command in (*of("appa", "upload"), *of("appa", "submit")):
        result = run(command, folder, environment)
        assert result.returncode == 0, result.stdout + result.stderr
    grids = []
    for path in (folder / "results").rglob("*.nc"):
        with xr.open_dataset(path) as fetched:
            grids.append((fetched.sizes.get("latitude"), fetched.sizes.get("longitude")))
    assert (9, 14) in grids
