"""Search the published analyses by time, collection, id and place, page by page.

A page is a GeoJSON feature collection with a link to the next one.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.domain.errors import InvalidInput
from service.query_parameters import parse_bbox, parse_interval
from service.stac.documents import GEOJSON, Addresses, build_item
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
        href: Of this search, without parameters.
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
