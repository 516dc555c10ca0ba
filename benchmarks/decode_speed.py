"""Speed and memory of BUFR decoding: ours against pdbufr on the same files, and over processes.

Each measurement runs in a fresh process after one warm-up message, so that imports and tables are
in neither time; the peak of memory is that of the whole process, libraries included. pdbufr is
asked in two ways: for the elements our rows come from, in its plain reader (`columns`), which
leaves heights, periods and statistics to the caller; and, for SYNOP, in its `synop` reader, which
resolves them as our decoder does. Times are processor seconds of one core.

    python -m benchmarks.decode_speed [--json] [--quick] [--shared FOLDER]

Files are encoded here, some repeated to a size beside which learning a layout, from the second
message of a process on, is small; real ones are added if the folder with outside data is there.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from lab.encoders.bufr import encode_bufr
from worker.observations.columns import build_table, concat_tables
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file, decode_limited

CONTEXT = DecodeContext("benchmark", datetime(2026, 3, 1, tzinfo=UTC))
HOUR = np.datetime64("2026-03-01T06:00", "ns")
COLUMNS = {
    "synop": ["blockNumber", "stationNumber", "latitude", "longitude", "nonCoordinatePressure",
              "pressureReducedToMeanSeaLevel", "airTemperature", "dewpointTemperature",
              "relativeHumidity", "windDirection", "windSpeed"],
    "temp": ["blockNumber", "stationNumber", "pressure", "airTemperature", "dewpointTemperature",
             "windDirection", "windSpeed"],
    "aircraft": ["aircraftRegistrationNumberOrOtherIdentification", "latitude", "longitude",
                 "flightLevel", "height", "airTemperature", "windDirection", "windSpeed"],
    "scatterometer": ["latitude", "longitude", "windSpeedAt10M", "windDirectionAt10M"],
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one reader took for one file."""

    case: str
    reader: str
    messages: int
    rows: int
    seconds: float
    peak_mb: float

    @property
    def messages_per_second(self) -> float:
        return self.messages / self.seconds


def _rows(report_type: str, number: int, variables: dict[str, np.ndarray], **more) -> pa.Table:
    rng = np.random.default_rng(3)
    place = {
        "time": HOUR + np.arange(number) * np.timedelta64(1, "s"),
        "lat": rng.uniform(-80, 80, number).round(3),
        "lon": rng.uniform(-179, 179, number).round(3),
        **more,
    }
    return concat_tables([
        build_table(CONTEXT, number, report_type=report_type, elevation=50.0, variable=variable,
                    obs_value=value, **place)
        for variable, value in variables.items()
    ])  # fmt: skip


