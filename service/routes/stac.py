"""Serve the STAC API: landing page, collections, items and search."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.domain.errors import InvalidInput
from service.auth import GatewayDep, Reader
from service.errors import NotFound
from service.openapi import problem_responses
from service.query_parameters import (
    json_object,
    listed_names,
    parse_bbox,
    parse_interval,
    parse_numbers,
)
from service.stac import (
    CONFORMS_TO,
    GEOJSON,
    Addresses,
    build_collection,
    build_item,
    build_landing,
)
from worker.contract.kinds import KINDS
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter

__all__ = ["MAX_ITEMS", "SearchBody", "item_page"]

MAX_ITEMS = 500
"""Maximum number of items of one page; larger limits are lowered to it, as the standard allows."""


class SearchBody(BaseModel):
    """A search, as it is posted."""

    model_config = ConfigDict(extra="forbid")

    collections: list[str] | None = Field(default=None, description="Only of these.")
    ids: list[str] | None = Field(default=None, description="Only these items.")
    datetime: str | None = Field(
        default=None,
        description="A time, or an interval such as `2025-01-01T00:00:00Z/..` (RFC 3339).",
        max_length=100,
    )
    bbox: list[float] | None = Field(
        default=None, description="West, south, east, north; every item covers the globe."
    )
    intersects: dict[str, Any] | None = Field(
        default=None, description="A GeoJSON geometry; every item covers the globe."
    )
    limit: int = Field(default=10, ge=1, le=10_000, description="Items in one page.")
    token: str | None = Field(
        default=None, description="From the `next` link of the page before.", max_length=300
    )

    @field_validator("bbox")
    @classmethod
    def _box(cls, value: list[float] | None) -> list[float] | None:
        try:
            return None if value is None else parse_bbox(value)
        except InvalidInput as error:
            raise ValueError(error.message) from None

    @field_validator("datetime")
    @classmethod
    def _interval(cls, value: str | None) -> str | None:
        try:
            parse_interval(value)
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("intersects")
    @classmethod
    def _geometry(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not ({"coordinates", "geometries"} & value.keys()):
            raise ValueError("Expected a GeoJSON geometry with 'coordinates' or 'geometries'.")
        return value

    @property
    def filter(self) -> ResultFilter:
        """Return the search as a question to the catalogue; times must meet the interval."""
        start, end = parse_interval(self.datetime)
        return ResultFilter(self.collections, ids=self.ids, start=start, end=end)


def item_page(
    analyses: Catalogue,
    search: SearchBody,
    at: Addresses,
    href: str,
    asked: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return a page of the items that `search` finds, latest valid time first.

    Arguments:
        analyses: The published results.
        search: What is wanted, and from where on.
        at: Addresses.
        href: Address of this search, without parameters.
        asked: Parameters of a GET, repeated in the next link; None for a POST.
    """
    page = analyses.select(search.filter, search.token, min(search.limit, MAX_ITEMS))
    links = [
        {"rel": "self", "href": _with(href, asked or {}), "type": GEOJSON},
        {"rel": "root", "href": at.root, "type": "application/json"},
    ]
    if page.next_cursor is not None:
        links.append(_next(href, asked, page.next_cursor))
    features = [
        build_item(m, at).to_dict(include_self_link=True, transform_hrefs=False) for m in page.items
    ]
    return {
        "type": "FeatureCollection",
        "features": features,
        "links": links,
        "numberMatched": page.total,
        "numberReturned": len(features),
    }


def _next(href: str, asked: Mapping[str, str] | None, token: str) -> dict[str, Any]:
    link = {"rel": "next", "type": GEOJSON}
    if asked is None:
        return {**link, "href": href, "method": "POST", "body": {"token": token}, "merge": True}
    return {**link, "href": _with(href, {**asked, "token": token}), "method": "GET"}


def _with(href: str, parameters: Mapping[str, str]) -> str:
    return f"{href}?{urlencode(parameters)}" if parameters else href


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
    return None if text is None else json_object("intersects", text)
