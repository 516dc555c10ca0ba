"""Describe tiles by OGC API - Tiles: tile matrix sets, bounding boxes of tiles, metadata documents.

Two sets of the registry are offered, with their names, scales and corners: WebMercatorQuad, which map
libraries expect, and WorldCRS84Quad on latitudes and longitudes. All tiles have 256 x 256 pixels; a set
is halved from one zoom to the next.

References:
    | OGC API - Tiles - Part 1: Core (OGC 20-057), https://docs.ogc.org/is/20-057/20-057.html
    | OGC Two Dimensional Tile Matrix Set (OGC 17-083r4), annex D,
      https://docs.ogc.org/is/17-083r4/17-083r4.html
"""

from dataclasses import dataclass
from typing import Any

from service.errors import NotFound

__all__ = [
    "CONFORMS_TO",
    "TILE_MATRIX_SETS",
    "Tile",
    "TileMatrixSet",
    "collection_links",
    "tile_json",
    "tile_matrix_set",
    "tileset",
    "tileset_list",
]

Json = dict[str, Any]

SIDE = 256
"""Pixels of a tile in both directions."""

PIXEL = 0.28e-3
"""Size of a standardised rendering pixel in metres, to which scale denominators refer."""

HALF_WORLD = 20_037_508.342789244
"""Half the width of Web Mercator in metres."""

METRES_PER_DEGREE = 2.0 * HALF_WORLD / 360.0

JSON = "application/json"
REL = "http://www.opengis.net/def/rel/ogc/1.0"
_TILES = "http://www.opengis.net/spec/ogcapi-tiles-1/1.0/conf"
_MAPS = "http://www.opengis.net/spec/ogcapi-maps-1/1.0/conf"
_TMS = "http://www.opengis.net/spec/tms/2.0/conf"
CONFORMS_TO = [
    *(f"{_TILES}/{name}" for name in ("core", "tileset", "tilesets-list", "geodata-tilesets")),
    *(f"{_TILES}/{name}" for name in ("datetime", "png", "oas30")),
    *(f"{_MAPS}/{name}" for name in ("core", "collection-map", "styled-map", "tilesets")),
    *(f"{_MAPS}/{name}" for name in ("crs", "datetime", "png")),
    f"{_TMS}/tilematrixset",
    f"{_TMS}/json-tilematrixset",
]
"""Classes of the standards of tiles and maps that the service conforms to."""


@dataclass(frozen=True)
class TileMatrixSet:
    """A pyramid of tiles over the world.

    Attributes:
        id: As in URLs.
        title: One line.
        crs: URI of the coordinate reference system.
        system: The same as WMS names it.
        axes: Names of its axes, in order.
        left: Western edge in units of the reference system.
        top: Northern edge.
        width: Width of the world in units of the reference system.
        columns: Number of tiles across the world at zoom 0; there is one row.
        deepest: Highest zoom level.
        metres: Metres per unit of the reference system.
    """

    id: str
    title: str
    crs: str
    system: str
    axes: tuple[str, str]
    left: float
    top: float
    width: float
    columns: int
    deepest: int
    metres: float

    @property
    def uri(self) -> str:
        """Return the address of the set in the registry."""
        return f"http://www.opengis.net/def/tilematrixset/OGC/1.0/{self.id}"

    def cell(self, zoom: int) -> float:
        """Return the side of a pixel in units of the reference system."""
        return self.width / (self.columns * SIDE * (1 << zoom))

    def document(self, address: str) -> Json:
        """Return the definition of the set, which lies at `address`."""
        return {
            "id": self.id,
            "title": self.title,
            "uri": self.uri,
            "crs": self.crs,
            "orderedAxes": list(self.axes),
            "wellKnownScaleSet": (
                "http://www.opengis.net/def/wkss/OGC/1.0/"
                + {"WebMercatorQuad": "GoogleMapsCompatible"}.get(self.id, "GoogleCRS84Quad")
            ),
            "links": [_link(address, "self", JSON, "This document")],
            "tileMatrices": [self._matrix(zoom) for zoom in range(self.deepest + 1)],
        }

    def _matrix(self, zoom: int) -> Json:
        return {
            "id": str(zoom),
            "scaleDenominator": self.cell(zoom) * self.metres / PIXEL,
            "cellSize": self.cell(zoom),
            "cornerOfOrigin": "topLeft",
            "pointOfOrigin": [self.left, self.top],
            "tileWidth": SIDE,
            "tileHeight": SIDE,
            "matrixWidth": self.columns * (1 << zoom),
            "matrixHeight": 1 << zoom,
        }

    def limits(self) -> list[Json]:
        """Return which tiles of each zoom there are: all."""
        return [
            {
                "tileMatrix": str(zoom),
                "minTileRow": 0,
                "maxTileRow": (1 << zoom) - 1,
                "minTileCol": 0,
                "maxTileCol": self.columns * (1 << zoom) - 1,
            }
            for zoom in range(self.deepest + 1)
        ]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top of the world in units of the reference system."""
        tall = self.width / self.columns
        return self.left, self.top - tall, self.left + self.width, self.top


@dataclass(frozen=True)
class Tile:
    """One tile of a set.

    Attributes:
        matrices: The set.
        zoom: Number of its tile matrix.
        row: From the top.
        column: From the left.
    """

    matrices: TileMatrixSet
    zoom: int
    row: int
    column: int

    def __post_init__(self) -> None:
        """Check that the tile exists.

        Raises:
            NotFound: If the set has no such zoom, row or column; says how many there are.
        """
        found = self.matrices
        if not 0 <= self.zoom <= found.deepest:
            raise NotFound(
                f"Expected a tile matrix of {found.id}, 0 to {found.deepest}; got {self.zoom}."
            )
        rows, columns = 1 << self.zoom, found.columns << self.zoom
        if not (0 <= self.row < rows and 0 <= self.column < columns):
            raise NotFound(
                f"Expected a tile of {found.id}/{self.zoom}, rows 0 to {rows - 1}, columns 0 to "
                f"{columns - 1}; got row {self.row}, column {self.column}."
            )

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top in units of the reference system."""
        side = self.matrices.cell(self.zoom) * SIDE
        left = self.matrices.left + self.column * side
        top = self.matrices.top - self.row * side
        return left, top - side, left + side, top


