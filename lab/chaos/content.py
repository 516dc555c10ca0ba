"""Make the contents of an exercise, small files and damaged ones, and decode those not uploaded.

Each content has stations of its own, so that its rows are found again among all others.

Thousands of damaged contents are decoded, in batches in the sandbox for uploads, in the time in which
hundreds can be uploaded. They may give rows or be rejected; they must not affect the calling process.
"""

import gzip
import hashlib
import io
import math
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.random import Generator

from lab.chaos.plan import ChaosPlan, PlannedUpload
from lab.encoders.bufr import encode_bufr
from model.domain.files import file_digest
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext, Decoded
from worker.observations.decoders.decode import FileToDecode, decode_in_one_child, decode_limited
from worker.observations.export import ROW_FORMATS
from worker.sandbox import Interrupted

__all__ = [
    "NOON",
    "NO_VALUE",
    "DamagedBatches",
    "Row",
    "UploadContent",
    "content_of",
    "damaged",
    "rows_of",
    "undisturbed",
]

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
"""Start of the operational clock."""

_STATIONS = 3
_SPAN = 3 * 3600
_FIRST_NUMBER = 1_000
_LAST_NUMBER = 99_999
_COLUMNS = [
    "time", "lat", "lon", "elevation", "report_type", "station_id", "vertical_kind", "variable",
    "obs_value",
]  # fmt: skip
_VARIABLES = {"2m_temperature": 0.01, "surface_pressure": 10.0}
"""Variables sent, and the precision in which BUFR carries them (K, Pa)."""

