"""Read single fields of analyses and of external files, and interpolate them to the grid of a model.

An external file is NetCDF or GRIB. It must state the units of its fields, which are converted to SI; a
field in unknown units is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import eccodes
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.errors import InvalidInput
from model.domain.grids import Grid, bilinear, interpolate
from model.domain.regrid import regrid_rows
from model.domain.variables import VARIABLES
from worker.backgrounds.uploaded import regrid_field
from worker.downstream.models import QUARTER_DEGREE, Input, Quantity, ReducedGrid
from worker.observations.decoders.grib import GribField, as_listed
from worker.observations.decoders.grib_products import not_a_state
from worker.observations.units import conversion, coordinate_factor

__all__ = ["AnalysisFields", "FieldSource", "open_fill"]

Plane = NDArray[np.float64]
Target = Grid | ReducedGrid

MEAN = -1
"""Member number that stands for the ensemble mean."""


class FieldSource(Protocol):
    """Source of fields for an export: a published result, or a file given to fill its gaps."""

    name: str

    def holds(self, wanted: Input, time: datetime) -> bool:
        """Return whether it has this field at this time."""
        ...

    def plane(self, wanted: Input, time: datetime, target: Target) -> Plane:
        """Return the field at the points of a model, SI, with shape (Y, X) or (points,)."""
        ...


@lru_cache(maxsize=4)
def _weights(grid: Grid, target: Target, vector: bool) -> tuple[NDArray[np.int64], Plane]:
    """Return cells and weights of the points of a model, the same for all its fields."""
    if isinstance(target, ReducedGrid):
        return bilinear(grid, *target.points, vector=vector)
    lat, lon = np.meshgrid(target.latitude, target.longitude, indexing="ij")
    return bilinear(grid, lat.ravel(), lon.ravel(), vector=vector)


def _to_points(plane: Plane, grid: Grid, target: Target, *, vector: bool = False) -> Plane:
    """Interpolate bilinearly, also across the poles; a field on the target grid is returned unchanged."""
    if isinstance(target, Grid) and (grid.kind, grid.shape) == (target.kind, target.shape):
        return plane
    found = interpolate(plane, *_weights(grid, target, vector))
    return found.reshape(target.shape) if isinstance(target, Grid) else found


# -- analyses


class AnalysisFields:
    """The fields of a published NetCDF file.

    Arguments:
        path: The file.
        member: Number of a member, or `MEAN`.

    Raises:
        InvalidInput: If the file is no result of this service, or has no such member or mean.
    """

    def __init__(self, path: Path, member: int = MEAN) -> None:
        self.name = path.name
        try:
            self._dataset = xr.open_dataset(path, decode_timedelta=False)
            self.grid = _own_grid(self._dataset)
            moments = self._dataset["time"].values.astype("datetime64[us]").astype(object)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInput(
                f"Expected the NetCDF file of an analysis; '{path}' is none: {error}."
            ) from error
        self.times = [moment.replace(tzinfo=UTC) for moment in np.atleast_1d(moments)]
        self.attributes: dict[str, Any] = dict(self._dataset.attrs)
        self._member = member
        self._check_member()

    def _check_member(self) -> None:
        members = self._dataset.sizes.get("realization", 0)
        has_members = any("realization" in v.dims for v in self._dataset.data_vars.values())
        if self._member != MEAN and not (has_members and 0 <= self._member < members):
            raise InvalidInput(
                f"Expected a member below {members if has_members else 0} in '{self.name}'; got "
                f"{self._member}. Leave --member out for the ensemble mean."
            )

    def _find(self, wanted: Input, time: datetime) -> xr.DataArray | None:
        variable = VARIABLES.get(wanted.quantity.id)
        if variable is None or time not in self.times:
            return None
        if self._member == MEAN and f"{variable.short}_mean" in self._dataset:
            found = self._dataset[f"{variable.short}_mean"]
        elif variable.short in self._dataset:
            found = self._dataset[variable.short]
        else:
            return None
        found = found.isel(time=self.times.index(time))
        if wanted.level is None:
            return found
        levels = found["air_pressure"].values / 100.0
        at = np.flatnonzero(np.isclose(levels, wanted.level))
        return found.isel(air_pressure=int(at[0])) if len(at) else None

    def holds(self, wanted: Input, time: datetime) -> bool:
        """Return whether it has this field at this time."""
        return self._find(wanted, time) is not None

    def plane(self, wanted: Input, time: datetime, target: Target) -> Plane:
        """Return the field at the points of a model."""
        found = self._find(wanted, time)
        assert found is not None, "holds comes first"  # noqa: S101
        if "realization" in found.dims:
            member = self._member
            mean = member == MEAN
            found = found.mean("realization") if mean else found.isel(realization=member)
        values = found.transpose("latitude", "longitude").values.astype(np.float64)
        vector = "component_of_wind" in wanted.quantity.id
        return _to_points(values, self.grid, target, vector=vector)


def _own_grid(dataset: xr.Dataset) -> Grid:
    rows, columns = dataset["latitude"].values, dataset["longitude"].values
    for kind in ("regular", "gaussian"):
        grid = Grid("file", kind, len(rows), len(columns))
        near = np.allclose(grid.latitude, rows, atol=1e-3)
        if near and np.allclose(grid.longitude, columns, atol=1e-3):
            return grid
    raise ValueError("its rows and columns are those of no global grid")


# -- external files

_PLAIN_UNITS = frozenset({"", "1", "~", "(0-1)", "dimensionless", "numeric", "proportion"})


def _factors(units: str, quantity: Quantity, source: str) -> tuple[float, float]:
    """Return scale and offset to SI.

    Raises:
        InvalidInput: If values in these units cannot become the quantity.
    """
    like = "geopotential" if quantity.id == "geopotential_at_surface" else quantity.id
    found = conversion(units, like) if like in VARIABLES else None
    plain = units.replace("**", "").replace("^", "").replace(" ", "").lower()
    if found is None and plain == quantity.units.replace(" ", "").lower():
        found = (1.0, 0.0)
    if found is None and quantity.units == "1" and (plain in _PLAIN_UNITS or "code" in plain):
        found = (1.0, 0.0)
    if found is None:
        raise InvalidInput(
            f"Expected '{quantity.id}' in {quantity.units} in '{source}'; got units '{units}'. "
            "Write the units that the values have into the file."
        )
    return found


_DIMS: Mapping[str, tuple[str, ...]] = {
    "time": ("time", "valid_time"),
    "level": ("level", "pressure_level", "isobaricInhPa", "air_pressure", "plev"),
    "lat": ("latitude", "lat"),
    "lon": ("longitude", "lon"),
}


def _dim(array: xr.DataArray, kind: str) -> str | None:
    return next((name for name in _DIMS[kind] if name in array.dims), None)


class _NetcdfFill:
    """An external NetCDF file, with rows and columns."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._dataset = xr.open_dataset(path, decode_timedelta=False)

    def _select(self, wanted: Input, time: datetime) -> xr.DataArray | None:
        for name in (wanted.quantity.id, *wanted.quantity.names):
            if name not in self._dataset:
                continue
            found: xr.DataArray | None = self._dataset[name]
            assert found is not None  # noqa: S101
            if (_dim(found, "level") is None) != (wanted.level is None):
                continue
            found = self._at_time(found, wanted, time)
            found = found if found is None else self._at_level(found, wanted.level)
            if found is not None:
                return found
        return None

    def _at_time(self, found: xr.DataArray, wanted: Input, time: datetime) -> xr.DataArray | None:
        dim = _dim(found, "time")
        if wanted.quantity.constant:
            return found if dim is None else found.isel({dim: 0})
        times = np.atleast_1d(found[dim or self._scalar_time(found)].values)
        at = np.flatnonzero(
            times.astype("datetime64[s]") == np.datetime64(time.replace(tzinfo=None), "s")
        )
        if not len(at):
            return None
        return found if dim is None else found.isel({dim: int(at[0])})

    def _scalar_time(self, found: xr.DataArray) -> str:
        for name in _DIMS["time"]:
            if name in found.coords:
                return name
        raise InvalidInput(
            f"Expected a coordinate 'time' of '{found.name}' in '{self.name}'; it has "
            f"{', '.join(map(str, found.coords)) or 'none'}."
        )

    def _at_level(self, found: xr.DataArray, level: int | None) -> xr.DataArray | None:
        dim = _dim(found, "level")
        if dim is None or level is None:
            return found
        units = str(found[dim].attrs.get("units", "hPa"))
        factor = coordinate_factor(units, "Pa")
        if factor is None:
            raise InvalidInput(
                f"Expected pressure levels in Pa or hPa in '{self.name}'; got '{units}'."
            )
        at = np.flatnonzero(np.isclose(found[dim].values * factor, 100.0 * level))
        return found.isel({dim: int(at[0])}) if len(at) else None

    def holds(self, wanted: Input, time: datetime) -> bool:
        return self._select(wanted, time) is not None

    def plane(self, wanted: Input, time: datetime, target: Target) -> Plane:
        found = self._select(wanted, time)
        assert found is not None, "holds comes first"  # noqa: S101
        found = found.squeeze()
        lat, lon = _dim(found, "lat"), _dim(found, "lon")
        if lat is None or lon is None or found.ndim != 2:
            raise InvalidInput(
                f"Expected '{found.name}' in '{self.name}' on latitude and longitude alone; it has "
                f"{', '.join(map(str, found.dims))}."
            )
        if "units" not in found.attrs:
            raise InvalidInput(f"Expected the units of '{found.name}' in '{self.name}'; none came.")
        scale, offset = _factors(str(found.attrs["units"]), wanted.quantity, self.name)
        found = found.assign_coords({lon: np.mod(found[lon].values, 360.0)}).sortby([lat, lon])
        values = found.transpose(lat, lon).values.astype(np.float64) * scale + offset
        grid = target if isinstance(target, Grid) else QUARTER_DEGREE
        plane = regrid_rows(values, found[lat].values, found[lon].values, grid)
        return plane if isinstance(target, Grid) else _to_points(plane, grid, target)