TILE_MATRIX_SETS: dict[str, TileMatrixSet] = {
    one.id: one
    for one in (
        TileMatrixSet(
            "WebMercatorQuad",
            "Google Maps Compatible for the World",
            "http://www.opengis.net/def/crs/EPSG/0/3857",
            "EPSG:3857",
            ("X", "Y"),
            -HALF_WORLD,
            HALF_WORLD,
            2.0 * HALF_WORLD,
            columns=1,
            deepest=24,
            metres=1.0,
        ),
        TileMatrixSet(
            "WorldCRS84Quad",
            "CRS84 for the World",
            "http://www.opengis.net/def/crs/OGC/1.3/CRS84",
            "CRS:84",
            ("Lon", "Lat"),
            -180.0,
            90.0,
            360.0,
            columns=2,
            deepest=17,
            metres=METRES_PER_DEGREE,
        ),
    )
}
"""The sets that are offered, by their names in addresses."""


def tile_matrix_set(name: str) -> TileMatrixSet:
    """Return the set of this name.

    Raises:
        NotFound: If it is not offered; lists those that are.
    """
    found = TILE_MATRIX_SETS.get(name)
    if found is None:
        raise NotFound(
            f"Expected a tile matrix set, {' or '.join(TILE_MATRIX_SETS)}; got '{name[:80]}'."
        )
    return found


def _link(href: str, rel: str, media: str, title: str, **more: Any) -> Json:
    return {"href": href, "rel": rel, "type": media, "title": title, **more}


def collection_links(href: str) -> list[Json]:
    """Return links from a collection at `href` to its styles, its map and its tilesets."""
    return [
        _link(f"{href}/styles", f"{REL}/styles", JSON, "Styles: fields and statistics"),
        _link(f"{href}/map", f"{REL}/map", "image/png", "Map of the first field"),
        _link(f"{href}/map/tiles", f"{REL}/tilesets-map", JSON, "Tiles of the first field"),
    ]


def tileset_list(href: str, root: str, title: str, query: str = "") -> Json:
    """Return the tilesets of a map.

    Arguments:
        href: Address of this list.
        root: Address of the standard services.
        title: Title of the map.
        query: Time, level and so on, kept in all links; begins with `?`, or is empty.
    """
    items = []
    for found in TILE_MATRIX_SETS.values():
        scheme = f"{root}/tileMatrixSets/{found.id}"
        items.append(
            {
                "title": f"{title}, {found.title}",
                "dataType": "map",
                "crs": found.crs,
                "tileMatrixSetURI": found.uri,
                "links": [
                    _link(f"{href}/{found.id}{query}", "self", JSON, "Tileset"),
                    _link(scheme, f"{REL}/tiling-scheme", JSON, found.title),
                ],
            }
        )
    return {"links": [_link(f"{href}{query}", "self", JSON, "Tilesets")], "tilesets": items}


def tileset(found: TileMatrixSet, href: str, root: str, title: str, query: str = "") -> Json:
    """Return the metadata of one tileset, with the template of its tiles."""
    left, bottom, right, top = found.box
    tiles = f"{href}/{{tileMatrix}}/{{tileRow}}/{{tileCol}}{query}"
    also = f"{query}{'&' if query else '?'}f=tilejson"
    return {
        "title": title,
        "dataType": "map",
        "crs": found.crs,
        "tileMatrixSetURI": found.uri,
        "tileMatrixSetLimits": found.limits(),
        "boundingBox": {
            "lowerLeft": [left, bottom],
            "upperRight": [right, top],
            "crs": found.crs,
            "orderedAxes": list(found.axes),
        },
        "mediaTypes": ["image/png"],
        "links": [
            _link(f"{href}{query}", "self", JSON, "This document"),
            _link(f"{href}{also}", "alternate", JSON, "The same as TileJSON"),
            _link(f"{root}/tileMatrixSets/{found.id}", f"{REL}/tiling-scheme", JSON, found.title),
            _link(tiles, "item", "image/png", "Tiles", templated=True),
        ],
    }


def tile_json(found: TileMatrixSet, href: str, title: str, query: str = "") -> Json:
    """Return a tileset as TileJSON 3.0, which map libraries take by its address."""
    return {
        "tilejson": "3.0.0",
        "name": title,
        "scheme": "xyz",
        "tiles": [f"{href}/{{z}}/{{y}}/{{x}}{query}"],
        "minzoom": 0,
        "maxzoom": found.deepest,
        "bounds": [-180.0, -85.0511287798, 180.0, 85.0511287798],
        "attribution": "Appa Service",
    }
