"""Example files over HTTP: read here by other programs than those that wrote them."""

import csv
import io
import json

import httpx
import pandas as pd
import pytest

# The first row, as `docs/observations.md` shows it: Berlin, 2 m temperature.
BERLIN = ("10384", 52.47, 13.40, 275.4)


def from_csv(content: bytes) -> list[tuple]:
    rows = csv.DictReader(io.StringIO(content.decode()))
    return [
        (r["station_id"], float(r["lat"]), float(r["lon"]), float(r["obs_value"])) for r in rows
    ]


def from_parquet(content: bytes) -> list[tuple]:
    frame = pd.read_parquet(io.BytesIO(content))
    return list(frame[["station_id", "lat", "lon", "obs_value"]].itertuples(index=False, name=None))


def from_geojson(content: bytes) -> list[tuple]:
    return [
        (
            f["properties"]["station_id"],
            *reversed(f["geometry"]["coordinates"]),
            f["properties"]["obs_value"],
        )
        for f in json.loads(content)["features"]
    ]


def from_earth2studio(content: bytes) -> list[tuple]:
    frame = pd.read_parquet(io.BytesIO(content))
    return list(frame[["station", "lat", "lon", "observation"]].itertuples(index=False, name=None))


READERS = {
    "csv": from_csv,
    "parquet": from_parquet,
    "geojson": from_geojson,
    "earth2studio": from_earth2studio,
}


@pytest.mark.parametrize("name", READERS)
def test_a_template_is_ten_observations_and_can_be_uploaded(http: httpx.Client, name: str) -> None:
    [entry] = [t for t in http.get("/v1/templates").json() if t["name"] == name]
    assert entry["url"] == f"/v1/templates/{name}"
    answer = http.get(entry["url"])
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == entry["media_type"]
    assert f'filename="{entry["file_name"]}"' in answer.headers["content-disposition"]
    rows = READERS[name](answer.content)
    assert len(rows) == 10
    station, *numbers = rows[0]
    assert station == BERLIN[0]
    assert numbers == pytest.approx(BERLIN[1:], rel=1e-6)
    params = {"file_name": entry["file_name"]}
    sent = http.post("/v1/observations", content=answer.content, params=params)
    assert sent.status_code in (200, 202), sent.text


def test_the_list_is_complete(http: httpx.Client) -> None:
    assert [t["name"] for t in http.get("/v1/templates").json()] == list(READERS)


def test_what_there_is_no_template_of(http: httpx.Client) -> None:
    answer = http.get("/v1/templates/ioda")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "appa observations template ioda" in answer.json()["detail"]
    assert answer.json()["context"]["known"] == list(READERS)
    assert http.post("/v1/templates/csv", content=b"").status_code == 405
