"""Decode Parquet and CSV tables: the observation table itself, or an earth2studio frame.

In an earth2studio frame pressures are in Pa, heights in m, longitudes from 0 to 360 and times in
UTC without a zone; variables follow earth2studio's lexicon.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.domain.errors import DecodeError
from worker.observations.decoders.base import DecodeContext, Decoded, DecodeReport, check_rows
from worker.observations.decoders.frame import decode_frame
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
    columns: Mapping[str, pa.ChunkedArray], context: DecodeContext, report: DecodeReport
) -> Decoded:
    """Return the rows of the frame; count variables outside the vocabulary one by one.

    Accumulated precipitation is left out: the frame does not say over which time.
    """
    own = {"time": columns["time"], "lat": columns["lat"], "lon": columns["lon"]}
    own["obs_value"] = columns["observation"]
    names = [str(n) for n in _text(columns["variable"])]
    split = {name: split_name(name) for name in set(names)}
    own["variable"] = pa.array([split[n][0] for n in names], pa.string())
    level = np.array([split[n][1] for n in names], dtype=np.float64)
    upper = np.array([split[n][0] in EARTH2STUDIO.aloft.values() for n in names], dtype=bool)
    pressure = np.where(np.isfinite(level), level * 100.0, _numbers(columns, "pres", len(names)))
    height = _numbers(columns, "elev", len(names))
    by_pressure = upper & np.isfinite(pressure)
    by_height = upper & ~by_pressure & np.isfinite(height)
    kind = np.where(by_pressure, "pressure", np.where(by_height, "height", "surface"))
    vertical = np.where(by_pressure, pressure, np.where(by_height, height, np.nan))
    own["vertical_kind"] = pa.array(kind, pa.string())
    own["vertical"] = pa.array(vertical, pa.float64(), from_pandas=True)
    station = _numbers(columns, "station_elev", len(names))
    elevation = np.where(np.isfinite(station), station, np.where(upper, np.nan, height))
    own["elevation"] = pa.array(elevation, pa.float64(), from_pandas=True)
    for theirs, ours in (("station", "station_id"), ("satellite", "platform")):
        if theirs in columns:
            own[ours] = columns[theirs]
    for name in _IGNORED:
        if name in columns:
            report.notes[f"ignored_column_{name}"] += 1
    return decode_frame(own, context, report)


def _text(column: pa.ChunkedArray) -> list[Any]:
    return list(column.cast(pa.string()).to_pylist())


def _numbers(columns: Mapping[str, pa.ChunkedArray], name: str, length: int) -> np.ndarray:
    if name not in columns:
        return np.full(length, np.nan)
    values = pd.to_numeric(columns[name].to_pandas(), errors="coerce")
    return np.array(values.to_numpy(dtype=np.float64, na_value=np.nan))


_NULLS = ["", "NaN", "nan", "NA", "null", "None"]


def decode_parquet(path: Path, context: DecodeContext) -> Decoded:
    """Return rows of a Parquet file.

    Raises:
        DecodeError: If it is no Parquet file, too large, or lacks columns.
    """
    report = DecodeReport(format="parquet", size=path.stat().st_size)
    try:
        with pq.ParquetFile(path) as file:
            check_rows(file.metadata.num_rows, context)
            table = file.read()
            table.validate(full=True)  # torn pages may hold strings that are no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"Expected a Parquet file; {error}.", reason="undecodable") from error
    return _decode(table, context, report)


def decode_csv(path: Path, context: DecodeContext) -> Decoded:
    """Return rows of a CSV file with a header line.

    Raises:
        DecodeError: If lines differ in their number of columns, or columns are missing.
    """
    report = DecodeReport(format="csv", size=path.stat().st_size)
    uneven: list[int | None] = []

    def set_aside(row: pacsv.InvalidRow) -> str:
        uneven.append(row.number)
        return "skip"

    content = _utf8(path.read_bytes(), report)
    header = content.split(b"\n", 1)[0].decode().strip().split(",")
    names = [name.strip().strip('"') for name in header]
    if len(set(names)) != len(names):
        raise DecodeError("Expected each column once in the header.", reason="invalid_table")
    try:
        # Every column as text: a faulty cell is then found by column and row.
        table = pacsv.read_csv(
            pa.BufferReader(content),
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
    for number in uneven:
        detail = f"row {number}: a different number of columns" if number else "uneven row"
        report.reject("invalid_table", detail=detail)
    return _decode(table, context, report)


def _utf8(content: bytes, report: DecodeReport) -> bytes:
    """Return the text without byte order mark; invalid UTF-8 becomes question marks, noted."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        content.decode()
    except UnicodeDecodeError:
        report.notes["not_utf8"] += 1
        content = content.decode(errors="replace").encode()
    return content


def _decode(table: pa.Table, context: DecodeContext, report: DecodeReport) -> Decoded:
    names = table.column_names
    columns = {name: table[name] for name in names if not name.startswith("__index_level_")}
    if is_earth2studio(names) and "obs_value" not in columns:
        report.notes["earth2studio_frame"] += 1
        decoded = decode_earth2studio(columns, context, report)
    else:
        decoded = decode_frame(columns, context, report)
    report.bytes_decoded = report.size
    return decoded
