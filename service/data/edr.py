"""Answer the queries of OGC Environmental Data Retrieval: position, area, cube and trajectory.

An answer is a data set with the dimensions of the files, in which a query replaces the two
horizontal ones: by `point` (positions, trajectories), or by a smaller box of both (areas, cubes, with
NaN outside an area). It is counted before it is read. Variables are those of the files, under their
names: members (`t2m`), mean (`t2m_mean`) and spread (`t2m_spread`).

Reference:
    | OGC API - Environmental Data Retrieval, part 1: core, version 1.1
    | https://docs.ogc.org/is/19-086r6/19-086r6.html
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Literal

import numpy as np
import shapely
import structlog
import xarray as xr
from numpy.typing import NDArray

from model.domain.errors import InvalidInput, StorageError
from model.domain.grids import Grid, bilinear
from service.data.library import DatasetLibrary, check_answer
from service.data.views import grid_of, nearest
from service.errors import AnswerTooLarge, NotFound
from service.maps.collections import Holding, ResultCollection
from service.query_parameters import check_known

__all__ = ["Query", "answer"]

MAX_RESULTS = 240
"""Maximum number of files read for one answer: ten days of hourly analyses."""

MAX_POINTS = 10_000

QueryType = Literal["position", "area", "cube", "trajectory"]
Float = NDArray[np.float64]

LEVELS = "air_pressure"
_HORIZONTAL = ("latitude", "longitude")
log = structlog.get_logger()

_REPEATED = re.compile(r"R(\d{1,4})/([-+.\deE]+)/([-+.\deE]+)")


@dataclass(frozen=True)
class Query:
    """A parsed query of a collection.

    Attributes:
        type: The kind of query.
        coords: WKT of points, a polygon or lines, in longitude and latitude; empty for a cube.
        box: West, south, east, north of a cube.
        parameters: Names of variables; none for all.
        z: Levels in hPa: one, `a,b`, `low/high` or `Rn/first/step`; None for all.
        linear: Whether values are interpolated, or those of the nearest cell.
    """

    type: QueryType
    coords: str = ""
    box: tuple[float, float, float, float] | None = None
    parameters: Sequence[str] = ()
    z: str | None = None
    linear: bool = False


def answer(
    library: DatasetLibrary, collection: ResultCollection, query: Query, max_values: int, form: str
) -> xr.Dataset:
    """Return the data that a query selects, loaded into memory.

    Its attributes name the `query`, and the variables on levels as `leveled`.

    Raises:
        NotFound: If the collection holds no such time.
        InvalidInput: Naming the parameter that does not fit.
        UnknownName: If a variable is not there; lists those that are.
        AnswerTooLarge: Before anything is read.
    """
    results = {holding.result for holding in collection.holdings}
    if not results:
        raise NotFound(
            f"Expected a valid time of collection '{collection.id}' in 'datetime'; it has none there."
        )
    if len(results) > MAX_RESULTS:
        raise AnswerTooLarge(
            f"Expected at most {MAX_RESULTS} results in one answer; {len(results)} are asked for. "
            "Give a shorter 'datetime'.",
            results=len(results),
            limit=MAX_RESULTS,
        )
    datasets = _read(library, sorted(results))
    _check_parameters(datasets.values(), query.parameters)
    parts = [
        _part(datasets[result], [holding.time for holding in held], query)
        for result, held in groupby(collection.holdings, key=_result_of)
        if result in datasets and _fields_of(datasets[result], query.parameters)
    ]
    whole = parts[0] if len(parts) == 1 else _joined(parts)
    leveled = [name for name, variable in whole.data_vars.items() if LEVELS in variable.dims]
    whole = whole.assign_attrs(leveled=leveled, query=query.type)
    check_answer(whole, form, max_values)
    if query.type == "trajectory":
        whole = _along(whole)
    return whole.load()


def _read(library: DatasetLibrary, results: Sequence[str]) -> dict[str, xr.Dataset]:
    """Return the data sets of results; those of many that cannot be read are left out and logged.

    Raises:
        StorageError: If none can be read.
    """
    found: dict[str, xr.Dataset] = {}
    failed: StorageError | None = None
    for result in results:
        try:
            found[result] = library.get(result).decoded
        except StorageError as error:
            log.warning("result_unreadable", result=result, reason=error.message)
            failed = error
    if not found and failed is not None:
        raise failed
    return found


def _result_of(holding: Holding) -> str:
    return holding.result


def _joined(parts: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(
        parts,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="drop_conflicts",
    ).sortby("time")


def _part(dataset: xr.Dataset, times: list[datetime], query: Query) -> xr.Dataset:
    """Return what a query selects of one result, lazily."""
    fields = dataset[_fields_of(dataset, query.parameters)]
    # Drop all coordinates that an answer does not carry.
    kept = ("time", "realization", LEVELS, *_HORIZONTAL)
    fields = fields.drop_vars([name for name in fields.coords if name not in kept])
    moments = np.array([np.datetime64(time.replace(tzinfo=None), "ns") for time in times])
    fields = fields.isel(time=np.flatnonzero(np.isin(fields["time"].values, moments)))
    if LEVELS in fields.dims:
        levels = fields[LEVELS].values / 100.0
        fields = fields.isel({LEVELS: _levels(query.z, levels)})
        attributes = {**fields[LEVELS].attrs, "units": "hPa"}
        fields = fields.assign_coords({LEVELS: (LEVELS, fields[LEVELS].values / 100.0, attributes)})
    grid = grid_of(dataset)
    if query.type == "cube":
        assert query.box is not None  # noqa: S101 (checked by the route)
        return _box(fields, grid, query.box)
    if query.type == "area":
        return _area(fields, grid, query.coords)
    return _points(fields, grid, query)


def _fields_of(dataset: xr.Dataset, names: Sequence[str] = ()) -> list[str]:
    """Return those of `names` that are fields of a data set; all its fields if none are named."""
    fields = [str(n) for n, v in dataset.data_vars.items() if set(_HORIZONTAL) <= set(v.dims)]
    return [name for name in names if name in fields] if names else fields


def _check_parameters(datasets: Iterable[xr.Dataset], names: Sequence[str]) -> None:
    """Refuse a variable that no result holds: results of other models may hold others.

    Raises:
        UnknownName: Listing those that are there.
    """
    known = list(dict.fromkeys(name for dataset in datasets for name in _fields_of(dataset)))
    for name in names:
        check_known("parameter-name", name[:80], known)


def _levels(text: str | None, levels: Float) -> NDArray[np.int64]:
    """Return the indices of the levels asked for.

    Raises:
        InvalidInput: If one is not there; lists those that are.
    """
    if text is None:
        return np.arange(len(levels))
    try:
        if "/" in text and not text.startswith("R"):
            low, high = sorted(float(part) for part in text.split("/"))
            found = np.flatnonzero((levels >= low) & (levels <= high))
        else:
            matched = [np.flatnonzero(np.isclose(levels, x, rtol=1e-3)) for x in _wanted(text)]
            found = np.concatenate([m if m.size else [-1] for m in matched]).astype(np.int64)
    except ValueError:
        found = np.array([-1])
    if not found.size or (found < 0).any():
        known = ", ".join(f"{level:g}" for level in levels)
        raise InvalidInput(
            f"Expected 'z' to be of the levels {known} hPa, as one, 'a,b', 'low/high' or "
            f"'Rn/first/step'; got '{text[:80]}'.",
            field="z",
        )
    return found


def _wanted(text: str) -> list[float]:
    if repeated := _REPEATED.fullmatch(text):
        count, first, step = int(repeated[1]), float(repeated[2]), float(repeated[3])
        return [first + i * step for i in range(count)]
    return [float(part) for part in text.split(",")]


def _geometry(text: str, kinds: Sequence[str]) -> shapely.Geometry:
    """Return the geometry in WKT.

    Raises:
        InvalidInput: If it is none, or of another kind, or lies outside the globe.
    """
    try:
        found = shapely.from_wkt(text)
    except shapely.GEOSException as error:
        raise InvalidInput(f"Expected WKT in 'coords'; {error}.", field="coords") from None
    if found is None or found.is_empty or found.geom_type not in kinds:
        got = "nothing" if found is None or found.is_empty else found.geom_type
        raise InvalidInput(
            f"Expected 'coords' to be a {' or '.join(kinds)}; got {got}.", field="coords"
        )
    west, south, east, north = found.bounds
    if not (-360.0 <= west <= east <= 360.0 and -90.0 <= south <= north <= 90.0):
        raise InvalidInput(
            "Expected longitudes in [-360, 360] and latitudes in [-90, 90], longitude first; got "
            f"{found.bounds}.",
            field="coords",
        )
    z, m = bool(found.has_z), bool(shapely.has_m(found))
    if not np.isfinite(shapely.get_coordinates(found, include_z=z, include_m=m)).all():
        raise InvalidInput(  # the bounds leave NaN out
            f"Expected finite numbers in 'coords'; got '{text[:80]}'.", field="coords"
        )
    return found


def _points(fields: xr.Dataset, grid: Grid, query: Query) -> xr.Dataset:
    """Return fields at positions or along lines, with the dimension `point`."""
    if query.type == "position":
        places = shapely.get_coordinates(_geometry(query.coords, ("Point", "MultiPoint")))
        extra: dict[str, Float] = {}
    else:
        places, extra = _path(query.coords, grid)
    _check_points(len(places))
    lon, lat = places[:, 0], places[:, 1]
    if not query.linear:
        rows, columns = nearest(grid, lat, lon)
        at = fields.isel(latitude=("point", rows), longitude=("point", columns))
        if query.type == "position":
            lat, lon = grid.latitude[rows], (grid.longitude[columns] + 180.0) % 360.0 - 180.0
    else:
        cells, weights = bilinear(grid, lat, lon)
        picked = fields.isel(
            latitude=(("point", "corner"), cells // grid.nlon),
            longitude=(("point", "corner"), cells % grid.nlon),
        )
        shares = xr.DataArray(weights, dims=("point", "corner"))
        at = picked.map(lambda array: (array * shares).sum("corner", skipna=False))
        at = at.assign({n: at[n].assign_attrs(fields[n].attrs) for n in at.data_vars})
    coordinates = {"latitude": ("point", lat), "longitude": ("point", lon)}
    more = {name: ("point", values) for name, values in extra.items()}
    return at.drop_vars(_HORIZONTAL, errors="ignore").assign_coords({**coordinates, **more})


def _check_points(count: int) -> None:
    if count > MAX_POINTS:
        raise AnswerTooLarge(
            f"Expected at most {MAX_POINTS} points; {count} are asked for.",
            points=count,
            limit=MAX_POINTS,
        )


def _path(text: str, grid: Grid) -> tuple[Float, dict[str, Float]]:
    """Return the points of lines, no farther apart than the grid's columns, and their z and m."""
    lines = _geometry(text, ("LineString", "MultiLineString"))
    include_z, include_m = bool(lines.has_z), bool(shapely.has_m(lines))
    step, found, total = 360.0 / grid.nlon, [], 0
    for line in shapely.get_parts(lines):
        points = shapely.get_coordinates(line, include_z=include_z, include_m=include_m)
        longest = np.abs(np.diff(points[:, :2], axis=0)).max(axis=1)
        counts = np.maximum(1, np.ceil(longest / step)).astype(np.int64)
        total += 1 + int(counts.sum())
        _check_points(total)  # before they are created: a short WKT may cross the globe many times
        found.append(points[:1])
        for start, end, count in zip(points[:-1], points[1:], counts, strict=True):
            shares = np.arange(1, count + 1)[:, None] / count
            found.append(start + shares * (end - start))
    path = np.concatenate(found)
    names = ["path_level"] * include_z + ["path_time"] * include_m
    return path[:, :2], {name: path[:, 2 + i] for i, name in enumerate(names)}


