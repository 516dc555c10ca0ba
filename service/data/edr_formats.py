"""Write the answers of EDR queries as CoverageJSON, GeoJSON and NetCDF.

An ensemble becomes one coverage for each member, with its number as `realization`, so that every
domain is one of the standard's own. Variables at the surface and on levels are coverages apart.

Reference:
    | CoverageJSON (OGC 21-069r2)
    | https://docs.ogc.org/cs/21-069r2/21-069r2.html
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr

from service.data.library import HDF5_LOCK

__all__ = ["CRS84", "FORMATS", "write"]

Json = dict[str, Any]

LEVELS = "air_pressure"
CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"

_REFERENCING = {
    ("x", "y"): {"type": "GeographicCRS", "id": CRS84},
    ("z",): {
        "type": "VerticalCRS",
        "cs": {
            "csAxes": [
                {
                    "name": {"en": "air pressure"},
                    "direction": "down",
                    "unit": {"symbol": "hPa"},
                }
            ]
        },
    },
    ("t",): {"type": "TemporalRS", "calendar": "Gregorian"},
}


def write(dataset: xr.Dataset, form: str) -> bytes:
    """Return an answer in a format of `FORMATS`."""
    return FORMATS[form](dataset)


def _covjson(dataset: xr.Dataset) -> bytes:
    coverages = list(_coverages(dataset))
    if len(coverages) == 1:
        return _dumps(coverages[0])
    return _dumps({"type": "CoverageCollection", "coverages": coverages})


def _dumps(document: Json) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _coverages(dataset: xr.Dataset) -> Iterator[Json]:
    def dims(name: Any) -> tuple[bool, bool]:
        return name in dataset.attrs["leveled"], "realization" in dataset[name].dims

    names = sorted(dataset.data_vars, key=dims)
    for (leveled, many), group in groupby(names, dims):
        part = dataset[list(group)]
        if not leveled:
            part = part.drop_vars(LEVELS, errors="ignore")
        for member in dataset["realization"].values if many else [None]:
            chosen = part if member is None else part.sel(realization=member)
            for coverage in _places(chosen.drop_vars("realization", errors="ignore")):
                yield coverage if member is None else {**coverage, "realization": int(member)}


def _places(part: xr.Dataset) -> Iterator[Json]:
    """Yield one coverage for each position, one for each path and time, one for a box."""
    if "point" not in part.dims:
        yield _coverage(part, part["longitude"].values, part["latitude"].values)
    elif part.attrs.get("query") == "trajectory":
        yield from _trajectories(part)
    else:
        for i in range(part.sizes["point"]):
            place = part.isel(point=i)
            x, y = (np.atleast_1d(place[name].values) for name in ("longitude", "latitude"))
            yield _coverage(place.drop_vars(["longitude", "latitude"]), x, y)


def _coverage(part: xr.Dataset, x: Any, y: Any) -> Json:
    times = _texts(part["time"].values)
    levels = part[LEVELS].values if LEVELS in part.coords else None
    axes: Json = {"x": _axis(x), "y": _axis(y)}
    if levels is not None:
        axes["z"] = _axis(levels)
    axes["t"] = {"values": times}
    order = {"time": "t", LEVELS: "z", "latitude": "y", "longitude": "x"}
    ranges = {}
    for name, array in part.data_vars.items():
        dims = [dim for dim in order if dim in array.dims]
        ranges[str(name)] = _range(array.transpose(*dims), [order[dim] for dim in dims])
    kind = _domain_type(len(x) * len(y), len(times), 1 if levels is None else len(levels))
    return _document(part, kind, axes, ranges)


def _domain_type(places: int, times: int, levels: int) -> str:
    if places > 1 or (times > 1 and levels > 1):
        return "Grid"
    if levels > 1:
        return "VerticalProfile"
    return "PointSeries" if times > 1 else "Point"


def _trajectories(part: xr.Dataset) -> Iterator[Json]:
    loose = [dim for dim in ("time", LEVELS) if dim in part.dims]
    for index in np.ndindex(*(part.sizes[dim] for dim in loose)):
        path = part.isel(dict(zip(loose, index, strict=True)))
        size = path.sizes["point"]
        times = np.broadcast_to(path["time"].values, size)
        columns = [_texts(times), path["longitude"].values, path["latitude"].values]
        names = ["t", "x", "y"]
        if LEVELS in path.coords and path[LEVELS].dims == ("point",):
            columns.append(path[LEVELS].values)
            names.append("z")
        values = [
            [v if isinstance(v, str) else float(v) for v in row]
            for row in zip(*columns, strict=True)
        ]
        axes: Json = {"composite": {"dataType": "tuple", "coordinates": names, "values": values}}
        if LEVELS in path.coords and path[LEVELS].dims == ():
            axes["z"] = _axis(np.atleast_1d(path[LEVELS].values))
        ranges = {str(n): _range(a, ["composite"]) for n, a in path.data_vars.items()}
        yield _document(path, "Trajectory", axes, ranges)


def _document(part: xr.Dataset, kind: str, axes: Json, ranges: Json) -> Json:
    known = set(axes) | {name for axis in axes.values() for name in axis.get("coordinates", ())}
    systems = [
        {"coordinates": list(names), "system": system}
        for names, system in _REFERENCING.items()
        if set(names) <= known
    ]
    return {
        "type": "Coverage",
        "domain": {"type": "Domain", "domainType": kind, "axes": axes, "referencing": systems},
        "parameters": {str(n): _parameter(a) for n, a in part.data_vars.items()},
        "ranges": ranges,
    }


def _parameter(array: xr.DataArray) -> Json:
    about = array.attrs
    title = {"en": str(about.get("long_name", array.name))}
    observed: Json = {"label": title}
    if "standard_name" in about:
        observed["id"] = f"http://vocab.nerc.ac.uk/standard_name/{about['standard_name']}"
    return {
        "type": "Parameter",
        "description": title,
        "unit": {"symbol": str(about.get("units", "1"))},
        "observedProperty": observed,
    }


def _range(array: xr.DataArray, names: list[str]) -> Json:
    return {
        "type": "NdArray",
        "dataType": "float",
        "axisNames": names,
        "shape": list(array.shape),
        "values": _numbers(array.values),
    }


def _axis(values: Any) -> Json:
    return {"values": [round(float(value), 9) for value in values]}


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in np.ravel(values).tolist()]


def _texts(times: Any) -> list[str]:
    return [f"{text}Z" for text in np.datetime_as_string(np.atleast_1d(times), unit="s")]


def _geojson(dataset: xr.Dataset) -> bytes:
    """Return a feature for each place, time, level and member, with the values as properties."""
    last = [dim for dim in ("latitude", "longitude", "point") if dim in dataset.dims]
    whole = dataset.transpose(..., *last)
    features: list[Json] = []
    names = sorted(whole.data_vars, key=lambda n: (whole[n].dims, n in whole.attrs["leveled"]))
    for _, group in groupby(names, lambda n: (whole[n].dims, n in whole.attrs["leveled"])):
        features += _features(whole[list(group)])
    return _dumps({"type": "FeatureCollection", "features": features})


def _features(part: xr.Dataset) -> Iterator[Json]:
    """Yield the features of variables with the same dimensions, undefined ones left out."""
    first = next(iter(part.data_vars.values()))
    columns = {}
    for name, coordinate in (
        ("time", "time"),
        ("longitude", "longitude"),
        ("latitude", "latitude"),
    ):
        columns[name] = _spread(first, coordinate)
    if first.name in part.attrs["leveled"]:
        columns["z"] = _spread(first, LEVELS)
    if "realization" in first.dims:
        columns["realization"] = _spread(first, "realization")
    values = {str(n): np.ravel(a.values).tolist() for n, a in part.data_vars.items()}
    texts = _texts(columns.pop("time"))
    listed = {name: column.tolist() for name, column in columns.items()}
    for i, text in enumerate(texts):
        named = {n: _number(column[i]) for n, column in values.items()}
        if all(value is None for value in named.values()):
            continue
        where = [round(listed[name][i], 9) for name in ("longitude", "latitude")]
        extra = {name: listed[name][i] for name in ("z", "realization") if name in listed}
        yield {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": where},
            "properties": {"datetime": text, **extra, **named},
        }


def _spread(array: xr.DataArray, coordinate: str) -> Any:
    """Return a coordinate of each value of an array, flat."""
    return np.ravel(array[coordinate].broadcast_like(array).transpose(*array.dims).values)


def _number(value: float) -> float | None:
    return None if value != value else value


def _netcdf(dataset: xr.Dataset) -> bytes:
    with TemporaryDirectory(prefix="appa-edr-") as folder:
        path = Path(folder) / "answer.nc"
        plain = dataset.drop_encoding()
        plain.attrs = {k: v for k, v in plain.attrs.items() if k not in ("leveled", "query")}
        for variable in plain.variables.values():
            variable.attrs.pop("bounds", None)
        with HDF5_LOCK:
            plain.to_netcdf(path, engine="netcdf4", format="NETCDF4")
        return path.read_bytes()


FORMATS = {"CoverageJSON": _covjson, "GeoJSON": _geojson, "NetCDF": _netcdf}
"""Writers by name."""
