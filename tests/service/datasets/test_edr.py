"""OGC EDR by a real client (OWSLib); documents against pydantic models of the standards, values against
xarray."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import acting_worker
import httpx
import numpy as np
import published
import pytest
import xarray as xr
from covjson_pydantic.coverage import Coverage, CoverageCollection
from edr_pydantic.capabilities import ConformanceModel, LandingPageModel
from edr_pydantic.collections import Collections
from gateway_process import GatewayProcess
from owslib.ogcapi.edr import EnvironmentalDataRetrieval
from owslib.wms import WebMapService

from service.data.edr import Query, answer
from service.data.library import DatasetLibrary
from service.errors import AnswerTooLarge
from service.maps.collections import find_collection
from worker.results.catalogue import Catalogue

DAY = datetime(2024, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One whose newest results are those of these tests, whichever ran before."""
    return own_gateway


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory) -> dict[str, xr.Dataset]:
    folder, layout = tmp_path_factory.mktemp("edr"), gateway.layout
    wanted = {
        "ed-0": published.Wanted(seed=21, flavour="final", valid=DAY),
        "ed-1": published.Wanted(seed=22, flavour="final", valid=DAY + HOUR),
        "ed-2": published.Wanted(seed=23, flavour="early", valid=DAY + 2 * HOUR),
        "ed-fc": published.Wanted(seed=24, kind="forecast", valid=DAY),
    }
    return published.publish_all(layout, folder, wanted)


def ask(gateway: GatewayProcess, collection: str, kind: str, **query: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in query.items()}
    url = f"{gateway.url}/ogc/collections/{collection}/{kind}"
    answer = httpx.get(url, params=named, timeout=60)
    assert answer.status_code == 200, answer.text[:500]
    return answer


def coverages(gateway: GatewayProcess, collection: str, kind: str, **query: str) -> list[dict]:
    document = ask(gateway, collection, kind, **query).json()
    if document["type"] == "Coverage":
        Coverage.model_validate_json(json.dumps(document))
        return [document]
    CoverageCollection.model_validate_json(json.dumps(document))
    return document["coverages"]


def values(coverage: dict, name: str) -> np.ndarray:
    held = coverage["ranges"][name]
    listed = [np.nan if v is None else v for v in held["values"]]
    return np.array(listed).reshape(held["shape"])


def test_documents_are_those_of_the_standard(gateway, files) -> None:
    root = f"{gateway.url}/ogc"
    landing = LandingPageModel.model_validate_json(httpx.get(root).text)
    assert {"self", "conformance", "data", "service-desc"} <= {link.rel for link in landing.links}
    for link in landing.links:
        assert httpx.get(link.href).status_code == 200, link
    classes = ConformanceModel.model_validate_json(httpx.get(f"{root}/conformance").text)
    assert "http://www.opengis.net/spec/ogcapi-edr-1/1.1/conf/core" in classes.conformsTo
    Collections.model_validate_json(httpx.get(f"{root}/collections").text)


def test_a_client_finds_and_asks(gateway, files) -> None:
    edr = EnvironmentalDataRetrieval(f"{gateway.url}/ogc")
    assert {"filtering", "filtering-final", "forecast", "ed-0"} <= set(edr.data())
    about = edr.collection("ed-fc")
    assert about["extent"]["temporal"]["values"] == [
        f"2024-06-01T0{hour}:00:00Z" for hour in (1, 2, 3)
    ]
    assert about["extent"]["vertical"]["values"] == ["500", "850"]
    assert about["parameter_names"]["t_mean"]["unit"]["label"] == "K"
    found = edr.query_data("ed-fc", "position", coords="POINT(30 45)", parameter_names=["t2m_mean"])
    wanted = files["ed-fc"]["t2m_mean"].sel(latitude=45, longitude=30)
    (series,) = [c for c in found.get("coverages", [found]) if "t2m_mean" in c["ranges"]]
    np.testing.assert_array_equal(values(series, "t2m_mean"), wanted.values)


