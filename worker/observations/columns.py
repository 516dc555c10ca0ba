"""Build observation tables, read and change their columns as numpy arrays, and reject rows.

A rejected row keeps the name and number of the first check that rejected it; no row is dropped.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, QCFlag
from model.domain.physics import pressure_at_height

__all__ = [
    "BoolArray",
    "SUPEROBSERVATIONS",
    "build_table",
    "coded_column",
    "concat_tables",
    "count_pairs",
    "count_values",
    "repeated_column",
    "wrap_longitude",
    "category_codes",
    "groups",
    "is_one_of",
    "not_rejected",
    "float_column",
    "number_array",
    "reject",
    "row_pressure",
    "rows_of",
    "set_column",
    "text_array",
    "time_column",
]

BoolArray = NDArray[np.bool_]
Floats = NDArray[np.float64]
Column: TypeAlias = NDArray[Any] | pa.Array | Sequence[Any] | np.datetime64 | str | float | None
"""Values of one column: one for each row, or one for all."""


SUPEROBSERVATIONS = "superobservations"
"""Batch id of rows that quality control appends: means of other rows."""


class Origin(Protocol):
    """The upload that rows came in: its batch and its arrival (aware, UTC)."""

    @property
    def batch_id(self) -> str: ...
    @property
    def received_time(self) -> datetime: ...


_CACHED_ROWS = 4_096
_CACHED_TABLES = 3


class _ColumnCache(threading.local):
    """Cache of the columns of the tables that this thread used last."""

    def __init__(self) -> None:
        self.tables: list[tuple[pa.Table, dict[tuple[str, str], Any]]] = []

    def of(self, table: pa.Table) -> dict[tuple[str, str], Any]:
        """Return the cached columns of a table."""
        for known, values in self.tables:
            if known is table:
                return values
        return self._begin(table, {})

    def carry(self, table: pa.Table, changed: pa.Table, name: str) -> None:
        """Copy the cached columns of a table to a changed one that differs only in column `name`."""
        if len(table) <= _CACHED_ROWS:
            values = self.of(table)
            self._begin(changed, {key: read for key, read in values.items() if key[1] != name})

    def _begin(
        self, table: pa.Table, values: dict[tuple[str, str], Any]
    ) -> dict[tuple[str, str], Any]:
        self.tables = [(table, values), *self.tables[: _CACHED_TABLES - 1]]
        return values


_column_cache = _ColumnCache()
Value = TypeVar("Value")


def _cached(table: pa.Table, how: str, name: str, read: Callable[[pa.Table, str], Value]) -> Value:
    """Return `read(table, name)`, cached for small tables.

    A dozen checks read the same columns of a bulletin of a few rows, which is most of their cost.
    """
    if len(table) > _CACHED_ROWS:
        return read(table, name)
    values, key = _column_cache.of(table), (how, name)
    if key not in values:
        values[key] = read(table, name)
    found: Value = values[key]
    return found


def float_column(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return the numeric column as float64, NaN where null, with shape (rows,)."""
    return _cached(table, "float", name, _read_floats).copy()


