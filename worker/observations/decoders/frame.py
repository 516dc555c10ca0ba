"""Decode tables whose columns are named like those of the observation table.

A faulty row is rejected, with its column and place in the file: the line (CSV), feature (GeoJSON) or
row (Parquet), all counted from 1. With a faulty header the file is refused.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from model.domain.errors import DecodeError
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES, VERTICAL_KINDS
from model.domain.variables import VARIABLES
from worker.observations.columns import build_table
from worker.observations.decoders.base import (
    DecodeContext,
    Decoded,
    DecodeReport,
    check_rows,
    finish,
    nanoseconds,
    padded_numbers,
    parse_times,
)
from worker.observations.decoders.coordinates import degrees_factor, has_place, pascal_factor
from worker.observations.decoders.options import TableOptions
from worker.observations.units import conversion

__all__ = [
    "ACCEPTED",
    "MAX_COLUMNS",
    "RowFaults",
    "decode_frame",
    "number_column",
    "require_distinct",
    "text_column",
]


class RowFaults:
    """The first fault of each row, with the row's place in the file.

    Arguments:
        length: Number of rows.
        unit: Unit of places: `row`, `line` or `feature`.
        places: Place of each row in the file, with shape (rows,); by default rows count from 1.
    """

    def __init__(self, length: int, unit: str = "row", places: np.ndarray | None = None) -> None:
        self.unit = unit
        self.places = np.arange(1, length + 1) if places is None else places
        self.reason = np.full(length, "", dtype=object)
        self.detail = np.full(length, "", dtype=object)

    def add(
        self, rows: np.ndarray, column: str, reason: str, got: np.ndarray | None = None
    ) -> None:
        """Record a fault of those of `rows` (a mask) that have none yet; `got` holds their values."""
        fresh = np.flatnonzero(rows & (self.reason == ""))
        self.reason[fresh] = reason
        for row in fresh[:1000]:
            what = "" if got is None else f": got {_shown(got[row])}"
            self.detail[row] = f"column '{column}', {self.unit} {self.places[row]}{what}"

    def report(self, report: DecodeReport) -> np.ndarray:
        """Count the faulty rows; return the mask of the others."""
        for row in np.flatnonzero(self.reason != ""):
            report.reject(self.reason[row], detail=self.detail[row], report=int(self.places[row]))
        return np.asarray(self.reason == "")


def _shown(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float | np.floating) else repr(value)


REQUIRED = ("time", "lat", "lon", "variable", "obs_value")
OVERWRITTEN = ("batch_id", "observation_id", "received_time", "message_offset", "qc_flag")
_TEXTS = (
    "report_type",
    "station_id",
    "station_alias",
    "platform",
    "vertical_kind",
    "rejected_by",
    "units",
)
_NUMBERS = (
    "elevation",
    "vertical",
    "vertical_top",
    "scan_angle",
    "obs_error",
    "profile_id",
    "update_sequence",
)
ACCEPTED = (*OBSERVATION_SCHEMA.names, "units")
MAX_COLUMNS = 1_000
"""Many more than any table has; the time that libraries need grows faster than the number."""


def decode_frame(
    columns: Mapping[str, pa.ChunkedArray | pa.Array],
    context: DecodeContext,
    report: DecodeReport,
    *,
    options: TableOptions | None = None,
    faults: RowFaults | None = None,
) -> Decoded:
    """Return rows from columns named like the observation table's; at least `time`, `lat`, `lon`,
    `variable` and `obs_value`.

    Defaults: `report_type` from the context's option of that name or `other`; `vertical_kind` by
    the variable; units SI unless a column `units` says otherwise. Columns that only the service may
    fill (batch, arrival, numbers) are ignored and noted.

    Arguments:
        columns: By name.
        context: The upload.
        report: Report to which counts are added.
        options: The sender's; from the context if None.
        faults: Places in the file, possibly with faults already; by default rows count from 1.

    Raises:
        DecodeError: If columns are missing or unknown, naming them, or positions and levels are
            plausible only in other units than degrees and Pa.
    """
    options = options or TableOptions.of(context.options)
    columns = _renamed(columns, options.columns, report)
    _check_header(columns, report)
    length = len(columns["time"])
    report.messages += 1
    report.reports += length
    check_rows(length, context)
    faults = faults or RowFaults(length)
    values = _values(columns, faults)
    _convert(values, faults)
    _complete(values, length, options.report_type or "other", faults)
    if "station_id" in columns and _lost_zeros(columns["station_id"], values["station_id"]):
        values["station_id"] = padded_numbers(values["station_id"], values["report_type"])
    _settle_units(values, options, faults, report)
    good = faults.report(report)
    table = build_table(context, int(good.sum()), **{n: v[good] for n, v in values.items()})
    report.decoded += int(len(table) > 0)
    return finish(table, report)


def _values(columns: Mapping[str, pa.ChunkedArray | pa.Array], faults: RowFaults) -> dict[str, Any]:
    """Return the columns as arrays; record the rows whose cells cannot be used."""
    values: dict[str, Any] = {
        "time": _times(columns["time"], faults),
        "lat": number_column(columns["lat"], "lat", faults, "no_position", required=True),
        "lon": number_column(columns["lon"], "lon", faults, "no_position", required=True),
        "variable": _variable(columns["variable"], faults),
        "obs_value": number_column(columns["obs_value"], "obs_value", faults),
    }
    for name in _NUMBERS:
        if name in columns:
            values[name] = number_column(columns[name], name, faults)
            _check_range(values[name], name, faults)
    for name in _TEXTS:
        if name in columns:
            values[name] = text_column(columns[name], name)
    if "station_id" in values:
        values["station_id"] = _whole(values["station_id"])
    for name in ("lat", "lon"):
        there = has_place(values[name])
        faults.add(~there, name, "no_position", values[name])
    return values


def _renamed(
    columns: Mapping[str, pa.ChunkedArray | pa.Array], ours: Mapping[str, str], report: DecodeReport
) -> dict[str, pa.ChunkedArray | pa.Array]:
    """Return the columns under our names, by the sender's option; note names that no column has.

    Raises:
        DecodeError: If two columns get the same name; one of them would be lost.
    """
    names = [ours.get(name, name) for name in columns]
    require_distinct(names, "by the option 'columns'")
    for name in ours:
        if name not in columns:
            report.notes[f"no_column_{name[:100]}"] += 1
    return dict(zip(names, columns.values(), strict=True))


def require_distinct(names: Sequence[str], where: str) -> None:
    """Refuse a table with two columns of the same name, or with more columns than a table has.

    Raises:
        DecodeError: Naming the columns.
    """
    if len(names) > MAX_COLUMNS:
        raise DecodeError(
            f"Expected at most {MAX_COLUMNS} columns; got {len(names)}.", reason="invalid_table"
        )
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise DecodeError(
            f"Expected each column once {where}; got {', '.join(repeated)} more than once.",
            reason="invalid_table",
        )


def _check_header(columns: Mapping[str, Any], report: DecodeReport) -> None:
    missing = [n for n in REQUIRED if n not in columns]
    unknown = [n for n in columns if n not in ACCEPTED]
    if missing or unknown:
        raise DecodeError(
            f"Expected the columns {', '.join(REQUIRED)} and any of the observation table's; "
            f"missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(name or '(a column without a name)' for name in unknown) or 'none'}.",
            reason="invalid_table",
            missing=missing,
            unknown=unknown,
        )
    for name in OVERWRITTEN:
        if name in columns:
            report.notes[f"ignored_column_{name}"] += 1


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.string()) if pa.types.is_string_view(array.type) else array


def _lost_zeros(column: pa.ChunkedArray | pa.Array, texts: np.ndarray) -> bool:
    """Return whether identifiers may have lost leading zeros: they are numbers, or none has one.

    Spreadsheets and tables of other programs write `6260` for `06260`.
    """
    kind = _plain(column).type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return True
    zeros = pc.match_substring_regex(pa.array(texts, pa.string()), r"^0\d*$")
    return not pc.any(zeros, min_count=0).as_py()


def text_column(column: pa.ChunkedArray | pa.Array, name: str) -> np.ndarray:
    """Return a column as strings, None where empty."""
    array = _plain(column)
    try:
        array = pc.utf8_trim_whitespace(array.cast(pa.string()))
    except pa.ArrowException as error:
        raise DecodeError(
            f"Expected text in column '{name}'; got {array.type}.", reason="invalid_table"
        ) from error
    values = array.to_numpy(zero_copy_only=False)
    return np.array([value or None for value in values], dtype=object)


def number_column(
    column: pa.ChunkedArray | pa.Array,
    name: str,
    faults: RowFaults,
    reason: str = "invalid_table",
    *,
    required: bool = False,
) -> np.ndarray:
    """Return float64, NaN where empty; text that is not a number is a fault."""
    array = _plain(column)
    if not pa.types.is_string(array.type) and not pa.types.is_large_string(array.type):
        values = _floats(array, name)
        if required:
            faults.add(np.isnan(values), name, reason)
        return values
    text = text_column(array, name)
    series = pd.to_numeric(pd.Series(text, dtype=object), errors="coerce")
    values = np.array(series.to_numpy(np.float64))
    words = np.array([t is not None and str(t).lower() not in ("nan", "na") for t in text], bool)
    faults.add(words & np.isnan(values), name, reason, text)
    if required:
        faults.add(np.isnan(values), name, reason)
    return values


def _floats(array: pa.Array, name: str) -> np.ndarray:
    try:
        if pa.types.is_temporal(array.type):
            raise pa.ArrowTypeError("times are no numbers")
        # Not safe: integers beyond 2**53 are rounded rather than fatal.
        values = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DecodeError(
            f"Expected numbers in column '{name}'; got {array.type}.", reason="invalid_table"
        ) from error
    return np.array(values, dtype=np.float64)


def _check_range(values: np.ndarray, name: str, faults: RowFaults) -> None:
    """Record faults of numbers that the column cannot hold: beyond its range, or not whole."""
    kind = OBSERVATION_SCHEMA.field(name).type.to_pandas_dtype()
    if np.issubdtype(kind, np.integer):
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        wrong = ~((values >= low) & (values <= high) & (np.floor(values) == values))
    else:
        wrong = ~(np.abs(values) <= np.finfo(kind).max)
    faults.add(wrong & ~np.isnan(values), name, "invalid_table", values)
    values[wrong] = np.nan


def _whole(ids: np.ndarray) -> np.ndarray:
    """Return identifiers without the `.0` of a column that was stored as floats."""
    return np.array(
        [
            text[: text.index(".")] if text is not None and _DECIMAL_ID.match(text) else text
            for text in ids
        ],
        dtype=object,
    )


_DECIMAL_ID = re.compile(r"\d+\.0+\Z")


def _times(column: pa.ChunkedArray | pa.Array, faults: RowFaults) -> np.ndarray:
    """Return datetime64[ns] in UTC; text is ISO 8601, taken as UTC where it names no zone."""
    array = _plain(column)
    if pa.types.is_timestamp(array.type):
        # A zoned column is UTC inside already.
        naive = array.cast(pa.timestamp(array.type.unit)).to_numpy(zero_copy_only=False)
        parsed = nanoseconds(naive)
        text = None
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        text = text_column(array, "time")
        parsed = parse_times(text)
    else:
        raise DecodeError(
            f"Expected ISO 8601 text or timestamps in column 'time'; got {array.type}.",
            reason="invalid_table",
        )
    bad = np.isnat(parsed)
    faults.add(bad, "time", "no_time", text)
    return np.where(bad, np.datetime64(0, "ns"), parsed)


def _variable(column: pa.ChunkedArray | pa.Array, faults: RowFaults) -> np.ndarray:
    text = text_column(column, "variable")
    short_names = {v.short: v.id for v in VARIABLES.values()}
    lookup = {name: short_names.get(name, name) for name in set(text) - {None}}
    found = np.array([lookup.get(t, "") for t in text], dtype=object)
    unknown = ~np.isin(found.astype(str), list(VARIABLES)) if len(found) else np.zeros(0, bool)
    faults.add(unknown, "variable", "unsupported_variable", text)
    return found


def _convert(values: dict[str, Any], faults: RowFaults) -> None:
    """Convert values by the column `units` and remove that column."""
    units = values.pop("units", None)
    if units is None:
        return
    variable = values["variable"]
    units = np.where(pd.isna(units), "SI", units)
    pairs = pd.DataFrame({"u": units, "v": variable}).groupby(["u", "v"], sort=False).indices
    for (unit, name), rows in pairs.items():
        if name not in VARIABLES:
            continue
        factors = conversion(unit, name)
        if factors is None:
            bad = np.zeros(len(units), dtype=bool)
            bad[rows] = True
            faults.add(bad, "units", "invalid_table", units)
            continue
        scale, offset = factors
        values["obs_value"][rows] = values["obs_value"][rows] * scale + offset
        if "obs_error" in values:
            values["obs_error"][rows] *= scale


def _complete(values: dict[str, Any], length: int, default: str, faults: RowFaults) -> None:
    """Fill in defaults of absent columns and check names."""
    values["report_type"] = _filled(values.get("report_type"), length, default)
    values["station_id"] = _filled(values.get("station_id"), length, "")
    values["platform"] = _filled(values.get("platform"), length, "")
    kind = _filled(values.get("vertical_kind"), length, "")
    vertical = values.get("vertical", np.full(length, np.nan))
    unnamed = kind == ""
    kind[unnamed & np.isnan(vertical)] = "surface"
    faults.add(unnamed & np.isfinite(vertical), "vertical_kind", "invalid_table")
    needs_level = [v.id for v in VARIABLES.values() if v.needs_level]
    upper = np.isin(values["variable"].astype(str), needs_level)
    faults.add(upper & (kind == "surface"), "vertical", "invalid_table", values["variable"])
    for name, known, array in (
        ("report_type", REPORT_TYPES, values["report_type"]),
        ("vertical_kind", VERTICAL_KINDS, kind),
    ):
        wrong = ~np.isin(array.astype(str), list(known)) if length else np.zeros(0, bool)
        faults.add(wrong & ~((name == "vertical_kind") & unnamed), name, "invalid_table", array)
    values["vertical_kind"], values["vertical"] = kind, vertical
    if "rejected_by" in values:
        named = values["rejected_by"]
        wrong = np.array([n is not None and n not in QC_FLAGS for n in named], dtype=bool)
        faults.add(wrong, "rejected_by", "invalid_table", named)


def _settle_units(
    values: dict[str, Any], options: TableOptions, faults: RowFaults, report: DecodeReport
) -> None:
    """Convert positions to degrees and pressures to Pa, by the options or by `coordinates`."""
    good = faults.reason == ""
    factor = degrees_factor(
        np.where(good, values["lat"], np.nan),
        np.where(good, values["lon"], np.nan),
        options.angle_units,
        report,
        networks=values["report_type"],
        stations=values["station_id"],
    )
    values["lat"], values["lon"] = values["lat"] * factor, values["lon"] * factor
    by_pressure = np.isin(values["vertical_kind"].astype(str), ("pressure", "layer"))
    level = np.where(good & by_pressure, values["vertical"], np.nan)
    factor = pascal_factor(level, options.pressure_units, "column 'vertical'")
    for name in ("vertical", "vertical_top"):
        if name in values:
            values[name] = np.where(by_pressure, values[name] * factor, values[name])


def _filled(column: np.ndarray | None, length: int, default: str) -> np.ndarray:
    if column is None:
        return np.full(length, default, dtype=object)
    return np.where(pd.isna(column), default, column).astype(object)
