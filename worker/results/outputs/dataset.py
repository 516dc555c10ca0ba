"""Convert states to a CF-1.11 dataset; all CF conventions of results are defined here.

Dimensions are time, realization, air_pressure, latitude, longitude. CF recommends other dimensions to
the left of time, but CDO skips variables whose first dimension is not time, and only the first can be
a record dimension of the classic model. Times are float64, which every reader supports: seconds since
1970 are exact in it, exceed 32 bits from 2038 on, and int64 is not in the classic model. Every quantity is
one variable under its short name; `<name>_mean` and `<name>_spread` are the ensemble mean and standard
deviation. See https://cfconventions.org/Data/cf-conventions/cf-conventions-1.11/
"""

from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.ensembles import AntitheticPairs
from model.domain.grids import Grid
from model.domain.variables import Variable
from model.domain.windows import HOUR
from worker.results.outputs.bitround import METHOD, round_field
from worker.results.outputs.product import (
    Field,
    Product,
    fields,
    global_attributes,
    mean_and_spread,
)

__all__ = ["FILL", "coordinates", "round_dataset", "seconds", "to_dataset"]

EPOCH = "seconds since 1970-01-01 00:00:00"
PRECIPITATION_PERIOD = HOUR


def seconds(time: datetime) -> np.datetime64:
    """Return a time as xarray represents it: UTC without a zone."""
    return np.datetime64(time.replace(tzinfo=None), "ns")


def _time_encoding() -> dict[str, Any]:
    return {
        "units": EPOCH,
        "calendar": "standard",
        "dtype": "float64",
        "_FillValue": None,
        "coordinates": None,
    }


def _moment(time: datetime, long_name: str, **attributes: Any) -> xr.Variable:
    return xr.Variable(
        (), seconds(time), {"long_name": long_name, **attributes}, encoding=_time_encoding()
    )


def _numbers(dims: Any, values: NDArray[Any] | float, **attributes: Any) -> xr.Variable:
    """Return a coordinate variable without a fill value, because no value of it may be missing."""
    return xr.Variable(dims, values, attributes, encoding={"_FillValue": None, "coordinates": None})


def _cells(grid: Grid) -> dict[str, xr.Variable]:
    """Return latitude, longitude and the bounds of their cells.

    The edges follow from the rows' shares of the sphere: on a Gaussian grid the quadrature weights, on
    a regular one the bands between mid-latitudes with caps at the poles.
    """
    sine = 1.0 - 2.0 * np.concatenate(([0.0], np.cumsum(grid.area_weights)))
    latitude = np.rad2deg(np.arcsin(np.clip(sine, -1.0, 1.0)))
    latitude[[0, -1]] = 90.0, -90.0
    half = 180.0 / grid.nlon
    bounds = {
        "latitude": np.stack([latitude[:-1], latitude[1:]], axis=-1),
        "longitude": np.stack([grid.longitude - half, grid.longitude + half], axis=-1),
    }
    names = {"latitude": ("degrees_north", "Y"), "longitude": ("degrees_east", "X")}
    found: dict[str, xr.Variable] = {}
    for name, (units, axis) in names.items():
        found[name] = _numbers(
            name,
            getattr(grid, name),
            standard_name=name,
            long_name=name,
            units=units,
            axis=axis,
            bounds=f"{name}_bnds",
        )
        found[f"{name}_bnds"] = _numbers((name, "bnds"), bounds[name])
    return found


def _times(product: Product) -> dict[str, xr.Variable]:
    values = np.array([seconds(time) for time in product.times])
    names = {"standard_name": "time", "long_name": "valid time", "axis": "T", "bounds": "time_bnds"}
    names["units_metadata"] = "leap_seconds: none"
    before = values - np.timedelta64(PRECIPITATION_PERIOD)
    found = {
        "time": xr.Variable("time", values, names, encoding=_time_encoding()),
        "time_bnds": xr.Variable(
            ("time", "bnds"), np.stack([before, values], axis=-1), encoding=_time_encoding()
        ),
    }
    if product.kind.forecast:
        start = product.reference_time
        found["forecast_reference_time"] = _moment(
            start, "start of the forecast", standard_name="forecast_reference_time"
        )
        hours = np.array([(time - start) / HOUR for time in product.times])
        found["forecast_period"] = _numbers(
            "time", hours, standard_name="forecast_period", long_name="lead time", units="hours"
        )
    return found


