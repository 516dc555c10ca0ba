"""Serve results as pictures by OGC API - Maps and OGC API - Tiles, with times, levels and styles.

A style names a field and a statistic over its members: `t2m` (the mean), `t.spread`, `gh.member:3`,
`si10.probability` with `threshold`. Maps of one result never change and may be cached for ever; maps of
a collection that grows are revalidated by their entity tag, without drawing them.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from model.domain.errors import InvalidInput
from model.domain.files import code_version
from service.auth import GatewayDep, Reader
from service.gateway import Gateway
from service.maps import tiles
from service.maps.collections import find_collection
from service.maps.requests import Canvas, is_map_box, parse_statistic
from service.openapi import problem_responses
from service.query_parameters import parse_numbers
from service.routes.ogc import FOR_EVER, CollectionId, JsonForm, base_url

router = APIRouter(prefix="/ogc", tags=["ogc"])

Json = dict[str, Any]
MAX_SIDE = 4096
PNG = "image/png"
SYSTEMS = {
    "CRS:84": ("CRS84", "OGC:CRS84", "http://www.opengis.net/def/crs/OGC/1.3/CRS84"),
    **{
        f"EPSG:{code}": (f"http://www.opengis.net/def/crs/EPSG/0/{code}",)
        for code in (4326, 3857, 3413, 3031, 3995)
    },
}
"""Reference systems of maps by the names of WMS, each with its other names."""

LISTED = ("mean", "spread")
"""Statistics listed as styles of collections that grow; single results also list `increment`."""

_PROBLEMS = ("not_found", "unknown_name", "not_installed", "storage_error")
_PICTURE: dict[int | str, Json] = {
    **problem_responses(*_PROBLEMS),
    200: {
        "description": "A picture; what is undefined is transparent.",
        "content": {PNG: {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "The picture is the one that `If-None-Match` names."},
}

StyleId = Annotated[
    str,
    Path(description="`t2m`, `t.spread`, `gh.member:3`, `si10.probability` …", max_length=200),
]
Matrices = Annotated[
    str, Path(description=f"{' or '.join(tiles.TILE_MATRIX_SETS)}.", max_length=100)
]
PictureForm = Annotated[Literal["png", "image/png"] | None, Query(description="Only PNG.")]


@dataclass(frozen=True)
class Shown:
    """Parameters common to all pictures: collection, style, time, level.

    Attributes:
        collection: Its id.
        style: Name of the field and the statistic; empty for the first field.
        datetime: Valid time, as requested.
        elevation: hPa.
        threshold: Threshold of a probability.
        direction: Side of the threshold that counts.
    """

    collection: str
    style: str
    datetime: str | None
    elevation: float | None
    threshold: float | None
    direction: str

    @property
    def query(self) -> str:
        """Return the parameters as the query of an address, with its `?`."""
        given = {
            "datetime": self.datetime,
            "elevation": None if self.elevation is None else f"{self.elevation:g}",
            "threshold": None if self.threshold is None else f"{self.threshold:.12g}",
            "direction": None if self.direction == "above" else self.direction,
        }
        kept = {name: value for name, value in given.items() if value}
        return f"?{urlencode(kept)}" if kept else ""

    @property
    def path(self) -> str:
        """Return the address of the map below `/ogc`."""
        style = f"/styles/{quote(self.style, safe=':')}" if self.style else ""
        return f"collections/{quote(self.collection)}{style}/map"

    def layer(self, gateway: Gateway) -> Any:
        """Return what is drawn, a `service.data.drawing.Layer`.

        Raises:
            InvalidInput: If the style names no statistic.
        """
        field, _, statistic = self.style.partition(".")
        made = parse_statistic(statistic or "mean", self.threshold, self.direction)
        module = gateway.data_sets.module("drawing")
        return module.MapLayer(self.collection, field, made, self.datetime, self.elevation)


async def _style(style: StyleId) -> str:
    """Declare the style in the path, which `_shown` reads where there is one."""
    return style


async def _shown(
    request: Request,
    collection: CollectionId,
    datetime: Annotated[
        str | None, Query(description="A valid time; default: the last.", max_length=100)
    ] = None,
    elevation: Annotated[
        float | None, Query(gt=0, le=1100, description="Pressure level, hPa; default: 500.")
    ] = None,
    threshold: Annotated[
        float | None, Query(description="Of a probability, in the units of the field.")
    ] = None,
    direction: Annotated[
        Literal["above", "below"], Query(description="Which side of the threshold counts.")
    ] = "above",
) -> Shown:
    style = str(request.path_params.get("style", ""))
    return Shown(collection, style, datetime, elevation, threshold, direction)


ShownDep = Annotated[Shown, Depends(_shown)]


@router.get("/tileMatrixSets", responses=problem_responses())
async def list_tile_matrix_sets(request: Request, _: Reader, f: JsonForm = None) -> Json:
    """Return the tile matrix sets in which maps are served, each with its CRS and link."""
    root = f"{base_url(request)}/ogc/tileMatrixSets"
    found = tiles.TILE_MATRIX_SETS.values()
    return {
        "tileMatrixSets": [
            {
                "id": one.id,
                "title": one.title,
                "uri": one.uri,
                "crs": one.crs,
                "links": [{"href": f"{root}/{one.id}", "rel": "self", "type": tiles.JSON}],
            }
            for one in found
        ]
    }


@router.get("/tileMatrixSets/{matrices}", responses=problem_responses("not_found"))
async def read_tile_matrix_set(
    request: Request, matrices: Matrices, _: Reader, f: JsonForm = None
) -> Json:
    """Return the definition of a tile matrix set."""
    found = tiles.tile_matrix_set(matrices)
    return found.document(f"{base_url(request)}/ogc/tileMatrixSets/{found.id}")


@router.get("/collections/{collection}/styles", responses=problem_responses(*_PROBLEMS))
async def list_styles(
    request: Request, collection: CollectionId, gateway: GatewayDep, _: Reader, f: JsonForm = None
) -> Json:
    """Return the styles of a collection: fields, each with the mean and the spread."""
    root = f"{base_url(request)}/ogc/collections/{quote(collection)}/styles"
    styles = await gateway.data_sets.run(_styles, gateway, collection, root)
    return {"default": styles[0]["id"] if styles else None, "styles": styles}


def _styles(gateway: Gateway, name: str, root: str) -> list[Json]:
    collection = find_collection(gateway.analyses, name)
    catalogue = collection.of_newest(gateway.data_sets.fields.catalogue)
    listed = (*LISTED, "increment") if collection.fixed else LISTED
    found = []
    for field in catalogue.fields:
        for statistic in (s for s in listed if s in field.statistics):
            made = field.field if statistic == "mean" else f"{field.field}.{statistic}"
            links = [
                {"href": f"{root}/{made}/map", "rel": f"{tiles.REL}/map", "type": PNG},
                {
                    "href": f"{root}/{made}/map/tiles",
                    "rel": f"{tiles.REL}/tilesets-map",
                    "type": tiles.JSON,
                },
                {"href": f"{root}/{made}/legend", "rel": f"{tiles.REL}/legend", "type": PNG},
            ]
            found.append({"id": made, "title": f"{field.long_name}, {statistic}", "links": links})
    return found


@router.get(
    "/collections/{collection}/styles/{style}/legend", response_class=Response, responses=_PICTURE
)
async def read_legend(
    request: Request, style: StyleId, gateway: GatewayDep, _: Reader, shown: ShownDep
) -> Response:
    """Return the colour bar of a style, in the units that people read."""
    return await _picture(request, gateway, shown, None)


async def _map(
    request: Request,
    gateway: GatewayDep,
    _: Reader,
    shown: ShownDep,
    bbox: Annotated[
        str | None,
        Query(description="Left,bottom,right,top; default: the world.", max_length=200),
    ] = None,
    bbox_crs: Annotated[
        str | None,
        Query(alias="bbox-crs", description="The same as `crs`; may be left out.", max_length=200),
    ] = None,
    crs: Annotated[
        str | None,
        Query(description=f"{', '.join(SYSTEMS)}, or its address.", max_length=200),
    ] = None,
    width: Annotated[int, Query(ge=1, le=MAX_SIDE, description="Pixels across.")] = 1024,
    height: Annotated[int, Query(ge=1, le=MAX_SIDE, description="Pixels down.")] = 512,
    transparent: Annotated[
        bool, Query(description="Whether what is undefined is transparent, or white.")
    ] = True,
    f: PictureForm = None,
) -> Response:
    """Return a map of any part of the world."""
    system = _system("crs", crs or bbox_crs)
    if _system("bbox-crs", bbox_crs or crs) != system:
        raise InvalidInput(
            f"Expected 'bbox-crs' to be 'crs', {system}; got '{str(bbox_crs)[:80]}'.",
            field="bbox-crs",
        )
    box = _box(bbox, system)

    canvas = Canvas(system, box, width, height, None if transparent else (255, 255, 255))
    return await _picture(request, gateway, shown, canvas)


for _path, _name in (
    ("/collections/{collection}/map", "read_map"),
    ("/collections/{collection}/styles/{style}/map", "read_styled_map"),
):
    router.add_api_route(
        _path,
        _map,
        name=_name,
        response_class=Response,
        responses=_PICTURE,
        dependencies=[Depends(_style)] if "{style}" in _path else [],
    )


def _system(name: str, text: str | None) -> str:
    wanted = (text or "CRS84").strip("[]")
    for system, names in SYSTEMS.items():
        if wanted in (system, *names):
            return system
    raise InvalidInput(
        f"Expected '{name}' to be one of {', '.join(SYSTEMS)}; got '{wanted[:80]}'.", field=name
    )


def _box(text: str | None, system: str) -> tuple[float, float, float, float]:
    if text is None and system in ("CRS:84", "EPSG:4326"):
        return -180.0, -90.0, 180.0, 90.0
    if text is None and system == "EPSG:3857":
        return tiles.TILE_MATRIX_SETS["WebMercatorQuad"].box
    values = parse_numbers("bbox", text) or []
    if system == "EPSG:4326" and len(values) == 4:  # its axes are latitude and longitude
        values = [values[i] for i in (1, 0, 3, 2)]
    left, bottom, right, top = values if len(values) == 4 else [0.0] * 4
    if not is_map_box(left, bottom, right, top):
        raise InvalidInput(
            f"Expected left, bottom, right, top in units of {system}; got '{str(text)[:80]}'.",
            field="bbox",
        )
    return left, bottom, right, top


async def _tilesets(
    request: Request, gateway: GatewayDep, _: Reader, shown: ShownDep, f: JsonForm = None
) -> Json:
    """Return the tilesets of a map, one for each tile matrix set."""
    title = await gateway.data_sets.run(_title, gateway, shown)
    root = f"{base_url(request)}/ogc"
    return tiles.tileset_list(f"{root}/{shown.path}/tiles", root, title, shown.query)


async def _tileset(
    request: Request,
    matrices: Matrices,
    gateway: GatewayDep,
    _: Reader,
    shown: ShownDep,
    f: Annotated[
        Literal["json", "application/json", "tilejson"] | None,
        Query(description="Metadata of OGC API - Tiles, or TileJSON 3.0."),
    ] = None,
) -> Json:
    """Return the metadata of a tileset, with the template of the addresses of its tiles."""
    found = tiles.tile_matrix_set(matrices)
    if f == "tilejson" and found.id != "WebMercatorQuad":
        raise InvalidInput(f"Expected WebMercatorQuad with f=tilejson; got {found.id}.", field="f")
    title = await gateway.data_sets.run(_title, gateway, shown)
    root = f"{base_url(request)}/ogc"
    href = f"{root}/{shown.path}/tiles/{found.id}"
    if f == "tilejson":
        return tiles.tile_json(found, href, title, shown.query)
    return tiles.tileset(found, href, root, title, shown.query)


def _title(gateway: Gateway, shown: Shown) -> str:
    asked = gateway.data_sets.drawing.request(shown.layer(gateway))
    level = "" if asked.level is None else f" {asked.level:g} hPa"
    return f"{asked.name}{level}, {asked.statistic}"


async def _tile(
    request: Request,
    matrices: Matrices,
    tile_matrix: Annotated[int, Path(description="Zoom.")],
    tile_row: Annotated[int, Path(description="From the top.")],
    tile_col: Annotated[int, Path(description="From the left.")],
    gateway: GatewayDep,
    _: Reader,
    shown: ShownDep,
    f: PictureForm = None,
) -> Response:
    """Return a tile of 256 x 256 pixels."""
    tile = tiles.Tile(tiles.tile_matrix_set(matrices), tile_matrix, tile_row, tile_col)

    canvas = Canvas(tile.matrices.system, tile.box, tiles.SIDE, tiles.SIDE)
    return await _picture(request, gateway, shown, canvas)


_DESCRIBED = problem_responses(*_PROBLEMS)
for _styled, _base in (
    ("", "/collections/{collection}/map/tiles"),
    ("styled_", "/collections/{collection}/styles/{style}/map/tiles"),
):
    _also = [Depends(_style)] if _styled else []
    router.add_api_route(
        _base,
        _tilesets,
        name=f"list_{_styled}tilesets",
        responses=_DESCRIBED,
        dependencies=_also,
    )
    router.add_api_route(
        f"{_base}/{{matrices}}",
        _tileset,
        name=f"read_{_styled}tileset",
        responses=_DESCRIBED,
        dependencies=_also,
    )
    router.add_api_route(
        f"{_base}/{{matrices}}/{{tile_matrix}}/{{tile_row}}/{{tile_col}}",
        _tile,
        name=f"read_{_styled}tile",
        response_class=Response,
        responses=_PICTURE,
        dependencies=_also,
    )


async def _picture(
    request: Request, gateway: Gateway, shown: Shown, canvas: Canvas | None
) -> Response:
    """Return a map, or a legend if `canvas` is None; 304 without drawing if the client's copy is current."""
    held = {tag.strip().removeprefix("W/") for tag in _tags(request)}
    body, tag, fixed = await gateway.data_sets.draw(_drawn, gateway, shown, canvas, held)
    headers = {"ETag": tag, "Cache-Control": FOR_EVER if fixed else "private, no-cache"}
    if body is None:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=PNG, headers=headers)


def _tags(request: Request) -> list[str]:
    return request.headers.get("if-none-match", "").split(",")


def _drawn(
    gateway: Gateway, shown: Shown, canvas: Canvas | None, held: set[str]
) -> tuple[bytes | None, str, bool]:
    drawing = gateway.data_sets.drawing
    asked = drawing.request(shown.layer(gateway))
    made = hashlib.sha256(f"{code_version()} {asked!r} {canvas!r}".encode()).hexdigest()
    tag = f'"{made[:32]}"'
    fixed = gateway.analyses.find(shown.collection) is not None
    if tag in held or "*" in held:
        return None, tag, fixed
    body = drawing.legend(asked) if canvas is None else drawing.picture(asked, canvas)
    return body, tag, fixed