def test_position_of_a_forecast_is_a_series_for_each_member(gateway, files) -> None:
    found = coverages(gateway, "ed-fc", "position", coords="POINT(-20 12)", parameter_name="t2m")
    assert [c["realization"] for c in found] == [0, 1, 2]
    cell = files["ed-fc"]["t2m"].sel(latitude=15, longitude=345)
    for coverage in found:
        assert coverage["domain"]["domainType"] == "PointSeries"
        assert coverage["domain"]["axes"]["x"]["values"] == [-15.0]
        member = cell.sel(realization=coverage["realization"])
        np.testing.assert_array_equal(values(coverage, "t2m"), member.values)


def test_profile_of_an_analysis(gateway, files) -> None:
    (found,) = coverages(
        gateway, "ed-0", "position", coords="POINT(30 45)", parameter_name="t_mean,u_spread"
    )
    assert found["domain"]["domainType"] == "VerticalProfile"
    assert found["domain"]["axes"]["z"]["values"] == [500.0, 850.0]
    cell = files["ed-0"].sel(latitude=45, longitude=30)
    for name in ("t_mean", "u_spread"):
        np.testing.assert_array_equal(values(found, name).ravel(), cell[name].values.ravel())


def test_linear_interpolation_is_that_of_xarray(gateway, files) -> None:
    (found,) = coverages(
        gateway, "ed-0", "position", coords="POINT(33 41)", parameter_name="msl_mean",
        method="linear",
    )  # fmt: skip
    wanted = files["ed-0"]["msl_mean"].astype("f8").interp(latitude=41, longitude=33)
    assert values(found, "msl_mean").item() == pytest.approx(float(wanted.item()), rel=1e-9)
    assert found["domain"]["axes"]["x"]["values"] == [33.0]


def test_a_kind_is_the_series_of_its_best_results(gateway, files) -> None:
    (found,) = coverages(
        gateway, "filtering", "position", coords="POINT(0 0)", parameter_name="t2m_mean",
        datetime="2024-06-01T00:00:00Z/2024-06-01T05:00:00Z",
    )  # fmt: skip
    wanted = [
        files[name]["t2m_mean"].sel(latitude=0, longitude=0).item()
        for name in ("ed-0", "ed-1", "ed-2")
    ]
    np.testing.assert_array_equal(values(found, "t2m_mean"), wanted)
    (final,) = coverages(
        gateway, "filtering-final", "position", coords="POINT(0 0)", parameter_name="t2m_mean",
        datetime="2024-06-01T00:00:00Z/2024-06-01T05:00:00Z",
    )  # fmt: skip
    np.testing.assert_array_equal(values(final, "t2m_mean"), wanted[:2])


def test_some_results_may_lack_a_parameter_or_be_unreadable(gateway, files, tmp_path) -> None:
    """The series goes on without it there; what no result holds is refused."""
    time = DAY + 10 * HOUR
    path = tmp_path / "whole.nc"
    files["ed-0"].assign_coords(time=("time", [np.datetime64("2024-06-01T11", "ns")])).drop_vars(
        "msl_mean"
    ).to_netcdf(path)
    held = published.opened(
        published.publish(gateway.layout, "ed-with", tmp_path / "with", valid=time, flavour="early")
    )
    acting_worker.publish(
        gateway.layout,
        "ed-without",
        {"appa_an.nc": path.read_bytes()},
        valid=time + HOUR,
        kind="filtering",
        flavour="early",
    )
    broken = {"appa_an.nc": b"no data set"}
    later = time + 2 * HOUR
    acting_worker.publish(gateway.layout, "ed-broken", broken, valid=later, kind="filtering")
    span = "2024-06-01T10:00:00Z/2024-06-01T12:00:00Z"
    place = {"coords": "POINT(0 0)", "datetime": span}
    (found,) = coverages(
        gateway, "filtering", "position", **place, parameter_name="t2m_mean,msl_mean"
    )
    at = {"latitude": 0, "longitude": 0}
    pressure, temperature = values(found, "msl_mean"), values(found, "t2m_mean")
    np.testing.assert_array_equal(pressure, [held["msl_mean"].sel(at).item(), np.nan])
    np.testing.assert_array_equal(
        temperature, [d["t2m_mean"].sel(at).item() for d in (held, files["ed-0"])]
    )
    (only,) = coverages(gateway, "filtering", "position", **place, parameter_name="msl_mean")
    np.testing.assert_array_equal(values(only, "msl_mean"), pressure[:1])
    url = f"{gateway.url}/ogc/collections/{{}}/position"
    refused = httpx.get(url.format("filtering"), params={**place, "parameter-name": "nonsense"})
    assert refused.status_code == 422
    assert "msl_mean" in refused.text
    alone = httpx.get(url.format("ed-broken"), params=place)
    assert alone.status_code == 503
    # The kind is described by its newest result that can be read; the broken one is left out.
    listed = httpx.get(f"{gateway.url}/ogc/collections", timeout=60).json()["collections"]
    parameters = {one["id"]: one["parameter_names"] for one in listed}
    assert "ed-broken" not in parameters
    assert {"t2m_mean", "t_mean"} <= set(parameters["filtering"])
    styles = httpx.get(f"{gateway.url}/ogc/collections/filtering/styles", timeout=60)
    assert "t2m" in {one["id"] for one in styles.json()["styles"]}
    capabilities = WebMapService(f"{gateway.url}/ogc/wms", version="1.3.0", timeout=60)
    assert "filtering/t2m" in capabilities.contents


