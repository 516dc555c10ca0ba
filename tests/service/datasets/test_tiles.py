"""OGC API - Maps and Tiles: pictures against the file, metadata against the standard and clients."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import matplotlib
import numpy as np
import published
import pytest
import rasterio
import xarray as xr
from fastapi.testclient import TestClient
from gateway_process import GatewayProcess
from owslib.ogcapi.maps import Maps
from PIL import Image
from rasterio.windows import Window

from model.domain.grids import Grid
from service.app import create_app
from service.data.fields import FieldReader
from service.data.library import DatasetLibrary
from service.data.views import sample, sample_lattice
from service.maps.requests import FieldRequest
from service.settings import GatewaySettings
from worker.results.catalogue import Catalogue

TIME = "2025-03-20T12:00:00Z"
RADIUS = 6_378_137.0


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One whose newest results are those of these tests, whichever ran before."""
    return own_gateway


@pytest.fixture(scope="module")
def file(gateway: GatewayProcess, tmp_path_factory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("tiles") / "x"
    wanted = published.Wanted(seed=37, flags=["simulated"])
    return published.opened(published.publish_result(gateway.layout, "tl-an", folder, wanted))


def mercator(zoom: int, row: float, column: float) -> tuple[float, float]:
    """Latitude and longitude where tiles meet, of slippy maps: the inverse Gudermannian."""
    lon = column / 2**zoom * 360.0 - 180.0
    return float(np.rad2deg(np.arctan(np.sinh(np.pi * (1 - 2 * row / 2**zoom))))), lon


def quad(zoom: int, row: float, column: float) -> tuple[float, float]:
    side = 180.0 / 2**zoom
    return 90.0 - row * side, -180.0 + column * side


def picture(url: str, **query: object) -> np.ndarray:
    answer = httpx.get(url, params=query, timeout=60)
    assert answer.headers["content-type"] == "image/png", answer.text[:300]
    return np.array(Image.open(BytesIO(answer.content)).convert("RGBA")).astype(int)


def colour(gateway: GatewayProcess, held: xr.DataArray, lat: float, lon: float, **query) -> list:
    first = held.isel(longitude=[0]).assign_coords(longitude=[360.0])
    ring = xr.concat([held, first], "longitude").astype("f8")
    value = float(ring.interp(latitude=lat, longitude=lon % 360.0))
    asked = {"result": "tl-an", "f": "json", **query}
    info = httpx.get(f"{gateway.url}/v1/fields", params=asked).json()
    low, high = info["range"]
    rgb = matplotlib.colormaps[info["colours"]]((value - low) / (high - low), bytes=True)
    return [int(part) for part in rgb[:3]]


@pytest.mark.parametrize(
    ("matrices", "corner", "tile"),
    [
        ("WebMercatorQuad", mercator, (0, 0, 0)),
        ("WebMercatorQuad", mercator, (3, 2, 5)),
        ("WorldCRS84Quad", quad, (0, 0, 1)),
        ("WorldCRS84Quad", quad, (2, 1, 6)),
    ],
)
@pytest.mark.parametrize("statistic", ["mean", "spread"])
def test_colours_of_tiles_are_those_of_the_file(gateway, file, matrices, corner, tile, statistic):
    zoom, row, column = tile
    style = "t" if statistic == "mean" else "t.spread"
    root = f"{gateway.url}/ogc/collections/tl-an/styles/{style}/map/tiles/{matrices}"
    got = picture(f"{root}/{zoom}/{row}/{column}", elevation=850, datetime=TIME)
    assert got.shape == (256, 256, 4)
    field = file[f"t_{statistic}"].isel(time=0).sel(air_pressure=85_000.0)
    for y, x in [(40, 3), (128, 200), (250, 251), (131, 77)]:
        lat, lon = corner(zoom, row + (y + 0.5) / 256, column + (x + 0.5) / 256)
        query = {"field": "t", "level": 850, "statistic": statistic}
        wanted = colour(gateway, field, lat, lon, **query)
        assert np.abs(got[y, x, :3] - wanted).max() <= 3, (y, x)
        assert got[y, x, 3] == 255


def test_tiles_of_other_statistics_and_gaps(gateway, file) -> None:
    root = f"{gateway.url}/ogc/collections/tl-an/styles"
    tile = "map/tiles/WorldCRS84Quad/0/0/1"
    # The five columns of no sea surface are the first: 0 to 60 degrees east, with half a cell more.
    sea = picture(f"{root}/sst/{tile}")
    assert sea[128, 20, 3] == 0 and sea[128, 200, 3] == 255
    chance = picture(f"{root}/t2m.probability/{tile}", threshold=0)  # all members are above 0 K
    assert [*chance[128, 128, :3]] == [
        int(c) for c in matplotlib.colormaps["BuPu"](1.0, bytes=True)[:3]
    ]
    member = picture(f"{root}/t2m.member:2/{tile}")
    assert (member != picture(f"{root}/t2m/{tile}")).any()
    same = picture(f"{root}/t2m.difference:tl-an/{tile}")
    middle = matplotlib.colormaps["RdBu_r"](0.5, bytes=True)
    assert np.abs(same[128, 128, :3] - [int(c) for c in middle[:3]]).max() <= 1


def test_tile_matrix_sets_are_those_of_the_registry(gateway) -> None:
    root = f"{gateway.url}/ogc/tileMatrixSets"
    listed = httpx.get(root).json()["tileMatrixSets"]
    found = {one["id"]: httpx.get(one["links"][0]["href"]).json() for one in listed}
    # Scales and cells as printed in annex D of the standard.
    printed = {
        "WebMercatorQuad": {
            0: (559082264.028717, 156543.033928041, 1, 1),
            18: (2132.72958384978, 0.597164283559816, 262144, 262144),
        },
        "WorldCRS84Quad": {
            0: (279541132.014358, 0.703125, 2, 1),
            17: (2132.72958384978, 5.36441802978516e-06, 262144, 131072),
        },
    }
    for name, zooms in printed.items():
        for zoom, (scale, cell, columns, rows) in zooms.items():
            matrix = found[name]["tileMatrices"][zoom]
            assert matrix["scaleDenominator"] == pytest.approx(scale, rel=1e-9)
            assert matrix["cellSize"] == pytest.approx(cell, rel=1e-9)
            assert (matrix["matrixWidth"], matrix["matrixHeight"]) == (columns, rows)
            assert (matrix["tileWidth"], matrix["tileHeight"], matrix["id"]) == (
                256,
                256,
                str(zoom),
            )
    assert found["WorldCRS84Quad"]["tileMatrices"][3]["pointOfOrigin"] == [-180.0, 90.0]


def test_links_lead_from_the_landing_page_to_a_tile(gateway, file) -> None:
    def follow(document: dict, ending: str) -> str:
        [found] = [link for link in document["links"] if link["rel"].endswith(ending)]
        return found["href"]

    home = httpx.get(f"{gateway.url}/ogc").json()
    assert httpx.get(follow(home, "/tiling-schemes")).json()["tileMatrixSets"]
    classes = httpx.get(follow(home, "conformance")).json()["conformsTo"]
    assert "http://www.opengis.net/spec/ogcapi-tiles-1/1.0/conf/core" in classes
    collection = httpx.get(f"{gateway.url}/ogc/collections/tl-an").json()
    styles = httpx.get(follow(collection, "/styles")).json()["styles"]
    names = {style["id"]: style for style in styles}
    assert {"t2m", "t2m.spread", "gh", "t.increment", "si10"} <= set(names)
    tilesets = httpx.get(follow(names["t"], "/tilesets-map"), params={"elevation": 850}).json()
    kinds = [one["tileMatrixSetURI"].rpartition("/")[2] for one in tilesets["tilesets"]]
    assert kinds == ["WebMercatorQuad", "WorldCRS84Quad"]
    tileset = httpx.get(follow(tilesets["tilesets"][0], "self")).json()
    assert "elevation=850" in follow(tileset, "item")
    url = follow(tileset, "item")
    for name in ("{tileMatrix}", "{tileRow}", "{tileCol}"):
        url = url.replace(name, "0")
    assert picture(url).shape == (256, 256, 4)
    short = httpx.get(follow(tileset, "alternate")).json()
    assert short["tilejson"] == "3.0.0"
    again = httpx.get(short["tiles"][0].replace("{z}/{y}/{x}", "0/0/0"))
    assert again.content == httpx.get(url).content
    assert Image.open(BytesIO(httpx.get(follow(names["t"], "/legend")).content)).size == (120, 300)


def test_a_client_of_maps_draws_what_wms_draws(gateway, file) -> None:
    maps = Maps(f"{gateway.url}/ogc/")
    assert "tl-an" in maps.maps()
    box = [-60.0, -30.0, 60.0, 60.0]
    body = maps.map("tl-an", style="t2m", bbox=box, width=90, height=60, datetime_=TIME).read()
    asked = {
        "request": "GetMap", "layers": "tl-an/t2m", "crs": "CRS:84", "bbox": "-60,-30,60,60",
        "width": 90, "height": 60, "transparent": "true", "time": TIME,
    }  # fmt: skip
    answer = httpx.get(f"{gateway.url}/ogc/wms", params=asked)
    assert body == answer.content
    assert "immutable" in answer.headers["cache-control"]
    url = f"{gateway.url}/ogc/collections/tl-an/styles/t2m/map"
    polar = picture(url, crs="EPSG:3413", bbox="-4e6,-4e6,4e6,4e6", width=60, height=60)
    north_first = picture(url, crs="EPSG:4326", bbox="-30,-60,60,60", width=90, height=60)
    assert polar.shape == (60, 60, 4)
    assert (north_first == np.array(Image.open(BytesIO(body)).convert("RGBA"))).all()


def test_gdal_reads_the_tiles_as_one_picture(gateway, file, tmp_path) -> None:
    style = f"{gateway.url}/ogc/collections/tl-an/styles/t2m/map/tiles/WebMercatorQuad"
    world = 20_037_508.342789244
    # As in docs/maps.md; QGIS reads with the same driver.
    described = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{style}/${{z}}/${{y}}/${{x}}</ServerUrl></Service>'
        f"<DataWindow><UpperLeftX>-{world}</UpperLeftX><UpperLeftY>{world}</UpperLeftY>"
        f"<LowerRightX>{world}</LowerRightX><LowerRightY>-{world}</LowerRightY>"
        "<TileLevel>3</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY>"
        "<YOrigin>top</YOrigin></DataWindow><Projection>EPSG:3857</Projection>"
        "<BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY>"
        "<BandsCount>4</BandsCount></GDAL_WMS>"
    )
    path = tmp_path / "world.xml"
    path.write_text(described)
    with rasterio.open(path) as opened:
        assert (opened.width, opened.height, opened.crs.to_epsg()) == (2048, 2048, 3857)
        window = Window(1280, 512, 256, 256)  # row 2, column 5 of zoom 3
        assert (opened.read(window=window) == picture(f"{style}/3/2/5").transpose(2, 0, 1)).all()