NO_VALUE = -(2**63)
Row = tuple[str, str, int, int]
"""Station, variable, seconds since 1970, value in units of the precision of the variable."""


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a table in the form in which the audit compares them."""
    seconds = table["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    columns = (table[name].to_pylist() for name in ("station_id", "variable", "obs_value"))
    return [
        (station, variable, int(second), _in_units(value, variable))
        for station, variable, value, second in zip(*columns, seconds, strict=True)
    ]


def _in_units(value: float | None, variable: str) -> int:
    if value is None or not math.isfinite(value):  # possible in damaged content
        return NO_VALUE
    return round(value / _VARIABLES.get(variable, 1.0))


@dataclass(frozen=True)
class UploadContent:
    """The bytes of an upload and the rows that they encode.

    Attributes:
        name: Of the file.
        data: Its bytes.
        rows: Rows that must be stored; empty for damaged content, whose rows are unknown.
        mutated: Whether it is damaged.
    """

    name: str
    data: bytes
    rows: frozenset[Row]
    mutated: bool = False

    @property
    def sha256(self) -> str:
        """Return the hash of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def _archived(data: bytes, name: str) -> bytes:
    """Return a compressed archive of one file; equal bytes for equal ones."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(packed.getvalue(), mtime=0)


_WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    "bufr": lambda table: encode_bufr(table, "synop"),
    "csv": lambda table: ROW_FORMATS["csv"].encode(table.select(_COLUMNS)),
    "geojson": lambda table: ROW_FORMATS["geojson"].encode(table.select(_COLUMNS)),
    "parquet": lambda table: ROW_FORMATS["parquet"].encode(table.select(_COLUMNS)),
    "csv.gz": lambda table: gzip.compress(_WRITERS["csv"](table), mtime=0),
    "tar.gz": lambda table: _archived(_WRITERS["bufr"](table), "bulletin.bufr"),
}


def content_of(planned: PlannedUpload, seed: int, until: datetime = NOON) -> UploadContent:
    """Return the content of an upload; the same number, form, seed and time give the same bytes.

    Arguments:
        planned: Its number and form.
        seed: Of the exercise.
        until: Everything is observed in the three hours before.
    """
    generator = np.random.default_rng([seed, 1, planned.number])
    table = _reports(planned.number, until, generator)
    data = _WRITERS[planned.form](table)
    name = f"chaos-{seed}-{planned.number}.{planned.form}"
    if planned.mutated:
        return UploadContent(name, damaged(data, generator), frozenset(), mutated=True)
    return UploadContent(name, data, frozenset(rows_of(table)))


def _reports(number: int, until: datetime, generator: Generator) -> pa.Table:
    """Return temperature and pressure of the stations of a content."""
    stations = [
        f"{_FIRST_NUMBER + (number * _STATIONS + i) % (_LAST_NUMBER - _FIRST_NUMBER):05d}"
        for i in range(_STATIONS)
    ]
    place = {
        "lat": np.round(generator.uniform(-60.0, 60.0, _STATIONS), 2),
        "lon": np.round(generator.uniform(-170.0, 170.0, _STATIONS), 2),
        "elevation": np.round(generator.uniform(0.0, 500.0, _STATIONS)),
    }
    minutes = generator.integers(1 - _SPAN // 60, 1, _STATIONS)
    times = np.datetime64(until.replace(tzinfo=None), "ns") + minutes * np.timedelta64(60, "s")
    values = [
        np.round(generator.uniform(260.0, 300.0, _STATIONS), 2),
        10.0 * np.round(generator.uniform(9_500.0, 10_300.0, _STATIONS)),
    ]
    length = _STATIONS * len(_VARIABLES)
    return build_table(
        DecodeContext(),
        length,
        report_type="synop",
        station_id=stations * len(_VARIABLES),
        time=np.tile(times, len(_VARIABLES)),
        vertical_kind="surface",
        variable=np.repeat(list(_VARIABLES), _STATIONS),
        obs_value=np.concatenate(values),
        **{name: np.tile(column, len(_VARIABLES)) for name, column in place.items()},
    )


_HEAD = 4
"""First bytes, by which a format is recognised; most damage spares them."""


def damaged(data: bytes, generator: Generator) -> bytes:
    """Return the bytes with one to three kinds of damage."""
    start = _HEAD if generator.random() < 0.8 else 0
    rest = data[start:]
    for _ in range(generator.integers(1, 4)):
        rest = _DAMAGES[generator.integers(len(_DAMAGES))](rest, generator)
    return data[:start] + rest


def _span(data: bytes, generator: Generator) -> tuple[int, int]:
    first, last = sorted(generator.integers(0, len(data) + 1, 2))
    return int(first), int(last)


def _flip(data: bytes, generator: Generator) -> bytes:
    found = bytearray(data)
    for _ in range(generator.integers(1, 9)):
        if found:
            found[generator.integers(len(found))] ^= 1 << int(generator.integers(8))
    return bytes(found)


def _overwrite(data: bytes, generator: Generator) -> bytes:
    first, last = _span(data, generator)
    last = min(last, first + 64)
    return data[:first] + generator.bytes(last - first) + data[last:]


def _cut(data: bytes, generator: Generator) -> bytes:
    return data[: generator.integers(0, len(data) + 1)]


def _remove(data: bytes, generator: Generator) -> bytes:
    first, last = _span(data, generator)
    return data[:first] + data[last:]


def _repeat(data: bytes, generator: Generator) -> bytes:
    first, last = _span(data, generator)
    return data[:last] + data[first:last] * int(generator.integers(1, 20)) + data[last:]


def _extreme(data: bytes, generator: Generator) -> bytes:
    """Set a few bytes to the ends of their range, to hit lengths, counts and scales."""
    if not data:
        return data
    place = int(generator.integers(len(data)))
    width = int(generator.integers(1, 5))
    value = (b"\x00", b"\xff", b"\x7f", b"9", b"-")[generator.integers(5)]
    return data[:place] + value * width + data[place + width :]


def _words(data: bytes, generator: Generator) -> bytes:
    place = int(generator.integers(len(data) + 1))
    word = _WORDS[generator.integers(len(_WORDS))]
    return data[:place] + word + data[place:]


_DAMAGES = (_flip, _overwrite, _cut, _remove, _repeat, _extreme, _words)
_WORDS = (
    b"nan", b"-inf", b"1e999", b"9999999999999999999", b'"', b"\x00", b"\xed\xa0\x80", b"[" * 200,
    b"{}", b"\r\n", b",", b"7777", b"BUFR", b"PAR1",
)  # fmt: skip


_TOGETHER = 200
_TRIES = 4


def undisturbed(contents: Sequence[UploadContent]) -> dict[str, int]:
    """Return the number of rows of contents, by hash, decoded here without injected faults."""
    return {digest: decoded.table.num_rows for digest, decoded in _decoded(contents)}


def _decoded(contents: Sequence[UploadContent]) -> Iterator[tuple[str, Decoded]]:
    """Yield the hash of each content and what came out of the sandbox, in their order."""
    with TemporaryDirectory(prefix="appa-chaos-") as folder:
        files = []
        for number, content in enumerate(contents):
            path = Path(folder) / f"{number}-{content.name}"
            path.write_bytes(content.data)
            files.append(FileToDecode(path, None, DecodeContext(file_name=content.name)))
        while files:
            decoded = decode_in_one_child(files[:_TOGETHER])
            if not decoded:  # the first file crashed the child process, which is allowed
                decoded = [_decoded_alone(files[0])]
            for file, one in zip(files, decoded, strict=False):
                yield file_digest(file.path), one
            files = files[len(decoded) :]


def _decoded_alone(file: FileToDecode) -> Decoded:
    """Decode a file in its own child process; retry if the machine is too busy."""
    for _ in range(_TRIES - 1):
        try:
            return decode_limited(file.path, file.format, file.context)
        except Interrupted:
            continue
    return decode_limited(file.path, file.format, file.context)


class DamagedBatches:
    """Decode the damaged contents of a plan that are not uploaded, spread over its time.

    Arguments:
        plan: What to decode.

    Attributes:
        count: How many have been decoded.
        findings: Descriptions of errors that escaped the sandbox.
    """

    def __init__(self, plan: ChaosPlan) -> None:
        self.plan = plan
        self.count = 0
        self.findings: list[str] = []
        batched = plan.batched
        self._batches = [batched[i : i + _TOGETHER] for i in range(0, len(batched), _TOGETHER)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="damaged", daemon=True)

    def start(self) -> None:
        """Start the thread that decodes damaged uploads."""
        self._thread.start()

    def finish(self, unsent: Sequence[PlannedUpload]) -> None:
        """Decode the rest without pauses, and the contents that should have been uploaded."""
        self._over.set()
        self._thread.join()
        self._decode(unsent)

    def _work(self) -> None:
        began = time.monotonic()
        for number, batch in enumerate(self._batches):
            due = began + number * self.plan.seconds / len(self._batches)
            self._over.wait(max(0.0, due - time.monotonic()))
            self._decode(batch)

    def _decode(self, uploads: Sequence[PlannedUpload]) -> None:
        contents = [content_of(planned, self.plan.seed) for planned in uploads]
        count = 0
        try:
            for _, decoded in _decoded(contents):
                count += 1
                if decoded.report.rows != decoded.table.num_rows:
                    name = contents[count - 1].name
                    told = f"{decoded.report.rows} rows counted, {decoded.table.num_rows} given"
                    self.findings.append(f"sandbox: {name}: {told}")
        except Exception as error:  # whatever it is, it should have stayed in the child
            name = contents[min(count, len(contents) - 1)].name
            self.findings.append(f"sandbox: {name}: {type(error).__name__}: {error}")
        self.count += count
