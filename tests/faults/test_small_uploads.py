"""Small uploads through real workers: together, past a large file, and each once after a kill."""

import hashlib
import io
import os
import signal

import httpx
import numpy as np
import pyarrow.parquet as pq

from tests.deploy.collector import Collector
from tests.faults.steps import sender
from tests.service.gateway_process import GatewayProcess
from tests.worker.decoders.bufr_messages import synop
from tests.worker.processes import wait_for
from tests.worker.tables import make_table
from worker.contract.batches import BatchRecord, BatchState, Lane
from worker.contract.layout import Layout
from worker.contract.queues import INGEST_LARGE_QUEUE, submit_batch
from worker.contract.records import new_id
from worker.observations.store.store import ObservationStore


def received(stores, processes, content, container="bufr") -> BatchRecord:
    """As the gateway keeps an upload, before its message."""
    layout = Layout(processes.data).create()
    batch_id = new_id("batch")
    path = layout.raw_file(batch_id)
    path.parent.mkdir()
    path.write_bytes(content)
    record = BatchRecord(
        id=batch_id,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        container=container,
    )
    return stores.batches.create(record)[0]


def call(stores, processes, batch) -> None:
    with sender(processes) as app:
        submit_batch(app, stores.workers, batch.id, large=batch.lane is Lane.LARGE)


def bulletins(count, first=0):
    return [synop(airTemperature=250.0 + 0.1 * (first + n)) for n in range(count)]


def commits(processes) -> int:
    store = ObservationStore(str(Layout(processes.data).observations))
    return sum(len(log.commits()) for log in store.files.logs())


def test_one_message_brings_all_that_wait_in_few_commits(stores, processes):
    batches = [received(stores, processes, content) for content in bulletins(80)]
    call(stores, processes, batches[-1])
    processes.appa("worker", "ingest")
    wait_for(lambda: stores.batches.count(BatchState.INGESTED) == 80, 60)
    assert {stores.batches.get(b.id).attempts for b in batches} == {1}
    assert commits(processes) <= 3
    store = ObservationStore(str(Layout(processes.data).observations))
    assert list(store.files.batches()) == sorted(b.id for b in batches)


def test_a_small_bulletin_does_not_wait_behind_a_large_file(stores, processes):
    """The large one is held while it is taken in, however long that would last."""
    busy = processes.appa("worker", "ingest-large", APPA_LEASE_SECONDS="120")  # outlasts the hold
    processes.appa("worker", "ingest")
    wait_for(
        lambda: stores.workers.ready(INGEST_LARGE_QUEUE) and stores.workers.ready("ingest"), 60
    )
    rows = 20_000
    time = np.datetime64("2026-03-01T00:00", "ns") + np.arange(rows) * np.timedelta64(10, "ms")
    content = io.BytesIO()
    pq.write_table(make_table(rows, time=time), content)
    large = received(stores, processes, content.getvalue(), "parquet")
    assert large.lane is Lane.LARGE
    call(stores, processes, large)
    wait_for(lambda: stores.batches.get(large.id).state is BatchState.INGESTING)
    os.killpg(busy.pid, signal.SIGSTOP)
    small = received(stores, processes, bulletins(1)[0])
    assert small.lane is Lane.SMALL
    call(stores, processes, small)
    wait_for(lambda: stores.batches.get(small.id).state is BatchState.INGESTED)
    assert stores.batches.get(large.id).state is BatchState.INGESTING
    os.killpg(busy.pid, signal.SIGCONT)
    wait_for(lambda: stores.batches.get(large.id).state is BatchState.INGESTED, 90)


def test_a_killed_worker_loses_and_doubles_none_of_those_it_had_taken(stores, processes):
    batches = [received(stores, processes, content) for content in bulletins(60)]
    call(stores, processes, batches[0])
    worker = processes.appa("worker", "ingest")
    wait_for(lambda: stores.batches.count(BatchState.INGESTING) > 0, 60)
    processes.kill(worker)
    processes.appa("worker", "scheduler")
    processes.appa("worker", "ingest")
    wait_for(lambda: stores.batches.count(BatchState.INGESTED) == 60, 90)
    store = ObservationStore(str(Layout(processes.data).observations))
    assert list(store.files.batches()) == sorted(b.id for b in batches)
    assert {stores.batches.get(b.id).summary.observations for b in batches} == {1}


def test_uploads_taken_together_are_a_trace_each_and_the_last_spans_are_sent(processes, stores):
    with Collector() as collector:
        late = collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
        processes.environment |= late
        gateway = GatewayProcess(processes.redis_url, processes.data, processes.prefix, late)
        try:
            url = f"{gateway.start().url}/v1/observations"
            for name, content in zip("ab", bulletins(2), strict=True):
                asked = {"X-Request-ID": f"request-{name}"}
                assert httpx.post(url, content=content, headers=asked).status_code == 202
        finally:
            gateway.stop()
        worker = processes.appa("worker", "ingest")
        wait_for(lambda: stores.batches.count(BatchState.INGESTED) == 2, 60)
        worker.terminate()
        worker.wait(30)
    tasks = [span for span in collector.spans if span.name == "appa.ingest_batch"]
    assert len({task.trace for task in tasks}) == len(tasks) == 2
    assert {task.attributes["appa.request_id"] for task in tasks} == {"request-a", "request-b"}
    for task in tasks:
        (top,) = [s for s in collector.spans if s.id == task.parent]
        assert (top.part, top.name, top.trace) == ("gateway", "POST /v1/observations", task.trace)
        assert (task.part, task.attributes["appa.together"]) == ("ingest", 2)
        assert task.attributes["appa.outcome"] == "succeeded"
        assert collector.tree(task.trace, task.id) == {
            ("ingest", "decoding"): {},
            ("ingest", "storing"): {("ingest", "commit rows"): {}},
        }
    (line,) = [line for line in processes.log().splitlines() if "finished" in line]
    assert all(text in line for task in tasks for text in (task.trace, task.attributes["appa.id"]))
