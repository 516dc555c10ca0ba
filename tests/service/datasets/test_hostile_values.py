"""Values that no client means end in a 4xx problem that says what is expected, never in a 500."""

import json
import struct

import httpx
import published
import pytest


def refused(answer: httpx.Response, *statuses: int) -> dict:
    assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    body = answer.json()
    assert body["code"] != "internal_error"
    return body


DEEP = [f"{'[' * n}{']' * n}" for n in (60, 300, 900, 100_000)]
SURROGATES = [r'{"a": "\ud800"}', r'{"\udfff": 1}', r'{"a": [{"b": "x\udc00"}]}']


@pytest.mark.parametrize("where", ["decoder", "errors"])
@pytest.mark.parametrize("inner", DEEP, ids=len)
def test_deep_json_of_an_upload(http, where: str, inner: str) -> None:
    text = f'{{"entries": {inner}}}'
    answer = http.post(
        "/v1/observations",
        files={"file": ("a.bufr", b"BUFR" + struct.pack("i", len(inner)))},
        data={where: text},
    )
    problem = refused(answer, 422, 400)
    if answer.status_code == 422:
        assert problem["errors"][0]["field"].startswith(where)


@pytest.mark.parametrize("where", ["decoder", "errors"])
@pytest.mark.parametrize("text", [*SURROGATES, '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}'])
def test_values_that_json_cannot_hold(http, where: str, text: str) -> None:
    answer = http.post("/v1/observations", params={where: text}, content=b"BUFR" + text.encode())
    assert refused(answer, 422)["errors"][0]["field"].startswith(where)
    assert http.get("/v1/batches").status_code == 200


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/webhooks", "/v1/search"])
@pytest.mark.parametrize(
    "text",
    [
        *SURROGATES,
        *(f'{{"kind": {d}, "url": {d}}}' for d in DEEP),
        *(f'{{"kind": "filtering", "valid_time": {d}, "x": {d}}}' for d in DEEP),
        r'{"kind": "\ud800", "url": "http://\ud800/", "ids": ["\ud800"], "x\ud800": 1}',
        r'{"kind": "filtering", "valid_time": "2025-01-01T00:00:00Z", "model": "\ud800"}',
        r'{"url": "https://example.org/", "events": ["\ud800"], "description": "\ud800"}',
        r'{"collections": ["\ud800"], "datetime": "\ud800", "token": "\ud800"}',
        '{"kind": 1e999, "url": NaN, "limit": -Infinity}',
    ],
    ids=lambda text: text[:20] + str(len(text)),
)
def test_bodies(http, path: str, text: str) -> None:
    answer = http.post(path, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404, 422), answer.text[:500]
    assert json.loads(answer.text) is not None


@pytest.fixture(scope="module")
def dataset(gateway, tmp_path_factory) -> str:
    published.publish(gateway.layout, "an-hostile", tmp_path_factory.mktemp("h") / "1")
    return "/v1/data/an-hostile"


@pytest.mark.parametrize(
    "crs",
    ["nonsense", "EPSG:99999", "+proj=nothing", "", "\x00", "EPSG:5773", "{}", "+proj=geocent"],
)
@pytest.mark.parametrize(
    "query",
    [
        "position?coords=POINT(10 50)",
        "area?coords=POLYGON((0 40,20 40,20 60,0 60,0 40))",
        "cube?bbox=0,40,20,60",
    ],
    ids=["position", "area", "cube"],
)
def test_reference_systems(http, dataset: str, query: str, crs: str) -> None:
    path, _, rest = query.partition("?")
    name, _, value = rest.partition("=")
    answer = http.get(
        f"{dataset}/edr/{path}",
        params={name: value, "crs": crs, "parameter-name": "msl"},
    )
    problem = refused(answer, 422)
    assert "crs" in problem["detail"].lower()


@pytest.mark.parametrize(
    "chunk", ["-1/0/0/0", "0/-1/0/0", "+1/0/0/0", "1_0/0/0/0", "0/0/0/" + "9" * 5000, "٠/0/0/0"]
)
def test_chunks_that_do_not_exist(http, dataset: str, chunk: str) -> None:
    for variable in ("2m_temperature", "surface_pressure", "time"):
        refused(http.get(f"{dataset}/zarr/{variable}/c/{chunk}"), 404, 422)


@pytest.mark.parametrize(
    "coords",
    [
        "POLYGON((0.1 0.1,0.2 0.1,0.2 0.2,0.1 0.1))",
        "POLYGON EMPTY",
        "POINT(nan nan)",
        "POINT(1e400 0)",
    ],
)
def test_areas_without_a_cell(http, dataset: str, coords: str) -> None:
    for query in (f"{dataset}/edr/area", "/ogc/collections/an-hostile/area"):
        refused(http.get(query, params={"coords": coords}), 404, 422)


@pytest.mark.parametrize("name", ["t2m.probability", "time.year", "t2m,t.a", "."])
def test_names_that_are_attributes(http, dataset: str, name: str) -> None:
    for query in (f"{dataset}/edr/position", "/ogc/collections/an-hostile/position"):
        answer = http.get(query, params={"coords": "POINT(0 0)", "parameter-name": name})
        assert "parameter-name" in refused(answer, 422)["detail"]


def test_a_path_many_times_around_the_globe(http, dataset: str) -> None:
    """Its text is short, its points are many: they are counted before they are made."""
    path = ",".join(["-360 0,360 0"] * 3_000)
    answer = http.get(
        "/ogc/collections/an-hostile/trajectory", params={"coords": f"LINESTRING({path})"}
    )
    problem = refused(answer, 413)
    # 5 999 segments of 720 degrees, and the first point.
    assert problem["context"]["points"] == 1 + 5_999 * 2 * published.GRID.shape[1]
