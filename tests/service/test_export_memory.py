"""Answers of all rows to many readers at once: pages of a bounded size, text made block by block."""

import json
from datetime import UTC, datetime

import httpx
import numpy as np
import pyarrow as pa
import pytest

from tests.worker.tables import make_table
from worker.observations.export import ROW_FORMATS
from worker.observations.store.store import ObservationStore

ROWS = 120_000
READERS = 3
ASKED = {"start": "2024-01-01T11:00:00Z", "end": "2024-01-01T12:00:00Z", "limit": "1000000"}


@pytest.fixture
def full(start_gateway):
    gateway = start_gateway()
    table = make_table(ROWS, batch_id="all", obs_value=250.0 + np.arange(ROWS) % 97)
    store = ObservationStore(str(gateway.layout.observations))
    store.publish(table, "all", datetime(2024, 1, 1, 12, 30, tzinfo=UTC), {})
    return gateway


def test_geojson_of_all_rows_comes_in_pages(full):
    with httpx.Client(base_url=full.url, timeout=60) as http:
        first = http.get("/v1/observations", params={**ASKED, "format": "geojson"})
        rest = {**ASKED, "format": "geojson", "offset": first.headers["X-Next-Offset"]}
        last = http.get("/v1/observations", params=rest)
    found = [json.loads(answer.content)["features"] for answer in (first, last)]
    assert [len(features) for features in found] == [100_000, 20_000]
    assert "X-Next-Offset" not in last.headers
    stations = {f["properties"]["station_id"] for features in found for f in features}
    assert stations == {f"{i:05d}" for i in range(ROWS)}


@pytest.mark.parametrize("form", ["geojson", "csv"])
def test_text_of_many_readers_is_made_block_by_block(form):
    """Readers that have begun to read take a quarter of the memory of their tables."""
    table = make_table(ROWS, batch_id="all", obs_value=250.0 + np.arange(ROWS) % 97)
    before = pa.total_allocated_bytes()
    writers = [ROW_FORMATS[form].write(table) for _ in range(READERS)]
    for writer in writers:
        next(writer)
        next(writer)
    assert pa.total_allocated_bytes() - before < READERS * table.nbytes / 4
