"""The catalogue, read by pystac-client against a running gateway and judged by pystac's schemas."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import acting_worker
import httpx
import numpy as np
import pystac
import pytest
import xarray as xr
from gateway_process import GatewayProcess, StartGateway
from pystac.validation import set_validator
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from pystac_client import Client

from service.keys import KeyFile, Scope
from service.stac import Addresses, build_item
from tests.service.datasets import published
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.results.manifest import AnalysisManifest, ManifestFile
from worker.results.retention.plan import RetentionItem
from worker.results.retention.run import remove

SIX = datetime(2025, 1, 1, 6, tzinfo=UTC)
EXTENSIONS = {
    "https://stac-extensions.github.io/file/v2.1.0/schema.json": "file-v2.1.0.json",
    "https://stac-extensions.github.io/forecast/v0.2.0/schema.json": "forecast-v0.2.0.json",
}


def hours(count: int) -> datetime:
    return SIX + timedelta(hours=count)


def publish_forecast(layout, name: str, start: datetime, lead: int) -> None:
    folder = acting_worker.publish(layout, name, {"fc.nc": b"forecast"}, valid=start)
    manifest = AnalysisManifest.model_validate_json((folder / "manifest.json").read_text())
    changes = {
        "kind": "forecast",
        "times": [start + timedelta(hours=i + 1) for i in range(lead)],
        "background": {"source": "previous_analysis", "analysis_id": "an-00"},
        "spec": ForecastSpec(valid_time=start, lead_hours=lead),
    }
    (folder / "manifest.json").write_text(manifest.model_copy(update=changes).model_dump_json())


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One with early and final analyses of twelve hours, and a forecast of a day."""
    for number in range(12):
        for flavour, revision in (("early", 1), ("final", 2)):
            acting_worker.publish(
                own_gateway.layout,
                f"an-{number:02d}-{flavour}",
                {f"appa_an_{number:02d}.nc": b"field %d" % number, "ql.png": b"\x89PNG"},
                valid=hours(number),
                flavour=flavour,
                revision=revision,
            )
    publish_forecast(own_gateway.layout, "fc-00", hours(0), 24)
    return own_gateway


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Client:
    return Client.open(f"{gateway.url}/v1/stac")


def found(client: Client, **question) -> list[str]:
    return [item.id for item in client.search(**question).items()]


def test_landing_page_and_collections_are_valid(client: Client, gateway: GatewayProcess) -> None:
    client.validate()
    assert client.conforms_to("ITEM_SEARCH")
    assert client.conforms_to("COLLECTIONS")
    collections = {c.id: c for c in client.get_collections()}
    assert list(collections) == ["filtering", "forecast", "reanalysis"]
    for collection in collections.values():
        collection.validate()
    assert collections["filtering"].extent.temporal.intervals == [[hours(0), hours(11)]]
    assert collections["forecast"].extent.temporal.intervals == [[hours(1), hours(24)]]
    assert collections["reanalysis"].extent.temporal.intervals == [[None, None]]
    assert collections["filtering"].summaries.get_list("appa:flavour") == ["early", "final"]
    http = httpx.get(f"{gateway.url}/v1/stac/conformance").json()
    assert "https://api.stacspec.org/v1.0.0/item-search" in http["conformsTo"]


def test_items_are_valid_by_the_core_schema(client: Client) -> None:
    for item in client.search(max_items=5).items():
        document = item.to_dict(include_self_link=True)
        document["stac_extensions"] = []
        pystac.Item.from_dict(document).validate()


def test_items_are_valid_by_the_schemas_of_their_extensions(client: Client) -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "stac"
    if not folder.exists():
        pytest.skip("outside data absent: stac (schemas of STAC extensions)")
    validator = JsonSchemaSTACValidator()
    for uri, name in EXTENSIONS.items():
        validator.schema_cache[uri] = json.loads((folder / name).read_text())
    set_validator(validator)
    try:
        for name in ("fc-00", "an-03-final"):
            (item,) = client.search(ids=[name]).items()
            assert item.validate()
        broken = item.to_dict()
        broken["assets"]["netcdf"]["file:checksum"] = "SHA256"
        with pytest.raises(pystac.STACValidationError):
            pystac.Item.from_dict(broken).validate()
    finally:
        set_validator(JsonSchemaSTACValidator())


