"""Serve results by OGC API - Environmental Data Retrieval: landing page, collections, queries."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from xml.sax.saxutils import escape, quoteattr

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from model.domain.errors import AppaError, InvalidInput
from service.auth import GatewayDep, Reader
from service.errors import PROBLEMS, NotFound
from service.gateway import Gateway
from service.maps.collections import (
    ANSWER_FORMATS,
    describe_collections,
    find_collection,
)
from service.openapi import problem_responses
from service.query_parameters import listed_names, parse_interval, parse_numbers

MAX_LISTED = 500
FOR_EVER = "private, max-age=31536000, immutable"
"""Caching of answers from one result, which never changes."""

_WMS_CODES = {
    **dict.fromkeys(("format", "info_format"), "InvalidFormat"),
    **dict.fromkeys(("layers", "field"), "LayerNotDefined"),
    **dict.fromkeys(("i", "j", "x", "y"), "InvalidPoint"),
    **dict.fromkeys(("time", "elevation", "level"), "InvalidDimensionValue"),
    "crs": "InvalidCRS",
    "request": "OperationNotSupported",
    "statistic": "StyleNotDefined",
}
"""Codes of the exceptions of WMS 1.3.0 (OGC 06-042, table E.1) by what does not fit."""

LONGLAT = ("CRS84", "OGC:CRS84", "EPSG:4326", "http://www.opengis.net/def/crs/OGC/1.3/CRS84")
"""Reference systems of coordinates; WKT has the longitude first in all of them."""

router = APIRouter(prefix="/ogc", tags=["ogc"])

Json = dict[str, Any]
CollectionId = Annotated[
    str,
    Path(description="`filtering`, `filtering-final` … or the id of a result.", max_length=100),
]
JsonForm = Annotated[
    Literal["json", "application/json"] | None, Query(description="Only JSON is offered.")
]
_PROBLEMS = ("not_found", "not_installed", "storage_error")


def base_url(request: Request) -> str:
    """Return the address of the gateway as its client knows it, without a final slash."""
    return str(request.base_url).rstrip("/")


@router.get("", responses=problem_responses("not_installed"))
async def landing_page(
    request: Request, gateway: GatewayDep, _: Reader, f: JsonForm = None
) -> Json:
    """Return the landing page of the standard services."""
    module = await gateway.data_sets.run(gateway.data_sets.module, "edr_documents")
    found: Json = module.landing_page(base_url(request))
    return found


@router.get("/conformance", responses=problem_responses("not_installed"))
async def read_conformance(gateway: GatewayDep, _: Reader, f: JsonForm = None) -> Json:
    """Return the conformance classes of OGC API - EDR that the service implements."""
    module = await gateway.data_sets.run(gateway.data_sets.module, "edr_documents")
    return {"conformsTo": module.CONFORMS_TO}


@router.get("/collections", responses=problem_responses(*_PROBLEMS))
async def list_collections(
    request: Request,
    gateway: GatewayDep,
    _: Reader,
    limit: Annotated[
        int, Query(ge=0, le=MAX_LISTED, description="Single results listed, newest first.")
    ] = 50,
    f: JsonForm = None,
) -> Json:
    """Return a collection for each kind and flavour, and for each of the newest results.

    A result that cannot be read is left out.
    """
    base = base_url(request)
    found = await gateway.data_sets.run(_describe_all, gateway, base, limit)
    links = [{"href": f"{base}/ogc/collections", "rel": "self", "type": "application/json"}]
    return {"links": links, "collections": found}


def _describe_all(gateway: Gateway, base: str, limit: int) -> list[Json]:
    return describe_collections(
        gateway.analyses,
        limit,
        lambda one: gateway.data_sets.descriptions.describe(one, base),
    )


def _describe(gateway: Gateway, base: str, name: str) -> Json:
    collection = find_collection(gateway.analyses, name)
    found: Json = gateway.data_sets.descriptions.describe(collection, base)
    return found


@router.get("/collections/{collection}", responses=problem_responses(*_PROBLEMS))
async def read_edr_collection(
    request: Request, collection: CollectionId, gateway: GatewayDep, _: Reader, f: JsonForm = None
) -> Json:
    """Return a collection: extent in time and height, parameters, queries."""
    found: Json = await gateway.data_sets.run(_describe, gateway, base_url(request), collection)
    return found


@dataclass(frozen=True)
class Selection:
    """Parameters common to all queries."""

    datetime: str | None
    parameters: list[str]
    z: str | None
    linear: bool
    form: str


def _selection(
    datetime: Annotated[
        str | None,
        Query(
            description="A valid time, or `<start>/<end>`; `..` leaves an end open; default: all.",
            max_length=100,
        ),
    ] = None,
    parameter_name: Annotated[
        str | None,
        Query(
            alias="parameter-name",
            description="Variables, comma-separated: `t2m_mean`, `t_spread`, `u` (members) …",
            max_length=1000,
        ),
    ] = None,
    z: Annotated[
        str | None,
        Query(
            description="Levels, hPa: `500`, `850,500`, `1000/500`, `R3/500/100`; default: all.",
            max_length=200,
        ),
    ] = None,
    crs: Annotated[
        str | None, Query(description="`CRS84` or `EPSG:4326`, longitude first.", max_length=200)
    ] = None,
    method: Annotated[
        Literal["nearest", "linear"], Query(description="Nearest cell, or bilinear.")
    ] = "nearest",
    f: Annotated[
        str, Query(description="CoverageJSON, GeoJSON or NetCDF.", max_length=60)
    ] = "CoverageJSON",
) -> Selection:
    if crs is not None and crs not in LONGLAT:
        raise InvalidInput(
            f"Expected 'crs' to be one of {', '.join(LONGLAT)}; got '{crs[:80]}'.", field="crs"
        )
    named = {m: n for n, m in ANSWER_FORMATS.items()} | {n.lower(): n for n in ANSWER_FORMATS}
    form = named.get(f) or named.get(f.lower())
    if form is None:
        raise InvalidInput(
            f"Expected 'f' to be one of {', '.join(ANSWER_FORMATS)}; got '{f}'.", field="f"
        )
    return Selection(datetime, listed_names(parameter_name), z, method == "linear", form)


Selected = Annotated[Selection, Depends(_selection)]
Coords = Annotated[str, Query(description="WKT, longitude first.", max_length=100_000)]

_ANSWER: dict[int | str, Json] = {
    **problem_responses(*_PROBLEMS, "unknown_name", "answer_too_large"),
    200: {
        "description": "Values with their domain.",
        "content": {media: {} for media in ANSWER_FORMATS.values()},
    },
}


@router.get("/collections/{collection}/position", response_class=Response, responses=_ANSWER)
async def query_position(
    collection: CollectionId, gateway: GatewayDep, _: Reader, coords: Coords, selected: Selected
) -> Response:
    """Return values at points: `POINT(7.6 47.6)` or `MULTIPOINT(…)`."""
    return await _answer(gateway, collection, selected, type="position", coords=coords)


@router.get("/collections/{collection}/area", response_class=Response, responses=_ANSWER)
async def query_area(
    collection: CollectionId, gateway: GatewayDep, _: Reader, coords: Coords, selected: Selected
) -> Response:
    """Return the values within a polygon, on the grid around it."""
    return await _answer(gateway, collection, selected, type="area", coords=coords)


@router.get("/collections/{collection}/trajectory", response_class=Response, responses=_ANSWER)
async def query_trajectory(
    collection: CollectionId, gateway: GatewayDep, _: Reader, coords: Coords, selected: Selected
) -> Response:
    """Return values along lines; Z is the level in hPa, M the time in seconds since 1970."""
    return await _answer(gateway, collection, selected, type="trajectory", coords=coords)


@router.get("/collections/{collection}/cube", response_class=Response, responses=_ANSWER)
async def query_cube(
    collection: CollectionId,
    gateway: GatewayDep,
    _: Reader,
    bbox: Annotated[
        str, Query(description="West,south,east,north; may cross the date line.", max_length=200)
    ],
    selected: Selected,
) -> Response:
    """Return the values of a box."""
    return await _answer(gateway, collection, selected, type="cube", box=_box(bbox))


def _box(text: str) -> tuple[float, float, float, float]:
    values = parse_numbers("bbox", text) or []
    if len(values) == 6:
        values = [values[i] for i in (0, 1, 3, 4)]
    inside = len(values) == 4 and all(abs(v) <= 360.0 for v in values)
    if not inside or not -90.0 <= values[1] <= values[3] <= 90.0:
        raise InvalidInput(
            "Expected west, south, east, north in degrees, south not above north; got "
            f"'{text[:80]}'.",
            field="bbox",
        )
    west, south, east, north = values
    return west, south, east, north


async def _answer(gateway: Gateway, collection: str, selected: Selection, **query: Any) -> Response:
    body = await gateway.data_sets.run(_compute, gateway, collection, selected, query)
    return Response(body, media_type=ANSWER_FORMATS[selected.form])


def _compute(gateway: Gateway, name: str, selected: Selection, query: dict[str, Any]) -> bytes:
    start, end = parse_interval(selected.datetime)
    collection = find_collection(gateway.analyses, name, start, end)
    edr, formats = (gateway.data_sets.module(part) for part in ("edr", "edr_formats"))
    asked = edr.Query(
        parameters=tuple(selected.parameters), z=selected.z, linear=selected.linear, **query
    )
    max_values = gateway.settings.edr_max_values
    found = edr.answer(gateway.data_sets.library, collection, asked, max_values, selected.form)
    body: bytes = formats.write(found, selected.form)
    return body


@router.get("/wms", include_in_schema=False)
async def web_map_service(request: Request, gateway: GatewayDep, _: Reader) -> Response:
    """Answer requests of WMS 1.3.0, which describes itself; errors are its exception reports."""
    query = {name.lower(): value for name, value in request.query_params.items()}
    try:
        drawn = query.get("request", "").lower() in ("getmap", "getlegendgraphic")
        run = gateway.data_sets.draw if drawn else gateway.data_sets.run
        body, media = await run(_web_map, gateway, query, f"{base_url(request)}/ogc/wms")
    except AppaError as error:
        status = PROBLEMS.get(error.code, PROBLEMS["internal_error"]).status
        report = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ServiceExceptionReport version="1.3.0" xmlns="http://www.opengis.net/ogc">'
            f"<ServiceException code={quoteattr(_wms_code(error))}>{escape(error.message)}"
            "</ServiceException></ServiceExceptionReport>"
        )
        status = 400 if status in (404, 422) else status  # clients read no report with these
        return Response(report, status, media_type="text/xml")
    named = query.get("layers", "").partition("/")[0]
    fixed = media == "image/png" and "/" in query.get("layers", "")
    fixed = fixed and gateway.analyses.find(named) is not None
    caching = FOR_EVER if fixed else "no-cache"
    return Response(body, media_type=media, headers={"Cache-Control": caching})


def _wms_code(error: AppaError) -> str:
    """Return the code of an exception report: that of WMS if it has one, else that of the API."""
    missing = "layers" if isinstance(error, NotFound) else ""
    return _WMS_CODES.get(str(error.context.get("field", missing)), error.code)


def _web_map(gateway: Gateway, query: dict[str, str], address: str) -> tuple[bytes, str]:
    found: tuple[bytes, str] = gateway.data_sets.maps.answer(query, address)
    return found
