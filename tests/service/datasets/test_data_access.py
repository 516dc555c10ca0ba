"""Published analyses read by the clients people use, from a real gateway process."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from pathlib import Path

import acting_worker
import fsspec
import h5netcdf
import httpx
import netCDF4
import numpy as np
import pandas as pd
import published
import pytest
import xarray as xr
from gateway_process import GatewayProcess
from zarr.storage import ZipStore


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One whose newest results are those of this file."""
    return own_gateway


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory) -> dict[str, Path]:
    """A filtering analysis as NetCDF and one as zipped zarr, and a forecast."""
    folder = tmp_path_factory.mktemp("written")
    layout = gateway.layout
    return {
        "an-data": published.publish(layout, "an-data", folder / "1", seed=1),
        "an-zip": published.publish(
            layout, "an-zip", folder / "2", seed=2, form="zarr", valid=published.NOON - timedelta(1)
        ),
        "fc-data": published.publish(layout, "fc-data", folder / "3", kind="forecast", seed=3),
    }


def opened(path: Path) -> xr.Dataset:
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=False) as dataset:
        return dataset.load()


def same(found: xr.Dataset, path: Path) -> None:
    """The same values, coordinates and attributes as in the file."""
    wanted = opened(path)
    assert set(found.variables) == set(wanted.variables)
    assert set(found.coords) == set(wanted.coords)
    for name, variable in wanted.variables.items():
        got = found[name].load()
        assert got.dims == variable.dims
        np.testing.assert_array_equal(got.values, variable.values, err_msg=str(name))
        for key, value in variable.attrs.items():
            np.testing.assert_array_equal(got.attrs[key], value, err_msg=f"{name}.{key}")
    for key, value in wanted.attrs.items():
        assert found.attrs[key] == value, key


@pytest.mark.parametrize("name", ["an-data", "fc-data"])
def test_open_zarr(gateway, files, name: str) -> None:
    url = f"{gateway.url}/v1/data/{name}/zarr"
    with xr.open_zarr(url, decode_timedelta=False) as found:
        same(found, files[name])


def test_open_zarr_of_a_zipped_store(gateway, files) -> None:
    found = xr.open_zarr(f"{gateway.url}/v1/data/an-zip/zarr")
    wanted = xr.open_zarr(ZipStore(files["an-zip"], mode="r"))
    xr.testing.assert_identical(found.load().drop_attrs(), wanted.load().drop_attrs())


@pytest.mark.parametrize(
    ("point", "latitude", "longitude"),
    [
        ((-20.0, 12.0), 15.0, 345.0),  # 15 degree grid from 0 to 345
        ((340.0, 12.0), 15.0, 345.0),
        ((179.0, -89.0), -90.0, 180.0),
        ((-179.0, -89.0), -90.0, 180.0),
        ((355.0, 1.0), 0.0, 0.0),
    ],
)
def test_edr_position(gateway, files, point, latitude: float, longitude: float) -> None:
    answer = httpx.get(
        f"{gateway.url}/v1/data/an-data/edr/position",
        params={"coords": "POINT({} {})".format(*point), "parameter-name": "t,t2m_mean"},
    )
    ranges = answer.json()["ranges"]
    cell = opened(files["an-data"]).sel(latitude=latitude, longitude=longitude)
    assert ranges["t"]["axisNames"] == ["t", "realization", "z", "y", "x"]
    np.testing.assert_array_equal(ranges["t"]["values"], cell["t"].values.ravel())
    np.testing.assert_array_equal(ranges["t2m_mean"]["values"], cell["t2m_mean"].values.ravel())


def test_edr_area_across_the_seam(gateway, files) -> None:
    answer = httpx.get(
        f"{gateway.url}/v1/data/an-data/edr/area",
        params={
            "coords": "POLYGON((-20 -20,20 -20,20 20,-20 20,-20 -20))",
            "parameter-name": "t2m_mean",
            "f": "csv",
        },
    )
    table = pd.read_csv(StringIO(answer.text)).set_index(["latitude", "longitude"])["t2m_mean"]
    assert set(table.index) == {(y, x) for y in (-15, 0, 15) for x in (-15, 0, 15)}
    field = opened(files["an-data"])["t2m_mean"][0]
    for (latitude, longitude), value in table.items():
        cell = field.sel(latitude=latitude, longitude=longitude % 360)
        assert value == pytest.approx(float(cell), rel=1e-6)


