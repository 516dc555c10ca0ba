"""Rows of the observation table as arrays, and the outcomes written back."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from model.domain.observations import QC_FLAGS
from model.operators.domain import Points

__all__ = ["Rows", "column_codes", "read_rows", "with_rejections"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The columns that operators need; NaN where the table has no value.

    Attributes:
        used: Rows no check has rejected, with shape (R,).
        hours: Hours since the first state.
        lat, lon, elevation, vertical, vertical_top, obs_value, obs_error: As in the table.
        group: Number of the row's (variable, vertical kind) in `groups`.
        groups: Pairs of variable and vertical kind.
    """

    used: NDArray[np.bool_]
    hours: Float
    lat: Float
    lon: Float
    elevation: Float
    vertical: Float
    vertical_top: Float
    obs_value: Float
    obs_error: Float
    group: NDArray[np.int64]
    groups: tuple[tuple[str, str], ...]

    def points(self, index: NDArray[np.int64], vertical_kind: str) -> Points:
        """The points of the rows at `index`."""
        return Points(
            self.hours[index],
            self.lat[index],
            self.lon[index],
            self.elevation[index],
            vertical_kind,
            self.vertical[index],
            self.vertical_top[index],
        )


def _numbers(table: pa.Table, name: str) -> Float:
    column = pc.fill_null(table[name].cast(pa.float64()), np.nan)
    return column.to_numpy()


def column_codes(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Dictionary codes (-1 for null) and the names they stand for."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # pyarrow keeps a chunked array when there is no chunk
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = pc.fill_null(column.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return codes, [str(v) for v in column.dictionary.to_pylist()]


def read_rows(table: pa.Table, first: datetime) -> Rows:
    """The columns of an observation table, with times counted from `first`."""
    start = pa.scalar(first, pa.timestamp("ns", tz="UTC")).value
    nanoseconds = table["time"].cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()).to_numpy()
    variable, variables = column_codes(table, "variable")
    kind, kinds = column_codes(table, "vertical_kind")
    pairs, group = np.unique(variable * max(len(kinds), 1) + kind, return_inverse=True)
    groups = tuple((variables[p // len(kinds)], kinds[p % len(kinds)]) for p in pairs)
    names = ("lat", "lon", "elevation", "vertical", "vertical_top", "obs_value", "obs_error")
    return Rows(
        table["rejected_by"].is_null().to_numpy(),
        (nanoseconds - start) / 3.6e12,
        *(_numbers(table, name) for name in names),
        group,
        groups,
    )


def with_rejections(table: pa.Table, rejections: dict[str, NDArray[np.int64]]) -> pa.Table:
    """The table with `rejected_by` and `qc_flag` set on rows, by name of the outcome.

    Arguments:
        table: An observation table.
        rejections: Names of `QC_FLAGS` to the numbers of the rows they reject.
    """
    if not any(len(rows) for rows in rejections.values()):
        return table
    codes, names = column_codes(table, "rejected_by")
    codes = codes.astype(np.int32)
    flags = table["qc_flag"].to_numpy().copy()
    for name, rows in rejections.items():
        if name not in names:
            names.append(name)
        codes[rows] = names.index(name)
        flags[rows] = QC_FLAGS[name].number
    outcome = pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int32(), mask=codes < 0), pa.array(names, pa.string())
    )
    for column, values in (("rejected_by", outcome), ("qc_flag", pa.array(flags, pa.uint8()))):
        number = table.schema.get_field_index(column)
        table = table.set_column(number, table.schema.field(number), values)
    return table
