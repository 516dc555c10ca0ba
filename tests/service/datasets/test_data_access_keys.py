"""Data sets behind API keys: each client in the way it can present one."""

from pathlib import Path

import fsspec
import h5netcdf
import httpx
import netCDF4
import numpy as np
import published
import pytest
import xarray as xr
from gateway_process import GatewayProcess, StartGateway

from service.keys import KeyFile, Scope


@pytest.fixture
def locked(start_gateway: StartGateway, tmp_path: Path) -> tuple[GatewayProcess, str, Path]:
    gateway = start_gateway(APPA_REQUIRE_KEYS="true")
    key, _ = KeyFile(gateway.layout.keys_file).create("reader", [Scope.ANALYSES_READ])
    path = published.publish(gateway.layout, "an-locked", tmp_path / "written")
    return gateway, key, path


def test_each_client_presents_its_key(locked) -> None:
    gateway, key, path = locked
    with netCDF4.Dataset(path) as file:
        wanted = np.asarray(file["t"][...])
    url = f"{gateway.url}/v1/data/an-locked"
    for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
        opened = xr.open_zarr(
            f"{url}/zarr", storage_options={"client_kwargs": {"headers": headers}}
        )
        np.testing.assert_array_equal(opened["t"].values, wanted)
    # The user name does not matter; the key is the password.
    position = {"coords": "POINT(0 0)", "parameter-name": "t"}
    answer = httpx.get(f"{url}/edr/position", params=position, auth=("anyone", key))
    np.testing.assert_array_equal(answer.json()["ranges"]["t"]["values"], wanted[..., 6, 0].ravel())


def test_byte_ranges_with_a_key(locked) -> None:
    gateway, key, path = locked
    url = f"{gateway.url}/v1/analyses/an-locked/{path.name}"
    with netCDF4.Dataset(path) as file:
        wanted = np.asarray(file["t"][...])
    headers = {"Authorization": f"Bearer {key}"}
    with (
        fsspec.open(url, client_kwargs={"headers": headers}) as stream,
        h5netcdf.File(stream, "r") as file,
    ):
        np.testing.assert_array_equal(file["t"][...], wanted)
    with netCDF4.Dataset(url.replace("http://", f"http://appa:{key}@") + "#mode=bytes") as file:
        np.testing.assert_array_equal(file["t"][...], wanted)


def test_without_the_right_key_nothing_is_read(locked) -> None:
    gateway, key, _ = locked
    url = f"{gateway.url}/v1/data/an-locked/info"
    writer, _ = KeyFile(gateway.layout.keys_file).create("writer", [Scope.OBSERVATIONS_WRITE])
    asked = httpx.get(url)
    assert (asked.status_code, asked.json()["code"]) == (401, "unauthenticated")
    assert asked.headers["www-authenticate"] == 'Bearer realm="appa", Basic realm="appa"'
    browser = httpx.get(url, headers={"User-Agent": "Mozilla/5.0"})
    assert browser.headers["www-authenticate"] == 'Bearer realm="appa"'  # no password dialog
    for auth in (("appa", "wrong"), ("appa", key[:-1]), (key, "")):
        assert httpx.get(url, auth=auth).status_code == 401
    refused = httpx.get(url, auth=("appa", writer))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    broken = httpx.get(url, headers={"Authorization": "Basic not base64"})
    assert broken.status_code == 401