def test_edr_of_one_lead_time_as_netcdf(gateway, files, tmp_path) -> None:
    answer = httpx.get(
        f"{gateway.url}/v1/data/latest-forecast/edr/position",
        params={
            "coords": "POINT(30 45)",
            "datetime": "2025-03-20T14:00:00",
            "parameter-name": "v_mean",
            "z": "85000",
            "f": "nc",
        },
    )
    (tmp_path / "part.nc").write_bytes(answer.content)
    found = opened(tmp_path / "part.nc")["v_mean"].squeeze()
    wanted = opened(files["fc-data"])["v_mean"]
    wanted = wanted.sel(time="2025-03-20T14:00:00", air_pressure=85000, latitude=45, longitude=30)
    assert float(found) == float(wanted)


def test_description_of_a_data_set(gateway, files) -> None:
    described = httpx.get(f"{gateway.url}/v1/data/an-data/edr/").json()
    assert described["extent"]["vertical"]["values"] == [50000.0, 85000.0]
    assert described["extent"]["spatial"]["bbox"] == [[-180.0, -90.0, 165.0, 90.0]]
    assert "t2m_mean" in described["parameter_names"]
    names = httpx.get(f"{gateway.url}/v1/data/datasets").json()
    assert {"an-data", "an-zip", "fc-data", "latest-filtering", "latest-forecast"} <= set(names)


def test_the_latest_name_is_the_newest_analysis(gateway, files, tmp_path) -> None:
    url = f"{gateway.url}/v1/data/latest-filtering/zarr"
    newer = published.publish(
        gateway.layout, "an-new", tmp_path, seed=9, valid=published.NOON + timedelta(hours=1)
    )
    found = xr.open_zarr(url, decode_timedelta=False)
    same(found, newer)
    shutil.rmtree(newer.parent)
    again = xr.open_zarr(url, decode_timedelta=False)
    same(again, files["an-data"])