def _window(product: Product) -> dict[str, xr.Variable]:
    found: dict[str, xr.Variable] = {}
    if product.window is not None:
        found["assimilation_window_start"] = _moment(
            product.window.start, "start of the assimilation window, exclusive"
        )
        found["assimilation_window_end"] = _moment(
            product.window.end, "end of the assimilation window, inclusive"
        )
    cut_off = product.job.spec.observations.cut_off
    if cut_off is not None and product.window is not None:
        found["cut_off_time"] = _moment(cut_off, "last arrival of an observation accepted")
    return found


def _heights(product: Product) -> dict[str, xr.Variable]:
    return {
        f"height_{metres:.0f}m": _numbers(
            (),
            metres,
            long_name=f"{metres:.0f} m above ground",
            # Without standard_name and positive: CDO would take it for the vertical axis.
            units="m",
        )
        for metres in sorted(
            {v.height for v in product.variables if v.height is not None and v.kind == "surface"}
        )
    }


def coordinates(product: Product) -> dict[str, xr.Variable]:
    """Return every coordinate of the result, including scalar ones."""
    found = {
        "realization": _numbers(
            "realization",
            np.arange(product.members, dtype=np.int32),
            standard_name="realization",
            long_name="ensemble member",
            units="1",
        )
    }
    if product.levels:
        found["air_pressure"] = _numbers(
            "air_pressure",
            100.0 * np.array(product.levels, dtype=np.float64),
            standard_name="air_pressure",
            long_name="pressure level",
            units="Pa",
            positive="down",
            axis="Z",
        )
    return {
        **found,
        **_times(product),
        **_cells(product.grid),
        **_window(product),
        **_heights(product),
    }


FILL = np.float32(9.969209968386869e36)
"""NetCDF's own fill value of float32."""

Float = NDArray[np.float32]

_LONG_NAMES = {
    "t2m": "2 metre temperature",
    "u10": "10 metre eastward wind",
    "v10": "10 metre northward wind",
    "msl": "mean sea level pressure",
    "sst": "sea surface temperature",
    "tp": "precipitation of the hour before",
    "t": "temperature",
    "u": "eastward wind",
    "v": "northward wind",
    "z": "geopotential",
    "q": "specific humidity",
}


def _attributes(variable: Variable) -> dict[str, Any]:
    return {
        "standard_name": variable.standard_name,
        "long_name": _LONG_NAMES.get(variable.short, variable.id.replace("_", " ")),
        "units": variable.units,
        **({"units_metadata": "temperature: on_scale"} if variable.units == "K" else {}),
        "cell_methods": "time: sum" if variable.id == "total_precipitation" else "time: point",
    }


def _encoding(product: Product, variable: Variable) -> dict[str, Any]:
    """Return the scalar coordinates of a variable and its fill value."""
    names = []
    if variable.height is not None:
        names.append(f"height_{variable.height:.0f}m")
    if product.kind.forecast:
        names += ["forecast_reference_time", "forecast_period"]
    return {"coordinates": " ".join(names) or None, "_FillValue": FILL}


def _spread_attributes(variable: Variable, pairs: AntitheticPairs) -> dict[str, Any]:
    """State the divisor of the sum of squares about the mean, and why if it is not M - 1."""
    found: dict[str, Any] = {"ensemble_divisor": np.float64(pairs.divisor)}
    if pairs.antithetic:
        found["comment"] = (
            "Members come in pairs of opposite perturbations, whose mean has no sampling error: the "
            "sum of squared deviations is divided by ensemble_divisor, not by members - 1."
        )
    if variable.units == "K":
        found["units_metadata"] = "temperature: difference"
    return found


def _variables(product: Product, field: Field) -> dict[str, xr.Variable]:
    """Return members, mean and spread of one quantity, as the specification requests."""
    variable, wanted = field.variable, product.job.spec.fields
    level = () if variable.kind == "surface" else ("air_pressure",)
    dims = ("time", *level, "latitude", "longitude")
    base, encoding = _attributes(variable), _encoding(product, variable)
    if variable.nonnegative:
        base["clipped_cells"] = (np.int32 if field.clipped < 2**31 else np.float64)(field.clipped)
    found: dict[str, xr.Variable] = {}
    if wanted != "mean":
        members = np.swapaxes(field.values, 0, 1)  # (T, M, *)
        found[variable.short] = xr.Variable(
            ("time", "realization", *dims[1:]), members, base, encoding
        )
    if wanted != "members":
        mean, spread = mean_and_spread(field.values, product.pairs)
        for name, values, method in (
            ("mean", mean, "mean"),
            ("spread", spread, "standard_deviation"),
        ):
            if values is None:
                continue
            extra = {
                "long_name": f"{base['long_name']}: ensemble {name}",
                "cell_methods": f"{base['cell_methods']} realization: {method}",
            }
            if name == "spread":
                extra |= _spread_attributes(variable, product.pairs)
            found[f"{variable.short}_{name}"] = xr.Variable(
                dims, values, {**base, **extra}, encoding
            )
    return found


