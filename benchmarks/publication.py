"""Seconds to publish a result: in the data folder, and in a bucket at some distance.

    python -m benchmarks.publication [--results 10] [--delays 0,20,100] [--json]

A result has the files of one of appa-t31: 2.2, 1.5 and 0.6 MB and four small ones. The bucket is the server
of the tests (moto, in this process), which does one request at a time; `--delays` are milliseconds
that each request waits before, as on the way to a bucket elsewhere.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.objects.s3_server import S3Server
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, describe_file
from worker.results.publication import write_manifest
from worker.results.store import result_store

TIME = datetime(2025, 1, 1, tzinfo=UTC)
FILES = {
    "a.nc": 2_200_000,
    "restart.safetensors": 1_500_000,
    "bg.nc": 600_000,
    "obsfb.parquet": 90_000,
    "ioda.nc": 90_000,
    "ql.png": 60_000,
    "verification.parquet": 12_000,
}


def stage(layout: Layout, name: str) -> Path:
    """Write a finished folder, as a worker leaves it."""
    folder = layout.staging(name, 1)
    folder.mkdir()
    for file, size in FILES.items():
        (folder / file).write_bytes(os.urandom(size))
    files = [describe_file(folder / file) for file in FILES]
    manifest = AnalysisManifest(
        id=name, job_id="job-x", kind="filtering", valid_time=TIME, times=[TIME], files=files,
        members=1, spec=FilteringSpec(valid_time=TIME), flavour="final",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def publish(layout: Layout, count: int) -> dict[str, float]:
    """Seconds from a finished folder to a visible result: median and longest."""
    seconds, store = [], result_store(layout)
    for number in range(count):
        name = f"an-{number}"
        folder = stage(layout, name)
        began = time.perf_counter()
        store.prepare(folder)
        store.publish(folder, name)
        seconds.append(time.perf_counter() - began)
    return {"median_s": statistics.median(seconds), "max_s": max(seconds)}


def measure(folder: Path, count: int, delays: list[float]) -> dict[str, dict[str, float]]:
    """Return median and longest time of a publication, to the data folder and by delay of a bucket."""
    lines = {"data folder": publish(Layout(folder / "plain").create(), count)}
    server = S3Server()
    os.environ |= server.environment
    try:
        for delay in delays:

            def wait(_method: str, _path: str, seconds: float = delay / 1e3) -> None:
                time.sleep(seconds)

            server.meddle = wait
            url = f"{server.url}{delay:g}"
            layout = Layout(folder / f"bucket-{delay:g}", url).create()
            lines[f"bucket, {delay:g} ms a request"] = publish(layout, count)
    finally:
        server.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=10)
    parser.add_argument("--delays", default="0,20,100", help="Milliseconds, comma-separated.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        delays = [float(text) for text in arguments.delays.split(",")]
        lines = measure(Path(folder), arguments.results, delays)
    lines["machine"] = {"cores": float(os.cpu_count() or 0), "load": os.getloadavg()[0]}
    if arguments.json:
        print(json.dumps(lines))
        return
    table = Table("where", "figures", title="Publication of a result of 4.6 MB in 7 files")
    for name, figures in lines.items():
        table.add_row(
            name, "  ".join(f"{k.replace('_', ' ')} {v:,.3f}" for k, v in figures.items())
        )
    Console().print(table)


if __name__ == "__main__":
    main()