_Label = tuple[str, int | None, datetime]
_CLIMATOLOGY = "climatology"


@dataclass
class _GribFill:
    """An external GRIB file; one message is read at a time.

    Ensemble spread, probabilities and the like have the short names of states; they are ignored.
    Constant fields may come as a climatology.
    """

    path: Path
    name: str = ""
    _offsets: dict[_Label, int] = field(default_factory=dict)
    _fixed: dict[_Label, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.path.name
        with self.path.open("rb") as file:
            while (handle := eccodes.codes_grib_new_from_file(file, headers_only=True)) is not None:
                try:
                    product = _product(handle)
                    if product in ("", _CLIMATOLOGY):
                        known = self._fixed if product else self._offsets
                        known.setdefault(_label(handle), _offset(handle))
                finally:
                    eccodes.codes_release(handle)

    def _find(self, wanted: Input, time: datetime) -> int | None:
        quantity = wanted.quantity
        names = [(name, wanted.level) for name in quantity.names]
        names += [(f"{name}@{layer}", None) for name, layer in quantity.layers]
        offsets = list(self._offsets.items())
        if quantity.constant:
            offsets += self._fixed.items()
        for (short, level, valid), offset in offsets:
            if (short, level) in names and (quantity.constant or valid == time):
                return offset
        return None

    def holds(self, wanted: Input, time: datetime) -> bool:
        return self._find(wanted, time) is not None

    def plane(self, wanted: Input, time: datetime, target: Target) -> Plane:
        offset = self._find(wanted, time)
        assert offset is not None, "holds comes first"  # noqa: S101
        with self.path.open("rb") as file:
            file.seek(offset)
            handle = eccodes.codes_grib_new_from_file(file)
        try:
            eccodes.codes_set(handle, "missingValue", -1e100)
            units = eccodes.codes_get(handle, "units", str)
            units = "gpm" if eccodes.codes_get(handle, "shortName", str) == "gh" else units
            values, lat, lon = (
                np.asarray(eccodes.codes_get_array(handle, key), dtype=np.float64)
                for key in ("values", "latitudes", "longitudes")
            )
            values = as_listed(handle, values)
        except ValueError as error:
            raise InvalidInput(
                f"Expected fields of '{self.name}' that can be placed: {error}."
            ) from error
        finally:
            eccodes.codes_release(handle)
        scale, shift = _factors(units, wanted.quantity, self.name)
        values = np.where(values == -1e100, np.nan, values * scale + shift)
        if isinstance(target, ReducedGrid) and _same_points(lat, lon, target):
            return values
        grid = target if isinstance(target, Grid) else QUARTER_DEGREE
        label = (wanted.quantity.id, wanted.level, time, 0.0, self.name)
        plane = regrid_field(GribField(*label, values, lat, lon, offset), grid)
        return plane if isinstance(target, Grid) else _to_points(plane, grid, target)


def _same_points(lat: Plane, lon: Plane, target: ReducedGrid) -> bool:
    rows, columns = target.points
    return len(lat) == len(rows) and bool(
        np.allclose(lat, rows, atol=1e-3) and np.allclose(lon % 360.0, columns, atol=1e-3)
    )


def _product(handle: int) -> str:
    """Return the kind of a field that is neither a state nor an accumulation (such as spread), else ""."""
    return not_a_state(handle, accumulated=True) and not_a_state(handle, accumulated=False)


def _offset(handle: int) -> int:
    return int(eccodes.codes_get_message_offset(handle))


def _label(handle: int) -> tuple[str, int | None, datetime]:
    """Return short name, pressure level and valid time; a layer of the soil is part of the name."""
    short = eccodes.codes_get(handle, "shortName", str)
    kind = eccodes.codes_get(handle, "typeOfLevel", str)
    level = eccodes.codes_get(handle, "level", int)
    day, clock = (eccodes.codes_get(handle, key, int) for key in ("validityDate", "validityTime"))
    time = datetime.strptime(str(day), "%Y%m%d").replace(tzinfo=UTC)
    time += timedelta(hours=clock // 100, minutes=clock % 100)
    if kind == "isobaricInhPa":
        return short, level, time
    if kind == "isobaricInPa":
        return short, level // 100, time
    return (f"{short}@{level}" if kind == "soilLayer" else short), None, time


def open_fill(path: Path) -> FieldSource:
    """Open an external file.

    Raises:
        InvalidInput: If it is neither NetCDF nor GRIB.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head[:4] == b"GRIB":
            return _GribFill(path)
        if head[:3] == b"CDF" or head == b"\x89HDF\r\n\x1a\n":
            return _NetcdfFill(path)
    except (OSError, ValueError, eccodes.CodesInternalError) as error:
        raise InvalidInput(f"Expected NetCDF or GRIB in '{path}'; {error}.") from error
    raise InvalidInput(f"Expected NetCDF or GRIB in '{path}'; it begins with {head!r}.")
