"""Draw maps for OGC Web Map Service 1.3.0: capabilities, maps, legends and values under a pixel.

A layer is a field of a collection, `filtering-final/t2m`, or of one result, `RESULT_ID/t2m`. Its styles
are statistics, of which `mean`, the default, and `spread` are listed, its dimensions TIME (valid times, the
last of which is `current`) and ELEVATION (hPa). `service.data.drawing` draws them.

Reference:
    | OpenGIS Web Map Server Implementation Specification, 1.3.0 (OGC 06-042)
    | https://portal.ogc.org/files/?artifact_id=14416
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from model.domain.errors import InvalidInput
from service.data.drawing import (
    FORMATS,
    SYSTEMS,
    Drawing,
    MapLayer,
    Pixels,
    area_of,
    values_at,
)
from service.maps.collections import ResultCollection, describe_collections
from service.maps.requests import Canvas, is_map_box, parse_statistic

__all__ = ["WebMaps"]

MAX_SIDE = 4096
STYLES = ("mean", "spread")
"""Styles that are listed, the first for `default`; every statistic of `/v1/fields` is one."""

_NORTH_FIRST = ("EPSG:4326",)
_INFO = ("application/json", "text/plain")


@dataclass(frozen=True)
class WebMaps:
    """Answers the requests of WMS.

    Attributes:
        drawing: Draws the maps.
    """

    drawing: Drawing

    def answer(self, query: Mapping[str, str], address: str) -> tuple[bytes, str]:
        """Return the body and its media type.

        Arguments:
            query: Parameters by their names in lower case.
            address: Address of the service, for the capabilities.

        Raises:
            InvalidInput: Naming the parameter that does not fit.
            NotFound: If there is no such layer or time.
        """
        request = query.get("request", "").lower()
        if query.get("service", "WMS").upper() != "WMS":
            raise InvalidInput(
                f"Expected 'service' to be WMS; got '{query['service'][:80]}'.", field="service"
            )
        if request == "getcapabilities":
            return self._capabilities(address), "text/xml"
        if request == "getmap":
            return self._map(query)
        if request == "getlegendgraphic":
            layer = self._layer(query, query.get("layer", ""))
            return self.drawing.legend(self.drawing.request(layer, "time")), "image/png"
        if request == "getfeatureinfo":
            return self._info(query)
        raise InvalidInput(
            "Expected 'request' to be GetCapabilities, GetMap, GetFeatureInfo or GetLegendGraphic; "
            f"got '{query.get('request', '')[:80]}'.",
            field="request",
        )

    def _layer(self, query: Mapping[str, str], layer: str) -> MapLayer:
        name, _, field = layer.partition("/")
        asked = (query.get("styles") or query.get("style") or "default").split(",")[0]
        style = STYLES[0] if asked == "default" else asked
        time = query.get("time")
        threshold = _number(query, "threshold", None)
        statistic = parse_statistic(style, threshold, query.get("direction", "above"))
        return MapLayer(
            name,
            field,
            statistic,
            None if time == "current" else time,
            _number(query, "elevation", None),
        )

    def _map(self, query: Mapping[str, str]) -> tuple[bytes, str]:
        asked = query.get("format") or next(iter(FORMATS))
        form = asked.partition(";")[0].strip()
        if form not in FORMATS:
            raise InvalidInput(
                f"Expected 'format' to be {' or '.join(FORMATS)}; got '{asked[:80]}'.",
                field="format",
            )
        layers = query.get("layers", "").split(",")
        if len(layers) != 1:
            raise InvalidInput(f"Expected one layer; got {len(layers)}.", field="layers")
        canvas = _canvas(query)
        request = self.drawing.request(self._layer(query, layers[0]), "time")
        return self.drawing.picture(request, canvas, form), form

    def _info(self, query: Mapping[str, str]) -> tuple[bytes, str]:
        form = query.get("info_format") or _INFO[0]
        if form not in _INFO:
            raise InvalidInput(
                f"Expected 'info_format' to be {' or '.join(_INFO)}; got '{form[:80]}'.",
                field="info_format",
            )
        lat, lon = Pixels.of(_canvas(query)).places
        column = _side(query, "i" if "i" in query else "x", lat.shape[1] - 1, 0)
        row = _side(query, "j" if "j" in query else "y", lat.shape[0] - 1, 0)
        layer = self._layer(query, query.get("query_layers") or query.get("layers", ""))
        found = self.drawing.extract(layer, "time")
        at = (slice(row, row + 1), slice(column, column + 1))
        value = float(values_at(found, Pixels(lat[at], lon[at]))[0, 0])
        about = {
            "layer": query.get("query_layers") or query.get("layers"),
            "long_name": found.field.long_name,
            "units": found.field.units,
            "value": None if value != value else value,
            "latitude": _finite(lat[row, column]),
            "longitude": _finite(lon[row, column]),
            "time": f"{found.request.time:%Y-%m-%dT%H:%M:%SZ}",
            "result": found.manifest.id,
            "simulated": "simulated" in found.manifest.flags,
        }
        if form == _INFO[0]:
            return json.dumps(about).encode(), form
        return "\n".join(f"{name} = {value}" for name, value in about.items()).encode(), form

    def _capabilities(self, address: str) -> bytes:
        layers = describe_collections(
            self.drawing.analyses, 0, lambda one: self._layers(one, address)
        )
        return _document(address, "".join(layers)).encode()

    def _layers(self, collection: ResultCollection, address: str) -> str:
        catalogue = collection.of_newest(self.drawing.reader.catalogue)
        times = [f"{holding.time:%Y-%m-%dT%H:%M:%SZ}" for holding in collection.holdings]
        dimension = (
            f'<Dimension name="time" units="ISO8601" default="{times[-1]}" current="1">'
            f"{','.join(times)}</Dimension>"
        )
        parts = [f"<Layer><Title>{escape(collection.title)}</Title>"]
        for field in catalogue.fields:
            styles = [style for style in STYLES if style in field.statistics]
            if not styles or field.layer:
                continue
            parts += [
                f'<Layer queryable="1"><Name>{escape(collection.id)}/{field.field}</Name>',
                f"<Title>{escape(field.long_name)}</Title>{dimension}",
                _elevation(catalogue.levels) if field.leveled else "",
                *(_style(s, f"{collection.id}/{field.field}", address) for s in styles),
                "</Layer>",
            ]
        return "".join([*parts, "</Layer>"])


def _style(style: str, layer: str, address: str) -> str:
    legend = f"{address}?service=WMS&request=GetLegendGraphic&layer={layer}&style={style}"
    return (
        f"<Style><Name>{style}</Name><Title>{style}</Title>"
        '<LegendURL width="120" height="300"><Format>image/png</Format>'
        '<OnlineResource xmlns:xlink="http://www.w3.org/1999/xlink" xlink:type="simple" '
        f"xlink:href={quoteattr(legend)}/></LegendURL></Style>"
    )


def _elevation(levels: list[float]) -> str:
    default = 500.0 if 500.0 in levels else levels[0]
    listed = ",".join(f"{level:g}" for level in levels)
    return (
        f'<Dimension name="elevation" units="hPa" unitSymbol="hPa" default="{default:g}">{listed}'
        "</Dimension>"
    )


def _document(address: str, layers: str) -> str:
    link = (
        '<DCPType><HTTP><Get><OnlineResource xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'xlink:type="simple" xlink:href={quoteattr(address + "?")}/></Get></HTTP></DCPType>'
    )
    requests = {
        "GetCapabilities": ("text/xml",),
        "GetMap": FORMATS,
        "GetFeatureInfo": _INFO,
    }
    offered = "".join(
        f"<{name}>{''.join(f'<Format>{form}</Format>' for form in forms)}{link}</{name}>"
        for name, forms in requests.items()
    )
    systems = "".join(f"<CRS>{name}</CRS>" for name in SYSTEMS)
    online = link.partition("<Get>")[2].partition("</Get>")[0]
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms">'
        "<Service><Name>WMS</Name><Title>Appa Service</Title>"
        f"{online}<MaxWidth>{MAX_SIDE}</MaxWidth><MaxHeight>{MAX_SIDE}</MaxHeight></Service>"
        f"<Capability><Request>{offered}</Request><Exception><Format>XML</Format></Exception>"
        f"<Layer><Title>Analyses and forecasts</Title>{systems}"
        "<EX_GeographicBoundingBox><westBoundLongitude>-180</westBoundLongitude>"
        "<eastBoundLongitude>180</eastBoundLongitude><southBoundLatitude>-90</southBoundLatitude>"
        "<northBoundLatitude>90</northBoundLatitude></EX_GeographicBoundingBox>"
        f"{''.join(map(_bounding_box, SYSTEMS))}{layers}</Layer></Capability></WMS_Capabilities>"
    )


@cache
def _bounding_box(system: str) -> str:
    """Return the extent of the globe, of a hemisphere where the map is polar, in a system's own axes."""
    west, south, east, north = area_of(system)
    if system in _NORTH_FIRST:
        west, south, east, north = south, west, north, east
    return (
        f'<BoundingBox CRS="{system}" minx="{west:.10g}" miny="{south:.10g}" '
        f'maxx="{east:.10g}" maxy="{north:.10g}"/>'
    )


