"""A disk that is full for a while: the data of a real worker on a small file system of its own."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.full_disk import can_mount, fill
from tests.faults.test_lost_ingest import upload
from tests.worker.processes import wait_for
from tests.worker.tables import make_table
from worker.contract.batches import BatchState
from worker.contract.layout import Layout

MOUNT = "mount -t tmpfs -o size=4m none {folder} && exec {python} -m deploy.cli worker ingest"


@pytest.mark.skipif(not can_mount(), reason="file systems cannot be mounted here")
def test_an_upload_waits_while_the_disk_is_full_and_is_ingested_when_there_is_room(
    stores, processes, tmp_path
):
    folder = Layout(processes.data).create().observations
    worker = processes.start(
        "unshare",
        "-m",
        "sh",
        "-c",
        MOUNT.format(folder=folder, python=sys.executable),
        APPA_ATTEMPTS="2",
        APPA_RETRY_BACKOFF_SECONDS="1",
        APPA_RETRY_BACKOFF_MAX_SECONDS="1",
    )
    wait_for(lambda: stores.workers.ready("ingest"), 60)
    ballast = Path(f"/proc/{worker.pid}/root{folder}/ballast")  # as the worker sees it
    fill(ballast)
    table = tmp_path / "table.parquet"
    pq.write_table(make_table(5), table)
    batch = upload(stores, processes, table.read_bytes())
    wait_for(lambda: stores.batches.get(batch.id).attempts > 3, 90)
    waiting = stores.batches.get(batch.id)
    assert waiting.state in (BatchState.RECEIVED, BatchState.INGESTING)
    assert waiting.error.code == "disk_full"
    ballast.unlink()
    wait_for(lambda: stores.batches.get(batch.id).state is BatchState.INGESTED, 60)
    assert stores.batches.get(batch.id).summary.observations == 5
