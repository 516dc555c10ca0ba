"""Serve the published analyses as a STAC API."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from model.domain.errors import InvalidInput
from service.auth import GatewayDep, Reader
from service.errors import NotFound
from service.openapi import problem_responses
from service.query_parameters import listed_names, parse_numbers
from service.stac.documents import (
    CONFORMS_TO,
    GEOJSON,
    Addresses,
    build_collection,
    build_item,
    build_landing,
)
from service.stac.search import SearchBody, item_page
from worker.contract.kinds import KINDS
from worker.results.entries import ResultFilter

router = APIRouter(prefix="/v1/stac", tags=["catalogue"])

Json = dict[str, Any]
CollectionId = Annotated[str, Path(description=f"One of {', '.join(KINDS)}.", max_length=100)]
ItemId = Annotated[str, Path(description="Id of an analysis.", max_length=100)]
Limit = Annotated[int, Query(ge=1, le=10_000, description="Maximum number of items in a page.")]
Token = Annotated[
    str | None, Query(description="From the `next` link of the previous page.", max_length=300)
]
Times = Annotated[
    str | None,
    Query(
        description="A time or an interval `<start>/<end>`; `..` leaves an end open.",
        max_length=100,
    ),
]
Box = Annotated[
    str | None, Query(description="West,south,east,north; all items are global.", max_length=200)
]


class GeoJson(JSONResponse):
    """GeoJSON with its own media type."""

    media_type = GEOJSON


ITEMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {GEOJSON: {"schema": {"type": "object"}}}}
}


@router.get("", responses=problem_responses())
def catalogue(request: Request, _: Reader) -> Json:
    """Return the landing page: links to the contents and functions of the catalogue."""
    return build_landing(Addresses.of(request))


@router.get("/conformance", responses=problem_responses())
def conformance(_: Reader) -> Json:
    """Return the conformance classes of the catalogue."""
    return {"conformsTo": CONFORMS_TO}


@router.get("/collections", responses=problem_responses())
def collections(request: Request, gateway: GatewayDep, _: Reader) -> Json:
    """Return the collections: one for each kind of result."""
    at = Addresses.of(request)
    links = [
        {"rel": "self", "href": at.collections, "type": "application/json"},
        {"rel": "root", "href": at.root, "type": "application/json"},
    ]
    return {"collections": [_collection(gateway, kind, at) for kind in KINDS], "links": links}


@router.get("/collections/{collection}", responses=problem_responses("not_found"))
def read_collection(
    request: Request, collection: CollectionId, gateway: GatewayDep, _: Reader
) -> Json:
    """Return a collection: extent in time, flavours, checkpoints."""
    return _collection(gateway, _known(collection), Addresses.of(request))


@router.get(
    "/collections/{collection}/items",
    response_class=GeoJson,
    responses={**problem_responses("not_found"), **ITEMS},
)
def collection_items(
    request: Request,
    collection: CollectionId,
    gateway: GatewayDep,
    _: Reader,
    datetime: Times = None,
    bbox: Box = None,
    limit: Limit = 10,
    token: Token = None,
) -> Json:
    """Return the items of a collection, latest valid time first."""
    at = Addresses.of(request)
    wanted = _search(
        collections=[_known(collection)],
        datetime=datetime,
        bbox=parse_numbers("bbox", bbox),
        limit=limit,
        token=token,
    )
    asked = _given(datetime=datetime, bbox=bbox, limit=limit, token=token)
    return item_page(gateway.analyses, wanted, at, at.items(collection), asked)


@router.get(
    "/collections/{collection}/items/{item}",
    response_class=GeoJson,
    responses={**problem_responses("not_found"), **ITEMS},
)
def read_item(
    request: Request, collection: CollectionId, item: ItemId, gateway: GatewayDep, _: Reader
) -> Json:
    """Return an analysis as an item: times, properties, and files with checksums."""
    manifest = gateway.analyses.get(item)
    if manifest.kind != _known(collection):
        raise NotFound(f"Expected an item of '{collection}'; '{item}' is one of '{manifest.kind}'.")
    found = build_item(manifest, Addresses.of(request))
    document: Json = found.to_dict(include_self_link=True, transform_hrefs=False)
    return document


@router.get("/search", response_class=GeoJson, responses={**problem_responses(), **ITEMS})
def search_items(
    request: Request,
    gateway: GatewayDep,
    _: Reader,
    collections: Annotated[
        str | None,
        Query(description="Only items of these collections, comma-separated.", max_length=500),
    ] = None,
    ids: Annotated[
        str | None, Query(description="Only these items, comma-separated.", max_length=10_000)
    ] = None,
    datetime: Times = None,
    bbox: Box = None,
    intersects: Annotated[
        str | None, Query(description="A GeoJSON geometry.", max_length=10_000)
    ] = None,
    limit: Limit = 10,
    token: Token = None,
) -> Json:
    """Return matching items of all collections, latest valid time first."""
    at = Addresses.of(request)
    wanted = _search(
        collections=_listed(collections),
        ids=_listed(ids),
        datetime=datetime,
        bbox=parse_numbers("bbox", bbox),
        intersects=_geometry(intersects),
        limit=limit,
        token=token,
    )
    asked = _given(
        collections=collections, ids=ids, datetime=datetime, bbox=bbox, intersects=intersects,
        limit=limit, token=token,
    )  # fmt: skip
    return item_page(gateway.analyses, wanted, at, at.search, asked)


@router.post(
    "/search", response_class=GeoJson, responses={**problem_responses("too_large"), **ITEMS}
)
def post_search(request: Request, gateway: GatewayDep, _: Reader, wanted: SearchBody) -> Json:
    """Return matching items, with the search in the body of the request."""
    at = Addresses.of(request)
    return item_page(gateway.analyses, wanted, at, at.search, None)


def _known(collection: str) -> str:
    if collection not in KINDS:
        raise NotFound(f"Expected a collection of {', '.join(KINDS)}; got '{collection}'.")
    return collection


def _collection(gateway: GatewayDep, kind: str, at: Addresses) -> Json:
    return build_collection(kind, gateway.analyses.entries(ResultFilter(kind)), at)


def _search(**values: Any) -> SearchBody:
    """Return the search of a GET request, validated like the body of a POST request."""
    try:
        return SearchBody(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(first["msg"], field=str(first["loc"][0])) from None


def _given(**values: Any) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else listed_names(text)


def _geometry(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        raise InvalidInput("Expected a GeoJSON geometry.", field="intersects") from None
