"""Build the documents of the STAC API: landing page, one collection for each kind, items.

All addresses in them are absolute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from pystac import (
    Asset,
    Catalog,
    Collection,
    Extent,
    Item,
    Link,
    MediaType,
    RelType,
    SpatialExtent,
    Summaries,
    TemporalExtent,
)
from pystac.extensions.file import FileExtension
from starlette.requests import Request

from service.settings import data_sets_installed
from worker.contract.kinds import KINDS
from worker.results.entries import Entry
from worker.results.manifest import AnalysisManifest, ManifestFile

__all__ = [
    "Addresses",
    "CONFORMS_TO",
    "FORECAST_SCHEMA",
    "GEOJSON",
    "WORLD",
    "build_collection",
    "build_item",
    "build_landing",
    "interval",
]


@dataclass(frozen=True)
class Addresses:
    """Addresses below `base`, the gateway as the client reached it, without a final slash."""

    base: str

    @classmethod
    def of(cls, request: Request) -> "Addresses":
        """Return the addresses as the client of `request` sees them, behind a proxy too."""
        return cls(str(request.base_url).rstrip("/"))

    @property
    def root(self) -> str:
        """Return the address of the landing page."""
        return f"{self.base}/v1/stac"

    @property
    def collections(self) -> str:
        """Return the address of the list of collections."""
        return f"{self.root}/collections"

    @property
    def search(self) -> str:
        """Return the address of the search over all collections."""
        return f"{self.root}/search"

    def collection(self, name: str) -> str:
        """Return the address of one collection."""
        return f"{self.collections}/{quote(name)}"

    def items(self, name: str) -> str:
        """Return the address of the items of a collection."""
        return f"{self.collection(name)}/items"

    def item(self, name: str, item_id: str) -> str:
        """Return the address of one item."""
        return f"{self.items(name)}/{quote(item_id)}"

    def analysis(self, analysis_id: str) -> str:
        """Return the address of the manifest of an analysis."""
        return f"{self.base}/v1/analyses/{quote(analysis_id)}"

    def file(self, analysis_id: str, name: str) -> str:
        """Return the address of a file of an analysis."""
        return f"{self.analysis(analysis_id)}/{quote(name)}"

    def data_set(self, analysis_id: str, form: str) -> str:
        """Return the address of the analysis as a data set that is read in parts (`form`: `zarr`)."""
        return f"{self.base}/v1/data/{quote(analysis_id)}/{form}"


WORLD = [-180.0, -90.0, 180.0, 90.0]
"""West, south, east, north of every analysis."""

FORECAST_SCHEMA = "https://stac-extensions.github.io/forecast/v0.2.0/schema.json"
_SHA256_MULTIHASH = "1220"
_GEOMETRY = {
    "type": "Polygon",
    "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]],
}
_KEYS = {
    ("data", "nc"): "netcdf",
    ("data", "zip"): "zarr",
    ("data", "grib2"): "grib2",
    ("feedback", "nc"): "feedback-ioda",
    ("feedback", "odb"): "feedback-odb",
}
"""Names of assets where the role alone would not do."""

_ROLES = {"quicklook": ["overview"], "feedback": ["feedback", "metadata"]}


def interval(manifest: AnalysisManifest) -> tuple[datetime, datetime]:
    """Return first and last valid time in the files (UTC)."""
    times = manifest.times or [manifest.valid_time]
    return min(times), max(times)


def build_item(manifest: AnalysisManifest, at: Addresses) -> Item:
    """Return the item of a published result.

    `datetime` is the valid time of an analysis; it is null for forecasts and reanalyses, which
    hold many, unless they hold one. `start_datetime` and `end_datetime` are always there.
    """
    start, end = interval(manifest)
    kind = KINDS[manifest.kind]
    single = kind.instant or start == end
    item = Item(
        id=manifest.id,
        geometry=_GEOMETRY,
        bbox=WORLD,
        datetime=(manifest.valid_time if kind.instant else start) if single else None,
        start_datetime=start,
        end_datetime=end,
        properties=_properties(manifest),
        collection=manifest.kind,
    )
    if kind.forecast:
        item.stac_extensions.append(FORECAST_SCHEMA)
        item.properties["forecast:reference_datetime"] = _utc(manifest.valid_time)
        item.properties["forecast:horizon"] = _hours(end - manifest.valid_time)
    item.set_self_href(at.item(manifest.kind, manifest.id))
    FileExtension.add_to(item)
    for file in manifest.files:
        _add_asset(item, file, at.file(manifest.id, file.name))
    _add_data_sets(item, manifest, at)
    item.add_asset(
        "manifest",
        Asset(at.analysis(manifest.id), "Manifest", None, MediaType.JSON, ["metadata"]),
    )
    _add_links(item, manifest, at)
    return item


def _properties(manifest: AnalysisManifest) -> dict[str, Any]:
    ours = {
        "kind": manifest.kind,
        "flavour": manifest.flavour or None,
        "revision": manifest.revision,
        "members": manifest.members,
        "flags": manifest.flags,
        "observations_used": manifest.observations.get("used"),
        "window_start": _utc(manifest.window_start),
        "window_end": _utc(manifest.window_end),
        "cut_off": _utc(manifest.cut_off),
        "background": manifest.background.get("analysis_id") or manifest.background.get("source"),
        "checkpoint": manifest.provenance.get("checkpoint"),
        "job_id": manifest.job_id,
    }
    flavour = f" ({manifest.flavour})" if manifest.flavour else ""
    title = (
        f"{KINDS[manifest.kind].noun.capitalize()} {manifest.valid_time:%Y-%m-%d %H} UTC{flavour}"
    )
    return {
        "title": f"{title}, revision {manifest.revision}",
        "created": _utc(manifest.created),
        **{f"appa:{name}": value for name, value in ours.items() if value is not None},
    }


def _add_asset(item: Item, file: ManifestFile, href: str) -> None:
    ending = file.name.rsplit(".", 1)[-1]
    key = name = _KEYS.get((file.role, ending), file.role)
    number = 2
    while key in item.assets:
        key, number = f"{name}-{number}", number + 1
    roles = _ROLES.get(file.role, [file.role])
    item.add_asset(key, Asset(href, file.name, None, file.media_type, roles))
    about = FileExtension.ext(item.assets[key])
    about.checksum = _SHA256_MULTIHASH + file.sha256
    about.size = file.size


def _add_data_sets(item: Item, manifest: AnalysisManifest, at: Addresses) -> None:
    """Add a link to the data set in zarr if the result has one and this gateway serves it."""
    if manifest.dataset_file is None or not data_sets_installed():
        return
    href, roles = at.data_set(manifest.id, "zarr"), ["data", "virtual"]
    item.add_asset("data-zarr", Asset(href, "For xarray.open_zarr", None, MediaType.ZARR, roles))


def _add_links(item: Item, manifest: AnalysisManifest, at: Addresses) -> None:
    collection = at.collection(manifest.kind)
    item.add_link(Link(RelType.ROOT, at.root, MediaType.JSON))
    item.add_link(Link(RelType.PARENT, collection, MediaType.JSON))
    item.add_link(Link(RelType.COLLECTION, collection, MediaType.JSON))
    background = manifest.background.get("analysis_id")
    if background:
        item.add_link(Link(RelType.DERIVED_FROM, at.analysis(background), MediaType.JSON))


def _utc(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")


def _hours(duration: Any) -> str:
    """Return an ISO 8601 duration in whole hours."""
    return f"PT{round(duration.total_seconds() / 3600)}H"


GEOJSON: Final = "application/geo+json"
CONFORMS_TO: Final = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
]


def build_landing(at: Addresses) -> dict[str, Any]:
    """Return the landing page: a STAC catalogue with links to everything that can be asked."""
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
        *(
            Link(RelType.CHILD, at.collection(name), json, kind.plural.capitalize())
            for name, kind in KINDS.items()
        ),
    ):
        catalog.add_link(link)
    found: dict[str, Any] = catalog.to_dict(include_self_link=True, transform_hrefs=False)
    return found | {"conformsTo": CONFORMS_TO}


def build_collection(kind: str, entries: Sequence[Entry], at: Addresses) -> dict[str, Any]:
    """Return the collection of `kind`.

    Arguments:
        kind: The name of a kind of job.
        entries: All results of that kind.
        at: Addresses.
    """
    collection = Collection(
        id=kind,
        title=KINDS[kind].plural.capitalize(),
        description=KINDS[kind].description,
        extent=Extent(SpatialExtent([WORLD]), TemporalExtent([_span(entries)])),
        license="other",
        keywords=["data assimilation", "ensemble", "atmosphere", kind],
        summaries=Summaries(_summaries(entries)),
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


def _span(entries: Sequence[Entry]) -> list[datetime | None]:
    """Return first and last valid time; open on both sides while there is no result."""
    if not entries:
        return [None, None]
    return [min(e.first_time for e in entries), max(e.last_time for e in entries)]


def _summaries(entries: Sequence[Entry]) -> dict[str, Any]:
    flavours = sorted({e.flavour for e in entries} - {""})
    checkpoints = sorted({e.checkpoint for e in entries} - {""})
    found = {"appa:flavour": flavours, "appa:checkpoint": checkpoints}
    return {name: values for name, values in found.items() if values}
