"""WMS by OWSLib: colours of pixels against the values of the file, in every reference system."""

from io import BytesIO

import httpx
import matplotlib
import numpy as np
import published
import pyproj
import pytest
import xarray as xr
from gateway_process import GatewayProcess
from owslib.wms import WebMapService
from PIL import Image

TIME = "2025-03-20T12:00:00Z"


@pytest.fixture(scope="module")
def field(gateway: GatewayProcess, tmp_path_factory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("wms") / "x"
    path = published.publish_result(gateway.layout, "wm-an", folder, published.Wanted(seed=31))
    with xr.open_dataset(path, engine="netcdf4", decode_timedelta=False) as dataset:
        return dataset.isel(time=0).load()


def picture(gateway: GatewayProcess, **query: object) -> np.ndarray:
    asked = {
        "service": "WMS", "version": "1.3.0", "request": "GetMap", "layers": "wm-an/t",
        "styles": "", "format": "image/png", "elevation": 850, "width": 60, "height": 60, **query,
    }  # fmt: skip
    answer = httpx.get(f"{gateway.url}/ogc/wms", params=asked, timeout=60)
    assert answer.headers["content-type"] == "image/png", answer.text[:300]
    return np.array(Image.open(BytesIO(answer.content)).convert("RGB"))


def colour(field: xr.Dataset, gateway: GatewayProcess, lat: float, lon: float) -> np.ndarray:
    values = field["t_mean"].sel(air_pressure=85_000.0).astype("f8")
    ring = xr.concat(
        [values, values.isel(longitude=[0]).assign_coords(longitude=[360.0])], "longitude"
    )
    value = float(ring.interp(latitude=lat, longitude=lon % 360.0))
    query = {"result": "wm-an", "field": "t", "level": 850, "f": "json"}
    low, high = httpx.get(f"{gateway.url}/v1/fields", params=query).json()["range"]
    rgb = matplotlib.colormaps["RdYlBu_r"]((value - low) / (high - low), bytes=True)
    return np.array(rgb[:3]).astype(int)


@pytest.mark.parametrize(
    ("system", "box"),
    [
        ("CRS:84", (-60.0, -30.0, 60.0, 90.0)),
        ("EPSG:4326", (-60.0, -30.0, 60.0, 90.0)),
        ("EPSG:3857", (-5e6, -5e6, 5e6, 5e6)),
        ("EPSG:3413", (-4e6, -4e6, 4e6, 4e6)),
        ("EPSG:3031", (-4e6, -4e6, 4e6, 4e6)),
    ],
)
def test_colours_are_those_of_the_values(gateway, field, system: str, box) -> None:
    left, bottom, right, top = box
    order = (bottom, left, top, right) if system == "EPSG:4326" else box
    got = picture(gateway, crs=system, bbox=",".join(map(str, order)))
    plane = pyproj.Transformer.from_crs(
        system.replace("CRS:84", "OGC:CRS84"), "OGC:CRS84", always_xy=True
    )
    for row, column in [(5, 9), (31, 50), (55, 3), (29, 30)]:
        x = left + (column + 0.5) * (right - left) / 60
        y = top - (row + 0.5) * (top - bottom) / 60
        lon, lat = plane.transform(x, y)
        wanted = colour(field, gateway, lat, lon)
        assert np.abs(got[row, column].astype(int) - wanted).max() <= 3, (system, row, column)


def test_a_client_finds_the_layers_and_their_dimensions(gateway, field) -> None:
    wms = WebMapService(f"{gateway.url}/ogc/wms", version="1.3.0")
    layer = wms["filtering/t"]
    assert TIME in layer.dimensions["time"]["values"]
    assert layer.dimensions["elevation"]["values"] == ["500", "850"]
    assert set(layer.styles) == {"mean", "spread"}
    legend = httpx.get(layer.styles["spread"]["legend"])
    assert legend.headers["content-type"] == "image/png"
    assert "EPSG:3857" in layer.crsOptions
    image = wms.getmap(
        layers=["wm-an/t2m"], styles=["spread"], srs="CRS:84", bbox=(-180, -90, 180, 90),
        size=(90, 45), format="image/png", time=TIME,
    )  # fmt: skip
    assert Image.open(BytesIO(image.read())).size == (90, 45)


def test_value_under_a_pixel_and_legend(gateway, field) -> None:
    url = f"{gateway.url}/ogc/wms"
    asked = {
        "request": "GetFeatureInfo", "layers": "wm-an/t", "query_layers": "wm-an/t",
        "crs": "CRS:84", "bbox": "-7.5,-7.5,22.5,22.5", "width": 2, "height": 2, "i": 1, "j": 0,
        "elevation": 500,
    }  # fmt: skip
    info = httpx.get(url, params=asked).json()
    wanted = field["t_mean"].sel(air_pressure=50_000.0, latitude=15, longitude=15)
    assert info["value"] == pytest.approx(float(wanted), rel=1e-7)
    assert (info["latitude"], info["longitude"], info["result"]) == (15.0, 15.0, "wm-an")
    legend = httpx.get(url, params={"request": "GetLegendGraphic", "layer": "wm-an/t2m"})
    assert Image.open(BytesIO(legend.content)).size == (120, 300)


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ({"request": "GetCoffee"}, 422, "GetMap"),
        ({"layers": "none/t"}, 404, "filtering"),
        ({"layers": "wm-an/x"}, 422, "t2m"),
        ({"layers": "wm-an/t,wm-an/u"}, 422, "one layer"),
        ({"crs": "EPSG:9"}, 422, "EPSG:3857"),
        ({"bbox": "1,1,0,0"}, 422, "bbox"),
        ({"width": "99999"}, 422, "4096"),
        ({"styles": "x"}, 422, "spread"),
        ({"time": "2020-01-01T00:00:00Z"}, 404, "time"),
        ({"elevation": "700"}, 422, "500, 850"),
        ({"elevation": "up"}, 422, "number"),
    ],
)
def test_errors_are_exception_reports(gateway, field, query, status: int, says: str) -> None:
    asked = {
        "request": "GetMap", "layers": "wm-an/t", "crs": "CRS:84", "bbox": "0,0,9,9",
        "width": "9", "height": "9", **query,
    }  # fmt: skip
    answer = httpx.get(f"{gateway.url}/ogc/wms", params=asked)
    assert answer.status_code == status
    assert "<ServiceException code=" in answer.text
    assert says in answer.text
