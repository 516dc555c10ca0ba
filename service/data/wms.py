"""Draw maps for OGC Web Map Service 1.3.0: capabilities, maps, legends and values under a pixel.

A layer is a field of a collection, `filtering-final/t2m`, or of one result, `RESULT_ID/t2m`. Its styles
are `mean` and `spread`, its dimensions TIME (valid times) and ELEVATION (hPa). Fields are interpolated
bilinearly to the pixels.

Reference:
    | OpenGIS Web Map Server Implementation Specification, 1.3.0 (OGC 06-042)
    | https://portal.ogc.org/files/?artifact_id=14416
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib
import matplotlib.cm
import matplotlib.colors
import numpy as np
import pyproj
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from model.domain.errors import InvalidInput
from service.data.fields import Extracted, FieldReader
from service.data.views import sample
from service.errors import NotFound
from service.maps.collections import ResultCollection, find_collection, named_collections
from service.maps.requests import FieldRequest, Statistic
from service.query_parameters import parse_interval
from worker.results.catalogue import Catalogue

__all__ = ["WebMaps"]

MAX_SIDE = 4096
STYLES = {"mean": Statistic("mean"), "spread": Statistic("spread")}
SYSTEMS = ("CRS:84", "EPSG:4326", "EPSG:3857", "EPSG:3413", "EPSG:3031", "EPSG:3995")
_NORTH_FIRST = ("EPSG:4326",)
_INFO = ("application/json", "text/plain")


@dataclass(frozen=True)
class WebMaps:
    """Answers the requests of WMS.

    Attributes:
        reader: Of fields.
        analyses: What is published.
    """

    reader: FieldReader
    analyses: Catalogue

    def answer(self, query: Mapping[str, str], address: str) -> tuple[bytes, str]:
        """Return the body and its media type.

        Arguments:
            query: Parameters by their names in lower case.
            address: Of the service, for the capabilities.

        Raises:
            InvalidInput: Naming the parameter that does not fit.
            NotFound: If there is no such layer or time.
        """
        request = query.get("request", "").lower()
        if request == "getcapabilities":
            return self._capabilities(address), "text/xml"
        if request == "getmap":
            return self._map(query), "image/png"
        if request == "getlegendgraphic":
            return _legend(self._field(query, query.get("layer", ""))), "image/png"
        if request == "getfeatureinfo":
            return self._info(query)
        raise InvalidInput(
            "Expected 'request' to be GetCapabilities, GetMap, GetFeatureInfo or GetLegendGraphic; "
            f"got '{query.get('request', '')[:80]}'.",
            field="request",
        )

    def _field(self, query: Mapping[str, str], layer: str) -> Extracted:
        name, _, field = layer.partition("/")
        start, end = parse_interval(query.get("time") or None)
        if start != end:
            raise InvalidInput("Expected one time in 'time'; got an interval.", field="time")
        collection = find_collection(self.analyses, name, start, end)
        if not collection.holdings:
            raise NotFound(f"Expected a time of '{name}' in 'time'; got '{query.get('time')}'.")
        style = (query.get("styles") or query.get("style") or "mean").split(",")[0]
        if style not in STYLES:
            raise InvalidInput(
                f"Expected a style of {', '.join(STYLES)}; got '{style[:80]}'.", field="styles"
            )
        last = collection.holdings[-1]
        levels = self.reader.catalogue(last.result).levels
        default = 500.0 if 500.0 in levels else next(iter(levels), None)
        level = _number(query, "elevation", default)
        return self.reader.extract(
            FieldRequest(last.result, field, level, None, last.time, STYLES[style])
        )

    def _map(self, query: Mapping[str, str]) -> bytes:
        layers = query.get("layers", "").split(",")
        if len(layers) != 1:
            raise InvalidInput(f"Expected one layer; got {len(layers)}.", field="layers")
        lat, lon = _pixels(query)
        found = self._field(query, layers[0])
        colours = _coloured(found, _values(found, lat, lon))
        if query.get("transparent", "false").lower() != "true":
            colours[colours[..., 3] == 0] = 255
        stream = BytesIO()
        Image.fromarray(colours).save(stream, "PNG")
        return stream.getvalue()

    def _info(self, query: Mapping[str, str]) -> tuple[bytes, str]:
        form = query.get("info_format") or _INFO[0]
        if form not in _INFO:
            raise InvalidInput(
                f"Expected 'info_format' to be {' or '.join(_INFO)}; got '{form[:80]}'.",
                field="info_format",
            )
        lat, lon = _pixels(query)
        column = _side(query, "i" if "i" in query else "x", lat.shape[1] - 1, 0)
        row = _side(query, "j" if "j" in query else "y", lat.shape[0] - 1, 0)
        found = self._field(query, query.get("query_layers") or query.get("layers", ""))
        at = (slice(row, row + 1), slice(column, column + 1))
        value = float(_values(found, lat[at], lon[at])[0, 0])
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
        layers = "".join(
            self._layers(find_collection(self.analyses, name), address)
            for name in named_collections(self.analyses, 0)
        )
        return _document(address, layers).encode()

    def _layers(self, collection: ResultCollection, address: str) -> str:
        catalogue = self.reader.catalogue(collection.newest)
        times = [f"{holding.time:%Y-%m-%dT%H:%M:%SZ}" for holding in collection.holdings]
        dimension = (
            f'<Dimension name="time" units="ISO8601" default="{times[-1]}">{",".join(times)}'
            "</Dimension>"
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
        "GetMap": ("image/png",),
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
        '<BoundingBox CRS="CRS:84" minx="-180" miny="-90" maxx="180" maxy="90"/>'
        f"{layers}</Layer></Capability></WMS_Capabilities>"
    )


def _number(query: Mapping[str, str], name: str, default: float | None) -> float | None:
    try:
        return float(query[name]) if query.get(name) else default
    except ValueError:
        raise InvalidInput(
            f"Expected a number in '{name}'; got '{query[name][:80]}'.", field=name
        ) from None


def _side(query: Mapping[str, str], name: str, most: int, least: int = 1) -> int:
    text = query.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most):
        raise InvalidInput(
            f"Expected '{name}' from {least} to {most}; got '{text[:80]}'.", field=name
        )
    return int(text)


def _pixels(query: Mapping[str, str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return latitudes and longitudes of the pixels (height, width), infinite off the map."""
    system = query.get("crs") or query.get("srs", "")
    if system not in SYSTEMS:
        raise InvalidInput(
            f"Expected 'crs' to be one of {', '.join(SYSTEMS)}; got '{system[:80]}'.", field="crs"
        )
    try:
        left, bottom, right, top = (float(part) for part in query.get("bbox", "").split(","))
        if not (np.isfinite([left, bottom, right, top]).all() and left < right and bottom < top):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"Expected 'bbox' as minx,miny,maxx,maxy; got '{query.get('bbox', '')[:80]}'.",
            field="bbox",
        ) from None
    if "crs" in query and system in _NORTH_FIRST:  # as 1.3.0 has it; 1.1.1 says SRS
        left, bottom, right, top = bottom, left, top, right
    width, height = (_side(query, name, MAX_SIDE) for name in ("width", "height"))
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top - (np.arange(height) + 0.5) * (top - bottom) / height
    x, y = np.meshgrid(x, y)
    if system in ("CRS:84", "EPSG:4326"):
        return y, x
    lon, lat = pyproj.Transformer.from_crs(system, "OGC:CRS84", always_xy=True).transform(x, y)
    return lat, lon


def _values(found: Extracted, lat: Any, lon: Any) -> NDArray[np.float64]:
    """Return the field at pixels, NaN off the globe."""
    values = np.full(lat.shape, np.nan)
    on = np.isfinite(lat) & np.isfinite(lon) & (np.abs(lat) <= 90.0)
    values[on] = sample(found.values, found.grid, lat[on], lon[on], vector=found.vector)
    return values


def _coloured(found: Extracted, values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return RGBA of values; transparent where undefined."""
    name, (low, high) = found.colours
    with np.errstate(invalid="ignore"):
        share = (values - low) / (high - low)
    coloured: NDArray[np.uint8] = matplotlib.colormaps[name](np.clip(share, 0.0, 1.0), bytes=True)
    coloured[~np.isfinite(values)] = 0
    return coloured


def _legend(found: Extracted) -> bytes:
    name, (low, high) = found.colours
    shown = found.display
    bottom, top = (value * shown.scale + shown.offset for value in (low, high))
    figure = Figure(figsize=(1.2, 3.0))
    mapped = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(bottom, top), name)
    bar = figure.colorbar(mapped, cax=figure.add_axes((0.1, 0.05, 0.2, 0.9)))
    bar.set_label(f"{found.field.long_name}, {shown.units}", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
