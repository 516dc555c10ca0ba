"""Columns of numbers to the observation table: what every decoder ends with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS
from worker.decoders.base import DecodeContext

__all__ = ["build_table", "concat_tables", "wrap_longitude"]

Column = np.ndarray | Sequence[Any] | str | float | None

_FLAG_NUMBERS = {flag.name: flag.number for flag in QC_FLAGS.values()}


def wrap_longitude(lon: np.ndarray) -> np.ndarray:
    """Degrees east in [-180, 180)."""
    wrapped = np.where((lon >= -180.0) & (lon < 180.0), lon, (lon + 180.0) % 360.0 - 180.0)
    # The remainder of a tiny negative number rounds to 360.
    return np.where(wrapped >= 180.0, -180.0, wrapped)


def build_table(context: DecodeContext, length: int, **columns: Column) -> pa.Table:
    """A table in `OBSERVATION_SCHEMA` from arrays of `length`, or single values repeated.

    Absent columns are null (`platform`: empty). NaN becomes null where the column may be null.
    `observation_id` counts from 0, `batch_id` and `received_time` come from the context,
    `qc_flag` from `rejected_by`. `lon` is wrapped; `time` is datetime64 in UTC.

    Arguments:
        context: Batch and arrival.
        length: Number of rows.
        columns: By name of the schema.

    Raises:
        KeyError: If a name is not a column of the schema.
    """
    if unknown := sorted(set(columns) - set(OBSERVATION_SCHEMA.names)):
        raise KeyError(f"Expected columns of the observation table; got {', '.join(unknown)}.")
    columns = {
        "observation_id": np.arange(length, dtype=np.int64),
        "batch_id": context.batch_id,
        "received_time": np.datetime64(context.received_time.replace(tzinfo=None), "ns"),
        "platform": "",
        **columns,
    }
    if columns.get("lon") is not None:
        columns["lon"] = wrap_longitude(np.asarray(columns["lon"], dtype=np.float64))
    columns.setdefault("qc_flag", _flag_numbers(columns.get("rejected_by"), length))
    arrays = [_column(columns.get(field.name), field, length) for field in OBSERVATION_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=OBSERVATION_SCHEMA)


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """The tables one after another, dictionaries unified and `observation_id` counted anew."""
    if not tables:
        return OBSERVATION_SCHEMA.empty_table()
    table = pa.concat_tables(tables).unify_dictionaries()
    ids = pa.array(np.arange(table.num_rows, dtype=np.int64))
    at = table.schema.get_field_index("observation_id")
    return table.set_column(at, table.schema.field(at), ids)


def _flag_numbers(rejected_by: Column, length: int) -> Column:
    if rejected_by is None:
        return np.zeros(length, dtype=np.uint8)
    if isinstance(rejected_by, str):
        return np.full(length, _FLAG_NUMBERS[rejected_by], dtype=np.uint8)
    names, inverse = np.unique(
        np.asarray(rejected_by, dtype=object).astype(str), return_inverse=True
    )
    numbers = [_FLAG_NUMBERS.get(str(name), 0) for name in names]
    return np.asarray(numbers, dtype=np.uint8)[inverse] if length else np.zeros(0, np.uint8)


def _column(value: Column, field: pa.Field, length: int) -> pa.Array:
    kind = field.type
    if value is None:
        return pa.nulls(length, kind)
    if pa.types.is_dictionary(kind):
        if isinstance(value, str):
            indices = pa.array(np.zeros(length, dtype=np.int32))
            return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.string()))
        if isinstance(value, pa.DictionaryArray):
            return value
        return pa.array(value, pa.string()).dictionary_encode()
    if np.ndim(value) == 0:
        value = np.full(length, value)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return pa.array(value, kind, from_pandas=field.nullable)
    if isinstance(value, np.ndarray) and value.dtype.kind == "M":
        return pa.array(value.astype("datetime64[ns]")).cast(kind)
    return pa.array(value, kind)
