"""What a job costs beyond the model: from POST to a visible result, by phase.

    python -m benchmarks.job_overhead --model CHECKPOINT [--jobs 10] [--json]

Starts the one-machine stack on a free port with a data folder of its own, uploads a handful of
observations, and runs filtering jobs one after another. Times come from the ids of the events,
which the server stamps in milliseconds.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from deploy.local import LocalStack, StackOptions
from worker.contract.jobs import JobRecord
from worker.contract.records import utc_now
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext

NOON = "2024-01-01T12:00:00Z"
MODEL_PHASES = ("background", "sampling")


def observations() -> bytes:
    """Twenty stations at noon."""
    count = 20
    table = build_table(
        DecodeContext(batch_id="benchmark", received_time=utc_now()),
        count,
        report_type="synop",
        station_id=[f"{i:05d}" for i in range(count)],
        time=np.datetime64(NOON.removesuffix("Z"), "ns"),
        lat=np.linspace(-60.0, 60.0, count),
        lon=np.linspace(-170.0, 170.0, count),
        elevation=0.0,
        vertical_kind="surface",
        variable="2m_temperature",
        obs_value=np.full(count, 285.0),
    )
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def wait(address: str) -> dict:
    """The record once it has reached its end."""
    while True:
        record = httpx.get(address, timeout=30).json()
        if record["state"] in ("ingested", "succeeded", "failed", "rejected", "cancelled"):
            return record
        time.sleep(0.005)


def run_job(stack: LocalStack, members: int, outputs: list[str]) -> dict[str, float]:
    """Seconds by phase of one job, and from POST to the manifest being served."""
    body = {"kind": "filtering", "valid_time": NOON, "members": members, "outputs": outputs}
    started = time.perf_counter()
    answer = httpx.post(f"{stack.url}/v1/jobs", json=body, timeout=30)
    if answer.status_code != 202:
        raise SystemExit(f"not accepted: {answer.text}")
    record = wait(stack.url + answer.headers["location"])
    if record["state"] != "succeeded":
        raise SystemExit(f"job failed: {record['error']}")
    httpx.get(f"{stack.url}/v1/analyses/{record['analysis_id']}", timeout=30).raise_for_status()
    total = time.perf_counter() - started
    times = phases(stack.stores.jobs.get(record["id"]), stack.stores.jobs.events(record["id"]))
    model = sum(times.get(name, 0.0) for name in MODEL_PHASES)
    return {**times, "total": total, "beyond the model": total - model}


def phases(job: JobRecord, events: list) -> dict[str, float]:
    """Seconds between the first event of each phase and that of the next."""
    first: dict[str, int] = {}
    for event, kind, data in events:
        name = data["phase"] if kind == "progress" else data["state"]
        first.setdefault(name, int(event.partition("-")[0]))
    names = list(first)
    return {
        a: (first[b] - first[a]) / 1000 for a, b in zip(names, names[1:], strict=False) if a != b
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint, by name or folder")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--outputs", default="netcdf", help="comma-separated formats")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    outputs = arguments.outputs.split(",")
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(Path(folder), port=0, models=(arguments.model,), quiet=True)
        started = time.perf_counter()
        with LocalStack(options) as stack:
            if not stack.wait_ready(120):
                raise SystemExit("the stack did not become ready")
            ready = time.perf_counter() - started
            answer = httpx.post(f"{stack.url}/v1/observations", content=observations(), timeout=30)
            wait(stack.url + answer.raise_for_status().headers["location"])
            run_job(stack, arguments.members, outputs)  # the first one finds nothing warm
            runs = [run_job(stack, arguments.members, outputs) for _ in range(arguments.jobs)]
    names = list(dict.fromkeys(name for run in runs for name in run))
    medians = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    if arguments.json:
        print(json.dumps({"ready_seconds": ready, "jobs": len(runs), "median_seconds": medians}))
        return
    table = Table("phase", "median s", title=f"{len(runs)} jobs; stack ready in {ready:.1f} s")
    for name, seconds in medians.items():
        table.add_row(name, f"{seconds:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
