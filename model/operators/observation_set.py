"""Turn rows of the observation table into y, R and H: what the likelihood of a window needs.

Rows are read as arrays, each is given to the family that observes its variable, and outcomes are
written back to the table. All families are listed here by name; a new one is one file and one
line, here or among the entry points `appa.operators`. The first that accepts a variable observes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.observations import QC_FLAGS
from model.domain.registry import Registry
from model.domain.variables import Channel
from model.operators.base import FamilyStencil, ModelDomain, OperatorFamily, Points, Statics
from model.operators.composite import CompositeOperator, FamilyBlock, representativeness_std
from model.operators.surface import (
    SurfaceDewpointFamily,
    SurfaceFamily,
    SurfaceHumidityFamily,
    SurfacePressureFamily,
)
from model.operators.upper_air import (
    BrightnessFamily,
    ColumnFamily,
    HeightLevelFamily,
    PressureLevelFamily,
    RelativeHumidityFamily,
    ThicknessFamily,
    WindSpeedFamily,
)

__all__ = [
    "OPERATORS",
    "ObservationSet",
    "Rows",
    "build_observation_set",
    "column_codes",
    "family_of",
    "read_rows",
    "with_rejections",
]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The columns that operators need; NaN where the table has no value.

    Attributes:
        used: Rows no check has rejected, with shape (R,).
        hours: Hours since the first state.
        lat, lon, elevation, vertical, vertical_top, obs_value, obs_error: As in the table.
        sensor: Number of the row's platform in `sensors`, -1 for none.
        sensors: Names of platforms.
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
    sensor: NDArray[np.int64]
    sensors: tuple[str, ...]
    group: NDArray[np.int64]
    groups: tuple[tuple[str, str], ...]

    def points(self, index: NDArray[np.int64], vertical_kind: str) -> Points:
        """Return the points of the rows at `index`."""
        return Points(
            self.hours[index],
            self.lat[index],
            self.lon[index],
            self.elevation[index],
            vertical_kind,
            self.vertical[index],
            self.vertical_top[index],
            self.sensor[index],
            self.sensors,
        )


def _numbers(table: pa.Table, name: str) -> Float:
    column = pc.fill_null(table[name].cast(pa.float64()), np.nan)
    values: Float = column.to_numpy()
    return values


def column_codes(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return dictionary codes (-1 for null) and the names they stand for."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # pyarrow keeps a chunked array when there is no chunk
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = pc.fill_null(column.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return codes, [str(v) for v in column.dictionary.to_pylist()]


def read_rows(table: pa.Table, first: datetime) -> Rows:
    """Return the columns of an observation table, with times counted from `first`."""
    start = pa.scalar(first, pa.timestamp("ns", tz="UTC")).value
    nanoseconds = table["time"].cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()).to_numpy()
    variable, variables = column_codes(table, "variable")
    kind, kinds = column_codes(table, "vertical_kind")
    sensor, sensors = column_codes(table, "platform")
    pairs, group = np.unique(variable * max(len(kinds), 1) + kind, return_inverse=True)
    groups = tuple((variables[p // len(kinds)], kinds[p % len(kinds)]) for p in pairs)
    names = ("lat", "lon", "elevation", "vertical", "vertical_top", "obs_value", "obs_error")
    return Rows(
        used=table["rejected_by"].is_null().to_numpy(),
        hours=(nanoseconds - start) / 3.6e12,
        sensor=sensor,
        sensors=tuple(sensors),
        group=group,
        groups=groups,
        **{name: _numbers(table, name) for name in names},
    )


def with_rejections(table: pa.Table, rejections: dict[str, NDArray[np.int64]]) -> pa.Table:
    """Return the table with `rejected_by` and `qc_flag` set on rows, by name of the outcome.

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


OPERATORS: Registry[OperatorFamily] = Registry(
    "observation operator",
    "appa.operators",
    OperatorFamily,
    brightness=BrightnessFamily(),
    column=ColumnFamily(),
    height_level=HeightLevelFamily(),
    pressure_level=PressureLevelFamily(),
    relative_humidity=RelativeHumidityFamily(),
    surface=SurfaceFamily(),
    surface_dewpoint=SurfaceDewpointFamily(),
    surface_humidity=SurfaceHumidityFamily(),
    surface_pressure=SurfacePressureFamily(),
    thickness=ThicknessFamily(),
    wind_speed=WindSpeedFamily(),
)


