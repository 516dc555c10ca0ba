"""Queries of a store that a worker filled: the same rows in every form, found by every condition."""

import csv
import io
import json
from datetime import UTC, datetime

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from gateway_process import GatewayProcess

from model.domain.observations import validate_table
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext
from worker.observations.store.store import ObservationStore

RECEIVED = datetime(2025, 3, 1, 6, 30, tzinfo=UTC)
HOUR = {"start": "2025-03-01T05:00:00Z", "end": "2025-03-01T06:00:00Z"}


@pytest.fixture(scope="module", autouse=True)
def stored(gateway: GatewayProcess) -> None:
    """40 temperatures at 06 UTC, at latitudes -60 to 57 and longitudes -170 to 142."""
    context = DecodeContext(batch_id="b-query", received_time=RECEIVED)
    rows = build_table(
        context,
        40,
        report_type=["synop", "ship"] * 20,
        station_id=[f"s{i:02d}" for i in range(40)],
        time=np.datetime64("2025-03-01T06:00", "ns"),
        lat=-60.0 + 3.0 * np.arange(40),
        lon=-170.0 + 8.0 * np.arange(40),
        elevation=0.0,
        vertical_kind="surface",
        variable="2m_temperature",
        obs_value=270.0 + np.arange(40),
        rejected_by=[None] * 38 + ["bounds", "duplicate"],
        qc_flag=[0] * 38 + [12, 30],
    )
    store = ObservationStore(str(gateway.layout.observations))
    store.publish(validate_table(rows), "b-query", RECEIVED, {})


def stations(http: httpx.Client, **conditions) -> list[str]:
    answer = http.get("/v1/observations", params={**HOUR, "format": "csv", **conditions})
    assert answer.status_code == 200, answer.text
    return [row["station_id"] for row in csv.DictReader(io.StringIO(answer.text))]


def test_the_same_rows_in_every_form(http: httpx.Client) -> None:
    table = pq.read_table(io.BytesIO(http.get("/v1/observations", params=HOUR).content))
    assert table.num_rows == 40
    assert table["obs_value"].to_pylist() == [270.0 + i for i in range(40)]
    geo = http.get("/v1/observations", params=HOUR, headers={"Accept": "application/geo+json"})
    assert geo.headers["content-type"] == "application/geo+json"
    features = json.loads(geo.content)["features"]
    assert features[3]["geometry"] == {"type": "Point", "coordinates": [-146.0, -51.0]}
    assert features[3]["properties"]["obs_value"] == 273.0
    assert features[3]["properties"]["time"] == "2025-03-01T06:00:00.000Z"
    assert stations(http) == [f"s{i:02d}" for i in range(40)]


def test_conditions(http: httpx.Client) -> None:
    assert stations(http, networks="ship")[:2] == ["s01", "s03"]
    assert stations(http, variables="temperature") == []
    assert stations(http, outcome="rejected") == ["s38", "s39"]
    assert stations(http, rejected_by="bounds") == ["s38"]
    assert stations(http, stations=["s05", "s07"]) == ["s05", "s07"]
    assert stations(http, stations="s05,s07") == ["s05", "s07"]
    assert stations(http, box="-170,-60,-160,-50") == ["s00", "s01"]
    assert stations(http, cut_off="2025-03-01T06:29:00Z") == []
    assert stations(http, batches="b-other") == []


def test_pages(http: httpx.Client) -> None:
    parameters = {**HOUR, "format": "csv", "limit": 25, "columns": "station_id"}
    first = http.get("/v1/observations", params=parameters)
    assert first.headers["x-next-offset"] == "25"
    rest = http.get("/v1/observations", params={**parameters, "offset": 25})
    assert "x-next-offset" not in rest.headers
    assert len(first.text.splitlines()) + len(rest.text.splitlines()) == 42  # with two headers


def test_nothing_there(http: httpx.Client) -> None:
    never = {"start": "1999-01-01T00:00:00Z", "end": "1999-01-01T06:00:00Z"}
    assert http.get("/v1/observations", params={**never, "format": "geojson"}).json() == {
        "type": "FeatureCollection",
        "features": [],
    }
    text = http.get("/v1/observations", params={**never, "format": "csv"}).text
    assert next(csv.reader(io.StringIO(text)))[0] == "observation_id"
    table = pq.read_table(io.BytesIO(http.get("/v1/observations", params=never).content))
    assert table.num_rows == 0


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"variables": "t2m"}, "variables"),
        ({"networks": "sinop"}, "networks"),
        ({"columns": "value"}, "columns"),
        ({"box": "1,2,3"}, "box"),
        ({"box": "nan,0,0,0"}, "box"),
        ({"box": "0,50,10,40"}, "box"),
        ({"end": "2025-03-01T04:00:00Z"}, "end"),
        ({"end": "2511-01-01T00:00:00Z"}, "end"),
        ({"start": "soon"}, "query.start"),
        ({"format": "xml"}, "query.format"),
        ({"limit": "0"}, "query.limit"),
    ],
)
def test_bad_parameters_are_named(http: httpx.Client, parameters: dict, field: str) -> None:
    answer = http.get("/v1/observations", params={**HOUR, **parameters})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/vnd.apache.parquet"),
        ("text/csv", "text/csv; charset=utf-8"),
        ("text/html, text/csv;q=0.5, application/geo+json;q=0.9", "application/geo+json"),
        ("text/*", "text/csv; charset=utf-8"),
        ("application/geo+json;q=0, text/csv;q=0.1", "text/csv; charset=utf-8"),
    ],
)
def test_accept(http: httpx.Client, accept: str, media_type: str) -> None:
    answer = http.get("/v1/observations", params=HOUR, headers={"Accept": accept})
    assert answer.headers["content-type"] == media_type


def test_not_acceptable(http: httpx.Client) -> None:
    answer = http.get("/v1/observations", params=HOUR, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