def test_results_are_kept_for_ever_and_collections_asked_again(gateway, file) -> None:
    part = "styles/t2m/map/tiles/WebMercatorQuad/1/0/1"
    fixed = httpx.get(f"{gateway.url}/ogc/collections/tl-an/{part}")
    assert fixed.headers["cache-control"] == "private, max-age=31536000, immutable"
    url = f"{gateway.url}/ogc/collections/filtering/{part}"
    moving = httpx.get(url, params={"datetime": TIME})
    assert moving.headers["cache-control"] == "private, no-cache"
    tag = {"If-None-Match": f'"other", {moving.headers["etag"]}'}
    again = httpx.get(url, params={"datetime": TIME}, headers=tag)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == moving.headers["etag"]
    spread = httpx.get(url.replace("t2m/", "t2m.spread/"), params={"datetime": TIME}, headers=tag)
    assert spread.status_code == 200
    assert spread.headers["etag"] != moving.headers["etag"]


def test_tiles_of_one_field_read_it_once(gateway, file, monkeypatch) -> None:
    analyses = Catalogue(gateway.layout)
    reader = FieldReader(DatasetLibrary(analyses, gateway.layout), analyses)
    read, compute = [], FieldReader._compute

    def slowly(self, opened, request):
        read.append(request)
        time.sleep(0.2)
        return compute(self, opened, request)

    monkeypatch.setattr(FieldReader, "_compute", slowly)
    asked = [FieldRequest("tl-an", "t2m"), FieldRequest("tl-an", "msl")] * 6
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(reader.extract, asked))
    assert sorted(request.name for request in read) == ["msl", "t2m"]
    assert all(one is found[i % 2] for i, one in enumerate(found))