def _number(query: Mapping[str, str], name: str, default: float | None) -> float | None:
    try:
        return float(query[name]) if query.get(name) else default
    except ValueError:
        raise InvalidInput(
            f"Expected a number in '{name}'; got '{query[name][:80]}'.", field=name
        ) from None


def _side(query: Mapping[str, str], name: str, maximum: int, minimum: int = 1) -> int:
    text = query.get(name, "")
    if not (
        text.isascii() and text.isdigit() and len(text) < 6 and minimum <= int(text) <= maximum
    ):
        raise InvalidInput(
            f"Expected '{name}' from {minimum} to {maximum}; got '{text[:80]}'.", field=name
        )
    return int(text)


def _canvas(query: Mapping[str, str]) -> Canvas:
    """Return the part of the world that a request means."""
    system = query.get("crs") or query.get("srs", "")
    if system not in SYSTEMS:
        raise InvalidInput(
            f"Expected 'crs' to be one of {', '.join(SYSTEMS)}; got '{system[:80]}'.", field="crs"
        )
    try:
        left, bottom, right, top = (float(part) for part in query.get("bbox", "").split(","))
        if not is_map_box(left, bottom, right, top):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"Expected 'bbox' as minx,miny,maxx,maxy; got '{query.get('bbox', '')[:80]}'.",
            field="bbox",
        ) from None
    if "crs" in query and system in _NORTH_FIRST:  # as 1.3.0 has it; 1.1.1 says SRS
        left, bottom, right, top = bottom, left, top, right
    width, height = (_side(query, name, MAX_SIDE) for name in ("width", "height"))
    transparent = query.get("transparent", "false").lower() == "true"
    background = None if transparent else _background(query.get("bgcolor") or "0xFFFFFF")
    return Canvas(system, (left, bottom, right, top), width, height, background)


def _background(text: str) -> tuple[int, int, int]:
    """Return red, green and blue of a colour as WMS writes it, `0xRRGGBB`."""
    if not re.fullmatch(r"0[xX][0-9A-Fa-f]{6}", text):
        raise InvalidInput(f"Expected 'bgcolor' as 0xRRGGBB; got '{text[:80]}'.", field="bgcolor")
    red, green, blue = bytes.fromhex(text[2:])
    return red, green, blue


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
