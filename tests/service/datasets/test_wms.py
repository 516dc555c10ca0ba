"""WMS by OWSLib: colours of pixels against the values of the file, in every reference system."""

from io import BytesIO
from xml.etree import ElementTree

import httpx
import matplotlib
import numpy as np
import published
import pyproj
import pytest
import rasterio
import xarray as xr
from gateway_process import GatewayProcess
from owslib.util import ServiceException
from owslib.wms import WebMapService
from PIL import Image

from service.data.drawing import FORMATS, Drawing, MapLayer
from service.data.fields import FieldReader
from service.data.library import DatasetLibrary
from service.maps.requests import Canvas
from worker.results.catalogue import Catalogue

TIME = "2025-03-20T12:00:00Z"


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One whose latest analysis is that of these tests."""
    return own_gateway


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


GDAL_SERVICE = """<GDAL_WMS>
<Service name="WMS">
<Version>1.3.0</Version><ServerUrl>{url}?elevation=850&amp;</ServerUrl><CRS>EPSG:4326</CRS>
<BBoxOrder>yxYX</BBoxOrder><ImageFormat>image/png</ImageFormat><Layers>wm-an/t</Layers>
</Service>
<DataWindow>
<UpperLeftX>-180</UpperLeftX><UpperLeftY>90</UpperLeftY><LowerRightX>180</LowerRightX>
<LowerRightY>-90</LowerRightY><SizeX>360</SizeX><SizeY>180</SizeY>
</DataWindow>
<BandsCount>3</BandsCount>
</GDAL_WMS>"""


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_lists_and_draws_the_layers_as_qgis_does(gateway, field) -> None:
    url = f"{gateway.url}/ogc/wms"
    with rasterio.open(f"WMS:{url}?SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities") as found:
        (listed,) = (name for name in found.subdatasets if "LAYERS=filtering%2Ft&" in name)
    with rasterio.open(listed) as layer:
        assert layer.crs.to_epsg() == 4326 or "CRS84" in layer.crs.to_wkt()
        assert layer.bounds == (-180.0, -90.0, 180.0, 90.0)
        assert layer.read(1, out_shape=(45, 90)).std() > 1.0
    with rasterio.open(GDAL_SERVICE.format(url=url)) as layer:
        pixels = layer.read()
    for lat, lon in ((60.5, -99.5), (-20.5, 30.5), (0.5, 170.5), (44.5, 9.5)):
        got = pixels[:, int(90 - lat), int(180 + lon)].astype(int)
        assert np.abs(got - colour(field, gateway, lat, lon)).max() <= 3, (lat, lon)


def test_defaults_may_be_named(gateway, field) -> None:
    asked = {"crs": "CRS:84", "bbox": "-180,-90,180,90"}
    unnamed = picture(gateway, **asked)
    for named in ({"styles": "default"}, {"time": "current"}, {"time": TIME, "styles": "mean"}):
        assert (picture(gateway, **asked, **named) == unnamed).all(), named


def test_jpeg_has_the_colours_of_png(gateway, field) -> None:
    asked = {"service": "WMS", "request": "GetMap", "layers": "wm-an/t", "elevation": 850}
    asked |= {"crs": "CRS:84", "bbox": "-60,-30,60,90", "width": 64, "height": 64}
    png, jpeg = (
        httpx.get(f"{gateway.url}/ogc/wms", params={**asked, "format": form, "transparent": "true"})
        for form in ("image/png", "image/jpeg")
    )
    assert jpeg.headers["content-type"] == "image/jpeg"
    images = [Image.open(BytesIO(answer.content)) for answer in (png, jpeg)]
    assert images[1].format == "JPEG"
    exact, close = (np.array(image.convert("RGB")).astype(int) for image in images)
    assert np.abs(exact - close).mean() < 3.0


def test_each_format_is_drawn_once_and_kept_for_itself(gateway, field) -> None:
    analyses = Catalogue(gateway.layout)
    drawing = Drawing(FieldReader(DatasetLibrary(analyses, gateway.layout), analyses), analyses)
    request = drawing.request(MapLayer("wm-an", "sst"))
    canvas = Canvas("CRS:84", (-7.5, -82.5, 352.5, 82.5), 240, 110)
    made = {form: drawing.picture(request, canvas, form) for form in FORMATS}
    for form, body in made.items():
        assert drawing.picture(request, canvas, form) is body
        assert Image.open(BytesIO(body)).get_format_mimetype() == form
    exact, close = (Image.open(BytesIO(body)) for body in made.values())
    assert (exact.mode, close.mode) == ("RGBA", "RGB")
    undefined = field["sst_mean"].isnull().all("latitude").values  # 24 columns of 15 degrees
    inside = np.flatnonzero(undefined)[0] * 10 + 5
    assert np.asarray(exact)[55, inside].tolist() == [0, 0, 0, 0]
    assert np.asarray(close)[55, inside] == pytest.approx([255, 255, 255], abs=3)


def test_extents_are_in_the_axes_of_each_system(gateway, field) -> None:
    answer = httpx.get(f"{gateway.url}/ogc/wms", params={"request": "GetCapabilities"})
    boxes = {
        box.get("CRS"): [float(box.get(name)) for name in ("minx", "miny", "maxx", "maxy")]
        for box in ElementTree.fromstring(answer.content).findall(".//{*}BoundingBox")
    }
    assert boxes["CRS:84"] == [-180, -90, 180, 90]
    assert boxes["EPSG:4326"] == [-90, -180, 90, 180]
    mercator = pyproj.CRS("EPSG:3857").area_of_use  # which stops at 85.06 degrees
    assert boxes["EPSG:3857"] == pytest.approx(
        [-20037508.34, -20037508.34, 20037508.34, 20037508.34]
    )
    assert (mercator.west, mercator.east) == (-180, 180)
    # A stereographic map shows the equator at 2 a k, of the sphere nearly: 12.7 thousand km times its scale.
    for system in ("EPSG:3413", "EPSG:3031", "EPSG:3995"):
        left, bottom, right, top = boxes[system]
        assert -left == right == top == -bottom
        assert 12.2e6 < right < 12.6e6


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
    ("query", "code", "says"),
    [
        ({"request": "GetCoffee"}, "OperationNotSupported", "GetMap"),
        ({"service": "WFS"}, "invalid_input", "WMS"),
        ({"layers": "none/t"}, "LayerNotDefined", "filtering"),
        ({"layers": "wm-an/x"}, "LayerNotDefined", "t2m"),
        ({"layers": "wm-an/t,wm-an/u"}, "LayerNotDefined", "one layer"),
        ({"crs": "EPSG:9"}, "InvalidCRS", "EPSG:3857"),
        ({"bbox": "1,1,0,0"}, "invalid_input", "bbox"),
        ({"bbox": "-1e308,-1e308,1e308,1e308"}, "invalid_input", "bbox"),  # their difference is inf
        ({"width": "99999"}, "invalid_input", "4096"),
        ({"styles": "x"}, "StyleNotDefined", "spread"),
        ({"time": "2020-01-01T00:00:00Z"}, "InvalidDimensionValue", "time"),
        ({"elevation": "700"}, "InvalidDimensionValue", "500, 850"),
        ({"elevation": "up"}, "InvalidDimensionValue", "number"),
        ({"format": "image/gif"}, "InvalidFormat", "image/png or image/jpeg"),
        ({"bgcolor": "red"}, "invalid_input", "0xRRGGBB"),
        ({"request": "GetFeatureInfo", "i": 9, "j": 0}, "InvalidPoint", "0 to 8"),
    ],
)
def test_errors_are_exception_reports(gateway, field, query, code: str, says: str) -> None:
    asked = {
        "request": "GetMap", "layers": "wm-an/t", "crs": "CRS:84", "bbox": "0,0,9,9",
        "width": "9", "height": "9", **query,
    }  # fmt: skip
    answer = httpx.get(f"{gateway.url}/ogc/wms", params=asked)
    assert answer.status_code == 400
    (report,) = ElementTree.fromstring(answer.content)
    assert report.tag == "{http://www.opengis.net/ogc}ServiceException"
    assert report.get("code") == code
    assert says in str(report.text)


def test_a_client_raises_the_report_instead_of_taking_it_for_a_map(gateway, field) -> None:
    wms = WebMapService(f"{gateway.url}/ogc/wms", version="1.3.0")
    asked = {"srs": "CRS:84", "bbox": (0, 0, 9, 9), "size": (9, 9), "format": "image/png"}
    for layer, time in (("none/t", TIME), ("wm-an/none", TIME), ("wm-an/t", "2020-01-01T00:00Z")):
        with pytest.raises(ServiceException, match="Expected"):
            wms.getmap(layers=[layer], styles=["mean"], time=time, **asked)


def test_what_is_undefined_has_the_colour_asked_for(gateway, field) -> None:
    undefined = field["sst_mean"].isnull().all("latitude").values  # 24 columns of 15 degrees
    assert 0 < undefined.sum() < 24
    asked = {"layers": "wm-an/sst", "bbox": "-7.5,-82.5,352.5,82.5", "width": 24, "height": 11}
    request = {"request": "GetMap", "crs": "CRS:84", "format": "image/png", **asked}
    for extra, wanted in (
        ({}, (255, 255, 255, 255)),
        ({"bgcolor": "0x0A141E"}, (10, 20, 30, 255)),
        ({"bgcolor": "0x0A141E", "transparent": "TRUE"}, (0, 0, 0, 0)),
    ):
        answer = httpx.get(f"{gateway.url}/ogc/wms", params={**request, **extra})
        pixels = np.asarray(Image.open(BytesIO(answer.content)).convert("RGBA"))
        assert (pixels[:, undefined] == wanted).all()
        assert (pixels[:, ~undefined] != wanted).any(axis=-1).all()
