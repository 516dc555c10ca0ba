"""A machine whose disk is lost comes back from buckets alone: `appa backup s3://…` and `appa restore`."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
import typer
from typer.testing import CliRunner

from deploy.commands.backup import backup_app, recover_app, restore_app
from model.domain.errors import InvalidInput
from tests.objects.conftest import MakeLayout
from tests.objects.s3_server import OBSERVATIONS, S3Server
from tests.objects.test_publication import LARGE, publish
from tests.objects.test_uploads import read, store_upload
from tests.worker.conftest import BrokerProcess
from worker.contract.buckets import BucketUnavailable
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.records import new_id
from worker.contract.store import open_stores
from worker.contract.uploads import upload_store
from worker.results.manifest import Pin, is_pinned, pin
from worker.results.store import result_store

ONLY_HERE = {
    "sources.yaml": b"sources: {}\n",
    "keys.json": b"{}",
    "verification/202501/20250101T00_final_v1_an-1.parquet": b"series",
    "logs/audit.jsonl": b'{"action": "job"}\n',
    "logs/audit-20250101T000000.jsonl": b'{"action": "upload"}\n',
}


@pytest.fixture
def address(
    server: S3Server, own_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setenv("APPA_REDIS_URL", own_broker.url)
    monkeypatch.setenv("APPA_RESULTS_URL", server.url)
    monkeypatch.setenv("APPA_UPLOADS_URL", server.uploads_url)
    monkeypatch.setenv("APPA_OBSERVATIONS_URL", f"s3://{server.bucket}/{OBSERVATIONS}")
    yield f"s3://{server.bucket}/appa/backups/monday.tar.gz"
    structlog.reset_defaults()


def call(app: typer.Typer, *words: str, data: Layout) -> str:
    done = CliRunner().invoke(app, [*words, "--data", str(data.root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_nothing_is_lost_with_the_machine(
    machine: MakeLayout, own_broker: BrokerProcess, address: str, tmp_path: Path
) -> None:
    lost = machine()
    stores = open_stores(own_broker.url, "appa", lost)
    publish(lost, "an-1")
    pin(lost, Pin(analysis_id="an-1", note="the storm"))
    upload = store_upload(lost, LARGE)
    for name, content in ONLY_HERE.items():
        path = lost.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    job_id = new_id("job")
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, 12, tzinfo=UTC))
    job, _ = stores.jobs.create(JobRecord(id=job_id, analysis_id=f"an{job_id[3:]}", spec=spec))
    assert "copy them" not in call(backup_app, address, data=lost)
    with pytest.raises(InvalidInput, match="exists"):
        call(backup_app, address, data=lost)

    assert stores.archive is not None
    stores.archive.close()
    shutil.rmtree(lost.root)
    stores.redis.flushall()
    new = Layout(tmp_path / "new", lost.results_url, uploads_url=lost.uploads_url)
    assert "next: say --check" in call(restore_app, address, data=new)
    assert "1 result with 2 files" in call(restore_app, address, "--check", "--digests", data=new)
    for name, content in ONLY_HERE.items():
        assert (new.root / name).read_bytes() == content, name
    assert is_pinned(new, "an-1")
    assert result_store(new).file("an-1", "a.nc").read_bytes() == LARGE
    assert stores.jobs.get(job.id) == job
    call(recover_app, "--grace", "0", data=new)  # what came after the backup
    assert stores.batches.get(upload.id).sha256 == upload.sha256
    assert read(upload_store(new), upload) == LARGE


def test_a_bucket_that_fails_leaves_no_part_of_a_backup(
    machine: MakeLayout, server: S3Server, address: str
) -> None:
    layout = machine()
    server.meddle = lambda method, path: 403 if method in ("PUT", "POST") else None
    with pytest.raises(BucketUnavailable):
        call(backup_app, address, data=layout)
    assert server.names(below="appa/backups/") == []
    server.meddle = lambda method, path: None
    with pytest.raises(InvalidInput, match="does not exist"):
        call(restore_app, address, data=layout)
    with pytest.raises(InvalidInput, match=r"tar\.gz"):
        call(backup_app, address.removesuffix(".tar.gz"), data=layout)
