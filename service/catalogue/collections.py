"""The landing page and the collections: one for each kind of result."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from pystac import (
    Catalog,
    Collection,
    Extent,
    Link,
    MediaType,
    RelType,
    SpatialExtent,
    Summaries,
    TemporalExtent,
)

from service.catalogue.addresses import Addresses
from service.catalogue.items import WORLD, interval
from worker.jobs.manifest import AnalysisManifest

__all__ = ["CONFORMS_TO", "GEOJSON", "KINDS", "build_collection", "build_landing"]

GEOJSON: Final = "application/geo+json"
KINDS: Final = {
    "filtering": (
        "Analyses",
        "Ensemble analyses of one hour each, from the observations of the window that ends there.",
    ),
    "forecast": ("Forecasts", "Ensemble forecasts from analyses, hour by hour."),
    "reanalysis": (
        "Reanalyses",
        "Ensembles of a past period, hour by hour, from all of its observations.",
    ),
}
"""Title and description of the collection of each kind."""

CONFORMS_TO: Final = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
]


def build_landing(at: Addresses) -> dict[str, Any]:
    """The landing page: a catalogue that says what can be asked."""
    catalog = Catalog(
        id="appa",
        title="Appa Service",
        description="Ensemble analyses, forecasts and reanalyses of the atmosphere.",
    )
    catalog.clear_links()
    json, geojson = MediaType.JSON, GEOJSON
    for link in (
        Link(RelType.SELF, at.root, json),
        Link(RelType.ROOT, at.root, json),
        Link("conformance", f"{at.root}/conformance", json),
        Link("data", at.collections, json),
        Link("search", at.search, geojson, extra_fields={"method": "GET"}),
        Link("search", at.search, geojson, extra_fields={"method": "POST"}),
        Link(
            "service-desc",
            f"{at.base}/openapi.json",
            "application/vnd.oai.openapi+json;version=3.1",
        ),
        Link("service-doc", f"{at.base}/docs", "text/html"),
        *(Link(RelType.CHILD, at.collection(k), json, title) for k, (title, _) in KINDS.items()),
    ):
        catalog.add_link(link)
    found: dict[str, Any] = catalog.to_dict(include_self_link=True, transform_hrefs=False)
    return found | {"conformsTo": CONFORMS_TO}


def build_collection(
    kind: str, manifests: Sequence[AnalysisManifest], at: Addresses
) -> dict[str, Any]:
    """The collection of `kind`.

    Arguments:
        kind: One of `KINDS`.
        manifests: All results of that kind.
        at: Addresses.
    """
    title, description = KINDS[kind]
    collection = Collection(
        id=kind,
        title=title,
        description=description,
        extent=Extent(SpatialExtent([WORLD]), TemporalExtent([_span(manifests)])),
        license="other",
        keywords=["data assimilation", "ensemble", "atmosphere", kind],
        summaries=Summaries(_summaries(manifests)),
    )
    collection.clear_links()
    for link in (
        Link(RelType.SELF, at.collection(kind), MediaType.JSON),
        Link(RelType.ROOT, at.root, MediaType.JSON),
        Link(RelType.PARENT, at.root, MediaType.JSON),
        Link(RelType.ITEMS, at.items(kind), GEOJSON),
    ):
        collection.add_link(link)
    found: dict[str, Any] = collection.to_dict(include_self_link=True, transform_hrefs=False)
    return found


def _span(manifests: Sequence[AnalysisManifest]) -> list[datetime | None]:
    """First and last valid time; open on both sides while there is no result."""
    if not manifests:
        return [None, None]
    spans = [interval(manifest) for manifest in manifests]
    return [min(start for start, _ in spans), max(end for _, end in spans)]


def _summaries(manifests: Sequence[AnalysisManifest]) -> dict[str, Any]:
    flavours = sorted({m.flavour for m in manifests if m.flavour})
    checkpoints = sorted({str(m.provenance.get("checkpoint", "")) for m in manifests} - {""})
    found = {"appa:flavour": flavours, "appa:checkpoint": checkpoints}
    return {name: values for name, values in found.items() if values}
