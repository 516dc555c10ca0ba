"""One analysis by the released networks on a grid of 1 degree, through the service, on a CPU.

Networks of the released depth and width with random weights are written as run folders of the
authors' layout, imported with `appa checkpoint import`, and served by the one-machine stack. Two
surface temperatures of every station of the synthetic network are uploaded, a filtering job is
run, and its NetCDF is fetched and read. Fields mean nothing; what is shown is that it works, how
long each part takes, and that memory is what `benchmarks.released_cost` computes.

Computed is the model worker's memory during the job: its libraries, which a process that loads
them alone is asked for, and the peak of one guided evaluation of these networks and observations.
Measured is the largest resident memory from the moment the stack is ready. The allocator of C is
told to return blocks of a megabyte and more when they are freed, so that what the model's first run
left behind is not counted.

    python -m benchmarks.released_run [--hours 3] [--steps 2] [--iterations 1] [--json]
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
import xarray as xr
import yaml

from benchmarks.denoiser_flops import CONFIGS
from benchmarks.job_overhead import run_job, wait
from benchmarks.observing_network import Place, observed_places
from benchmarks.released_cost import GIB, AveragedPoints, Released, columns_of, evaluate
from deploy.local import LocalStack, StackOptions, python_command
from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.card import CARD_NAME, RecommendedCard, read_card, write_card
from model.domain.variables import ATMOSPHERIC, LEVELS_ERA5_13, SURFACE
from worker.contract.records import utc_now
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext

NAME = "released-1deg"
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
OBSERVED, MEAN, STD = "2m_temperature", 285.0, 15.0
LIBRARIES = """
import os
import worker.loaded_models, worker.pipeline.assimilation, worker.process, worker.tasks
from benchmarks.released_run import peak_bytes
print(peak_bytes(os.getpid()))
"""
"""Imports what the model worker does before it loads a checkpoint."""
READY_SECONDS = 1800.0
ENVIRONMENT = {"APPA_PRECISION": "float32", "MALLOC_MMAP_THRESHOLD_": str(2**20)}


def write_runs(root: Path) -> None:
    """Write run folders of the authors' layout, with random weights."""
    autoencoder, backbone = CONFIGS[NAME]
    torch.manual_seed(0)
    run = root / "autoencoders" / "run0" / "latents" / "dump0"
    vit = run / "denoisers" / "run0"
    vit.mkdir(parents=True)
    (run / "ae").mkdir()
    names = ("shape", "resize", "lat_channels", "hid_channels", "hid_blocks", "saturation")
    ae = {name: _plain(getattr(autoencoder, name)) for name in names}
    texts = {
        run / "ae": {"ae": ae, "train": {"sub_pressure_levels": True}},
        vit: {
            "backbone": {"arch": "vit", "hid_channels": backbone.hid_channels},
            "train": {"blanket_size": backbone.blanket_size, "blanket_dt": 1},
        },
    }
    for folder, text in texts.items():
        (folder / "config.yaml").write_text(yaml.safe_dump(text))
    torch.save(Autoencoder(autoencoder).state_dict(), run / "ae" / "model.pth")
    torch.save(Backbone(backbone).state_dict(), vit / "model_best.pth")
    channels = autoencoder.lat_channels
    torch.save({"mean": torch.zeros(channels), "std": torch.ones(channels)}, run / "stats.pth")
    store = xr.Dataset(coords={"statistic": ["mean", "std"], "level": list(LEVELS_ERA5_13)})
    for name in SURFACE:
        store[name] = "statistic", [MEAN, STD] if name == OBSERVED else [0.0, 1.0]
    for name in ATMOSPHERIC:
        store[name] = ("statistic", "level"), [[0.0] * 13, [1.0] * 13]
    store.to_zarr(root / "statistics.zarr", consolidated=True, zarr_format=2)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def import_bundle(runs: Path, bundle: Path, iterations: int) -> None:
    """Import the run folders as a user would, and recommend so many solver iterations."""
    command = ("appa", "checkpoint", "import", str(runs), str(bundle), "--name", NAME)
    subprocess.run(python_command(command), check=True, capture_output=True)
    card = read_card(bundle / CARD_NAME)
    guidance = {"method": "mmps", "iterations": iterations}
    recommended = RecommendedCard(guidance=guidance)
    write_card(card.model_copy(update={"recommended": recommended}), bundle / CARD_NAME)


def stations(hour: int) -> Place:
    """Return where stations observe in an hour; each reports one value."""
    place = next(place for place in observed_places(hour) if place.surface)
    return Place(place.lat, place.lon, 1, surface=True)


