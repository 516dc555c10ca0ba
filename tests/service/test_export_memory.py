"""Answers of all rows to many readers at once: pages of a bounded size, text made block by block."""

import contextlib
import io
import json
import socket
import time
from datetime import UTC, datetime

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.answer_limits import RowBudget
from service.errors import Unavailable
from tests.worker.tables import make_table
from worker.observations.export import ROW_FORMATS
from worker.observations.store.store import ObservationStore

ROWS = 120_000
READERS = 3
ASKED = {"start": "2024-01-01T11:00:00Z", "end": "2024-01-01T12:00:00Z", "limit": "1000000"}


@pytest.fixture
def full(start_gateway):
    return full_gateway(start_gateway)


def full_gateway(start_gateway, **environment):
    gateway = start_gateway(**environment)
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


def stalled_reader(url: str, form: str) -> tuple[int, bytes, socket.socket]:
    """Ask for all rows, and take no more of the answer than its head: status, head, connection."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", httpx.URL(url).port))
    asked = httpx.URL("/v1/observations", params={**ASKED, "format": form})
    connection.sendall(f"GET {asked} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(256)
    return int(head.split()[1]), head, connection


def test_rows_that_stalled_readers_hold_are_bounded(start_gateway):
    """A few are served, the others are told when to come again; all is free once they are gone."""
    gateway = full_gateway(start_gateway, APPA_QUERY_HELD_BYTES=str(60_000_000))
    asked = {**ASKED, "format": "parquet"}
    whole = httpx.get(f"{gateway.url}/v1/observations", params=asked, timeout=60)
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack:
        answers = [stalled_reader(gateway.url, "parquet") for _ in range(12)]
        for _, _, connection in answers:
            stack.enter_context(connection)
        grown = process.memory_info().rss - before
        assert httpx.get(f"{gateway.url}/health/live", timeout=5).status_code == 200
    served = [status for status, *_ in answers if status == 200]
    refused = [head for status, head, _ in answers if status == 503]
    assert 1 <= len(served) <= 4
    assert len(served) + len(refused) == 12
    assert all(b"retry-after: 10" in head.lower() for head in refused)
    assert grown < 200_000_000
    end = time.monotonic() + 20
    while (again := httpx.get(f"{gateway.url}/v1/observations", params=asked)).status_code == 503:
        assert again.json()["code"] == "too_many_rows"
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(again.content) == len(whole.content)


def test_parquet_comes_in_parts_that_are_freed_once_sent():
    table = make_table(3 * ROWS, batch_id="all", obs_value=250.0 + np.arange(3 * ROWS) % 97)
    blocks = list(ROW_FORMATS["parquet"].write(table))
    assert max(map(len, blocks)) <= 1 << 20
    back = pq.read_table(io.BytesIO(b"".join(blocks)))
    assert back["obs_value"].to_pylist() == table["obs_value"].to_pylist()
    assert pq.ParquetFile(io.BytesIO(b"".join(blocks))).num_row_groups > 2
    size = table.nbytes
    before = pa.total_allocated_bytes() - size
    chunks = pa.concat_tables(
        pa.Table.from_batches([b]) for b in copied(table.to_batches(ROWS // 2))
    )
    del table, back
    writer = ROW_FORMATS["parquet"].write(chunks)
    del chunks
    next(writer)
    first = pa.total_allocated_bytes()
    for _ in writer:
        last = pa.total_allocated_bytes()
    assert last - before < (first - before) / 2


def copied(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    return [batch.take(pa.array(range(batch.num_rows))) for batch in batches]


def test_one_answer_may_pass_the_limit_alone_and_gives_its_share_back():
    budget = RowBudget(100, 1)
    large = budget.hold()
    large.add(80)
    large.add(80)
    with pytest.raises(Unavailable) as refused:
        budget.hold().add(1)
    assert refused.value.code == "too_many_rows"
    large.release()
    first, second = budget.hold(), budget.hold()
    first.add(60)
    second.add(40)
    with pytest.raises(Unavailable):
        second.add(1)
    assert budget.held == 60
    del first
    assert budget.held == 0
