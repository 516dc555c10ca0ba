"""CF coordinates of a result: members, times, pressure, cells of the grid, the window."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.domain.grids import Grid
from worker.outputs.product import Product

__all__ = ["coordinates", "seconds"]

EPOCH = "seconds since 1970-01-01 00:00:00"
PRECIPITATION_PERIOD = timedelta(hours=1)


def seconds(time: datetime) -> np.datetime64:
    """The time as xarray keeps it: UTC without a zone."""
    return np.datetime64(time.replace(tzinfo=None), "ns")


def _time_encoding() -> dict[str, Any]:
    return {
        "units": EPOCH,
        "calendar": "standard",
        "dtype": "int64",
        "_FillValue": None,
        "coordinates": None,
    }


def _moment(time: datetime, long_name: str, **attributes: Any) -> xr.Variable:
    return xr.Variable(
        (), seconds(time), {"long_name": long_name, **attributes}, encoding=_time_encoding()
    )


def _numbers(dims: Any, values: NDArray[Any] | float, **attributes: Any) -> xr.Variable:
    """A coordinate without a fill value: nothing in it may be missing."""
    return xr.Variable(dims, values, attributes, encoding={"_FillValue": None, "coordinates": None})


def _cells(grid: Grid) -> dict[str, xr.Variable]:
    """Latitude, longitude and the edges of their cells.

    The rows' shares of the sphere give the edges: on a Gaussian grid the quadrature weights, on a
    regular one the bands between mid-latitudes with caps at the poles.
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
    if product.job.kind == "forecast":
        start = product.reference_time
        found["forecast_reference_time"] = _moment(
            start, "start of the forecast", standard_name="forecast_reference_time"
        )
        hours = np.array([(time - start) / timedelta(hours=1) for time in product.times])
        found["forecast_period"] = _numbers(
            "time", hours, standard_name="forecast_period", long_name="lead time", units="h"
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
            standard_name="height",
            long_name=f"{metres:.0f} m above ground",
            units="m",
            positive="up",
        )
        for metres in sorted(
            {v.height for v in product.variables if v.height is not None and v.kind == "surface"}
        )
    }


def coordinates(product: Product) -> dict[str, xr.Variable]:
    """Every coordinate of the result, the scalar ones included."""
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