def observations(hours: int) -> bytes:
    """Return the reports of the hours that end at noon."""
    places = [stations(hour) for hour in range(hours)]
    count = [len(place.lat) for place in places]
    first = np.datetime64((NOON - timedelta(hours=hours - 1)).replace(tzinfo=None), "ns")
    values = MEAN + np.random.default_rng(0).normal(size=sum(count))
    table = build_table(
        DecodeContext(batch_id="benchmark", received_time=utc_now()),
        sum(count),
        report_type="synop",
        station_id=[f"{i:05d}" for i in range(sum(count))],
        time=first + np.repeat(np.arange(hours), count) * np.timedelta64(1, "h"),
        lat=np.concatenate([place.lat for place in places]),
        lon=np.concatenate([place.lon for place in places]),
        elevation=0.0,
        vertical_kind="surface",
        variable=OBSERVED,
        obs_value=values,
    )
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory of a process since it began or was reset."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def library_bytes() -> int:
    """Return the resident memory of a process that imports what the model worker does."""
    command = (sys.executable, "-c", LIBRARIES)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def computed(hours: int, iterations: int) -> tuple[int, float]:
    """Return peak bytes and TFLOP of one guided evaluation of these networks and observations."""
    model = Released("float32", NAME)
    seen = AveragedPoints(
        [columns_of([stations(h)], model.shape) for h in range(hours)], model.shape
    )
    budget = psutil.virtual_memory().total // 2
    storages, _ = evaluate(model, seen, budget, iterations)
    return storages.peak, storages.operations / 1e12


def analysed(stack: LocalStack, arguments: argparse.Namespace) -> dict[str, Any]:
    """Upload, assimilate, fetch; return seconds by part, memory, and what the file holds."""
    pid = stack.supervisor.pid("model")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted anew
    before = peak_bytes(pid)
    body: dict[str, object] = {
        "valid_time": NOON.isoformat(),
        "window_hours": arguments.hours,
        "members": 1,
        "steps": arguments.steps,
        "background": "climatology",
        "outputs": ["netcdf"],
    }
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        answer = client.post("/v1/observations", content=observations(arguments.hours))
        uploaded = wait(client, answer.raise_for_status().headers["location"])
        parts, total = run_job(stack, client, body)
        listed = client.get("/v1/analyses").raise_for_status().json()["items"]
        address = f"/v1/analyses/{listed[0]['id']}"
        manifest = client.get(address).raise_for_status().json()
        (name,) = [f["name"] for f in manifest["files"] if f["name"].endswith(".nc")]
        content = client.get(f"{address}/{name}").raise_for_status().content
    with tempfile.NamedTemporaryFile(suffix=".nc") as file:
        Path(file.name).write_bytes(content)
        with xr.open_dataset(file.name) as fields:
            sizes = {str(k): int(v) for k, v in fields.sizes.items()}
            finite = all(bool(np.isfinite(v).all()) for v in fields.values() if v.dtype.kind == "f")
    return {
        "batch": uploaded["state"],
        "job_s": total,
        "parts_s": parts,
        "worker_gib": peak_bytes(pid) / GIB,
        "worker_ready_gib": before / GIB,
        "netcdf": {"mb": len(content) / 1e6, "sizes": sizes, "finite": finite},
        "memory": manifest.get("provenance", {}).get("memory"),
    }


def main() -> None:
    """Run the released networks at one degree and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=int, default=3, help="observed, and length of the window")
    parser.add_argument("--steps", type=int, default=2, help="diffusion steps")
    parser.add_argument("--iterations", type=int, default=1, help="of the solver")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder / "runs")
        began = time.perf_counter()
        import_bundle(folder / "runs", folder / NAME, arguments.iterations)
        imported = time.perf_counter() - began
        options = StackOptions(
            folder / "data",
            port=0,
            models=(str(folder / NAME),),
            quiet=True,
            environment=ENVIRONMENT,
            buckets=False,
        )
        began = time.perf_counter()
        with LocalStack(options) as stack:
            if not stack.wait_ready(READY_SECONDS):
                raise SystemExit((folder / "data" / "logs" / "appa.log").read_text())
            ready = time.perf_counter() - began
            found = analysed(stack, arguments)
    libraries = library_bytes()
    peak, tflop = computed(arguments.hours, arguments.iterations)
    expected = (libraries + peak) / GIB
    found |= {
        "import_s": imported,
        "ready_s": ready,
        "libraries_gib": libraries / GIB,
        "evaluation_gib": peak / GIB,
        "computed_gib": expected,
        "measured_over_computed": found["worker_gib"] / expected,
        "tflop_per_evaluation": tflop,
        "load": os.getloadavg(),
    }
    print(json.dumps(found, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
