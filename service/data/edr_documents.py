"""Describe the collections of OGC Environmental Data Retrieval: extents, parameters, queries.

The parameters of a collection are those of its newest result, read once for each result.
"""

from datetime import datetime
from typing import Any
from urllib.parse import quote

import xarray as xr

from service.data.cache import BoundedCache
from service.data.edr_formats import CRS84
from service.data.library import DatasetLibrary
from service.maps import tiles
from service.maps.collections import ANSWER_FORMATS, ResultCollection

__all__ = ["CONFORMS_TO", "Descriptions", "landing_page"]

Json = dict[str, Any]

_EDR = "http://www.opengis.net/spec/ogcapi-edr-1/1.1/conf"
CONFORMS_TO = [
    "http://www.opengis.net/spec/ogcapi-common-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-common-2/1.0/conf/collections",
    f"{_EDR}/core",
    f"{_EDR}/collections",
    f"{_EDR}/json",
    f"{_EDR}/geojson",
    f"{_EDR}/covjson",
    f"{_EDR}/oas30",
    f"{_EDR}/queries",
    *tiles.CONFORMS_TO,
]
"""Classes of the standards that the service conforms to."""

JSON = "application/json"
_WKT = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],AXIS["Longitude",EAST],'
    'AXIS["Latitude",NORTH]]'
)
_TRS = 'TIMECRS["DateTime",TDATUM["Gregorian Calendar"],CS[TemporalDateTime,1],AXIS["Time (T)",future]]'
_VRS = 'VERTCRS["pressure",VDATUM["air pressure"],CS[vertical,1],AXIS["pressure",down],UNIT["hPa",100.0]]'
_COORDS = {
    "position": "WKT POINT or MULTIPOINT, longitude first",
    "area": "WKT POLYGON or MULTIPOLYGON, longitude first",
    "trajectory": "WKT LINESTRING or MULTILINESTRING (Z: hPa, M: seconds since 1970)",
}


def landing_page(base: str) -> Json:
    """Return the landing page of the service at `base`, without a final slash."""
    root = f"{base}/ogc"
    return {
        "title": "Appa Service",
        "description": "Analyses and forecasts by OGC API - EDR, Maps and Tiles.",
        "keywords": ["weather", "analysis", "forecast", "ensemble"],
        "links": [
            _link(f"{root}", "self", JSON, "This document"),
            _link(
                f"{base}/openapi.json",
                "service-desc",
                "application/vnd.oai.openapi+json;version=3.1",
                "The definition of the API",
            ),
            _link(f"{base}/docs", "service-doc", "text/html", "Documentation of the API"),
            _link(f"{root}/conformance", "conformance", JSON, "Conformance classes"),
            _link(f"{root}/collections", "data", JSON, "Collections"),
            _link(
                f"{root}/tileMatrixSets", f"{tiles.REL}/tiling-schemes", JSON, "Tile matrix sets"
            ),
            _link(
                f"{root}/wms?service=WMS&request=GetCapabilities",
                "alternate",
                "text/xml",
                "Maps by WMS 1.3.0",
            ),
        ],
    }


def _link(href: str, rel: str, media: str, title: str) -> Json:
    return {"href": href, "rel": rel, "type": media, "title": title}


class Descriptions:
    """Describe collections; the file of each result is read once.

    Arguments:
        library: Open data sets.
    """

    def __init__(self, library: DatasetLibrary) -> None:
        self._library = library
        self._known: BoundedCache[str, Json] = BoundedCache(1000, lambda _: 1)

    def describe(self, collection: ResultCollection, base: str) -> Json:
        """Return the metadata of a collection, by its newest result that can be read.

        Raises:
            StorageError: If none of its results can be read.
        """
        href = f"{base}/ogc/collections/{quote(collection.id)}"
        of_file = collection.of_newest(self._of_file)
        return {
            "id": collection.id,
            "title": collection.title,
            "description": collection.description,
            "keywords": ["weather", "ensemble"],
            "links": [
                _link(href, "self", JSON, "This document"),
                _link(f"{href}/position", "data", ANSWER_FORMATS["CoverageJSON"], "Data"),
                *tiles.collection_links(href),
            ],
            "extent": _extent(collection, of_file["levels"], of_file["members"]),
            "data_queries": {kind: _query(href, kind) for kind in (*_COORDS, "cube")},
            "crs": [CRS84],
            "output_formats": list(ANSWER_FORMATS),
            "parameter_names": of_file["parameters"],
        }

    def _of_file(self, result: str) -> Json:
        return self._known.get(result, lambda: _read(self._library.get(result).decoded))


def _read(dataset: xr.Dataset) -> Json:
    fields = {
        str(n): v for n, v in dataset.data_vars.items() if {"latitude", "longitude"} <= set(v.dims)
    }
    levels = list(dataset["air_pressure"].values / 100.0) if "air_pressure" in dataset else []
    many = any("realization" in v.dims for v in fields.values())
    return {
        "parameters": {name: _parameter(name, v) for name, v in fields.items()},
        "levels": [f"{level:g}" for level in levels],
        "members": [int(m) for m in dataset["realization"].values] if many else [],
    }


def _parameter(name: str, array: xr.DataArray) -> Json:
    about = array.attrs
    title = str(about.get("long_name", name))
    observed = {"label": title}
    if "standard_name" in about:
        observed["id"] = f"http://vocab.nerc.ac.uk/standard_name/{about['standard_name']}"
    units = str(about.get("units", "1"))
    symbol = {"value": units, "type": "http://www.opengis.net/def/uom/UCUM/"}
    return {
        "type": "Parameter",
        "id": name,
        "label": title,
        "data-type": "float",
        "unit": {"label": units, "symbol": symbol},
        "observedProperty": observed,
    }


def _extent(collection: ResultCollection, levels: list[str], members: list[int]) -> Json:
    times = [_text(holding.time) for holding in collection.holdings]
    found: Json = {
        "spatial": {"bbox": [[-180.0, -90.0, 180.0, 90.0]], "crs": CRS84},
        "temporal": {"interval": [[times[0], times[-1]]], "values": times, "trs": _TRS},
    }
    if levels:
        ends = [[max(levels, key=float), min(levels, key=float)]]
        found["vertical"] = {"interval": ends, "values": levels, "vrs": _VRS}
    if members:
        found["custom"] = [
            {
                "id": "realization",
                "interval": [[float(members[0]), float(members[-1])]],
                "values": [float(m) for m in members],
                "reference": "http://vocab.nerc.ac.uk/standard_name/realization",
            }
        ]
    return found


def _query(href: str, kind: str) -> Json:
    variables: Json = {
        "title": f"{kind.capitalize()} query",
        "query_type": kind,
        "output_formats": list(ANSWER_FORMATS),
        "default_output_format": "CoverageJSON",
        "crs_details": [{"crs": CRS84, "wkt": _WKT}],
    }
    if kind == "cube":
        variables |= {"height_units": ["hPa"]}
    else:
        variables |= {"coords": {"description": _COORDS[kind]}}
    return {
        "link": {
            "href": f"{href}/{kind}",
            "rel": "data",
            "type": ANSWER_FORMATS["CoverageJSON"],
            "variables": variables,
        }
    }


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S}Z"
