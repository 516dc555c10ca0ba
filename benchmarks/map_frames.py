"""How smoothly the map pans and zooms: times of its frames in Chromium.

    python -m benchmarks.map_frames [--url URL] [--rows 49] [--seconds 5] [--key KEY] [--json]

A browser without a window shows the map with contours and wind barbs, zooms with the wheel and drags with
the mouse, as fast as the page takes it. A frame lasts from one picture to the next, and counts if the
map was drawn anew in it; its script is the part of it that runs in the page's thread. At 60 frames a
second a frame lasts 16.7 ms. Without `--url` a Valkey and a gateway of its own start on loopback with
smooth fields on a grid of `--rows` (49 are about the grid of appa-t31, 721 a quarter of a degree).
Chromium draws without a graphics card here, so a desk's machine does no worse.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.gateway_load import report
from benchmarks.viewers import own_gateway

GOAL_MS = 1000 / 60
_STATE = "web/map.html#field=t&level=850&contours=1&barbs=1"
_SETTLED = "() => window.appaMap?.settled !== null && window.appaMap?.settled === location.hash"
_WATCH = """() => {
    const plain = window.requestAnimationFrame.bind(window), frames = [];
    window.appaFrames = frames;
    let drawn = 0;
    window.requestAnimationFrame = (callback) => plain((time) => {
        const began = performance.now();
        callback(time);
        drawn += performance.now() - began;
    });
    let last = null;
    const watch = (time) => {
        if (last !== null) frames.push([time - last, drawn]);
        [last, drawn] = [time, 0];
        plain(watch);
    };
    plain(watch);
}"""
"""Keeps of every frame how long it lasted, and how long the page's own scripts drew in it (ms)."""


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def drag(page: Page, seconds: float) -> None:
    """Draws circles with the button held, so that the map follows."""
    box = page.locator("#map").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    reach, step = min(box["width"], box["height"]) / 4, 0
    page.mouse.move(x + reach, y)
    page.mouse.down()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        step += 1
        page.mouse.move(x + reach * math.cos(step / 15), y + reach * math.sin(step / 15))
    page.mouse.up()


def wheel(page: Page, seconds: float) -> None:
    """Zooms in to eight times and out again, over and over."""
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
    end, step = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        page.mouse.wheel(0, -40 if step % 40 < 20 else 40)
        step += 1


def summary(frames: list[list[float]]) -> dict[str, float]:
    """Figures of the frames in which the map was drawn."""
    drawn = [(lasted, script) for lasted, script in frames if script > 0]
    if len(drawn) < 10:
        raise RuntimeError(f"expected the map to move; it was drawn {len(drawn)} times")
    lasted, script = (sorted(column) for column in zip(*drawn, strict=True))
    tail = int(0.95 * len(drawn))
    return {
        "frames": float(len(drawn)),
        "median_ms": statistics.median(lasted),
        "p95_ms": lasted[tail],
        "script_median_ms": statistics.median(script),
        "script_p95_ms": script[tail],
        "goal_ms": GOAL_MS,
    }


def measure(url: str, seconds: float, key: str | None) -> dict[str, dict]:
    """Return the frames of the map in a browser, zoomed by a wheel and dragged."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        sys.exit("Expected Chromium; none is installed. Install it with: apt-get install chromium")
    lines: dict[str, dict] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        if key:
            page.add_init_script(f"sessionStorage.setItem('appa-key', {key!r})")
        page.goto(f"{url.rstrip('/')}/{_STATE}")
        page.wait_for_function(_SETTLED, timeout=60_000)
        page.evaluate(_WATCH)
        for name, move in (("zoom", wheel), ("pan", drag)):
            page.click("#home")
            if name == "pan":
                for _ in range(3):
                    page.click("#closer")
            page.evaluate("appaFrames.length = 0")
            move(page, seconds)
            lines[name] = summary(page.evaluate("appaFrames"))
        lines["change of field"] = {"ms": change(page), "goal_ms": 1000.0}
        browser.close()
    return lines


def change(page: Page) -> float:
    """Milliseconds from choosing another field to its picture, the first time it is asked for."""
    page.select_option("#field", "t2m", no_wait_after=True)
    page.wait_for_function(_SETTLED)
    began = time.perf_counter()
    page.select_option("#field", "q")  # winds are there already, for the barbs
    page.wait_for_function(f"() => ({_SETTLED})() && location.hash.includes('field=q')")
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Measure with the options of the command line and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="A running gateway, instead of its own.")
    parser.add_argument("--key", help="API key, if the gateway needs one.")
    parser.add_argument("--rows", type=int, default=49, help="Of the grid: 721 are 0.25 degrees.")
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each movement.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    given = nullcontext((options.url, None)) if options.url else own_gateway(options.rows)
    with given as (url, _):
        lines = measure(url, options.seconds, options.key)
    lines["machine"] = {"cores": float(os.cpu_count() or 0), "load_before": load}
    if options.json:
        print(json.dumps({**lines, "processor": processor()}))
    else:
        report(lines, as_json=False)
        print(processor())


if __name__ == "__main__":
    main()