def family_of(variable: str, vertical_kind: str) -> str | None:
    """Return the name of the family that observes a variable with that vertical kind, or None."""
    for name, family in OPERATORS.items():
        if family.accepts(variable, vertical_kind):
            return name
    return None


Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ObservationSet:
    """Observations with their errors and their operator, in ascending order of table rows.

    Attributes:
        rows: Row of the table each came from, with shape (N,).
        obs_values: In SI units, with shape (N,), float64.
        obs_errors: 1 standard deviation in the same units, with shape (N,), float64.
        blocks: Stencils by family.
        state_shape: (T, C, Y, X) of the states that the operator reads.
        dtype: Of the tensors.
        device: Of the tensors.
    """

    rows: Int
    obs_values: NDArray[np.float64]
    obs_errors: NDArray[np.float64]
    blocks: tuple[FamilyBlock, ...]
    state_shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def values(self) -> Tensor:
        """The observed values y, with shape (N,)."""
        return torch.as_tensor(self.obs_values, dtype=self.dtype, device=self.device)

    @cached_property
    def error_std(self) -> Tensor:
        """Square root of the diagonal of R, with shape (N,), in the units of `values`."""
        return torch.as_tensor(self.obs_errors, dtype=self.dtype, device=self.device)

    @cached_property
    def operator(self) -> CompositeOperator:
        """H, from states (*, T, C, Y, X) to (*, N)."""
        return CompositeOperator(self.blocks, self.state_shape)

    @cached_property
    def time_support(self) -> tuple[Int, Int]:
        """First and last state each observation reads, each with shape (N,)."""
        first, last = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        for block in self.blocks:
            first[block.position] = block.stencil.first_time
            last[block.position] = block.stencil.last_time
        return first, last

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "ObservationSet":
        """Return the same set with tensors of another type or on another device."""
        return replace(self, dtype=dtype or self.dtype, device=torch.device(device or self.device))

    def select(self, mask: NDArray[np.bool_] | Tensor) -> "ObservationSet":
        """Return the observations where the mask (N,) holds, in the same order."""
        return self._take(np.asarray(mask, dtype=bool))

    def with_representativeness(self, std: Tensor | NDArray[np.float64]) -> "ObservationSet":
        """Return the same observations with representativeness errors added in quadrature.

        Grid means, and still more what an autoencoder keeps of them, differ from the value at a
        point; without this error, dry places with tiny humidity errors outweigh all others.

        Arguments:
            std: One standard deviation of the observations' representativeness, with shape (N,).
        """
        extra = np.asarray(std, dtype=np.float64)
        return replace(self, obs_errors=np.hypot(self.obs_errors, extra))

    def for_blanket(self, start: int, stop: int) -> "ObservationSet":
        """Return observations that read only states in [start, stop), on states numbered from `start`.

        An observation between the last state of one blanket and the first of the next, where
        blankets do not overlap, is in neither.
        """
        if not 0 <= start < stop <= self.state_shape[0]:
            raise InvalidInput(
                f"Expected a blanket within the {self.state_shape[0]} states; got [{start}, {stop})."
            )
        first, last = self.time_support
        return self._take((first >= start) & (last < stop), start, stop - start)

    def _take(
        self, mask: NDArray[np.bool_], hours: int = 0, length: int | None = None
    ) -> "ObservationSet":
        if mask.shape != self.rows.shape:
            raise InvalidInput(f"Expected a mask of {len(self)} flags; got shape {mask.shape}.")
        position = np.cumsum(mask) - 1
        blocks = []
        for block in self.blocks:
            chosen = mask[block.position]
            if chosen.any():
                blocks.append(block.take(chosen, position[block.position], hours))
        return replace(
            self,
            rows=self.rows[mask],
            obs_values=self.obs_values[mask],
            obs_errors=self.obs_errors[mask],
            blocks=tuple(blocks),
            state_shape=(length or self.state_shape[0], *self.state_shape[1:]),
        )


def build_observation_set(
    table: pa.Table,
    grid: Grid,
    channels: Sequence[Channel],
    times: Sequence[datetime],
    statics: Statics | None = None,
) -> tuple[ObservationSet, pa.Table]:
    """Return y, R and H of the rows that no check has rejected.

    Arguments:
        table: An observation table; rows with `rejected_by` null are used.
        grid: The model's grid.
        channels: The model's channels, in order.
        times: Valid times of the states, consecutive full hours in UTC.
        statics: Orography, land-sea mask, weighting functions and reconstruction residual, where
            known. The last is added to the errors of the set (not of the table).

    Returns:
        The observation set, and the table in which rows without a value or error are rejected by
        `missing`, rows without an operator by `passive`, rows outside the model's domain in
        space or time by `domain`, and rows whose operator cannot be built by `operator_failed`.
    """
    domain = ModelDomain(grid, tuple(channels), len(times), statics or Statics())
    rows = read_rows(table, times[0])
    usable = rows.used & np.isfinite(rows.obs_value) & (rows.obs_error > 0)
    usable &= np.isfinite(rows.obs_error)
    rejections: dict[str, list[Int]] = {"missing": [np.flatnonzero(rows.used & ~usable)]}
    parts = []
    for number, (variable, kind) in enumerate(rows.groups):
        index = np.flatnonzero(usable & (rows.group == number))
        name = family_of(variable, kind)
        built = _build(name, rows, index, variable, kind, domain)
        if name is None or built is None:
            rejections.setdefault("passive", []).append(index)
            continue
        rejections.setdefault(built.reason, []).append(index[~built.accepted])
        parts.append((name, index, built))
    chosen = _gather(parts, rows, domain)
    if domain.statics.residual is not None and len(chosen):
        typical, residual = (
            torch.from_numpy(np.asarray(a))
            for a in (domain.statics.typical, domain.statics.residual)
        )
        std = representativeness_std(chosen.operator, typical, residual)
        chosen = chosen.with_representativeness(std)
    joined = {name: np.concatenate(found) for name, found in rejections.items()}
    return chosen, with_rejections(table, joined)


def _build(
    name: str | None, rows: Rows, index: Int, variable: str, kind: str, domain: ModelDomain
) -> FamilyStencil | None:
    if name is None:
        return None
    return OPERATORS[name].build(rows.points(index, kind), variable, domain)


def _gather(
    parts: list[tuple[str, Int, FamilyStencil]], rows: Rows, domain: ModelDomain
) -> ObservationSet:
    kept = np.zeros(len(rows.used), dtype=bool)
    for _, index, built in parts:
        kept[index[built.accepted]] = True
    position = np.cumsum(kept) - 1
    blocks = []
    for name, index, built in parts:
        if built.accepted.any():
            whole = FamilyBlock(OPERATORS[name], position[index], built.stencil, built.parameters)
            blocks.append(whole.take(built.accepted, whole.position))
    chosen = np.flatnonzero(kept)
    return ObservationSet(
        chosen, rows.obs_value[chosen], rows.obs_error[chosen], tuple(blocks), domain.state_shape
    )
