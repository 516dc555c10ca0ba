"""Fields of real results from a real gateway: values against xarray, MetPy-like formulas and PROJ."""

import json
import struct
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import published
import pyproj
import pytest
import xarray as xr
from gateway_process import GatewayProcess

NOON = "2025-03-20T12:00:00Z"


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One whose newest results are those of these tests, whichever ran before."""
    return own_gateway


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory) -> dict[str, xr.Dataset]:
    folder, layout = tmp_path_factory.mktemp("fields"), gateway.layout
    one, two = timedelta(hours=1), timedelta(hours=2)
    wanted = {
        "fd-an": published.Wanted(seed=11, flags=["simulated"], checkpoint="appa-test"),
        "fd-early": published.Wanted(seed=12, flavour="early", valid=published.NOON - one),
        "fd-final": published.Wanted(seed=13, flavour="final", valid=published.NOON - one),
        "fd-mean": published.Wanted(seed=14, fields="mean", valid=published.NOON - two),
        "fd-fc": published.Wanted(seed=15, kind="forecast"),
    }
    return published.publish_all(layout, folder, wanted)


def ask(gateway: GatewayProcess, **query: object) -> tuple[dict, np.ndarray]:
    answer = httpx.get(f"{gateway.url}/v1/fields", params=query, timeout=60)
    assert answer.status_code == 200, answer.text[:500]
    (length,) = struct.unpack("<I", answer.content[:4])
    assert length % 4 == 0
    info = json.loads(answer.content[4 : 4 + length])
    values = np.frombuffer(answer.content, "<f4", offset=4 + length)
    return info, values.reshape(info["grid"]["rows"], info["grid"]["columns"])


def from_west(field: xr.DataArray) -> np.ndarray:
    """Columns from -180, as maps have them."""
    east = field.assign_coords(longitude=(field["longitude"] + 180.0) % 360.0 - 180.0)
    return east.sortby("longitude").transpose("latitude", "longitude").values


def at(dataset: xr.Dataset, name: str, level: float | None = None) -> xr.DataArray:
    field = dataset[name].isel(time=0)
    return field if level is None else field.sel(air_pressure=100.0 * level)


def test_a_stored_mean_is_that_of_the_file(gateway, files) -> None:
    info, values = ask(gateway, result="fd-an", field="t2m")
    np.testing.assert_array_equal(values, from_west(at(files["fd-an"], "t2m_mean")))
    assert info["grid"]["longitude"][0] == -180.0
    assert info["grid"]["latitude"][:2] == [90.0, 75.0]
    assert info["grid"]["extent"] == [-187.5, -90.0, 172.5, 90.0]
    assert (info["minimum"], info["maximum"]) == (values.min(), values.max())
    assert (info["units"], info["display"]["units"]) == ("K", "°C")
    assert (info["simulated"], info["checkpoint"]) == (True, "appa-test")
    assert info["valid_time"] == NOON


@pytest.mark.parametrize("level", [500, 850])
def test_spread_and_members_of_a_level(gateway, files, level: int) -> None:
    _, spread = ask(gateway, result="fd-an", field="t", level=level, statistic="spread")
    stored = at(files["fd-an"], "t_spread", level)
    np.testing.assert_array_equal(spread, from_west(stored))
    for member in range(3):
        _, values = ask(
            gateway, result="fd-an", field="t", level=level, statistic=f"member:{member}"
        )
        stored = at(files["fd-an"], "t", level).sel(realization=member)
        np.testing.assert_array_equal(values, from_west(stored))


def test_wind_speed_is_of_the_members_not_of_the_mean_wind(gateway, files) -> None:
    u, v = (at(files["fd-an"], name, 850) for name in "uv")
    speed = np.sqrt(u.astype("f8") ** 2 + v.astype("f8") ** 2)
    info, values = ask(gateway, result="fd-an", field="ws", level=850)
    np.testing.assert_allclose(values, from_west(speed.mean("realization")), rtol=1e-6)
    _, spread = ask(gateway, result="fd-an", field="ws", level=850, statistic="spread")
    np.testing.assert_allclose(spread, from_west(speed.std("realization", ddof=1)), rtol=1e-5)
    assert info["long_name"] == "wind speed"


def test_thickness_is_the_hypsometric_difference_of_heights(gateway, files) -> None:
    z = {level: at(files["fd-an"], "z_mean", level).astype("f8") for level in (500, 850)}
    _, values = ask(gateway, result="fd-an", field="thickness", level=500)
    np.testing.assert_allclose(values, from_west((z[500] - z[850]) / 9.80665), rtol=1e-4, atol=1e-4)
    _, height = ask(gateway, result="fd-an", field="gh", level=500)
    np.testing.assert_allclose(height, from_west(z[500] / 9.80665), rtol=1e-6)


def test_relative_humidity_is_the_ratio_of_vapour_pressures(gateway, files) -> None:
    t, q = (at(files["fd-an"], name, 850).astype("f8") for name in "tq")
    celsius = t - 273.15
    saturated = 611.2 * np.exp(17.67 * celsius / (celsius + 243.5))  # Bolton (1980), equation 10
    vapour = q * 85_000.0 / (0.622 + 0.378 * q)
    _, values = ask(gateway, result="fd-an", field="r", level=850, statistic="member:0")
    wanted = from_west((vapour / saturated).sel(realization=0))
    np.testing.assert_allclose(values, wanted, rtol=2e-3)


@pytest.mark.parametrize("direction", ["above", "below"])
def test_probability_counts_members(gateway, files, direction: str) -> None:
    members = at(files["fd-an"], "t2m")
    beyond = members > 281.0 if direction == "above" else members < 281.0
    info, values = ask(
        gateway, result="fd-an", field="t2m", statistic="probability", threshold=281.0,
        direction=direction,
    )  # fmt: skip
    np.testing.assert_allclose(values, from_west(beyond.mean("realization")), rtol=1e-6)
    assert (info["range"], info["threshold"], info["units"]) == ([0.0, 1.0], 281.0, "1")


def test_what_is_undefined_stays_undefined(gateway, files) -> None:
    for statistic in ("mean", "probability"):
        _, values = ask(gateway, result="fd-an", field="sst", statistic=statistic, threshold=280.0)
        missing = np.isnan(from_west(at(files["fd-an"], "sst_mean")))
        assert 0 < missing.sum() < missing.size
        np.testing.assert_array_equal(np.isnan(values), missing)


def test_increment_is_analysis_minus_background(gateway, files) -> None:
    with xr.open_dataset(_background(gateway), engine="netcdf4") as background:
        first_guess = at(background.load(), "t_mean", 500)
    _, values = ask(gateway, result="fd-an", field="t", level=500, statistic="increment")
    wanted = from_west(at(files["fd-an"], "t_mean", 500).astype("f8") - first_guess)
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    answer = httpx.get(
        f"{gateway.url}/v1/fields",
        params={"result": "fd-final", "field": "t2m", "statistic": "increment"},
    )
    assert answer.status_code == 404
    assert "`background`" in answer.json()["detail"]


def _background(gateway: GatewayProcess) -> Path:
    (path,) = gateway.layout.analysis("fd-an").glob("*bg*.nc")
    return path


def test_difference_of_two_results(gateway, files) -> None:
    info, values = ask(gateway, result="fd-final", field="t2m", statistic="difference:fd-early")
    a, b = (from_west(at(files[n], "t2m_mean")) for n in ("fd-final", "fd-early"))
    np.testing.assert_allclose(values, a - b, atol=1e-4)
    assert info["other"] == "fd-early"
    low, high = info["range"]
    assert low == -high
    _, apart = ask(
        gateway, result="fd-an", field="t2m", statistic="difference:fd-early",
        other_time="2025-03-20T11:00:00Z",
    )  # fmt: skip
    np.testing.assert_allclose(apart, from_west(at(files["fd-an"], "t2m_mean")) - b, atol=1e-4)


def test_lead_times_of_a_forecast(gateway, files) -> None:
    for hour in (1, 2, 3):
        info, values = ask(
            gateway, result="fd-fc", field="u", level=500, time=f"2025-03-20T{12 + hour}:00:00Z"
        )
        stored = files["fd-fc"]["u_mean"].isel(time=hour - 1).sel(air_pressure=50_000.0)
        np.testing.assert_array_equal(values, from_west(stored))
        assert info["lead_hours"] == hour


def test_latest_by_kind_flavour_and_valid_time(gateway, files) -> None:
    found = ask(gateway, kind="forecast", field="t2m", time="2025-03-20T14:00:00Z")[0]
    assert (found["result"], found["lead_hours"]) == ("fd-fc", 2.0)
    for flavour in ("early", "final"):
        found = ask(gateway, flavour=flavour, time="2025-03-20T11:00:00Z", field="t2m")[0]
        assert found["result"] == f"fd-{flavour}"


def test_downsampling_takes_cells_and_a_box_crosses_the_seam(gateway, files) -> None:
    whole = from_west(at(files["fd-an"], "t2m_mean"))
    info, values = ask(gateway, result="fd-an", field="t2m", width=12, height=100)
    assert info["grid"]["stride"] == 2
    np.testing.assert_array_equal(values, whole[::2, ::2])
    info, values = ask(gateway, result="fd-an", field="t2m", box="-20,-20,20,20")
    field = at(files["fd-an"], "t2m_mean")
    for i, lat in enumerate(info["grid"]["latitude"]):
        for j, lon in enumerate(info["grid"]["longitude"]):
            assert values[i, j] == float(field.sel(latitude=lat, longitude=lon % 360.0))
    assert {-15.0, 0.0, 15.0} <= set(info["grid"]["longitude"])


@pytest.mark.parametrize("view", ["north", "south"])
def test_polar_views_lie_where_proj_says(gateway, files, view: str) -> None:
    """A field that is sin(lon) cos(lat) at the cells is that of PROJ's latitudes within a cell."""
    info, values = ask(
        gateway, result="fd-an", field="t2m", view=view, width=64, height=64, edge=40, centre=30
    )
    left, bottom, right, top = info["grid"]["extent"]
    plane = pyproj.Proj(info["grid"]["projection"])
    sign = 1 if view == "north" else -1
    assert plane(30.0, sign * 40.0)[1] == pytest.approx(-sign * top, rel=1e-9)
    step = (right - left) / 64
    field = at(files["fd-an"], "t2m_mean").astype("f8")
    ring = xr.concat(
        [field, field.isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude"
    )
    for i, j in [(5, 9), (31, 50), (60, 3), (32, 33), (17, 17)]:
        x, y = left + (j + 0.5) * step, top - (i + 0.5) * step
        lon, lat = plane(x, y, inverse=True)
        wanted = ring.interp(latitude=lat, longitude=lon % 360.0)
        assert values[i, j] == pytest.approx(float(wanted), rel=1e-6)


def test_json_holds_the_same(gateway, files) -> None:
    query = {"result": "fd-an", "field": "sst", "f": "json"}
    document = httpx.get(f"{gateway.url}/v1/fields", params=query).json()
    _, values = ask(gateway, result="fd-an", field="sst")
    listed = np.array([[np.nan if v is None else v for v in row] for row in document["values"]])
    np.testing.assert_array_equal(listed.astype("f4"), values)


def test_an_id_may_be_cached_and_a_moving_name_may_not(gateway, files) -> None:
    url = f"{gateway.url}/v1/fields"
    fixed = httpx.get(url, params={"result": "fd-an", "field": "t2m"})
    moving = httpx.get(url, params={"kind": "filtering", "field": "t2m"})
    assert "immutable" in fixed.headers["cache-control"]
    assert moving.headers["cache-control"] == "no-cache"


def test_catalogue_of_a_result(gateway, files) -> None:
    url = f"{gateway.url}/v1/fields/catalogue"
    whole = httpx.get(url, params={"result": "fd-an"}).json()
    known = {f["field"]: f for f in whole["fields"]}
    assert set(known) == {
        *("t2m", "si10", "u10", "v10", "msl", "tp", "sst"),
        *("t", "ws", "u", "v", "gh", "z", "thickness", "r", "q"),
    }
    assert whole["levels"] == [500.0, 850.0]
    assert whole["times"] == [NOON]
    assert "increment" in known["t"]["statistics"]
    for field in known.values():
        for statistic in set(field["statistics"]) & {"mean", "spread", "increment"}:
            level = {"level": 500} if field["leveled"] else {}
            ask(gateway, result="fd-an", field=field["field"], statistic=statistic, **level)
    means = httpx.get(url, params={"result": "fd-mean"}).json()
    known = {f["field"]: f["statistics"] for f in means["fields"]}
    assert known["t"] == ["mean", "spread", "difference"]
    assert known["gh"] == ["mean", "difference"]
    assert known["ws"] == []


def test_timeline(gateway, files) -> None:
    answer = httpx.get(
        f"{gateway.url}/v1/fields/timeline",
        params={"valid_from": "2025-03-20T10:30:00Z", "valid_to": "2025-03-20T14:00:00Z"},
    ).json()
    mine = {
        item["time"]: [(r["id"], r["lead_hours"]) for r in item["results"] if r["id"][:2] == "fd"]
        for item in answer["items"]
    }
    mine = {time: results for time, results in mine.items() if results}
    assert {t: sorted(r) for t, r in mine.items()} == {
        "2025-03-20T11:00:00Z": [("fd-early", 0.0), ("fd-final", 0.0)],
        NOON: [("fd-an", 0.0)],
        "2025-03-20T13:00:00Z": [("fd-fc", 1.0)],
        "2025-03-20T14:00:00Z": [("fd-fc", 2.0)],
    }


def test_colours(gateway) -> None:
    maps = httpx.get(f"{gateway.url}/v1/fields/colours").json()
    assert all(len(colours) == 256 for colours in maps.values())
    assert maps["viridis"][0] == "#440154"  # as published with the map
    assert maps["RdBu_r"][128] in ("#f7f6f6", "#f8f4f2")


@pytest.mark.parametrize(
    ("query", "status", "code", "says"),
    [
        ({"result": "fd-none"}, 404, "not_found", "fd-none"),
        ({"kind": "reanalysis"}, 404, "not_found", "kind=reanalysis"),
        ({"field": "bogus"}, 422, "unknown_name", "si10"),
        ({"field": "t"}, 422, "invalid_input", "500, 850 hPa"),
        ({"field": "t", "level": "700"}, 422, "invalid_input", "500, 850 hPa"),
        ({"field": "thickness", "level": "850"}, 422, "invalid_input", "above 'base'"),
        ({"time": "2025-03-21T00:00:00Z"}, 422, "invalid_input", "2025-03-20T12:00Z"),
        ({"statistic": "median"}, 422, "invalid_input", "probability"),
        ({"statistic": "member:9"}, 422, "invalid_input", "0 to 2"),
        ({"statistic": "probability"}, 422, "invalid_input", "threshold"),
        ({"statistic": "difference:fd-none"}, 404, "not_found", "fd-none"),
        ({"statistic": "difference:fd-early"}, 422, "invalid_input", "fd-early"),
        ({"statistic": "difference:../x"}, 422, "invalid_input", "statistic"),
        ({"view": "north", "edge": "-86"}, 422, "invalid_input", "edge"),
        ({"view": "north", "box": "0,0,1,1"}, 422, "invalid_input", "box"),
        ({"box": "0,9,1,1"}, 422, "invalid_input", "box"),
        ({"width": "0"}, 422, "invalid_input", "width"),
        ({"result": "fd-mean", "field": "ws", "level": "500"}, 422, "invalid_input", "members"),
        ({"f": "json", "view": "north", "width": "500"}, 413, "answer_too_large", "200000"),
    ],
)
def test_errors(gateway, files, query: dict[str, str], status: int, code: str, says: str) -> None:
    asked = {"result": "fd-an", "field": "t2m", **query}
    if "kind" in query:
        del asked["result"]
    answer = httpx.get(f"{gateway.url}/v1/fields", params=asked)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert says in json.dumps(problem, ensure_ascii=False)
