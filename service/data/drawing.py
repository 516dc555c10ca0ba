"""Draw fields as pictures: which field a layer means, its values at pixels, their colours, a legend.

WMS, OGC API - Maps and OGC API - Tiles all draw with this. Fields are interpolated bilinearly to the
centres of pixels. Where the axes of a map are meridians and parallels, as on all tiles, rows and columns
are interpolated one after the other, with the same values as point by point.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any

import matplotlib
import matplotlib.cm
import matplotlib.colors
import numpy as np
import pyproj
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from model.domain.errors import InvalidInput
from service.data.cache import BoundedCache
from service.data.extracted import Extracted
from service.data.fields import FieldReader
from service.data.views import sample, sample_lattice
from service.maps.collections import find_holding
from service.maps.requests import Canvas, FieldRequest, Statistic
from service.query_parameters import parse_interval
from worker.results.catalogue import Catalogue

__all__ = ["FORMATS", "SYSTEMS", "Drawing", "MapLayer", "Pixels", "area_of", "values_at"]

Float = NDArray[np.float64]

SYSTEMS = ("CRS:84", "EPSG:4326", "EPSG:3857", "EPSG:3413", "EPSG:3031", "EPSG:3995")
"""Reference systems of maps. `Pixels` have the longitude first in all of them."""

_DEGREES = ("CRS:84", "EPSG:4326")
MERCATOR_RADIUS = 6_378_137.0
"""Metres, of the sphere of Web Mercator."""

DEFAULT_LEVEL = 500.0
"""Default level of fields on pressure levels, in hPa."""

PICTURE_BYTES = 32_000_000
"""Size of the cache of pictures in bytes: some thousand tiles, shared by users of the same map."""

FORMATS: Mapping[str, Mapping[str, Any]] = {
    # Higher levels hardly shrink smooth fields and take several times as long.
    "image/png": {"format": "PNG", "compress_level": 1},
    "image/jpeg": {"format": "JPEG", "quality": 95},
}
"""Media types of maps, with the arguments with which Pillow writes them."""

_OPAQUE = "image/jpeg"
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class MapLayer:
    """Selection of the field that a map shows.

    Attributes:
        collection: `filtering-final`, or the id of a result.
        field: Name of the quantity; empty for the first available.
        statistic: Statistic over the members.
        time: Valid time as given in the request; empty for the latest.
        level: hPa; None for 500.
    """

    collection: str
    field: str = ""
    statistic: Statistic = Statistic()
    time: str | None = None
    level: float | None = None


@dataclass(frozen=True, eq=False)
class Pixels:
    """The centres of the pixels of a map.

    Attributes:
        latitude: Degrees north, of rows (H,), or of pixels (H, W); infinite off the map.
        longitude: Degrees east, of columns (W,), or of pixels (H, W).
    """

    latitude: Float
    longitude: Float

    @classmethod
    def of(cls, canvas: Canvas) -> "Pixels":
        """Return the pixels of a map."""
        system, width, height = canvas.system, canvas.width, canvas.height
        left, bottom, right, top = canvas.box
        x = left + (np.arange(width) + 0.5) * (right - left) / width
        y = top - (np.arange(height) + 0.5) * (top - bottom) / height
        if system in _DEGREES:
            return cls(y, x)
        if system == "EPSG:3857":
            lat = np.rad2deg(np.arctan(np.sinh(y / MERCATOR_RADIUS)))
            return cls(lat, np.rad2deg(x / MERCATOR_RADIUS))
        lon, lat = _transformer(system).transform(*np.meshgrid(x, y))
        return cls(lat, lon)

    @cached_property
    def places(self) -> tuple[Float, Float]:
        """Return latitudes and longitudes of all pixels, each with shape (H, W)."""
        if self.latitude.ndim == 2:
            return self.latitude, self.longitude
        lon, lat = np.meshgrid(self.longitude, self.latitude)
        return lat, lon


@lru_cache(maxsize=len(SYSTEMS))
def _transformer(system: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(system, "OGC:CRS84", always_xy=True)


def area_of(system: str) -> tuple[float, float, float, float]:
    """Return what a system shows of the globe, (left, bottom, right, top): a hemisphere where it is polar."""
    if system in _DEGREES:
        return -180.0, -90.0, 180.0, 90.0
    half = math.pi * MERCATOR_RADIUS
    if system != "EPSG:3857":
        inverse = pyproj.enums.TransformDirection.INVERSE
        x, y = _transformer(system).transform(
            np.arange(0.0, 360.0), np.zeros(360), direction=inverse
        )
        half = float(max(np.abs(x).max(), np.abs(y).max()))
    return -half, -half, half, half


@dataclass(frozen=True)
class Drawing:
    """Draws layers of published results.

    Attributes:
        reader: Reader of fields.
        analyses: Catalogue of published results.
        cache: Cache of pictures.
    """

    reader: FieldReader
    analyses: Catalogue
    cache: BoundedCache[tuple[FieldRequest, Canvas, str], bytes] = field(
        default_factory=lambda: BoundedCache(PICTURE_BYTES, len)
    )

    def request(self, layer: MapLayer, name: str = "datetime") -> FieldRequest:
        """Resolve a layer to one field of one result at one time, without reading values.

        Arguments:
            layer: The layer requested.
            name: Name of the request parameter that holds the time, for error messages.

        Raises:
            NotFound: If there is no such collection, or it has no such time.
            UnknownName: If it has no such field.
            InvalidInput: If the time, the level or the statistic does not fit.
        """
        start, end = parse_interval(layer.time or None)
        if start != end:
            raise InvalidInput(f"Expected one time in '{name}'; got an interval.", field=name)
        time: datetime | None = start
        holding = find_holding(self.analyses, layer.collection, time, name)
        field = layer.field or self.reader.catalogue(holding.result).fields[0].field
        level = layer.level
        if level is None:
            levels = self.reader.levels(holding.result)
            level = DEFAULT_LEVEL if DEFAULT_LEVEL in levels else next(iter(levels), None)
        return self.reader.settle(
            FieldRequest(holding.result, field, level, None, holding.time, layer.statistic)
        )

    def extract(self, layer: MapLayer, name: str = "datetime") -> Extracted:
        """Return the field of a layer, with the errors of `request`."""
        return self.reader.extract(self.request(layer, name))

    def picture(self, request: FieldRequest, canvas: Canvas, form: str = "image/png") -> bytes:
        """Return the map of a field on a canvas; drawn once where many ask.

        Arguments:
            request: The field.
            canvas: The canvas; without a background it is white in JPEG, which is never transparent.
            form: Media type, one of `FORMATS`.
        """
        if form == _OPAQUE and canvas.background is None:
            canvas = replace(canvas, background=_WHITE)

        def draw() -> bytes:
            found = self.reader.extract(request)
            image = _image(found, values_at(found, Pixels.of(canvas)), canvas.background)
            if form == _OPAQUE:  # which has neither palettes nor transparency
                image = image.convert("RGB")
            return _written(lambda stream: image.save(stream, **FORMATS[form]))

        return self.cache.get((request, canvas, form), draw)

    def legend(self, request: FieldRequest) -> bytes:
        """Return the colour bar of a field as PNG, 120 x 300 pixels, in the units people read."""
        return _legend(self.reader.extract(request))


def values_at(found: Extracted, pixels: Pixels) -> Float:
    """Return a field at pixels, with shape (H, W); NaN off the globe."""
    lat, lon = pixels.latitude, pixels.longitude
    on = np.isfinite(lat) & (np.abs(lat) <= 90.0)
    if lat.ndim == 1 and on.all():
        return sample_lattice(found.values, found.grid, lat, lon, vector=found.vector)
    if lat.ndim == 1:
        values = np.full((len(lat), len(lon)), np.nan)
        values[on] = sample_lattice(found.values, found.grid, lat[on], lon, vector=found.vector)
        return values
    on &= np.isfinite(lon)
    values = np.full(lat.shape, np.nan)
    values[on] = sample(found.values, found.grid, lat[on], lon[on], vector=found.vector)
    return values


@lru_cache(maxsize=64)
def _table(name: str) -> NDArray[np.uint8]:
    """Return the 256 colours of a map, with shape (256, 3)."""
    table: NDArray[np.uint8] = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    return table


def _image(found: Extracted, values: Float, background: tuple[int, int, int] | None) -> Image.Image:
    """Return values in their colours, with a palette if no value is missing."""
    name, (low, high) = found.colours
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        share = np.clip((values - low) * (256.0 / (high - low)), 0.0, 255.0)
    if defined.all():
        image = Image.fromarray(share.astype(np.uint8))
        image.putpalette(_table(name).tobytes())
        return image
    places = np.where(defined, share, 0.0).astype(np.uint8)
    colours = np.dstack([_table(name)[places], np.where(defined, 255, 0).astype(np.uint8)])
    colours[~defined] = (0, 0, 0, 0) if background is None else (*background, 255)
    return Image.fromarray(colours)


def _legend(found: Extracted) -> bytes:
    name, (low, high) = found.colours
    shown = found.display
    bottom, top = (value * shown.scale + shown.offset for value in (low, high))
    figure = Figure(figsize=(1.2, 3.0))
    mapped = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(bottom, top), name)
    bar = figure.colorbar(mapped, cax=figure.add_axes((0.1, 0.05, 0.2, 0.9)))
    bar.set_label(f"{found.field.long_name}, {_readable(shown.units)}", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return _written(lambda stream: figure.savefig(stream, format="png", dpi=100))


def _readable(units: str) -> str:
    """Return units as people write them: "m s⁻¹" of "m s-1"."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return units if units == "1" else re.sub(r"-?\d", lambda m: m[0].translate(raised), units)


def _written(write: Callable[[BytesIO], Any]) -> bytes:
    stream = BytesIO()
    write(stream)
    return stream.getvalue()
