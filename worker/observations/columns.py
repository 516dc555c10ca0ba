"""Read and change columns of an observation table as numpy arrays, and reject rows.

A rejected row keeps the name and number of the first check that rejected it; no row is dropped.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.domain.observations import QCFlag
from model.domain.physics import pressure_at_height

__all__ = [
    "BoolArray",
    "codes",
    "groups",
    "is_one_of",
    "kept",
    "numbers",
    "reject",
    "row_pressure",
    "set_column",
    "times",
]

BoolArray = NDArray[np.bool_]


def numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """The numeric column as float64, NaN where null, with shape (rows,)."""
    column = table[name].combine_chunks()
    if pa.types.is_integer(column.type) and column.null_count == 0:
        return column.to_numpy(zero_copy_only=False).astype(np.float64)
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


def codes(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Index into the sorted distinct values of a string column, -1 where null."""
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
    """Rows whose string column holds one of `values`."""
    code, names = codes(table, name)
    wanted = [i for i, n in enumerate(names) if n in set(values)]
    return np.isin(code, wanted)


def times(table: pa.Table, name: str = "time") -> NDArray[np.int64]:
    """Nanoseconds since 1970, UTC."""
    return pc.cast(table[name], pa.int64()).to_numpy().astype(np.int64)


def kept(table: pa.Table) -> BoolArray:
    """Rows that no check has rejected."""
    return pc.is_null(table["rejected_by"]).to_numpy().astype(bool)


def set_column(table: pa.Table, name: str, values: NDArray | pa.Array) -> pa.Table:
    """The table with one column replaced, cast to the type it had; NaN becomes null."""
    field = table.schema.field(name)
    array = (
        values
        if isinstance(values, pa.Array | pa.ChunkedArray)
        else pa.array(values, from_pandas=True)
    )
    return table.set_column(table.schema.get_field_index(name), field, array.cast(field.type))


def groups(*keys: NDArray) -> NDArray[np.int64]:
    """A number for each row; rows with equal keys share it."""
    combined = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        _, code = np.unique(key, return_inverse=True)
        # Renumber at each step, so that the product never overflows.
        _, combined = np.unique(combined * (code.max(initial=0) + 1) + code, return_inverse=True)
    return combined


def row_pressure(table: pa.Table) -> NDArray[np.float64]:
    """A pressure in Pa for every row, for level tables: exact where given, else standard.

    Heights turn into standard-atmosphere pressure, layers into their logarithmic mean, the surface
    into standard pressure at the station's elevation (sea level where unknown); columns and
    channels get 1000 hPa.
    """
    kind, names = codes(table, "vertical_kind")
    vertical, top = numbers(table, "vertical"), numbers(table, "vertical_top")
    elevation = numbers(table, "elevation")
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
    """The table with `rejected_by` and `qc_flag` set on `rows` that no check rejected before."""
    fresh = pa.array(np.asarray(rows, dtype=bool) & kept(table))
    if not pc.any(fresh, min_count=0).as_py():
        return table
    names = table.schema.field("rejected_by")
    text = pc.if_else(fresh, flag.name, table["rejected_by"].cast(pa.string()))
    number = pc.if_else(fresh, pa.scalar(flag.number, pa.uint8()), table["qc_flag"])
    table = table.set_column(
        table.schema.get_field_index("rejected_by"), names, text.cast(names.type)
    )
    return table.set_column(
        table.schema.get_field_index("qc_flag"), table.schema.field("qc_flag"), number
    )