def test_cube_across_the_seam_as_coveragejson_and_netcdf(gateway, files) -> None:
    query = {"bbox": "-20,-20,20,20", "z": "850", "parameter_name": "t_mean"}
    (found,) = coverages(gateway, "ed-0", "cube", **query)
    axes = found["domain"]["axes"]
    assert found["domain"]["domainType"] == "Grid"
    assert axes["x"]["values"] == [-15.0, 0.0, 15.0]
    field = files["ed-0"]["t_mean"].isel(time=0).sel(air_pressure=85_000.0)
    wanted = field.sel(latitude=[15, 0, -15], longitude=[345, 0, 15]).values
    np.testing.assert_array_equal(values(found, "t_mean")[0, 0], wanted)
    body = ask(gateway, "ed-0", "cube", **query, f="NetCDF")
    assert body.headers["content-type"] == "application/netcdf"
    with xr.open_dataset(BytesIO(body.content), engine="h5netcdf") as part:
        np.testing.assert_array_equal(part["t_mean"].values[0, 0], wanted)
        assert part["air_pressure"].attrs["units"] == "hPa"


def test_area_is_masked_by_its_polygon(gateway, files) -> None:
    polygon = "POLYGON((-1 -1, 31 -1, -1 31, -1 -1))"
    query = {"coords": polygon, "parameter_name": "t2m_mean"}
    (found,) = coverages(gateway, "ed-0", "area", **query)
    got = values(found, "t2m_mean")[0]
    field = files["ed-0"]["t2m_mean"].isel(time=0)
    wanted = field.sel(latitude=[30, 15, 0], longitude=[0, 15, 30]).values.astype(float)
    wanted[0, 1:] = wanted[1, 2] = np.nan
    np.testing.assert_array_equal(got, wanted)
    features = ask(gateway, "ed-0", "area", **query, f="GeoJSON").json()["features"]
    places = {tuple(f["geometry"]["coordinates"]): f["properties"]["t2m_mean"] for f in features}
    assert places == {
        (lon, lat): float(field.sel(latitude=lat, longitude=lon))
        for lon, lat in [(0, 30), (0, 15), (15, 15), (0, 0), (15, 0), (30, 0)]
    }
    assert features[0]["properties"]["datetime"] == "2024-06-01T00:00:00Z"


def test_trajectory_in_space_height_and_time(gateway, files) -> None:
    (found,) = coverages(
        gateway, "ed-0", "trajectory", coords="LINESTRING(0 0, 30 0)", parameter_name="t2m_mean"
    )
    assert found["domain"]["domainType"] == "Trajectory"
    composite = found["domain"]["axes"]["composite"]
    assert composite["coordinates"] == ["t", "x", "y"]
    assert composite["values"] == [["2024-06-01T00:00:00Z", x, 0.0] for x in (0.0, 15.0, 30.0)]
    wanted = files["ed-0"]["t2m_mean"].isel(time=0).sel(latitude=0, longitude=[0, 15, 30])
    np.testing.assert_array_equal(values(found, "t2m_mean"), wanted.values)
    start = int(DAY.timestamp())
    line = f"LINESTRING ZM(0 0 850 {start + 3600}, 15 0 500 {start + 10800})"
    (flight,) = coverages(gateway, "ed-fc", "trajectory", coords=line, parameter_name="u_mean")
    field = files["ed-fc"]["u_mean"].sel(latitude=0)
    climbing = [
        field.isel(time=0).sel(air_pressure=85_000, longitude=0),
        field.isel(time=2).sel(air_pressure=50_000, longitude=15),
    ]
    np.testing.assert_array_equal(values(flight, "u_mean"), [float(v) for v in climbing])
    assert [row[3] for row in flight["domain"]["axes"]["composite"]["values"]] == [850.0, 500.0]