def test_an_item_says_what_it_is_and_leads_to_its_files(client: Client) -> None:
    (item,) = client.search(ids=["an-03-final"]).items()
    assert item.datetime == hours(3)
    assert item.bbox == [-180.0, -90.0, 180.0, 90.0]
    properties = {k: v for k, v in item.properties.items() if k.startswith("appa:")}
    assert properties["appa:flavour"] == "final"
    assert properties["appa:revision"] == 2
    assert properties["appa:members"] == 2
    asset = item.assets["netcdf"]
    assert (asset.media_type, asset.roles) == ("application/netcdf", ["data"])
    content = httpx.get(asset.href).content
    assert content == b"field 3"
    # multihash: 0x12 is SHA-256, 0x20 its length in bytes
    assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    assert asset.extra_fields["file:size"] == len(content)
    assert httpx.get(item.assets["manifest"].href).json()["id"] == item.id
    assert item.get_collection().id == "filtering"
    assert httpx.get(item.get_self_href()).json()["id"] == item.id


def test_assets_are_named_by_what_they_are() -> None:
    files = [
        ("appa_an.nc", "data"),
        ("appa_an.zarr.zip", "data"),
        ("appa_an.grib2", "data"),
        ("appa_obsfb.parquet", "feedback"),
        ("appa_obsfb.nc", "feedback"),
        ("appa_ql_t.png", "quicklook"),
        ("appa_ql_z.png", "quicklook"),
        ("restart.safetensors", "restart"),
    ]
    manifest = AnalysisManifest(
        id="an-1",
        job_id="job-1",
        kind="filtering",
        valid_time=SIX,
        times=[hours(-1), SIX],
        members=2,
        spec=FilteringSpec(valid_time=SIX, write_hours=2),
        files=[
            ManifestFile(name=n, role=r, size=1, sha256="ab" * 32, media_type="image/png")
            for n, r in files
        ],
    )
    item = build_item(manifest, Addresses("https://example.org/appa"))
    names = {Path(asset.href).name: key for key, asset in item.assets.items()}
    assert names.pop("zarr") == "data-zarr"
    keys = ["netcdf", "zarr", "grib2", "feedback", "feedback-ioda", "quicklook", "quicklook-2"]
    assert [names[n] for n, _ in files] == [*keys, "restart"]
    assert item.assets["quicklook"].roles == ["overview"]
    assert item.assets["netcdf"].href == "https://example.org/appa/v1/analyses/an-1/appa_an.nc"
    assert (item.datetime, item.properties["start_datetime"]) == (SIX, "2025-01-01T05:00:00Z")


def test_a_forecast_has_its_reference_time(client: Client) -> None:
    (item,) = client.search(collections=["forecast"]).items()
    assert item.datetime is None
    assert item.properties["start_datetime"] == "2025-01-01T07:00:00Z"
    assert item.properties["end_datetime"] == "2025-01-02T06:00:00Z"
    assert item.properties["forecast:reference_datetime"] == "2025-01-01T06:00:00Z"
    assert item.properties["forecast:horizon"] == "PT24H"
    assert [link.href.rsplit("/", 1)[1] for link in item.get_links("derived_from")] == ["an-00"]


