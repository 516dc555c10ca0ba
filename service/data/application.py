"""Build the application under `/v1/data`: xpublish over published analyses, with zarr and OGC EDR."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any

import cf_xarray  # noqa: F401  # registers the `.cf` accessor that the EDR plugin uses
import numpy as np
import pandas as pd
import pyproj
import shapely
import structlog
import xarray as xr
import xpublish_edr.plugin as upstream
import xpublish_zarr.plugin as zarr_plugin
import zarr
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError
from starlette.requests import Request
from starlette.responses import Response
from xpublish.plugins import Dependencies, Plugin, hookimpl
from xpublish.plugins.included.dataset_info import DatasetInfoPlugin
from xpublish.rest import Rest
from xpublish_edr import metadata
from xpublish_edr.formats.to_covjson import to_cf_covjson
from xpublish_edr.geometry.area import select_by_area
from xpublish_edr.query import edr_query_params, output_formats
from xpublish_zarr import ZarrPlugin

from model.domain.errors import InvalidInput
from model.domain.files import code_version
from service.data.library import (
    HDF5_LOCK,
    BoundedAnswers,
    DatasetLibrary,
    OpenDataset,
    check_answer,
    check_points,
)
from service.errors import NotFound
from service.problems import add_problem_handlers, problem_response
from service.query_parameters import check_known

_QUERIES = ("/position", "/area", "/cube")
_INDEX = re.compile(r"[0-9]{1,12}")


def around_the_globe(dataset: xr.Dataset) -> xr.Dataset:
    """Return the fields over longitudes from -180 to 360 degrees, columns repeated as needed.

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
    """Return xpublish's output formats with a limit on values; NetCDF writers hold the HDF5 lock."""
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
    """Select by area with xpublish, after a check of the number of cells: it selects one by one."""
    west, south, east, north = polygon.bounds
    lon, lat = dataset["longitude"].values, dataset["latitude"].values
    lon, lat = lon[(lon >= west) & (lon <= east)], lat[(lat >= south) & (lat <= north)]
    points = int(shapely.intersects_xy(polygon, *np.meshgrid(lon, lat)).sum())
    if not points:
        raise NotFound("Expected a cell of the grid within 'coords'; ask for a position.")
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
    """Return xpublish's description of a collection, without the repeated columns."""
    longitude = dataset["longitude"].values
    once = dataset.isel(longitude=(longitude >= -180.0) & (longitude < 180.0))
    return metadata.collection_metadata(once, formats)


def _vertical_extent(dataset: xr.Dataset) -> Any:
    """Return the levels as numbers; xpublish gives a text, which its own model refuses."""
    if "Z" not in dataset.cf:
        return None
    levels = dataset.cf["Z"]
    units, positive = levels.attrs.get("units", "1"), levels.attrs.get("positive", "up")
    return metadata.VerticalExtent(
        interval=[float(levels.min()), float(levels.max())],
        values=levels.values.tolist(),
        vrs=f"VERTCRS[VERT_CS['unknown'],AXIS['Z',{positive}],UNIT[{units},1]]",
    )


def _chunk_indices(path: str) -> tuple[int, ...]:
    """Return the indices of a chunk, plain digits only: a negative one would count backwards."""
    parts = path.split("/") if path else []
    if not all(_INDEX.fullmatch(part) for part in parts):
        raise HTTPException(404, f"Expected a chunk such as 0/1/2; got '{path[:80]}'.")
    return tuple(map(int, parts))


@lru_cache(maxsize=64)
def _reference_system(text: str) -> str:
    """Return why `text` names no horizontal reference system; empty if it does."""
    try:
        found = pyproj.CRS.from_user_input(text)
        plane = (found.is_geographic or found.is_projected) and len(found.axis_info) == 2
        return "" if plane else f"it is a {found.type_name}"
    except (ProjError, ValueError, TypeError) as error:
        return str(error)


def check_reference_system(request: Request) -> None:
    """Refuse a `crs` that positions cannot be given in.

    Raises:
        InvalidInput: Naming `crs`.
    """
    text = request.query_params.get("crs")
    if text is not None and (why := _reference_system(text[:2000])):
        raise InvalidInput(
            f"Expected 'crs' to name a reference system of two horizontal coordinates, such as "
            f"EPSG:4326; got {text[:80]!r}: {why[:200]}.",
            field="crs",
        )