def encoded_files(folder: Path, quick: bool) -> dict[str, tuple[str, Path]]:
    """Our own files by case: the network and the path."""
    n, rng = (300 if quick else 1_200), np.random.default_rng(1)
    wind = {f"10m_{c}_component_of_wind": rng.normal(0, 6, n) for c in "uv"}
    surface = {
        "2m_temperature": rng.uniform(250, 300, n),
        "2m_dewpoint_temperature": rng.uniform(240, 250, n),
        "surface_pressure": rng.uniform(9e4, 1.03e5, n),
        "mean_sea_level_pressure": rng.uniform(9.8e4, 1.03e5, n),
        **wind,
    }
    ids = [f"{10 + k // 1000:02d}{k % 1000:03d}" for k in range(n)]
    synop = _rows("synop", n, surface, station_id=ids, vertical_kind="surface")
    upper = {f"{c}_component_of_wind": rng.normal(0, 20, n) for c in "uv"}
    upper["temperature"] = rng.uniform(210, 290, n)
    level = rng.uniform(2e4, 9e4, n).round(-1)
    aircraft = _rows("aircraft", n, upper, station_id=[f"EU{k:04d}" for k in range(n)],
                     vertical_kind="pressure", vertical=level)  # fmt: skip
    levels = n // 60 * 60
    sonde = {name: value[:levels] for name, value in upper.items()}
    temp = _rows(
        "temp", levels, sonde, station_id=np.repeat(ids[: levels // 60], 60).tolist(),
        profile_id=np.repeat(np.arange(levels // 60), 60), vertical_kind="pressure",
        vertical=np.tile(np.linspace(1e5, 2e3, 60).round(-1), levels // 60),
        time=np.full(levels, HOUR), lat=np.full(levels, 50.0), lon=np.full(levels, 10.0),
    )  # fmt: skip
    cells = _rows("scatterometer", n, wind, station_id="sat004", vertical_kind="surface")
    contents = {
        "synop, one report per message": ("synop", encode_bufr(synop, "synop", 1)),
        "synop, 100 uncompressed reports": ("synop", encode_bufr(synop, "synop", 100, False)),
        "synop, 100 compressed reports": ("synop", 10 * encode_bufr(synop, "synop", 100)),
        "aircraft, one report per message": ("aircraft", encode_bufr(aircraft, "aircraft", 1)),
        "temp, 60 levels": ("temp", 10 * encode_bufr(temp, "temp")),
        "scatterometer, compressed": (
            "scatterometer",
            40 * encode_bufr(cells, "scatterometer", 500),
        ),
    }
    found = {}
    for number, (case, (kind, data)) in enumerate(contents.items()):
        path = folder / f"{number}.bufr"
        path.write_bytes(data)
        found[case] = kind, path
    return found


def real_files(shared: Path, folder: Path, quick: bool) -> dict[str, tuple[str, Path]]:
    """Real files, small ones repeated to a size that can be timed."""
    names = {
        "real synop (307080)": ("synop", "surface_land/pybufrkit__bssh_170.bufr", 20),
        "real synop (ECMWF archive)": ("synop", "surface_land/pdbufr__obs_3day.bufr", 20),
        "real aircraft": ("aircraft", "aircraft/pdbufr__perf_aircraft.bufr", 1),
        "real temp": ("temp", "upperair_sonde_wind/pdbufr__temp.bufr", 1),
    }
    found = {}
    for number, (case, (kind, name, times)) in enumerate(names.items()):
        source = shared / "realdata/bufr" / name
        if source.exists():
            path = folder / f"real{number}.bufr"
            path.write_bytes(source.read_bytes() * (1 if quick else times))
            found[case] = kind, path
    return found


def _first_message(path: Path) -> bytes:
    data = path.read_bytes()
    at = data.index(b"BUFR")
    return data[at : at + int.from_bytes(data[at + 4 : at + 7], "big")]


def measure(case: str, kind: str, path: str, reader: str) -> Measured:
    """One reader on one file, in this process."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.bufr"
        one.write_bytes(_first_message(Path(path)))
        read = _reader(reader, kind)
        read(str(one))
    start = time.process_time()
    rows = read(path)
    seconds = time.process_time() - start
    peak = _peak_kilobytes()
    messages = decode_file(path, "bufr", CONTEXT).report.messages
    return Measured(case, reader, messages, rows, seconds, peak / 1e3)


def _peak_kilobytes() -> int:
    """Largest resident memory of this process; ru_maxrss would include that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def _reader(reader: str, kind: str):
    if reader == "appa":
        return lambda path: decode_file(path, "bufr", CONTEXT).table.num_rows
    import pdbufr

    if reader == "pdbufr synop":
        return lambda path: len(pdbufr.read_bufr(path, reader="synop"))
    return lambda path: len(pdbufr.read_bufr(path, columns=COLUMNS[kind], required_columns=False))


def compare(files: dict[str, tuple[str, Path]]) -> list[Measured]:
    """All readers on all files, each in a process of its own, one after another."""
    found = []
    for case, (kind, path) in files.items():
        readers = ["appa", "pdbufr columns"] + (["pdbufr synop"] if kind == "synop" else [])
        for reader in readers:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                try:
                    found.append(pool.submit(measure, case, kind, str(path), reader).result())
                except Exception as error:
                    print(f"{reader} failed on {case}: {error!r}")
    return found


def scaling(path: Path, processes: tuple[int, ...]) -> list[dict]:
    """Messages per second on the clock with several children on one file, start-up included."""
    found = []
    for count in processes:
        start = time.perf_counter()
        report = decode_limited(path, "bufr", CONTEXT, processes=count).report
        seconds = time.perf_counter() - start
        found.append({"processes": count, "seconds": seconds,
                      "messages_per_second": report.messages / seconds})  # fmt: skip
    return found


def show(measured: list[Measured], scaled: list[dict], cores: int, load: float) -> None:
    console = Console()
    table = Table(title=f"BUFR decoding per core ({cores} cores, load {load:.1f})")
    for name in (
        "case",
        "reader",
        "messages",
        "rows",
        "messages/s",
        "rows/s",
        "peak MB",
        "ours is",
    ):
        table.add_column(name, justify="left" if name in ("case", "reader") else "right")
    ours = {m.case: m for m in measured if m.reader == "appa"}
    for m in measured:
        ratio = ours[m.case].messages_per_second / m.messages_per_second
        table.add_row(
            m.case, m.reader, f"{m.messages}", f"{m.rows}", f"{m.messages_per_second:,.0f}",
            f"{m.rows / m.seconds:,.0f}", f"{m.peak_mb:.0f}",
            "" if m.reader == "appa" else f"{ratio:.1f} x faster",
        )  # fmt: skip
    console.print(table)
    for entry in scaled:
        console.print(
            f"{entry['processes']} process(es): {entry['messages_per_second']:,.0f} messages/s "
            f"on the clock ({entry['seconds']:.2f} s, start-up included)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    default = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("APPA_SHARED", default)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = encoded_files(folder, arguments.quick)
        files |= real_files(arguments.shared, folder, arguments.quick)
        measured = compare(files)
        big = folder / "big.bufr"
        big.write_bytes(files["synop, one report per message"][1].read_bytes() * 20)
        scaled = scaling(big, (1, 2) if arguments.quick else (1, 2, 4))
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if arguments.json:
        document = {"cores": cores, "load": load, "readers": [asdict(m) for m in measured],
                    "scaling": scaled}  # fmt: skip
        print(json.dumps(document, indent=2))
    else:
        show(measured, scaled, cores, load)


if __name__ == "__main__":
    main()
