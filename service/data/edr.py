"""Serve OGC EDR queries (positions, areas, cubes) of an analysis, all the way around the globe."""

from collections.abc import Callable
from typing import Any

import cf_xarray  # noqa: F401  # registers the `.cf` accessor that the plugin uses
import numpy as np
import shapely
import xarray as xr
import xpublish_edr.plugin as upstream
from fastapi import APIRouter
from xpublish.plugins import Dependencies, hookimpl
from xpublish_edr import metadata
from xpublish_edr.formats.to_covjson import to_cf_covjson
from xpublish_edr.geometry.area import select_by_area
from xpublish_edr.query import output_formats

from service.data.library import HDF5_LOCK, OpenDataset, check_answer, check_points


def around_the_globe(dataset: xr.Dataset) -> xr.Dataset:
    """The fields over longitudes from -180 to 360 degrees, each column as often as it takes.

    Points may then be given as -5 or 355, the nearest cell is found across the seam of the grid,
    and areas may cross it. Variables that are no fields are left out.
    """
    fields = [n for n, v in dataset.data_vars.items() if {"latitude", "longitude"} <= set(v.dims)]
    dataset = dataset[fields]
    longitude = dataset["longitude"].values % 360.0
    order = np.argsort(longitude, kind="stable")
    turns = [(order, longitude[order] + turn) for turn in (-360.0, 0.0, 360.0)]
    columns = np.concatenate([index for index, _ in turns])
    degrees = np.concatenate([values for _, values in turns])
    step = 360.0 / len(longitude)
    kept = (degrees >= -180.0 - step) & (degrees <= 360.0 + step)
    wide = dataset.isel(longitude=columns[kept])
    return wide.assign_coords(longitude=("longitude", degrees[kept], dataset["longitude"].attrs))


def _formats() -> dict[str, Callable[[xr.Dataset], Any]]:
    """The library's formats, bounded; those that write NetCDF do it alone, as HDF5 needs."""
    found = dict(output_formats())
    for name in ("nc", "nc4", "netcdf", "netcdf4"):
        if name in found:
            found[name] = _alone(found[name])
    return {name: _bounded(write, name) for name, write in found.items()}


def _bounded(write: Callable[[xr.Dataset], Any], form: str) -> Callable[[xr.Dataset], Any]:
    def written(dataset: xr.Dataset) -> Any:
        check_answer(dataset, form)
        return write(dataset)

    written.__doc__ = write.__doc__
    return written


def _select_by_area(dataset: xr.Dataset, polygon: Any) -> xr.Dataset:
    """The library's selection, if the area has not too many cells: it picks them one by one."""
    west, south, east, north = polygon.bounds
    lon, lat = dataset["longitude"].values, dataset["latitude"].values
    lon, lat = lon[(lon >= west) & (lon <= east)], lat[(lat >= south) & (lat <= north)]
    points = int(shapely.intersects_xy(polygon, *np.meshgrid(lon, lat)).sum())
    check_points(dataset, points, {"latitude", "longitude"})
    selected: xr.Dataset = select_by_area(dataset, polygon)
    return selected


def _alone(write: Callable[[xr.Dataset], Any]) -> Callable[[xr.Dataset], Any]:
    def written(dataset: xr.Dataset) -> Any:
        loaded = dataset.load()  # first: its threads need the lock
        with HDF5_LOCK:
            return write(loaded)

    written.__doc__ = write.__doc__
    return written


def _metadata(dataset: xr.Dataset, formats: list[str]) -> Any:
    """The library's description, of each column once."""
    longitude = dataset["longitude"].values
    once = dataset.isel(longitude=(longitude >= -180.0) & (longitude < 180.0))
    return metadata.collection_metadata(once, formats)


def _vertical_extent(dataset: xr.Dataset) -> Any:
    """Levels as numbers; the library's own function gives a text, which its model refuses."""
    if "Z" not in dataset.cf:
        return None
    levels = dataset.cf["Z"]
    units, positive = levels.attrs.get("units", "1"), levels.attrs.get("positive", "up")
    return metadata.VerticalExtent(
        interval=[float(levels.min()), float(levels.max())],
        values=levels.values.tolist(),
        vrs=f"VERTCRS[VERT_CS['unknown'],AXIS['Z',{positive}],UNIT[{units},1]]",
    )


# The plugin looks these up when it answers.
upstream.output_formats = _formats
upstream.to_cf_covjson = _bounded(to_cf_covjson, "cf_covjson")
upstream.select_by_area = _select_by_area
upstream.collection_metadata = _metadata
metadata.vertical_extent = _vertical_extent


class Edr(upstream.CfEdrPlugin):  # type: ignore[misc]
    """xpublish's plugin on fields without a seam."""

    library: Any

    @hookimpl
    def dataset_router(self, deps: Dependencies) -> APIRouter:
        """The routes of one data set."""

        def wide(dataset_id: str) -> xr.Dataset:
            opened: OpenDataset = self.library.get(dataset_id)
            if "edr" not in opened.views:
                opened.views["edr"] = around_the_globe(opened.decoded)
            return opened.views["edr"]

        return super().dataset_router(deps.model_copy(update={"dataset": wide}))  # type: ignore[no-any-return]
