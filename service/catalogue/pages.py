"""A page of items as a GeoJSON feature collection, with the link to the next one."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from service.analysis_index import AnalysisIndex
from service.catalogue.addresses import Addresses
from service.catalogue.collections import GEOJSON
from service.catalogue.items import build_item
from service.catalogue.search import MOST_ITEMS, SearchBody

__all__ = ["item_page"]


def item_page(
    index: AnalysisIndex,
    search: SearchBody,
    at: Addresses,
    href: str,
    asked: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The items that `search` finds, latest valid time first.

    Arguments:
        index: Published analyses.
        search: What is wanted, and from where on.
        at: Addresses.
        href: Of this search, without parameters.
        asked: Parameters of a GET, repeated in the next link; None for a POST.
    """
    page = index.select(search.filter, search.token, min(search.limit, MOST_ITEMS))
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