def test_only_so_many_bytes_of_fields_are_kept(gateway, file, monkeypatch) -> None:
    analyses = Catalogue(gateway.layout)
    size = file["t2m_mean"][0].size * 4
    monkeypatch.setattr("service.data.fields.KEPT_BYTES", 2 * size)
    reader = FieldReader(DatasetLibrary(analyses, gateway.layout), analyses)
    first = reader.extract(FieldRequest("tl-an", "t2m"))
    second = reader.extract(FieldRequest("tl-an", "msl"))
    assert reader.extract(FieldRequest("tl-an", "t2m")) is first
    reader.extract(FieldRequest("tl-an", "u10"))  # msl was asked for longest ago
    assert reader.extract(FieldRequest("tl-an", "t2m")) is first
    assert reader.extract(FieldRequest("tl-an", "msl")) is not second


def test_pages_of_named_origins_may_read(tmp_path, valkey_url_shared: str) -> None:
    settings = GatewaySettings(
        data_dir=tmp_path, redis_url=valkey_url_shared, allow_origins="https://maps.example, "
    )
    with TestClient(create_app(settings)) as client:
        for origin, allowed in (("https://maps.example", True), ("https://other.example", False)):
            answer = client.get("/ogc/tileMatrixSets", headers={"Origin": origin})
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
    closed = GatewaySettings(data_dir=tmp_path, redis_url=valkey_url_shared)
    with TestClient(create_app(closed)) as client:
        answer = client.get("/ogc/tileMatrixSets", headers={"Origin": "https://maps.example"})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("styles/t2m/map/tiles/Mars/0/0/0", 404, "WebMercatorQuad or WorldCRS84Quad"),
        ("styles/t2m/map/tiles/WorldCRS84Quad/0/0/2", 404, "columns 0 to 1"),
        ("styles/t2m/map/tiles/WorldCRS84Quad/18/0/0", 404, "0 to 17"),
        ("styles/t2m/map/tiles/WorldCRS84Quad/0/-1/0", 404, "row -1"),
        ("styles/t2m/map/tiles/WorldCRS84Quad/0/a/0", 422, "integer"),
        ("styles/xx/map/tiles/WorldCRS84Quad/0/0/0", 422, "t2m"),
        ("styles/t2m.best/map/tiles/WorldCRS84Quad/0/0/0", 422, "spread"),
        ("styles/t2m.probability/map/tiles/WorldCRS84Quad/0/0/0", 422, "threshold"),
        ("styles/t/map/tiles/WorldCRS84Quad/0/0/0?elevation=700", 422, "500, 850"),
        ("styles/t/map/tiles/WorldCRS84Quad/0/0/0?datetime=2020-01-01T00:00:00Z", 404, "2020"),
        ("styles/t/map/tiles/WorldCRS84Quad/0/0/0?datetime=../2020-01-01T00:00:00Z", 422, "one"),
        ("styles/t/map/tiles/WorldCRS84Quad?f=tilejson", 422, "WebMercatorQuad"),
        ("map?crs=EPSG:9", 422, "EPSG:3857"),
        ("map?crs=EPSG:3413", 422, "EPSG:3413"),
        ("map?bbox=1,1,0,0", 422, "left, bottom"),
        ("map?bbox=0,0,9,9&bbox-crs=EPSG:3857&crs=CRS84", 422, "bbox-crs"),
    ],
)
def test_errors_are_problem_documents(gateway, file, path: str, status: int, says: str) -> None:
    answer = httpx.get(f"{gateway.url}/ogc/collections/tl-an/{path}")
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in json.dumps(answer.json())


@pytest.mark.parametrize("kind", ["regular", "gaussian"])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("columns", [24, 25])
def test_rows_then_columns_is_point_by_point(kind, vector, columns) -> None:
    grid = Grid("x", kind, 12, columns)
    field = np.random.default_rng(5).normal(size=grid.shape).astype(np.float32)
    field[4:6, 7:11] = np.nan
    lat, lon = np.linspace(90, -90, 67), np.linspace(-200, 400, 83)
    everywhere = [part.ravel() for part in np.meshgrid(lat, lon, indexing="ij")]
    wanted = sample(field, grid, *everywhere, vector=vector).reshape(67, 83)
    got = sample_lattice(field, grid, lat, lon, vector=vector)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
