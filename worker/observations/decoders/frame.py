"""Decode columns named like the observation table's, as senders of tables write them.

A faulty row is set aside and named by column and row; a faulty header refuses the file.
"""

from collections.abc import Mapping
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
    parse_times,
)
from worker.observations.units import conversion

__all__ = ["RowFaults", "decode_frame"]


class RowFaults:
    """The first fault of each row."""

    def __init__(self, length: int) -> None:
        self.reason = np.full(length, "", dtype=object)
        self.detail = np.full(length, "", dtype=object)

    def add(
        self, rows: np.ndarray, column: str, reason: str, got: np.ndarray | None = None
    ) -> None:
        fresh = np.flatnonzero(rows & (self.reason == ""))
        self.reason[fresh] = reason
        for row in fresh[:1000]:
            what = "" if got is None else f": got {got[row]!r}"
            self.detail[row] = f"column '{column}', row {row + 1}{what}"

    def report(self, report: DecodeReport) -> np.ndarray:
        """Count the faulty rows; return the mask of the others."""
        for row in np.flatnonzero(self.reason != ""):
            report.reject(self.reason[row], detail=self.detail[row], report=int(row))
        return np.asarray(self.reason == "")


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
_NUMBERS = ("elevation", "vertical", "vertical_top", "obs_error", "profile_id", "update_sequence")
ACCEPTED = (*OBSERVATION_SCHEMA.names, "units")


def decode_frame(
    columns: Mapping[str, pa.ChunkedArray | pa.Array], context: DecodeContext, report: DecodeReport
) -> Decoded:
    """Return rows from columns named like the observation table's; at least `time`, `lat`, `lon`,
    `variable` and `obs_value`.

    Defaults: `report_type` from the context's option of that name or `other`; `vertical_kind` by
    the variable; units SI unless a column `units` says otherwise. Columns that only the service may
    fill (batch, arrival, numbers) are ignored and noted.

    Raises:
        DecodeError: If columns are missing or unknown, naming them.
    """
    columns = _renamed(columns, context.options.get("columns") or {})
    _check_header(columns, report)
    length = len(columns["time"])
    report.messages += 1
    report.reports += length
    check_rows(length, context)
    faults = RowFaults(length)
    values: dict[str, Any] = {
        "time": _times(columns["time"], faults),
        "lat": _number(columns["lat"], "lat", faults, "no_position", required=True),
        "lon": _number(columns["lon"], "lon", faults, "no_position", required=True),
        "variable": _variable(columns["variable"], faults),
        "obs_value": _number(columns["obs_value"], "obs_value", faults),
    }
    for name in _NUMBERS:
        if name in columns:
            values[name] = _number(columns[name], name, faults)
    for name in _TEXTS:
        if name in columns:
            values[name] = _text(columns[name])
    faults.add(~np.isfinite(values["lat"]) | (np.abs(values["lat"]) > 1e3), "lat", "no_position")
    faults.add(~np.isfinite(values["lon"]) | (np.abs(values["lon"]) > 1e3), "lon", "no_position")
    _convert(values, faults)
    _complete(values, length, context, faults)
    good = faults.report(report)
    table = build_table(context, int(good.sum()), **{n: v[good] for n, v in values.items()})
    report.decoded += int(len(table) > 0)
    return finish(table, report)


def _renamed(columns: Mapping[str, Any], names: Any) -> dict[str, Any]:
    if not isinstance(names, Mapping):
        raise DecodeError(
            f"Expected the option 'columns' as a mapping of their names to ours; got {names!r}.",
            reason="invalid_table",
        )
    return {names.get(name, name): column for name, column in columns.items()}


def _check_header(columns: Mapping[str, Any], report: DecodeReport) -> None:
    missing = [n for n in REQUIRED if n not in columns]
    unknown = [n for n in columns if n not in ACCEPTED]
    if missing or unknown:
        raise DecodeError(
            f"Expected the columns {', '.join(REQUIRED)} and any of the observation table's; "
            f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}.",
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
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _text(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a column as strings, None where empty."""
    array = pc.utf8_trim_whitespace(_plain(column).cast(pa.string()))
    values = array.to_numpy(zero_copy_only=False)
    return np.array([value or None for value in values], dtype=object)


def _number(
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
        if pa.types.is_nested(array.type) or pa.types.is_temporal(array.type):
            raise DecodeError(
                f"Expected numbers in column '{name}'; got {array.type}.", reason="invalid_table"
            )
        values = pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
        return np.array(values, dtype=np.float64)
    text = _text(array)
    series = pd.to_numeric(pd.Series(text, dtype=object), errors="coerce")
    values = np.array(series.to_numpy(np.float64))
    words = np.array([t is not None and str(t).lower() not in ("nan", "na") for t in text], bool)
    faults.add(words & np.isnan(values), name, reason, text)
    if required:
        faults.add(np.isnan(values), name, reason)
    return values


def _times(column: pa.ChunkedArray | pa.Array, faults: RowFaults) -> np.ndarray:
    """Return datetime64[ns] in UTC; text is ISO 8601, taken as UTC where it names no zone."""
    array = _plain(column)
    if pa.types.is_timestamp(array.type):
        # A zoned column is UTC inside already.
        naive = array.cast(pa.timestamp(array.type.unit)).to_numpy(zero_copy_only=False)
        parsed = naive.astype("datetime64[ns]")
        text = None
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        text = _text(array)
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
    text = _text(column)
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


def _complete(
    values: dict[str, Any], length: int, context: DecodeContext, faults: RowFaults
) -> None:
    """Fill in defaults of absent columns and check names."""
    default = context.options.get("report_type", "other")
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


def _filled(column: np.ndarray | None, length: int, default: str) -> np.ndarray:
    if column is None:
        return np.full(length, default, dtype=object)
    return np.where(pd.isna(column), default, column).astype(object)
