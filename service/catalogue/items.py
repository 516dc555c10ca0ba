"""One published analysis as a STAC item.

STAC 1.1.0 with the extensions file (checksums are multihashes: `1220` says SHA-256 of 32 bytes)
and, for forecasts, forecast. Properties of our own begin with `appa:`.
"""

from datetime import datetime
from typing import Any

from pystac import Asset, Item, Link, MediaType, RelType
from pystac.extensions.file import FileExtension

from service.catalogue.addresses import Addresses
from worker.jobs.manifest import AnalysisManifest, ManifestFile

__all__ = ["FORECAST_SCHEMA", "WORLD", "build_item", "interval"]

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

_READ_IN_PARTS = (".nc", ".zarr.zip")
_DATA_SETS = (
    ("zarr", "For xarray.open_zarr", MediaType.ZARR),
    ("opendap", "For OPeNDAP clients", None),
)
"""Ways to read a data set, what to open it with, media type."""

_ROLES = {"quicklook": ["overview"], "feedback": ["feedback", "metadata"]}
_TITLES = {"filtering": "Analysis", "forecast": "Forecast", "reanalysis": "Reanalysis"}


def interval(manifest: AnalysisManifest) -> tuple[datetime, datetime]:
    """First and last valid time in the files (UTC)."""
    times = manifest.times or [manifest.valid_time]
    return min(times), max(times)


def build_item(manifest: AnalysisManifest, at: Addresses) -> Item:
    """The item of `manifest`.

    `datetime` is the valid time of an analysis; it is null for forecasts and reanalyses, which
    hold many, unless they hold one. `start_datetime` and `end_datetime` are always there.
    """
    start, end = interval(manifest)
    single = manifest.kind == "filtering" or start == end
    item = Item(
        id=manifest.id,
        geometry=_GEOMETRY,
        bbox=WORLD,
        datetime=(manifest.valid_time if manifest.kind == "filtering" else start)
        if single
        else None,
        start_datetime=start,
        end_datetime=end,
        properties=_properties(manifest),
        collection=manifest.kind,
    )
    if manifest.kind == "forecast":
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
    title = f"{_TITLES[manifest.kind]} {manifest.valid_time:%Y-%m-%d %H} UTC{flavour}"
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
    """Ways to read parts of the fields without fetching files, where there is one to read."""
    if not any(f.role == "data" and f.name.endswith(_READ_IN_PARTS) for f in manifest.files):
        return
    for form, title, media in _DATA_SETS:
        href = at.data_set(manifest.id, form)
        item.add_asset(f"data-{form}", Asset(href, title, None, media, ["data", "virtual"]))


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
    """An ISO 8601 duration."""
    return f"PT{round(duration.total_seconds() / 3600)}H"
