"""A gateway without the extra `data`: everything but `/v1/data` works."""

import sys
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import GatewaySettings
from service.stac import Addresses, build_item
from worker.contract.kinds import FilteringSpec
from worker.results.manifest import AnalysisManifest, ManifestFile

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


class NoXpublish:
    """Finds xpublish nowhere, as on a machine where it is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] == "xpublish":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return None


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("xpublish.", "service.data.library", "service.data.application")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "xpublish", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoXpublish(), *sys.meta_path])
    monkeypatch.setattr("service.stac.data_sets_installed", lambda: False)


def test_data_sets_are_a_problem_document(plain, tmp_path, valkey_url_shared: str) -> None:
    settings = GatewaySettings(data_dir=tmp_path, redis_url=valkey_url_shared)
    with TestClient(create_app(settings)) as client:
        answer = client.get("/v1/data/an-1/zarr/zarr.json")
        assert (answer.status_code, answer.json()["code"]) == (501, "not_installed")
        assert answer.headers["content-type"] == "application/problem+json"
        assert "appa-service[data]" in answer.json()["detail"]
        assert client.get("/v1/analyses").status_code == 200


def test_items_do_not_name_data_sets(plain) -> None:
    manifest = AnalysisManifest(
        id="an-1",
        job_id="job-1",
        kind="filtering",
        valid_time=NOON,
        times=[NOON],
        members=2,
        spec=FilteringSpec(valid_time=NOON),
        files=[ManifestFile(name="a.nc", role="data", size=1, sha256="ab" * 32, media_type="x/y")],
    )
    assets = build_item(manifest, Addresses("https://example.org")).assets
    assert set(assets) == {"netcdf", "manifest"}