def test_from_a_search_to_an_open_data_set(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = start_gateway()
    path = published.publish(gateway.layout, "an-real", tmp_path / "written")
    (item,) = Client.open(f"{gateway.url}/v1/stac").search(datetime=published.NOON).items()
    with (
        xr.open_dataset(path, decode_timedelta=False) as wanted,
        xr.open_zarr(item.assets["data-zarr"].href, decode_timedelta=False) as zarr,
    ):
        np.testing.assert_array_equal(zarr["t2m"].values, wanted["t2m"].values)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_search_by_time(client: Client, method: str) -> None:
    kinds = ["filtering"]
    question = {"method": method, "collections": kinds}
    at_eight = ["an-02-final", "an-02-early"]
    assert found(client, datetime="2025-01-01T08:00:00Z", **question) == at_eight
    between = found(client, datetime="2025-01-01T08:00:00Z/2025-01-01T09:30:00Z", **question)
    assert between == ["an-03-final", "an-03-early", *at_eight]
    assert len(found(client, datetime="2025-01-01T16:00:00Z/..", **question)) == 4
    assert len(found(client, datetime="../2025-01-01T06:00:00Z", **question)) == 2
    # the forecast has 08 UTC among its hours
    everything = {"method": method, "datetime": "2025-01-01T08:00:00Z"}
    assert set(found(client, **everything)) == {*at_eight, "fc-00"}
    assert found(client, method=method, datetime="2024-01-01T00:00:00Z/2024-12-31T00:00:00Z") == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_hold_everything_once(client: Client, method: str) -> None:
    search = client.search(method=method, limit=4, collections=["filtering"])
    pages = [[item.id for item in page] for page in search.pages()]
    assert [len(page) for page in pages] == [4] * 6
    ids = [name for page in pages for name in page]
    wanted = [f"an-{n:02d}-{f}" for n in reversed(range(12)) for f in ("final", "early")]
    assert ids == wanted
    assert search.matched() == 24


def test_every_item_is_global(client: Client) -> None:
    here = {"type": "Point", "coordinates": [8.5, 47.4]}
    assert len(found(client, bbox=[8, 47, 9, 48], limit=100)) == 25
    assert len(found(client, intersects=here, limit=100)) == 25
    assert len(list(client.get_collection("filtering").get_items())) == 24
    assert client.get_collection("filtering").get_item("an-00-early").id == "an-00-early"


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ({"datetime": "yesterday"}, "datetime"),
        ({"datetime": "2025-01-02T00:00:00Z/2025-01-01T00:00:00Z"}, "datetime"),
        ({"datetime": "../.."}, "datetime"),
        ({"bbox": "1,2,3"}, "bbox"),
        ({"bbox": "0,50,10,40"}, "bbox"),
        ({"bbox": "a,b,c,d"}, "bbox"),
        ({"limit": 0}, "limit"),
        ({"intersects": "{}"}, "intersects"),
        ({"intersects": "{"}, "intersects"),
        ({"intersects": '{"type": "Point", "type": "LineString"}'}, "intersects"),
    ],
)
def test_bad_questions(gateway: GatewayProcess, question: dict, field: str) -> None:
    answer = httpx.get(f"{gateway.url}/v1/stac/search", params=question)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].removeprefix("query.") == field
    posted = {k: [1.0, 2.0, 3.0] if k == "bbox" else v for k, v in question.items()}
    posted |= {"intersects": {}} if field == "intersects" else {}
    assert httpx.post(f"{gateway.url}/v1/stac/search", json=posted).status_code == 422


def test_what_is_not_there(gateway: GatewayProcess) -> None:
    for path in (
        "collections/ocean",
        "collections/ocean/items",
        "collections/filtering/items/none",
        "collections/filtering/items/fc-00",
    ):
        answer = httpx.get(f"{gateway.url}/v1/stac/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    assert httpx.post(f"{gateway.url}/v1/stac/search", json={"sortby": []}).status_code == 422


def test_new_and_deleted_analyses_show_at_once_and_keys_are_asked_for(
    start_gateway: StartGateway,
) -> None:
    gateway = start_gateway(APPA_REQUIRE_KEYS="true")
    key, _ = KeyFile(gateway.layout.keys_file).create("reader", [Scope.ANALYSES_READ])
    assert httpx.get(f"{gateway.url}/v1/stac").status_code == 401
    client = Client.open(f"{gateway.url}/v1/stac", headers={"X-API-Key": key})
    assert found(client) == []
    files = {"a.nc": b"1", "restart.safetensors": b"2"}
    folder = acting_worker.publish(gateway.layout, "an-new", files, valid=SIX)
    text = (folder / "manifest.json").read_text()
    manifest = AnalysisManifest.model_validate_json(text)
    manifest.files[1].role = "restart"
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    (item,) = client.search().items()
    assert "restart" in item.assets
    assert remove(gateway.layout, RetentionItem("restart", "an-new", 1, 99.0, ""))
    (item,) = client.search().items()
    assert "restart" not in item.assets
    assert "restart_removed" in item.properties["appa:flags"]
    folder.rename(gateway.layout.tmp / "gone")
    assert found(client) == []
