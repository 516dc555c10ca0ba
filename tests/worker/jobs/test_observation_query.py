"""Queries: restrictions, pages and formats."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from model.domain.errors import InvalidInput, UnknownName
from tests.worker.tables import make_table
from worker.observations.export import ROW_FORMATS
from worker.observations.store.query import ObservationQuery, query_observations
from worker.observations.store.store import ObservationStore

START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    store = ObservationStore(str(tmp_path_factory.mktemp("store")))
    for i in range(3):
        table = make_table(
            20,
            batch_id=f"b{i}",
            lat=np.linspace(-90, 90, 20),
            lon=np.linspace(-180, 170, 20),
            time=np.datetime64("2024-01-01T00:30", "ns") + np.arange(20) * np.timedelta64(30, "m"),
            rejected_by=["track" if k % 5 == 0 else None for k in range(20)],
        )
        store.publish(table, f"b{i}", START + timedelta(hours=12 + i))
    return store.files


def ask(files, **question):
    return query_observations(
        files, ObservationQuery(start=START, end=START + timedelta(hours=24), **question)
    )


def test_outcome(files):
    assert len(ask(files).table) == 60
    assert len(ask(files, outcome="used").table) == 48
    assert len(ask(files, outcome="rejected").table) == 12
    assert len(ask(files, rejected_by=["track"]).table) == 12
    assert len(ask(files, rejected_by=["buddy"]).table) == 0


@pytest.mark.parametrize(
    ("box", "count"),
    [
        ((-180, -90, 180, 90), 20),
        ((0, -90, 170, 90), 10),
        ((160, -90, -160, 90), 3),  # across the date line: 170, -180 and -161.6
        ((-180, 0, 180, 90), 10),
        ((350, -90, 20, 90), 2),  # -4.2... and 14.2 degrees, west given as 350
    ],
)
def test_boxes(files, box, count):
    lon = np.linspace(-180, 170, 20)
    table = ask(files, box=box, batches=["b0"]).table
    if box[0] == 350:
        count = int(((lon >= -10) & (lon <= 20)).sum())
    assert len(table) == count


def test_stations_and_cut_off(files):
    assert len(ask(files, stations=["00003", "00004"]).table) == 6
    assert len(ask(files, cut_off=START + timedelta(hours=13)).table) == 40


def test_pages_cover_everything_once(files):
    seen, offset = [], 0
    while offset is not None:
        page = ask(files, limit=7, offset=offset)
        seen += zip(
            page.table["batch_id"].to_pylist(),
            page.table["observation_id"].to_pylist(),
            strict=True,
        )
        assert len(page.table) <= 7
        offset = page.next_offset
    assert len(seen) == len(set(seen)) == 60


def test_last_full_page_ends(files):
    assert ask(files, limit=60).next_offset is None
    assert ask(files, limit=59).next_offset == 59
    assert len(ask(files, offset=60).table) == 0


def test_formats_hold_the_same_rows(files):
    table = ask(files, columns=["time", "lat", "lon", "variable", "obs_value", "rejected_by"]).table
    back = pq.read_table(io.BytesIO(ROW_FORMATS["parquet"].encode(table)))
    assert back.to_pylist() == table.to_pylist()
    rows = list(csv.DictReader(io.StringIO(ROW_FORMATS["csv"].encode(table).decode())))
    assert rows[0]["time"] == "2024-01-01T00:30:00.000Z"
    assert [float(r["lat"]) for r in rows] == table["lat"].to_pylist()
    features = json.loads(ROW_FORMATS["geojson"].encode(table))["features"]
    assert len(features) == 60
    assert features[0]["geometry"] == {"type": "Point", "coordinates": [-180.0, -90.0]}
    assert features[0]["properties"]["rejected_by"] == "track"
    assert features[3]["properties"]["rejected_by"] is None


def test_geojson_needs_a_position(files):
    with pytest.raises(InvalidInput, match="lat and lon"):
        ROW_FORMATS["geojson"].encode(ask(files, columns=["time"]).table)


@pytest.mark.parametrize(
    "question",
    [{"limit": 0}, {"box": (0, 50, 10, 40)}, {"outcome": "good"}, {"unknown": 1}, {"offset": -1}],
)
def test_faulty_questions(files, question):
    with pytest.raises(ValidationError):
        ask(files, **question)


@pytest.mark.parametrize(
    "question", [{"variables": ["wind"]}, {"report_types": ["x"]}, {"columns": ["x"]}]
)
def test_unknown_names(files, question):
    with pytest.raises((ValidationError, UnknownName), match="Unknown"):
        ask(files, **question)


def test_times_need_a_zone_and_order():
    with pytest.raises(ValidationError):
        ObservationQuery(start=datetime(2024, 1, 1), end=START)
    with pytest.raises(ValidationError, match="end after the start"):
        ObservationQuery(start=START, end=START)


def test_long_times_look_only_at_what_exists(files):
    long = ObservationQuery(
        start=START - timedelta(days=36_500), end=START + timedelta(days=36_500)
    )
    page = query_observations(files, long)
    assert len(page.table) == 60
    assert page.table["time"].to_pylist()[0] == START + timedelta(minutes=30)
