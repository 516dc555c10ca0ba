"""How fast an hour is read out of a month of observations, and how much memory it takes.

    python -m benchmarks.store_speed [--rows-per-day 10000000] [--days 30] [--full-hours 3] [--json]

Builds a store of a month whose hours around the one that is read are full (10 million rows a day are
417 000 an hour, in uploads of one every five minutes) and whose other hours are thin, as only the
hours of the window are opened. Times are medians of several reads in a fresh process each;
memory is what the read adds to the peak of its process.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from model.domain.windows import AssimilationWindow
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext
from worker.observations.store.compaction import compact
from worker.observations.store.store import ObservationStore

START = datetime(2025, 1, 1, tzinfo=UTC)
VARIABLES = ("temperature", "u_component_of_wind", "v_component_of_wind", "specific_humidity")
COLUMNS = ("time", "lat", "lon", "vertical", "variable", "obs_value", "obs_error", "rejected_by")


def observations(rng: np.random.Generator, rows: int, hour: datetime, batch: str) -> pa.Table:
    """Rows like those of aircraft and satellite winds."""
    times = np.datetime64(hour.replace(tzinfo=None), "ns")
    seconds = np.sort(rng.integers(0, 3600, rows)).astype("timedelta64[s]")
    names = np.array(VARIABLES, dtype=object)[rng.integers(0, len(VARIABLES), rows)]
    stations = np.array([f"EU{i:05d}" for i in range(5000)], dtype=object)
    return build_table(
        DecodeContext(batch_id=batch, received_time=hour + timedelta(hours=1)),
        rows,
        report_type="aircraft",
        station_id=stations[rng.integers(0, 5000, rows)],
        time=times + seconds,
        lat=rng.uniform(-90, 90, rows).round(3),
        lon=rng.uniform(-180, 180, rows).round(3),
        vertical_kind="pressure",
        vertical=rng.uniform(2e4, 1e5, rows).round(-1),
        variable=names,
        obs_value=rng.normal(250.0, 20.0, rows).round(2),
        obs_error=np.full(rows, 1.5),
    )


def build(folder: Path, days: int, rows_per_day: int, full_hours: int, batches: int) -> dict:
    """Fill the store batch by batch; return what that took."""
    rng = np.random.default_rng(0)
    store = ObservationStore(str(folder))
    middle = days * 12
    full = range(middle - full_hours + 1, middle + 1)
    rows, began = 0, time.perf_counter()
    for hour in range(days * 24):
        size = rows_per_day // 24 // batches if hour in full else 200
        for number in range(batches if hour in full else 1):
            at = START + timedelta(hours=hour)
            name = f"batch-{hour:05d}-{number:03d}"
            store.publish(observations(rng, size, at, name), name, at + timedelta(hours=1))
            rows += size
    seconds = time.perf_counter() - began
    return {"rows": rows, "seconds": seconds, "hour": middle}


def peak_kilobytes() -> int:
    """Largest resident size of this process so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def read_once(folder: str, hour: int, columns: str) -> None:
    """In a process of its own: prints rows, seconds and peak memory."""
    end = START + timedelta(hours=hour)
    window = AssimilationWindow(end - timedelta(hours=1), end)
    before = peak_kilobytes()
    began = time.perf_counter()
    chosen = COLUMNS if columns == "some" else ()
    table = ObservationStore(folder).read_window(window, columns=chosen)
    seconds = time.perf_counter() - began
    added = (peak_kilobytes() - before) / 1024
    print(json.dumps({"rows": len(table), "seconds": seconds, "mb": added}))


def measure(folder: Path, hour: int, columns: str, repeats: int) -> dict:
    """Return the median time and memory of reading an hour, each time in a fresh process."""
    results = []
    for _ in range(repeats):
        command = [
            sys.executable,
            "-m",
            "benchmarks.store_speed",
            "--read",
            str(folder),
            str(hour),
            columns,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
    return {
        "rows": results[0]["rows"],
        "seconds": statistics.median(r["seconds"] for r in results),
        "mb": max(r["mb"] for r in results),
    }


def main() -> None:
    """Build an observation store, read it, compact it, read it again, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-per-day", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--full-hours", type=int, default=3)
    parser.add_argument("--batches", type=int, default=12, help="Uploads in an hour.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_once(options.read[0], int(options.read[1]), options.read[2])
        return
    folder = Path(tempfile.mkdtemp(prefix="appa-store-"))
    try:
        built = build(
            folder, options.days, options.rows_per_day, options.full_hours, options.batches
        )
        lines = {"publish": {**built, "mb": 0.0}}
        for columns in ("all", "some"):
            lines[f"read one hour, {columns} columns"] = measure(
                folder, built["hour"], columns, options.repeats
            )
        store, began = ObservationStore(str(folder)), time.perf_counter()
        end = START + timedelta(hours=built["hour"])
        compacted = compact(store.files, end - timedelta(hours=2), end, grace=timedelta(0))
        seconds = time.perf_counter() - began
        lines["compact two hours"] = {"rows": compacted.rows, "seconds": seconds, "mb": 0.0}
        lines["read one hour, all columns, compacted"] = measure(
            folder, built["hour"], "all", options.repeats
        )
    finally:
        shutil.rmtree(folder)
    report(lines, as_json=options.json)


def report(lines: dict, *, as_json: bool) -> None:
    """Print the lines as JSON or as one table."""
    if as_json:
        print(json.dumps(lines))
        return
    table = Table("step", "rows", "seconds", "rows/s", "memory MB", title="Observation store")
    for name, line in lines.items():
        rate = line["rows"] / max(line["seconds"], 1e-9)
        memory = f"{line['mb']:.0f}" if line["mb"] else "-"
        table.add_row(name, f"{line['rows']:,}", f"{line['seconds']:.2f}", f"{rate:,.0f}", memory)
    Console().print(table)


if __name__ == "__main__":
    main()