def _seeds(product: Product) -> dict[str, xr.Variable]:
    seeds = product.provenance.get("seeds")
    if seeds is None or len(seeds) != product.members:
        return {}
    return {
        "member_seed": xr.Variable(
            "realization",
            np.asarray(seeds, dtype=np.float64),  # up to 2**41, beyond 32 bits
            {"long_name": "seed of the random numbers of the member", "units": "1"},
            {"_FillValue": None, "coordinates": None},
        )
    }


def to_dataset(product: Product) -> xr.Dataset:
    """Convert a product to CF form in full float32 precision, with nonnegative humidity and rain.

    Raises:
        InvalidInput: If the channels are not those of a state.
    """
    data: dict[str, xr.Variable] = {}
    for field in fields(product):
        data.update(_variables(product, field))
    data.update(_seeds(product))
    dataset = xr.Dataset(data, coordinates(product), global_attributes(product))
    # Bounds and the window are not coordinates of the fields.
    apart = [
        n for n in dataset.coords if str(n).endswith(("_bnds", "_start", "_end", "cut_off_time"))
    ]
    return dataset.reset_coords(apart)


def _round(
    values: Float, scale: Float | None, leveled: bool, kept: Sequence[int] | None
) -> tuple[Float, dict[str, Any]]:
    axis = values.ndim - 3
    if not leveled:
        done = round_field(values, scale, None if kept is None else kept[0])
        bits, errors, rounded = [done.bits], [done.error], done.values
    else:
        rounded, bits, errors = np.empty_like(values), [], []
        for k in range(values.shape[axis]):
            index = (..., k, slice(None), slice(None))
            around = None if scale is None else scale[index]
            done = round_field(values[index], around, None if kept is None else kept[k])
            rounded[index] = done.values
            bits.append(done.bits)
            errors.append(done.error)
    notes = {
        "bit_rounding_keepbits": np.array(bits, dtype=np.int32),
        "bit_rounding_max_error": np.array(errors, dtype=np.float64),
    }
    return rounded, notes


def round_dataset(
    dataset: xr.Dataset, kept: Mapping[str, Sequence[int]] | None = None
) -> xr.Dataset:
    """Round the bits of all fields level by level, and record the number of bits kept of each.

    Arguments:
        dataset: From `to_dataset`.
        kept: Bits to keep of each field and level, if the dataset is part of a result; None to
            determine them from the dataset.
    """
    rounded: dict[str, xr.Variable] = {}
    mirrored = dataset.attrs.get("mirrored_members") == "true"
    pairs = AntitheticPairs.of(range(dataset.sizes["realization"]), mirrored)
    for name in dataset.data_vars:  # as variables: creating DataArrays is slow
        array, guide = dataset.variables[name], _spread_name(name)
        if not {"latitude", "longitude"} <= set(array.dims):
            continue
        spread = None if name == guide else dataset.variables.get(guide)
        bits = None if kept is None else kept[str(name)]
        rounded[str(name)] = _rounded(array, spread, pairs, bits)
    return dataset.assign(rounded).assign_attrs(bit_rounding=METHOD)


def _spread_name(name: Hashable) -> str:
    return f"{str(name).removesuffix('_mean')}_spread"


def _rounded(
    array: xr.Variable,
    spread: xr.Variable | None,
    pairs: AntitheticPairs,
    kept: Sequence[int] | None,
) -> xr.Variable:
    """Return a variable with rounded values, and the rounded fields."""
    # Members first: a row of the spread applies to the same row of every member.
    whole = array.transpose("realization", ...) if "realization" in array.dims else array
    scale = None if spread is None else spread.values
    if kept is None and scale is None and "realization" in array.dims:
        scale = mean_and_spread(whole.values, pairs)[1]
    values, notes = _round(whole.values, scale, "air_pressure" in array.dims, kept)
    found = xr.Variable(whole.dims, values, {**array.attrs, **notes}, array.encoding)
    return found.transpose(*array.dims)