def category_codes(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return the index into the sorted distinct values of a string column, -1 where null."""
    codes, names = _cached(table, "category", name, _read_categories)
    return codes.copy(), list(names)


def time_column(table: pa.Table, name: str = "time") -> NDArray[np.int64]:
    """Return a time column as nanoseconds since 1970 in UTC, with shape (rows,)."""
    return _cached(table, "time", name, _read_times).copy()


def _read_times(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.array(pc.cast(table[name], pa.int64()).to_numpy(), dtype=np.int64)


def _read_floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    column = table[name].combine_chunks()
    if not (pa.types.is_integer(column.type) and column.null_count == 0):
        column = pc.cast(column, pa.float64())
    return np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _read_categories(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    column = table[name]
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    values = [str(v) for v in array.dictionary.to_pylist()]
    names = sorted(set(values))
    place = np.array(
        [names.index(v) for v in values] if len(values) < 64 else _places(values, names)
    )
    index = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    if not len(values):
        return np.full(len(index), -1, dtype=np.int64), []
    return np.where(index < 0, -1, place[np.maximum(index, 0)]), names


def _places(values: list[str], names: list[str]) -> list[int]:
    lookup = {name: i for i, name in enumerate(names)}
    return [lookup[v] for v in values]


def is_one_of(table: pa.Table, name: str, values: Iterable[str]) -> BoolArray:
    """Return the mask of rows whose string column holds one of `values`."""
    code, names = category_codes(table, name)
    wanted = [i for i, n in enumerate(names) if n in set(values)]
    return np.isin(code, wanted)


def not_rejected(table: pa.Table) -> BoolArray:
    """Return the mask of rows that no check has rejected."""
    return _cached(table, "null", "rejected_by", _read_nulls).copy()


def _read_nulls(table: pa.Table, name: str) -> BoolArray:
    return np.array(pc.is_null(table[name]).to_numpy(), dtype=bool)


def rows_of(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table, distinct and ascending; the table itself where these are all."""
    return table if len(rows) == len(table) else table.take(rows)


def set_column(table: pa.Table, name: str, values: NDArray[Any] | pa.Array) -> pa.Table:
    """Return the table with one column replaced, cast to the type it had; NaN becomes null."""
    field = table.schema.field(name)
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else _array_of(values, True)
    changed = table.set_column(table.schema.get_field_index(name), field, array.cast(field.type))
    _column_cache.carry(table, changed, name)
    return changed


def groups(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Return a number for each row; rows with equal keys share it; NaN equals NaN.

    Numbers rise with the keys, the first one first.
    """
    length = len(keys[0])
    if not length:
        return np.zeros(0, dtype=np.int64)
    plain = [np.unique(k, return_inverse=True)[1] if k.dtype.kind == "O" else k for k in keys]
    order = np.lexsort(plain[::-1])
    fresh = np.zeros(length, dtype=bool)
    for key in plain:
        along = key[order]
        differs = along[1:] != along[:-1]
        if along.dtype.kind in "fM":
            differs &= (along[1:] == along[1:]) | (along[:-1] == along[:-1])
        fresh[1:] |= differs
    found = np.empty(length, dtype=np.int64)
    found[order] = np.cumsum(fresh)
    return found


def row_pressure(table: pa.Table) -> NDArray[np.float64]:
    """Return a pressure in Pa for every row, for level tables: exact where given, else standard.

    Heights turn into standard-atmosphere pressure, layers into their logarithmic mean, the surface
    into standard pressure at the station's elevation (sea level where unknown); columns and
    channels get 1000 hPa.
    """
    kind, names = category_codes(table, "vertical_kind")
    vertical, top = float_column(table, "vertical"), float_column(table, "vertical_top")
    elevation = float_column(table, "elevation")
    result = np.full(len(kind), 1.0e5)
    for i, name in enumerate(names):
        rows = kind == i
        if name == "pressure":
            result[rows] = vertical[rows]
        elif name == "layer":
            with np.errstate(invalid="ignore"):
                result[rows] = np.sqrt(np.maximum(vertical[rows] * top[rows], 1.0))
        elif name == "height":
            result[rows] = pressure_at_height(vertical[rows])
        elif name == "surface":
            height = np.nan_to_num(elevation[rows], nan=0.0)
            result[rows] = pressure_at_height(height)
    return result


def reject(table: pa.Table, rows: BoolArray, flag: QCFlag) -> pa.Table:
    """Return the table with `rejected_by` and `qc_flag` set on `rows` that no check rejected before."""
    fresh = number_array(np.asarray(rows, dtype=bool) & not_rejected(table))
    if not pc.any(fresh, min_count=0).as_py():
        return table
    text = pc.if_else(fresh, flag.name, table["rejected_by"].cast(pa.string()))
    number = pc.if_else(fresh, pa.scalar(flag.number, pa.uint8()), table["qc_flag"])
    return set_column(set_column(table, "rejected_by", text), "qc_flag", number)


def count_values(table: pa.Table, name: str) -> Counter[str]:
    """Return how many rows hold each value of a string column; nulls do not count."""
    counts: Counter[str] = Counter()
    for entry in pc.value_counts(table[name]).to_pylist():
        if entry["values"] is not None:
            counts[entry["values"]] += entry["counts"]
    return counts


def count_pairs(table: pa.Table, group: str, name: str) -> dict[str, dict[str, int]]:
    """Return how many rows hold each value of a string column, for each value of another.

    Rows in which either is null do not count; groups without any are absent.
    """
    (outer, groups), (inner, names) = category_codes(table, group), category_codes(table, name)
    both = (outer >= 0) & (inner >= 0)
    pairs, counts = np.unique(outer[both] * len(names) + inner[both], return_counts=True)
    found: dict[str, dict[str, int]] = {}
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(groups[pair // len(names)], {})[names[pair % len(names)]] = count
    return found


def wrap_longitude(lon: np.ndarray) -> np.ndarray:
    """Return degrees east in [-180, 180)."""
    wrapped = np.where((lon >= -180.0) & (lon < 180.0), lon, (lon + 180.0) % 360.0 - 180.0)
    # The remainder of a tiny negative number rounds to 360.
    return np.where(wrapped >= 180.0, -180.0, wrapped)


def build_table(origin: Origin, length: int, **columns: Column) -> pa.Table:
    """Return a table in `OBSERVATION_SCHEMA` from arrays of `length`, or single values repeated.

    Absent columns are null (`platform`: empty). NaN becomes null where the column may be null, as do
    fill values of elevations, such as 9999, and of observed values, such as 9.97e36.
    `observation_id` counts from 0, `batch_id` and `received_time` come from the origin,
    `qc_flag` from `rejected_by`. `lon` is wrapped; `time` is datetime64 in UTC.

    Arguments:
        origin: Batch and arrival, such as a `DecodeContext`.
        length: Number of rows.
        columns: By name of the schema.

    Raises:
        KeyError: If a name is not a column of the schema.
    """
    if unknown := sorted(set(columns) - set(OBSERVATION_SCHEMA.names)):
        raise KeyError(f"Expected columns of the observation table; got {', '.join(unknown)}.")
    columns = {
        "observation_id": np.arange(length, dtype=np.int64),
        "batch_id": origin.batch_id,
        "received_time": np.datetime64(origin.received_time.replace(tzinfo=None), "ns"),
        "platform": "",
        **columns,
    }
    if columns.get("elevation") is not None:
        columns["elevation"] = _known_elevation(np.asarray(columns["elevation"], dtype=np.float64))
    if columns.get("obs_value") is not None:
        columns["obs_value"] = _known_value(np.asarray(columns["obs_value"], dtype=np.float64))
    if columns.get("lon") is not None:
        columns["lon"] = wrap_longitude(np.asarray(columns["lon"], dtype=np.float64))
    columns.setdefault("qc_flag", _flag_numbers(columns.get("rejected_by"), length))
    arrays = [_column(columns.get(field.name), field, length) for field in OBSERVATION_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=OBSERVATION_SCHEMA)


_NO_ELEVATION = np.array(
    [
        *(10.0**digits - step for digits in (4, 5, 6, 7) for step in (1.0, 0.1, 0.01, 0.001)),
        *(step - 10.0**digits for digits in (3, 4, 5, 6) for step in (1.0, 0.1, 0.01, 0.001)),
        *(32_767.0, -32_768.0, 65_535.0, 2.0**31 - 1.0, -(2.0**31)),
    ],
    dtype=np.float32,
)
"""Fill values of heights: all nines (but 999 m is a height), and limits of integer types."""
_MIN_MARK = float(np.abs(_NO_ELEVATION).min())
_MAX_ELEVATION = 1.0e6
"""Largest height or depth of an observation in m; common fill values are 1e20, 9.97e36 and 3.4e38."""


def _known_elevation(elevation: Floats) -> Floats:
    """Return heights in m, with NaN in place of fill values."""
    known = np.atleast_1d(elevation).copy()
    far = np.flatnonzero(np.abs(known) >= _MIN_MARK)
    # In single precision, as most files hold them.
    unknown = np.isin(known[far].astype(np.float32), _NO_ELEVATION) | (
        np.abs(known[far]) > _MAX_ELEVATION
    )
    known[far[unknown]] = np.nan
    return known.reshape(elevation.shape)


_FILLING = 1.0e15
"""Larger than any quantity in any unit; common fill values are 1e20, 9.97e36 and 3.4e38."""


def _known_value(value: Floats) -> Floats:
    """Return observed values, with NaN in place of fill values; infinity stays."""
    filling = (np.abs(value) >= _FILLING) & np.isfinite(value)
    return np.where(filling, np.nan, value) if filling.any() else value


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables, with common dictionaries and `observation_id` renumbered."""
    if not tables:
        return OBSERVATION_SCHEMA.empty_table()
    table = pa.concat_tables(tables).unify_dictionaries()
    return set_column(table, "observation_id", np.arange(table.num_rows, dtype=np.int64))


def _flag_numbers(rejected_by: Column, length: int) -> pa.Array:
    none = number_array(np.zeros(length, dtype=np.uint8))
    if rejected_by is None:
        return none
    encoded = _column(rejected_by, OBSERVATION_SCHEMA.field("rejected_by"), length)
    names = encoded.dictionary.to_pylist()
    numbers = [QC_FLAGS[name].number if name in QC_FLAGS else 0 for name in names]
    flags = number_array(np.array(numbers, dtype=np.uint8))
    given = pa.DictionaryArray.from_arrays(encoded.indices, flags).dictionary_decode()
    return pc.coalesce(given, none)


def _column(value: Column, field: pa.Field, length: int) -> pa.Array:
    kind = field.type
    if value is None:
        return pa.nulls(length, kind)
    if isinstance(value, pa.Array):
        return value if value.type == kind else value.cast(kind)
    if pa.types.is_dictionary(kind):
        if isinstance(value, str):
            indices = number_array(np.zeros(length, dtype=np.int32))
            return pa.DictionaryArray.from_arrays(indices, text_array([value]))
        return repeated_column(cast(Iterable[str | None], value))
    if np.ndim(value) == 0:
        value = np.full(length, value)
    if pa.types.is_string(kind):
        return text_array(cast(Iterable[str | None], value))
    return _array_of(np.asarray(value), field.nullable).cast(kind)


def _array_of(values: NDArray[Any], nullable: bool) -> pa.Array:
    """Return an Arrow array; NaN is null where there may be nulls."""
    if values.dtype.kind not in "biufM":
        return pa.array(values, from_pandas=nullable)
    return number_array(values, np.isnan(values) if nullable and values.dtype.kind == "f" else None)


def number_array(values: NDArray[Any], missing: BoolArray | None = None) -> pa.Array:
    """Return numbers, masks, or times in nanoseconds as an Arrow array; null where missing.

    `pa.array` would import pandas (44 MB) only to check for its types.

    Arguments:
        values: Whole or floating numbers, booleans, or datetime64, (N,).
        missing: Which are null, (N,).
    """
    if values.dtype.kind == "M":
        values = values.astype("datetime64[ns]")
        absent = np.isnat(values)
        missing = absent if missing is None else missing | absent
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    valid = None
    if missing is not None and missing.any():
        valid = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    kind, length = pa.from_numpy_dtype(values.dtype), len(values)
    if values.dtype.kind == "b":
        values = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(kind, length, [valid, pa.py_buffer(values)])


def text_array(texts: Iterable[str | None]) -> pa.StringArray:
    """Return texts as an Arrow array, without the pandas that `pa.array` would import."""
    given, valid = list(texts), None
    if None in given:
        there = np.array([text is not None for text in given])
        valid = pa.py_buffer(np.packbits(there, bitorder="little"))
    plain = [text or "" for text in given]
    joined = "".join(plain)
    content = joined.encode()
    parts: Sequence[str | bytes] = plain
    if len(content) != len(joined):
        parts = [text.encode() for text in plain]
    ends = np.zeros(len(given) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=ends[1:])
    buffers = pa.py_buffer(ends), pa.py_buffer(content), valid
    return pa.StringArray.from_buffers(len(given), *buffers)


def coded_column(codes: NDArray[np.integer], names: Sequence[str]) -> pa.DictionaryArray:
    """Return a dictionary column of numbers into `names`, null where negative.

    Names that no row has are left out.
    """
    missing = codes < 0
    codes = np.where(missing, len(names), codes)
    used = np.flatnonzero(np.bincount(codes, minlength=len(names) + 1)[: len(names)])
    place = np.zeros(len(names) + 1, dtype=np.int32)
    place[used] = np.arange(len(used))
    found = text_array([names[code] for code in used.tolist()])
    return pa.DictionaryArray.from_arrays(number_array(place[codes], missing), found)


def repeated_column(
    texts: Iterable[str | None], index: NDArray[np.integer] | None = None
) -> pa.DictionaryArray:
    """Return a dictionary column with the text, or null, at each index.

    Arguments:
        texts: Texts to choose from.
        index: Indices into `texts`; None for each text once.
    """
    texts = list(texts)
    names = [name for name in dict.fromkeys(texts) if name is not None]
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    numbers[None] = -1
    codes = np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))
    if index is not None:
        codes = codes[index]
    return pa.DictionaryArray.from_arrays(number_array(codes, codes < 0), text_array(names))
