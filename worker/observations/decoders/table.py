"""Decode Parquet and CSV tables: the observation table itself, or an earth2studio frame.

In an earth2studio frame pressures are in Pa, heights in m, longitudes from 0 to 360 and times in
UTC without a zone; variables follow earth2studio's lexicon.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.domain.errors import DecodeError
from worker.observations.decoders.base import (
    DecodeContext,
    Decoded,
    DecodeReport,
    check_rows,
)
from worker.observations.decoders.coordinates import pressures_by_height
from worker.observations.decoders.frame import (
    RowFaults,
    decode_frame,
    number_column,
    require_distinct,
    text_column,
)
from worker.observations.decoders.options import TableOptions
from worker.observations.lexicons import EARTH2STUDIO, split_name

__all__ = ["decode_csv", "decode_earth2studio", "decode_parquet", "is_earth2studio"]

_IGNORED = (
    "type", "class", "quality", "scan_angle", "channel_index", "solza", "solaza", "satellite_za",
    "satellite_aza", "source",
)  # fmt: skip


def is_earth2studio(names: Mapping[str, Any] | list[str]) -> bool:
    """Return whether the columns are those of an earth2studio frame."""
    return {"time", "lat", "lon", "observation", "variable"} <= set(names)


def decode_earth2studio(
    columns: Mapping[str, pa.ChunkedArray],
    context: DecodeContext,
    report: DecodeReport,
    faults: RowFaults,
) -> Decoded:
    """Return the rows of the frame; count unknown variables by name.

    Accumulated precipitation is left out, because the frame does not give the period. Pressures in
    hPa, which earth2studio once wrote, are recognised by the heights of the same rows.
    """
    options = TableOptions.of(context.options)
    own = {"time": columns["time"], "lat": columns["lat"], "lon": columns["lon"]}
    own["obs_value"] = columns["observation"]
    names = [str(n) for n in text_column(columns["variable"], "variable")]
    split = {name: split_name(name) for name in set(names)}
    own["variable"] = pa.array([split[n][0] for n in names], pa.string())
    level = np.array([split[n][1] for n in names], dtype=np.float64)
    upper = np.array([split[n][0] in EARTH2STUDIO.aloft.values() for n in names], dtype=bool)
    height, station, given = (
        number_column(columns[name], name, faults)
        if name in columns
        else np.full(len(names), np.nan)
        for name in ("elev", "station_elev", "pres")
    )
    given = pressures_by_height(given, height, options.pressure_units, report)
    pressure = np.where(np.isfinite(level), level * 100.0, given)
    by_pressure = upper & np.isfinite(pressure)
    by_height = upper & ~by_pressure & np.isfinite(height)
    kind = np.where(by_pressure, "pressure", np.where(by_height, "height", "surface"))
    vertical = np.where(by_pressure, pressure, np.where(by_height, height, np.nan))
    own["vertical_kind"] = pa.array(kind, pa.string())
    own["vertical"] = pa.array(vertical, pa.float64(), from_pandas=True)
    elevation = np.where(np.isfinite(station), station, np.where(upper, np.nan, height))
    own["elevation"] = pa.array(elevation, pa.float64(), from_pandas=True)
    for theirs, ours in (("station", "station_id"), ("satellite", "platform")):
        if theirs in columns:
            own[ours] = columns[theirs]
    for name in _IGNORED:
        if name in columns:
            report.notes[f"ignored_column_{name}"] += 1
    settled = options.model_copy(update={"pressure_units": "Pa"})
    return decode_frame(own, context, report, options=settled, faults=faults)


_LINE_BYTES = 100_000
"""Maximum length of a line, far more than a row has; pyarrow fails on lines of 1 MB."""

_MARKED = 64
"""Leading bytes that are checked for UTF-16, in which letters of the header contain a zero byte."""
_UNNAMED = "\x00"
_NULLS = ["", "NaN", "nan", "NA", "null", "None"]


def decode_parquet(path: Path, context: DecodeContext) -> Decoded:
    """Return rows of a Parquet file.

    Raises:
        DecodeError: If it is no Parquet file, too large, or lacks columns.
    """
    report = DecodeReport(format="parquet", size=path.stat().st_size)
    try:
        with pq.ParquetFile(path) as file:
            require_distinct(file.schema_arrow.names, "in the schema")
            check_rows(file.metadata.num_rows, context)
            context.budget(report.size).take(_values(file.metadata))
            table = file.read()
            table.validate(full=True)  # corrupt pages may hold invalid UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"Expected a Parquet file; {error}.", reason="undecodable") from error
    return _decode(table, context, report, RowFaults(table.num_rows))


def _values(metadata: pq.FileMetaData) -> int:
    """Return the number of values of a Parquet file, which its size does not bound (run lengths)."""
    return sum(
        metadata.row_group(group).column(column).num_values
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )


@dataclass(frozen=True)
class _Lines:
    """The lines of a text that can be parsed independently.

    Attributes:
        content: Those lines, the header first, each with a line end.
        numbers: Number of each in the file, from 1, with shape (lines,).
    """

    content: bytes
    numbers: np.ndarray


def decode_csv(path: Path, context: DecodeContext) -> Decoded:
    """Return rows of a CSV file with a header line; malformed lines are rejected by number.

    Raises:
        DecodeError: If there is one line only, or columns are missing, unknown or without a name.
    """
    report = DecodeReport(format="csv", size=path.stat().st_size)
    lines = _lines(_utf8(path.read_bytes(), report), report)
    names = _header(lines.content)
    uneven: list[int] = []

    def set_aside(row: pacsv.InvalidRow) -> str:
        uneven.append(row.number - 1)
        detail = f"line {lines.numbers[row.number - 1]}: {row.actual_columns} columns"
        report.reject("invalid_table", detail=f"{detail}; the header has {row.expected_columns}")
        return "skip"

    try:
        # Read every column as text, so that a faulty cell is reported by column and line.
        table = pacsv.read_csv(
            pa.BufferReader(lines.content),
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            parse_options=pacsv.ParseOptions(invalid_row_handler=set_aside),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=_NULLS,
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"Expected a CSV file; {error}.", reason="undecodable") from error
    numbers = np.delete(lines.numbers, [0, *uneven])
    table = _without_unnamed(table, report)
    return _decode(table, context, report, RowFaults(table.num_rows, "line", numbers))


def _lines(content: bytes, report: DecodeReport) -> _Lines:
    """Return the lines without blank ones; reject lines that would corrupt the parsing of others.

    Those are lines with an unclosed quote and lines of extreme length. Line ends may be those of
    Windows or classic Mac OS.
    """
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    ended = content.endswith(b"\n")
    content = content.rstrip(b"\n") + b"\n"
    text = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    starts = np.append(0, ends[:-1] + 1)
    if len(ends) < 2:
        _refuse_one_line(content, report.size, ended)
    quotes = np.flatnonzero(text == ord('"'))
    odd = (np.searchsorted(quotes, ends) - np.searchsorted(quotes, starts)) % 2 == 1
    long = ends - starts > _LINE_BYTES
    for wrong, what in ((odd & ~long, "a quote that does not close"), (long, "too long")):
        for row in np.flatnonzero(wrong):
            report.reject("invalid_table", detail=f"line {row + 1}: {what}", report=int(row) + 1)
    kept = np.flatnonzero((ends > starts) & ~odd & ~long)
    if len(kept) < len(ends):
        content = b"".join(content[starts[row] : ends[row] + 1] for row in kept)
    if not len(kept) or odd[: kept[0]].any() or long[: kept[0]].any():
        raise DecodeError("Expected a header line of names.", reason="invalid_table")
    return _Lines(content, kept + 1)


def _refuse_one_line(content: bytes, size: int, ended: bool) -> NoReturn:
    """Refuse a file without rows, with the cause: empty, only a header, or unrecognised line ends."""
    if not content.strip():
        raise DecodeError("Expected a CSV file; got an empty one.", reason="empty_file")
    if ended:
        raise DecodeError("Expected rows after the header line; got none.", reason="no_values")
    raise DecodeError(
        f"Expected a header line and rows; found no line end in {size} bytes. curl keeps "
        "line ends with --data-binary or -T, not with -d.",
        reason="invalid_table",
    )


def _header(content: bytes) -> list[str]:
    """Return the names in the first line, empty where a column has none."""
    line = content.split(b"\n", 1)[0].decode()
    names = [name.strip() for name in next(csv.reader([line]))]
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and mark in line:
            raise DecodeError(
                f"Expected commas between columns and decimal points; got {called}.",
                reason="invalid_table",
            )
    require_distinct(names, "in the header")
    return [name or f"{_UNNAMED}{place}" for place, name in enumerate(names, 1)]


def _without_unnamed(table: pa.Table, report: DecodeReport) -> pa.Table:
    """Return the table without empty unnamed columns, which trailing commas produce."""
    for name in [name for name in table.column_names if name.startswith(_UNNAMED)]:
        values = pc.drop_null(table[name])
        if len(values):
            place = name.removeprefix(_UNNAMED)
            raise DecodeError(
                f"Expected a name for column {place} in the header; it holds {values[0].as_py()!r}.",
                reason="invalid_table",
            )
        table = table.drop_columns([name])
        report.notes["ignored_empty_column"] += 1
    return table


def _utf8(content: bytes, report: DecodeReport) -> bytes:
    """Return the text without byte order mark; invalid UTF-8 becomes question marks, noted.

    Raises:
        DecodeError: For UTF-16, which tools of Windows write.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:_MARKED]:
        raise DecodeError("Expected text in UTF-8; got UTF-16.", reason="invalid_table")
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        content.decode()
    except UnicodeDecodeError:
        report.notes["not_utf8"] += 1
        content = content.decode(errors="replace").encode()
    return content


def _decode(
    table: pa.Table, context: DecodeContext, report: DecodeReport, faults: RowFaults
) -> Decoded:
    names = table.column_names
    columns = {name: table[name] for name in names if not name.startswith("__index_level_")}
    if is_earth2studio(names) and "obs_value" not in columns:
        report.notes["earth2studio_frame"] += 1
        decoded = decode_earth2studio(columns, context, report, faults)
    else:
        decoded = decode_frame(columns, context, report, faults=faults)
    report.bytes_decoded = report.size
    return decoded