@pytest.mark.parametrize(
    ("z", "levels"),
    [("500", [500]), ("850,500", [850, 500]), ("1000/500", [500, 850]), ("R2/500/350", [500, 850])],
)
def test_levels(gateway, files, z: str, levels: list[float]) -> None:
    (found,) = coverages(
        gateway, "ed-0", "position", coords="POINT(0 0)", parameter_name="q_mean", z=z
    )
    assert found["domain"]["axes"]["z"]["values"] == levels


@pytest.mark.parametrize(
    ("path", "status", "code", "says"),
    [
        ("none/position?coords=POINT(0 0)", 404, "not_found", "filtering-final"),
        ("ed-0/position?coords=POINT(0 0)&datetime=2020-01-01T00:00:00Z", 404, "not_found", "ed-0"),
        ("ed-0/position?coords=POINT(0 99)", 422, "invalid_input", "-90, 90"),
        ("ed-0/position?coords=POLYGON((0 0,1 1,1 0,0 0))", 422, "invalid_input", "Point"),
        ("ed-0/position?coords=banana", 422, "invalid_input", "WKT"),
        ("ed-0/position?coords=MULTIPOINT((0 0),(nan 1))", 422, "invalid_input", "finite"),
        ("ed-0/area?coords=POLYGON((0 0,9 0,nan 9,0 0))", 422, "invalid_input", "finite"),
        ("ed-0/trajectory?coords=LINESTRING(0 0,nan 1,2 2)", 422, "invalid_input", "finite"),
        ("ed-fc/trajectory?coords=LINESTRING M(0 0 nan,1 1 nan)", 422, "invalid_input", "finite"),
        ("ed-0/position?coords=POINT EMPTY", 422, "invalid_input", "nothing"),
        ("ed-0/position?coords=POINT(0 0)&parameter-name=x", 422, "unknown_name", "t2m_mean"),
        ("ed-0/position?coords=POINT(0 0)&z=700", 422, "invalid_input", "500, 850"),
        ("ed-0/position?coords=POINT(0 0)&z=high", 422, "invalid_input", "500, 850"),
        ("ed-0/position?coords=POINT(0 0)&datetime=soon", 422, "invalid_input", "RFC 3339"),
        ("ed-0/position?coords=POINT(0 0)&crs=EPSG:3857", 422, "invalid_input", "CRS84"),
        ("ed-0/position?coords=POINT(0 0)&f=png", 422, "invalid_input", "CoverageJSON"),
        ("ed-0/cube?bbox=1,2,3", 422, "invalid_input", "bbox"),
        ("ed-0/cube?bbox=1,2,3,4", 404, "not_found", "15 degrees"),
        ("ed-0/area?coords=POLYGON((1 1,2 1,2 2,1 1))", 404, "not_found", "position"),
        ("ed-fc/trajectory?coords=LINESTRING M(0 0 0, 1 1 9)", 422, "invalid_input", "1970"),
    ],
)
def test_errors(gateway, files, path: str, status: int, code: str, says: str) -> None:
    answer = httpx.get(f"{gateway.url}/ogc/collections/{path}")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert says in json.dumps(problem)


def test_an_answer_is_counted_before_it_is_read(gateway, files) -> None:
    with Catalogue(gateway.layout) as analyses:
        library = DatasetLibrary(analyses, gateway.layout)
        collection = find_collection(analyses, "ed-0")
        query = Query("cube", box=(-180.0, -90.0, 179.0, 90.0), parameters=["t2m_mean"])
        assert answer(library, collection, query, 13 * 24, "CoverageJSON")["t2m_mean"].size == 312
        with pytest.raises(AnswerTooLarge) as refused:
            answer(library, collection, replace(query, parameters=["t_mean"]), 500, "CoverageJSON")
        assert refused.value.context["values"] == 2 * 13 * 24
        library.close()
