"""What a job costs beyond the model, from POST to a visible result, and what an idle stack costs.

    python -m benchmarks.job_overhead [--model appa-t31] [--jobs 10] [--seconds 120] [--cycles 4]
        [--age 12] [--idle 20] [--json]

Starts the one-machine stack on a free port with a data folder of its own, and waits while it is
idle. It then uploads a handful of observations and runs filtering jobs one after another: each for
itself, then hourly ones that continue those, at the age in the card. On a slow machine it is content
with the jobs that fit into `--seconds`, but runs at least three, and one for each that is continued.
Times come from the ids of the events, which the server stamps in milliseconds.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from deploy.local import LocalStack, StackOptions
from worker.contract.jobs import JobRecord, Phase
from worker.contract.records import utc_now
from worker.idle_memory import IDLE_SECONDS
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
MIN_JOBS = 3
"""Jobs that a median is taken of, however slow they are."""
MODEL_PHASES = (Phase.BACKGROUND, Phase.SAMPLING)
SERVED = "served"
"""From the end of the job until a client that asks for it all the time has the manifest."""


def observations(hours: int) -> bytes:
    """Twenty stations at noon and at each of the hours after it."""
    stations = 20
    count = stations * (hours + 1)
    noon = np.datetime64(NOON.replace(tzinfo=None), "ns")
    table = build_table(
        DecodeContext(batch_id="benchmark", received_time=utc_now()),
        count,
        report_type="synop",
        station_id=[f"{i % stations:05d}" for i in range(count)],
        time=noon + np.arange(count) // stations * np.timedelta64(1, "h"),
        lat=np.tile(np.linspace(-60.0, 60.0, stations), hours + 1),
        lon=np.tile(np.linspace(-170.0, 170.0, stations), hours + 1),
        elevation=0.0,
        vertical_kind="surface",
        variable="2m_temperature",
        # Values that never change would be rejected as those of a stuck sensor.
        obs_value=285.0 + np.sin(np.arange(count) // stations),
    )
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def wait(client: httpx.Client, address: str) -> dict:
    """Ask for a record until it has reached its end, and return it."""
    while True:
        record = client.get(address).json()
        if record["state"] in ("ingested", "succeeded", "failed", "rejected", "cancelled"):
            return record
        time.sleep(0.02)  # the gateway that answers takes its share of the processor


def run_job(
    stack: LocalStack, client: httpx.Client, body: dict[str, object]
) -> tuple[dict[str, float], float]:
    """Seconds of one job by phase, and from POST to the manifest being served."""
    started = time.perf_counter()
    answer = client.post("/v1/jobs", json={"kind": "filtering", **body})
    if answer.status_code != 202:
        raise SystemExit(f"not accepted: {answer.text}")
    record = wait(client, answer.headers["location"])
    if record["state"] != "succeeded":
        raise SystemExit(f"job failed: {record['error']}")
    client.get(f"/v1/analyses/{record['analysis_id']}").raise_for_status()
    total = time.perf_counter() - started
    times = phases(stack.stores.jobs.get(record["id"]), stack.stores.jobs.events(record["id"]))
    return {**times, SERVED: total - sum(times.values())}, total


def run_jobs(
    stack: LocalStack, client: httpx.Client, body: dict[str, object], limits: argparse.Namespace
) -> list[tuple[dict[str, float], float]]:
    """Run `limits.jobs` jobs, or as many as fit into `limits.seconds`, at the hours that cycles continue.

    At least three, and one at each of these hours.
    """
    end = time.monotonic() + limits.seconds
    runs: list[tuple[dict[str, float], float]] = []
    least = max(MIN_JOBS, limits.cycles)
    while len(runs) < limits.jobs and (len(runs) < least or time.monotonic() < end):
        hour = NOON + timedelta(hours=len(runs) % max(limits.cycles, 1))
        runs.append(run_job(stack, client, body | {"valid_time": hour.isoformat()}))
        print(f"job {len(runs)}: {runs[-1][1]:.1f} s", file=sys.stderr)
    return runs


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


def summary(runs: Sequence[tuple[dict[str, float], float]]) -> dict[str, object]:
    """Medians of some jobs: all in all, of the model, beyond it, and of each part of that."""
    names = list(dict.fromkeys(name for parts, _ in runs for name in parts))
    medians = {name: statistics.median(p.get(name, 0.0) for p, _ in runs) for name in names}
    model = [sum(parts.get(name, 0.0) for name in MODEL_PHASES) for parts, _ in runs]
    written = [(p.get(Phase.BACKGROUND, 0.0) + p.get(Phase.WRITING, 0.0)) / t for p, t in runs]
    beyond = [total - own for own, (_, total) in zip(model, runs, strict=True)]
    return {
        "jobs": len(runs),
        "total_median_s": statistics.median(total for _, total in runs),
        "model_median_s": statistics.median(model),
        "overhead_median_s": statistics.median(beyond),
        "overhead_parts_s": {n: s for n, s in medians.items() if n not in MODEL_PHASES},
        "model_parts_s": {n: s for n, s in medians.items() if n in MODEL_PHASES},
        "background_and_writing_share": statistics.median(written),
    }


def processes(stack: LocalStack) -> dict[str, list[psutil.Process]]:
    """The processes of each part of the stack, its children included."""
    parts = {name: psutil.Process(stack.supervisor.pid(name)) for name in stack.supervisor.children}
    found = {name: [top, *top.children(recursive=True)] for name, top in parts.items()}
    if (pid := stack.supervisor.preloaded_pid) is not None:
        found["preloaded"] = [psutil.Process(pid)]  # its children are the parts
    return found


def used(tree: Sequence[psutil.Process]) -> float:
    """Return the processor time of processes in seconds; processes that have ended count nothing."""
    total = 0.0
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def idle(stack: LocalStack, seconds: float) -> dict[str, object]:
    """Memory of a stack that has nothing to do, and its share of a core, by part."""
    # What follows the start has ended: a worker gives memory back once it has been idle for a while.
    time.sleep(IDLE_SECONDS + 5.0)
    trees = processes(stack)
    before = {name: used(tree) for name, tree in trees.items()}
    began = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - began
    share = {name: (used(tree) - before[name]) / took for name, tree in trees.items()}
    # Pages that several processes share count once.
    memory = {
        name: sum(p.memory_full_info().pss for p in tree) / 2**20 for name, tree in trees.items()
    }
    return {
        "core_share": sum(share.values()),
        "core_share_by_part": share,
        "memory_mb": sum(memory.values()),
        "memory_mb_by_part": memory,
    }


def measure(stack: LocalStack, arguments: argparse.Namespace) -> dict[str, object]:
    """Everything of a stack that is ready."""
    found: dict[str, object] = {"idle": idle(stack, arguments.idle)} if arguments.idle else {}
    chosen = {"members": arguments.members, "outputs": arguments.outputs.split(",")}
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        last = arguments.age + arguments.cycles - 1
        answer = client.post("/v1/observations", content=observations(last))
        wait(client, answer.raise_for_status().headers["location"])
        cold = chosen | {"background": "climatology"}
        if arguments.jobs:
            # The first one finds nothing warm.
            run_job(stack, client, cold | {"valid_time": NOON.isoformat()})
            found |= summary(run_jobs(stack, client, cold, arguments))
        hours = [NOON + timedelta(hours=arguments.age + i) for i in range(arguments.cycles)]
        chosen |= {"warm_start": True}
        warm = [run_job(stack, client, chosen | {"valid_time": h.isoformat()}) for h in hours]
        if warm:
            found["warm"] = summary(warm)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="appa-t31", help="checkpoint, by name or folder")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=120.0, help="to begin jobs in")
    parser.add_argument("--cycles", type=int, default=4, help="jobs that continue an earlier one")
    parser.add_argument(
        "--age", type=int, default=12, help="hours back to that one, as in the card"
    )
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--outputs", default="netcdf", help="comma-separated formats")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds; 0 to leave it out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = StackOptions(
            Path(folder), port=0, models=(arguments.model,), quiet=True, buckets=False
        )
        started = time.perf_counter()
        with LocalStack(options) as stack:
            if not stack.wait_ready(120):
                raise SystemExit("the stack did not become ready")
            ready = time.perf_counter() - started
            start = {name: used(tree) for name, tree in processes(stack).items()}
            found: dict[str, object] = {
                "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
                "ready_s": ready,
                "ready_processor_s": sum(start.values()),
                "ready_processor_s_by_part": start,
            }
            found |= measure(stack, arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    table = Table("what", "value", title="What a job costs beyond the model; an idle stack")
    for name, value in _flat(found):
        table.add_row(name, f"{value:,.3f}")
    Console().print(table)


def _flat(found: dict[str, object], lead: str = "") -> list[tuple[str, float]]:
    lines: list[tuple[str, float]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{lead}{name}: ")
        elif isinstance(value, int | float):
            lines.append((f"{lead}{name}", float(value)))
    return lines


if __name__ == "__main__":
    main()