def _along(fields: xr.Dataset) -> xr.Dataset:
    """Follow a path in time and height, where its points have these."""
    if "path_time" in fields.coords:
        seconds = fields["time"].values.astype("datetime64[s]").astype(np.int64)
        wanted = fields["path_time"].values
        slack = 1800.0
        if wanted.min() < seconds.min() - slack or wanted.max() > seconds.max() + slack:
            raise InvalidInput(
                f"Expected the M of 'coords' (seconds since 1970) between {seconds.min()} and "
                f"{seconds.max()}; got {wanted.min():.0f} to {wanted.max():.0f}.",
                field="coords",
            )
        index = np.abs(seconds[:, None] - wanted[None]).argmin(axis=0)
        fields = fields.isel(time=("point", index))
    if "path_level" in fields.coords and LEVELS in fields.dims:
        levels = fields[LEVELS].values
        wanted = np.log(np.maximum(fields["path_level"].values, 1e-3))
        index = np.abs(np.log(levels)[:, None] - wanted[None]).argmin(axis=0)
        fields = fields.isel({LEVELS: ("point", index)})
    return fields.drop_vars(["path_time", "path_level"], errors="ignore")


def _box(fields: xr.Dataset, grid: Grid, box: tuple[float, float, float, float]) -> xr.Dataset:
    """Return the cells whose centres lie in a box, which may cross the seam of the grid."""
    west, south, east, north = box
    rows = np.flatnonzero((grid.latitude >= south) & (grid.latitude <= north))
    step = 360.0 / grid.nlon
    east += 360.0 * (east < west)
    slack = 1e-9
    columns = np.arange(np.ceil(west / step - slack), np.floor(east / step + slack) + 1)
    columns = columns[: grid.nlon].astype(np.int64)
    if not (rows.size and columns.size):
        raise NotFound(
            f"Expected a cell of the grid within {west:g},{south:g},{east:g},{north:g}; its spacing "
            f"is {step:g} degrees. Ask for a position."
        )
    chosen = fields.isel(latitude=rows, longitude=columns % grid.nlon)
    attributes = fields["longitude"].attrs
    return chosen.assign_coords(longitude=("longitude", columns * step, attributes))


def _area(fields: xr.Dataset, grid: Grid, text: str) -> xr.Dataset:
    polygon = _geometry(text, ("Polygon", "MultiPolygon"))
    west, south, east, north = polygon.bounds
    around = _box(fields, grid, (west, south, east, north))
    lon, lat = np.meshgrid(around["longitude"].values, around["latitude"].values)
    inside = shapely.intersects_xy(polygon, lon, lat)
    if not inside.any():
        raise NotFound("Expected a cell of the grid within 'coords'; ask for a position.")
    return around.where(xr.DataArray(inside, dims=_HORIZONTAL))