def test_byte_ranges(gateway, files) -> None:
    path = files["an-data"]
    url = f"{gateway.url}/v1/analyses/an-data/{path.name}"
    wanted = opened(path)["t"].values
    with netCDF4.Dataset(f"{url}#mode=bytes") as file:
        np.testing.assert_array_equal(file["t"][...], wanted)
    with fsspec.open(url, block_size=1 << 16) as stream, h5netcdf.File(stream, "r") as file:
        np.testing.assert_array_equal(file["t"][...], wanted)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("none/zarr/zarr.json", 404, "not_found"),
        ("latest-reanalysis/info", 404, "not_found"),
        ("an-data/zarr/bogus/zarr.json", 404, "not_found"),
        ("an-data/zarr/t/c/9/9/9/9/9", 404, "not_found"),
        ("an-data/edr/position?coords=banana", 422, "invalid_input"),
        ("an-data/edr/position?coords=POINT(0 0)&datetime=soon", 422, "invalid_input"),
        ("an-data/edr/position?coords=POINT(0 0)&bogus=1", 422, "invalid_input"),
        ("an-data/edr/position", 422, "invalid_input"),
        ("an-data/bogus", 404, "not_found"),
    ],
)
def test_errors_are_problem_documents(gateway, files, path: str, status: int, code: str) -> None:
    answer = httpx.get(f"{gateway.url}/v1/data/{path}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{code}"


NAMES = "msl, msl_mean, msl_spread, q, q_mean, q_spread, sst"
MEANT = "Expected 'datetime' to be a time in UTC, without a zone"


@pytest.mark.parametrize(
    ("more", "field", "code", "said"),
    [
        ("parameter-name=t2mm", "parameter-name", "unknown_name", f"{NAMES}, "),
        ("parameter-name=t2m,latitude", "parameter-name", "unknown_name", "; got 'latitude'."),
        ("parameter-name=t2m,", "parameter-name", "unknown_name", "; got ''."),
        ("parameter-name=t.a", "parameter-name", "unknown_name", "; got 't.a'."),
        ("datetime=soon", "datetime", "invalid_input", MEANT),
        ("datetime=2025-03-20T12:00:00Z", "datetime", "invalid_input", MEANT),
        ("datetime=2025/2026/2027", "datetime", "invalid_input", MEANT),
        ("z=high", "z", "invalid_input", "Expected 'z' to be a level in Pa; got 'high'."),
        ("levl=1", "levl", "invalid_input", "air_pressure; got 'levl'."),
    ],
)
@pytest.mark.parametrize(
    "query",
    ["position?coords=POINT(0 0)", "area?coords=POLYGON((0 0,9 0,9 9,0 0))", "cube?bbox=0,0,20,20"],
    ids=["position", "area", "cube"],
)
def test_a_query_that_names_what_is_not_there(gateway, files, query, more, field, code, said):
    answer = httpx.get(f"{gateway.url}/v1/data/an-data/edr/{query}&{more}", timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert said in error["message"]
    assert "Error" not in answer.json()["detail"]
    assert code != "unknown_name" or "t2m" in error["known"]


def test_fields_by_their_standard_name(gateway, files) -> None:
    answer = httpx.get(
        f"{gateway.url}/v1/data/an-data/edr/position",
        params={"coords": "POINT(0 0)", "parameter-name": "air_temperature", "realization": 1},
    )
    assert {"t", "t2m"} < set(answer.json()["ranges"])


def test_a_result_without_data_says_what_it_has(gateway) -> None:
    acting_worker.publish(
        gateway.layout, "an-picture", {"ql.png": b"x"}, valid=published.NOON - timedelta(9)
    )
    answer = httpx.get(f"{gateway.url}/v1/data/an-picture/info")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "ql.png" in answer.json()["detail"]


def test_many_readers_at_once_get_their_own_values(gateway, files) -> None:
    """HDF5 is not safe in threads: all ways of reading at the same time, and other requests."""
    wanted = {name: opened(files[name]) for name in ("an-data", "fc-data")}

    def read(i: int) -> bool:
        name = ("an-data", "fc-data")[i % 2]
        url = f"{gateway.url}/v1/data/{name}"
        variable = ("t", "u", "q", "z")[i % 4]
        values = wanted[name][variable].values
        if i % 3 == 0:
            query = {"coords": "POINT(0 0)", "parameter-name": variable, "f": ("nc", "csv")[i % 2]}
            return httpx.get(f"{url}/edr/position", params=query, timeout=60).status_code == 200
        if i % 3 == 1:
            link = f"{gateway.url}/v1/analyses/{name}/{files[name].name}"
            with fsspec.open(link) as stream, h5netcdf.File(stream, "r") as file:
                return np.array_equal(file[variable][...], values)
        found = xr.open_zarr(f"{url}/zarr", decode_timedelta=False)[variable]
        return np.array_equal(found.values, values)

    with ThreadPoolExecutor(12) as pool:
        reads = [pool.submit(read, i) for i in range(48)]
        while not all(done.done() for done in reads):
            assert httpx.get(f"{gateway.url}/health/live", timeout=10).status_code == 200
            time.sleep(0.05)
    assert all(done.result() for done in reads)


def test_a_deleted_analysis_is_gone_and_its_file_closed(gateway, tmp_path) -> None:
    path = published.publish(
        gateway.layout, "an-gone", tmp_path, valid=published.NOON - timedelta(2)
    )
    url = f"{gateway.url}/v1/data/an-gone"
    assert httpx.get(f"{url}/zarr/time/c/0").status_code == 200
    removed = gateway.layout.tmp / "deleted-an-gone"
    path.parent.rename(removed)
    assert httpx.get(f"{url}/zarr/time/c/0").json()["code"] == "not_found"
    assert httpx.get(f"{url}/zarr/zarr.json").json()["code"] == "not_found"
    descriptors = Path(f"/proc/{gateway.process.pid}/fd")

    def held() -> bool:
        return any("an-gone" in os.readlink(d) for d in descriptors.iterdir() if d.is_symlink())

    for _ in range(200):
        if not held():
            break
        time.sleep(0.1)
    assert not held()
    shutil.rmtree(removed)  # other tests look for leftovers in this folder


def test_the_gateway_still_needs_no_torch(gateway, files) -> None:
    assert httpx.get(f"{gateway.url}/v1/data/an-data/info").status_code == 200
    assert "libtorch" not in Path(f"/proc/{gateway.process.pid}/maps").read_text()
