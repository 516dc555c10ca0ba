"""Uploads through a real ingest worker, and through one that is killed."""

import hashlib
import subprocess
import time
from contextlib import suppress

import psutil
import pyarrow.parquet as pq
import pytest

from tests.faults.steps import sender
from tests.worker.processes import wait_for
from tests.worker.tables import make_table
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.layout import Layout
from worker.contract.queues import INGEST_BATCH, submit
from worker.contract.records import new_id
from worker.observations.store.store import ObservationStore


def upload(stores, processes, content: bytes, *, copies: int = 1) -> BatchRecord:
    """As the gateway does: file first, record second, message last."""
    layout = Layout(processes.data).create()
    batch_id = new_id("batch")
    path = layout.raw_file(batch_id)
    path.parent.mkdir()
    path.write_bytes(content)
    batch, _ = stores.batches.create(
        BatchRecord(
            id=batch_id,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            container="parquet",
        )
    )
    with sender(processes) as app:
        for _ in range(copies):
            submit(app, INGEST_BATCH, batch.id)
    return batch


def ended(stores, batch_id: str) -> BatchRecord:
    ends = (BatchState.INGESTED, BatchState.REJECTED, BatchState.FAILED)
    wait_for(lambda: stores.batches.get(batch_id).state in ends, 60)
    return stores.batches.get(batch_id)


@pytest.fixture
def content(tmp_path) -> bytes:
    """Five stations' temperatures as a Parquet table."""
    table = make_table(5)
    path = tmp_path / "upload.parquet"
    pq.write_table(table, path)
    return path.read_bytes()


def stored_rows(processes, batch_id: str) -> int:
    store = ObservationStore(str(Layout(processes.data).observations))
    found = store.files.manifest(batch_id)
    return 0 if found is None else found.rows


def test_an_upload_is_taken_in_and_rubbish_is_rejected(stores, processes, content):
    processes.appa("worker", "ingest")
    good = upload(stores, processes, content, copies=3)
    bad = upload(stores, processes, b"BUFR, but not really" * 10)
    done = ended(stores, good.id)
    assert done.state is BatchState.INGESTED, (done.error, processes.log())
    assert done.summary.observations == 5
    assert done.attempts == 1
    assert stored_rows(processes, good.id) == 5
    rejected = ended(stores, bad.id)
    assert rejected.state is BatchState.REJECTED
    assert rejected.error.code == "decode_error"
    assert rejected.summary.decode_report


def test_kill_9_of_the_ingest_worker_and_the_batch_is_taken_in_once(
    stores, processes, content, tmp_path
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    worker = processes.appa("worker", "ingest", TMPDIR=str(scratch))
    processes.appa("worker", "scheduler")
    batch = upload(stores, processes, content)
    wait_for(lambda: stores.batches.get(batch.id).state is BatchState.INGESTING)
    processes.kill(worker)
    assert stores.batches.get(batch.id).state is BatchState.INGESTING
    left = scratch / f"appa-limited-{worker.pid}-left"
    left.mkdir()
    (left / "request").write_text("of a decoder that is gone")
    processes.appa("worker", "ingest", TMPDIR=str(scratch))
    done = ended(stores, batch.id)
    assert done.state is BatchState.INGESTED, (done.error, processes.log())
    assert done.attempts >= 2
    assert stored_rows(processes, batch.id) == 5
    assert not left.exists()


def decoders(worker: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that decode for a worker now: children of those that fork them."""
    found = []
    for process in psutil.Process(worker.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if parent and "worker.fork_server" in parent.cmdline():
                found.append(process)
    return found


def test_decoders_killed_from_outside_reject_no_upload(stores, processes, tmp_path):
    """As the kernel kills when the machine has no memory: more often than one attempt endures."""
    path = tmp_path / "upload.parquet"
    pq.write_table(make_table(40_000), path)
    worker = processes.appa("worker", "ingest")
    batch = upload(stores, processes, path.read_bytes())
    end = time.monotonic() + 60
    unended = (BatchState.RECEIVED, BatchState.INGESTING)
    while (now := stores.batches.get(batch.id)).attempts < 2 and now.state in unended:
        assert time.monotonic() < end, processes.log()
        for process in decoders(worker):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.005)
    done = ended(stores, batch.id)
    assert done.state is BatchState.INGESTED, done.error
    assert stored_rows(processes, batch.id) == 40_000