def check_selection(fields: xr.Dataset, query: Mapping[str, str]) -> None:
    """Refuse an EDR query that names what is not in a data set, before xpublish reads it.

    xpublish passes names and values to xarray, whose exceptions do not say what is there.

    Raises:
        UnknownName: Listing the variables that are there.
        InvalidInput: Naming the parameter that does not fit.
    """
    known = {str(name): field.attrs.get("standard_name") for name, field in fields.items()}
    names = query.get("parameter-name", "")
    for name in names.split(",") if names else ():
        if name not in known.values():  # xpublish takes these as well: all variables of that name
            check_known("parameter-name", name[:80], known)
    times = query.get("datetime", "")
    if times and not (times.count("/") < 2 and all(map(_is_time, times.split("/")))):
        raise InvalidInput(
            "Expected 'datetime' to be a time in UTC, without a zone, such as 2025-01-01T12:00:00, "
            f"or '<start>/<end>'; got '{times[:80]}'.",
            field="datetime",
        )
    if (level := query.get("z")) and not _is_number(level):
        raise InvalidInput(f"Expected 'z' to be a level in Pa; got '{level[:80]}'.", field="z")
    dimensions = [str(name) for name in fields.dims]
    for name in query:
        if name not in edr_query_params and name not in dimensions:
            raise InvalidInput(
                f"Expected the parameters {', '.join(sorted(edr_query_params))}, or a dimension: "
                f"{', '.join(dimensions)}; got '{name[:80]}'.",
                field=name[:80],
            )


def _is_time(text: str) -> bool:
    try:
        return pd.Timestamp(text).tzinfo is None
    except ValueError:
        return False


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


# The plugin looks these up when it answers.
zarr_plugin._parse_chunk_path = _chunk_indices  # type: ignore[assignment]
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
        """Return the routes of one data set."""

        def wide(dataset_id: str, request: Request) -> xr.Dataset:
            opened: OpenDataset = self.library.get(dataset_id)
            if "edr" not in opened.views:
                opened.views["edr"] = around_the_globe(opened.decoded)
            view: xr.Dataset = opened.views["edr"]
            if request.url.path.endswith(_QUERIES):
                check_selection(view, request.query_params)
            return view

        return super().dataset_router(deps.model_copy(update={"dataset": wide}))  # type: ignore[no-any-return]


log = structlog.get_logger()


class PublishedAnalyses(Plugin):
    """Gives the plugins the published analyses."""

    name: str = "published-analyses"
    library: Any

    @hookimpl
    def get_datasets(self) -> list[str]:
        """Return the ids and `latest-…` names of all data sets."""
        names: list[str] = self.library.names()
        return names

    @hookimpl
    def get_dataset(self, dataset_id: str) -> xr.Dataset:
        """Return the data set of an id, as in its file."""
        raw: xr.Dataset = self.library.get(dataset_id).raw
        return raw


class DerivedCache:
    """Cache of the newest values that plugins derive from data sets, such as zarr metadata.

    xpublish's own cache is not made for threads. Responses are not kept: chunks are cheap to read.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._lock = Lock()
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value put under `key`, or `default`."""
        with self._lock:
            return self._kept.get(key, default)

    def put(self, key: str, value: Any, cost: float, nbytes: int | None = None) -> None:
        """Store `value` unless it is a response."""
        if isinstance(value, Response):
            return
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)


class DataRest(Rest):
    """xpublish with data sets directly below its root: `/<id>/zarr`, `/<id>/edr`."""

    derived = DerivedCache()

    def setup_datasets(self, datasets: Any) -> str:
        """Where the routes of a data set begin."""
        super().setup_datasets(datasets)
        self._dataset_route_prefix = "/{dataset_id}"
        return self._dataset_route_prefix

    @property
    def cache(self) -> Any:
        """Return the cache that xpublish hands to its plugins."""
        return self.derived


async def bad_request(request: Request, error: Exception) -> Response:
    """Answer exceptions that plugins raise for queries that name what is not in the data set."""
    log.info("query_refused", path=request.url.path, error=repr(error)[:300])
    detail = f"The query does not fit the data set: {type(error).__name__}: {error}."
    return problem_response(request, "invalid_input", detail[:500])


async def unexpected_error(request: Request, error: Exception) -> Response:
    """Answer an unexpected exception with a problem document."""
    detail = f"The data set could not be read: {type(error).__name__}. The log has the cause."
    return problem_response(request, "internal_error", detail)


def build_application(library: DatasetLibrary, max_values: int) -> FastAPI:
    """Build the application; its paths are relative to where it is mounted.

    Arguments:
        library: The data sets.
        max_values: Maximum number of values of one EDR answer.
    """
    # A chunk that holds nothing but zeros is sent like any other.
    zarr.config.set({"array.write_empty_chunks": True})
    plugins = (
        PublishedAnalyses(library=library),
        DatasetInfoPlugin(),
        ZarrPlugin(),
        Edr(library=library),
    )
    about = {
        "title": "Appa data sets",
        "version": code_version(),
        "description": "Published analyses by zarr and OGC EDR. See docs/data-access.md.",
        "docs_url": None,  # `/docs?data` of the gateway shows the same without other servers
        "redoc_url": None,
        "dependencies": [Depends(check_reference_system)],
    }
    rest = DataRest(plugins={plugin.name: plugin for plugin in plugins}, app_kws=about)
    app = rest.app
    app.add_middleware(BoundedAnswers, max_values=max_values)
    add_problem_handlers(app)
    for misfit in (
        LookupError,
        TypeError,
        ValueError,
        NotImplementedError,
        ProjError,
        ShapelyError,
    ):
        app.add_exception_handler(misfit, bad_request)
    app.add_exception_handler(Exception, unexpected_error)
    return app
