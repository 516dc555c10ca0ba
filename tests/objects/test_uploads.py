"""Uploads in a bucket: kept whole or not at all, once, read anywhere, deleted record first."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from tests.objects.conftest import MakeLayout
from tests.objects.s3_server import UPLOADS, S3Server
from tests.objects.test_service import appa
from tests.worker.processes import Processes
from worker.contract import objects
from worker.contract.acceptance import Intake
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.buckets import BucketUnavailable
from worker.contract.layout import Layout
from worker.contract.part_file import PartFile
from worker.contract.records import new_id
from worker.contract.store import Stores
from worker.contract.uploads import KeptUpload, UploadStore, upload_store
from worker.pipeline import ingest
from worker.process import message_sender
from worker.results.retention.plan import InUse, RetentionItem, RetentionPolicy, make_plan
from worker.results.retention.run import remove
from worker.scheduler import Reconciler
from worker.settings import WorkerSettings

LARGE = bytes(range(256)) * 50_000  # 12.8 MB: more than one part


def store_upload(layout: Layout, content: bytes, name: str = "") -> BatchRecord:
    """Keeps bytes as the gateway does, without a record in Redis."""
    with PartFile(layout.upload(name or new_id("batch"))) as part:
        part.write(content)
        record = BatchRecord(
            id=part.path.name.removeprefix("upload-"),
            sha256=part.sha256,
            size=part.size,
            container="csv",
            options={"report_type": "synop"},
        )
        upload_store(layout).keep(part, record)
    return record


def read(uploads: UploadStore, record: BatchRecord) -> bytes:
    with uploads.local({record.id: record.sha256}) as found:
        return found[record.id].read_bytes()


def dated(day: str) -> str:
    return f"batch-{day}t060000000-0000000a"


@pytest.mark.parametrize("content", [b"a", LARGE])
def test_bytes_come_first_and_the_record_makes_the_upload(
    machine: MakeLayout, server: S3Server, content: bytes
) -> None:
    here, there = machine(), machine()
    record = store_upload(here, content)
    put = [path for verb, path, _ in server.requests if verb == "PUT" and UPLOADS in path]
    written = [path.split(UPLOADS)[1] for path in put]
    day = record.id[6:14]
    assert written[-1] == f"records/{day}/{record.id}.json"
    assert set(written[:-1]) <= {f"content/{day}/{record.id}"}
    assert server.get(f"content/{day}/{record.id}", UPLOADS) == content
    uploads = upload_store(there)
    assert uploads.has(record.id) and list(uploads.names()) == [record.id]
    assert uploads.record(record.id) == record
    assert read(uploads, record) == content
    for layout in (here, there):
        assert list(layout.tmp.iterdir()) == [] and list(layout.raw.iterdir()) == []
    assert uploads.forget(record.id) and not uploads.forget(record.id)
    assert server.names(below=UPLOADS) == []
    with pytest.raises(FileNotFoundError, match=record.id), uploads.local({record.id: ""}):
        pass


def test_bytes_without_a_record_are_no_upload_and_go_after_a_while(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    server.meddle = lambda method, path: 500 if "/records/" in path else None
    with pytest.raises(BucketUnavailable):
        store_upload(layout, b"died")
    server.meddle = lambda method, path: None
    kept = store_upload(layout, b"kept")
    uploads = upload_store(layout)
    assert len(server.names("content/", UPLOADS)) == 2
    assert list(uploads.names()) == [kept.id]
    assert uploads.sweep(3600.0) == 0  # it may be under way
    assert uploads.sweep(-60.0) == 1
    assert [name.rsplit("/")[-1] for name in server.names("content/", UPLOADS)] == [kept.id]


def test_copies_of_a_killed_worker_go_when_the_next_one_starts(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    record = store_upload(layout, b"held")
    program = (
        "import os, signal\n"
        "from worker.contract.uploads import upload_store\n"
        "from worker.settings import WorkerSettings\n"
        f"with upload_store(WorkerSettings().layout).local({{{record.id!r}: ''}}) as found:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {
        **server.environment,
        "APPA_UPLOADS_URL": server.uploads_url,
        "APPA_DATA_DIR": str(layout.root),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60)
    (left,) = layout.tmp.iterdir()
    assert left.read_bytes() == b"held"
    beside = Layout(layout.root, uploads_url=server.uploads_url)  # another process of this folder
    with upload_store(layout).local({record.id: ""}) as found:
        upload_store(beside)
        assert not left.exists()
        assert found[record.id].read_bytes() == b"held"


def test_small_uploads_are_fetched_once_and_lost_bytes_cost_their_own_only(
    machine: MakeLayout, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = replace(ingest.SMALL_LIMITS, wall_seconds=120.0)  # on a busy machine
    monkeypatch.setattr(ingest, "SMALL_LIMITS", patient)
    monkeypatch.setattr(ingest, "SENDER_SECONDS", 120.0)
    layout = machine()
    head = "time,lat,lon,report_type,station_id,variable,obs_value\n"
    row = "2024-03-01T00:00:00Z,50.0,5.0,synop,06610,2m_temperature,280.0\n"
    lost, kept = (store_upload(layout, f"{head}{row}".encode()) for _ in range(2))
    lost_content = next(name for name in server.names("content/", UPLOADS) if lost.id in name)
    server.client().delete_object(Bucket=server.bucket, Key=f"{UPLOADS}{lost_content}")
    assert upload_store(layout).has(lost.id)  # its record is there
    del server.requests[:]
    arrived = {one.batch.id: one.decoded for one in ingest.decode_small([lost, kept], layout)}
    assert arrived[lost.id] is None
    assert arrived[kept.id] is not None and arrived[kept.id].table.num_rows == 1
    asked = [path.rsplit("/")[-1] for _, path, _ in server.requests]
    assert sorted(asked) == sorted([lost.id, kept.id])


def test_bytes_that_are_not_those_received_are_refused(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    record = store_upload(layout, b"right")
    name = server.names("content/", UPLOADS)[0]
    server.client().put_object(Bucket=server.bucket, Key=f"{UPLOADS}{name}", Body=b"wrong")
    with pytest.raises(BucketUnavailable, match="SHA-256"):
        read(upload_store(layout), record)
    assert list(layout.tmp.iterdir()) == []


def test_the_newest_are_listed_first_and_no_day_more_than_is_asked_for(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    names = [dated(day) for day in ("20260101", "20260102", "20260103")] + ["by-hand"]
    for name in names:
        store_upload(layout, b"x", name)
    uploads = upload_store(layout)
    assert set(uploads.names()) == set(names)
    assert [name for name in uploads.names() if name != "by-hand"] == names[2::-1]
    newest = uploads.names()
    before = len(server.requests)
    assert {next(newest), next(newest)} == {"by-hand", names[2]}
    assert len(server.requests) - before == 3  # the days, and two of them
    until = datetime(2026, 1, 2, 12, tzinfo=UTC)
    found = {upload.id: upload for upload in uploads.kept(until)}
    assert set(found) == {names[0], names[1], "by-hand"}
    assert isinstance(found[names[0]], KeptUpload) and found[names[0]].size == 1
    assert abs(datetime.now(UTC) - found[names[0]].written) < timedelta(minutes=1)


def test_retention_walks_the_bucket_and_ends_what_it_began(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    old, needed = store_upload(layout, b"old"), store_upload(layout, b"needed")
    in_use = InUse(batches=frozenset({needed.id}))
    policy = RetentionPolicy()

    def planned(days: float) -> list[str]:
        now = datetime.now(UTC) + timedelta(days=days)
        items = make_plan(layout, policy, in_use, now=now).items
        return [item.name for item in items if item.what == "upload"]

    assert planned(29.0) == []
    assert planned(31.0) == [old.id]
    item = RetentionItem("upload", old.id, 3, 31.0, "test")
    deletions = iter([None])  # one request is done, then the server fails
    server.meddle = lambda method, path: next(deletions, 500) if method == "POST" else None
    with pytest.raises(BucketUnavailable):
        remove(layout, item)
    server.meddle = lambda method, path: None
    assert not upload_store(layout).has(old.id)
    assert len(server.names("content/", UPLOADS)) == 2
    assert planned(31.0) == [old.id]
    assert remove(layout, item) and not remove(layout, item)
    assert server.names(below=UPLOADS) == [
        f"{part}/{needed.id[6:14]}/{needed.id}{end}"
        for part, end in (("content", ""), ("records", ".json"))
    ]


@pytest.fixture
def intake(machine: MakeLayout, stores: Stores, processes: Processes):
    settings = WorkerSettings(redis_url=processes.redis_url, redis_prefix=processes.prefix)
    with message_sender(settings) as sender:
        yield Intake(machine(), stores, sender)


def accept(intake: Intake, content: bytes, key: str = "") -> tuple[BatchRecord, bool]:
    name = new_id("batch")
    with PartFile(intake.layout.upload(name)) as part:
        part.write(content)
        about = {"sha256": part.sha256, "size": part.size, "container": "csv"}
        return intake.accept(part, BatchRecord(id=name, **about), idempotency_key=key)


def test_a_definite_refusal_leaves_nothing(
    intake: Intake, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise ResponseError("OOM command not allowed")

    first, _ = accept(intake, b"first", "key")
    monkeypatch.setattr(type(intake.stores.batches), "create", full)
    with pytest.raises(ResponseError):
        accept(intake, b"second")
    assert {name.rsplit("/")[-1] for name in server.names(below=UPLOADS)} == {
        first.id, f"{first.id}.json",
    }  # fmt: skip
    server.meddle = lambda method, path: 500 if method == "POST" else None
    with pytest.raises(BucketUnavailable):  # not refused for good: it may be kept
        accept(intake, b"third")
    assert len(server.names("records/", UPLOADS)) == 2


def reconciler(intake: Intake) -> Reconciler:
    return Reconciler(intake.layout, intake.stores, intake.sender, 0.0, 0.0)


def test_two_senders_of_one_content_are_one_upload(intake: Intake, server: S3Server) -> None:
    ready = threading.Barrier(4)
    found: list[tuple[BatchRecord, bool]] = []

    def send() -> None:
        ready.wait()
        found.append(accept(intake, b"the same"))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = {batch.id for batch, _ in found}
    assert sorted(created for _, created in found) == [False, False, False, True]
    assert len(server.names(below=UPLOADS)) == 2
    assert list(upload_store(intake.layout).names()) == [winner]


def test_a_second_copy_that_could_not_be_deleted_is_removed_by_the_reconciler(
    intake: Intake, server: S3Server
) -> None:
    first, _ = accept(intake, b"the same")
    server.meddle = lambda method, path: 500 if method == "POST" else None
    again, created = accept(intake, b"the same")  # told what it is all the same
    assert (again.id, created) == (first.id, False)
    server.meddle = lambda method, path: None
    assert len(list(upload_store(intake.layout).names())) == 2
    assert reconciler(intake).tick() == 0
    assert list(upload_store(intake.layout).names()) == [first.id]
    assert intake.stores.batches.get(first.id).state is BatchState.RECEIVED


def test_an_outage_marks_nothing_as_unusable(intake: Intake, server: S3Server) -> None:
    lost = store_upload(intake.layout, b"time,lat,lon\n")
    compare = reconciler(intake)
    server.meddle = lambda method, path: 500 if method == "GET" and "/records/" in path else None
    with pytest.raises(BucketUnavailable):
        compare.tick()
    server.meddle = lambda method, path: None
    assert compare.unusable == []
    assert compare.tick() == 1
    restored = intake.stores.batches.get(lost.id)
    assert (restored.state, restored.sha256, restored.options) == (
        BatchState.RECEIVED, lost.sha256, {"report_type": "synop"},
    )  # fmt: skip


def test_lists_that_lag_behind_neither_lose_nor_revive_an_upload(
    intake: Intake, server: S3Server
) -> None:
    uploads = upload_store(intake.layout)
    gone = store_upload(intake.layout, b"gone")
    assert list(uploads.names()) == [gone.id]
    server.lists_are_stale = True
    assert uploads.forget(gone.id)
    late = store_upload(intake.layout, b"late")
    assert list(uploads.names()) == [gone.id]  # the list says so
    assert reconciler(intake).tick() == 0
    assert intake.stores.batches.find(gone.id) is None
    assert uploads.has(late.id) and read(uploads, late) == b"late"
    assert uploads.sweep(-60.0) == 0
    server.lists_are_stale = False
    assert reconciler(intake).tick() == 1
    assert intake.stores.batches.find(late.id) is not None


def test_errors_for_a_while_are_waited_out_and_for_long_are_told(
    machine: MakeLayout, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = machine()
    failures = iter([500, 503])
    server.meddle = lambda method, path: next(failures, None)
    record = store_upload(layout, b"x" * 1000)
    assert next(failures, None) is None
    server.stop()
    monkeypatch.setattr(objects, "_HEALTH_SECONDS", 0.0)
    uploads = upload_store(layout)
    assert "Expected the bucket s3://" in uploads.bucket.problem()
    for ask in (lambda: uploads.has(record.id), lambda: list(uploads.names())):
        with pytest.raises(BucketUnavailable):
            ask()
    server.start()
    assert uploads.bucket.problem() == "" and read(uploads, record) == b"x" * 1000


def test_uploads_of_a_folder_are_sent_to_a_bucket(machine: MakeLayout, server: S3Server) -> None:
    layout = machine()
    folder = Layout(layout.root)
    sent, damaged = store_upload(folder, b"sent"), store_upload(folder, b"damaged")
    folder.raw_file(damaged.id).write_bytes(b"other")
    where = ["--data", str(layout.root)]
    about = {"APPA_UPLOADS_URL": server.uploads_url}
    doctor = appa("doctor", *where, "--json", **about)
    found = {f["name"]: f for f in json.loads(doctor.stdout)["findings"] if f["area"] == "uploads"}
    assert "2 uploads" in found["data folder"]["found"]
    assert found["an object is created once"]["state"] == "ok"
    done = appa("observations", "send", *where, **about)
    assert done.returncode == 1 and "1 uploads sent" in done.stdout
    assert f"'{damaged.id}': its bytes are not" in done.stderr
    assert read(upload_store(machine()), sent) == b"sent"
    assert [path.parent.name for path in Path(layout.raw).glob("*/content")] == [damaged.id]
    again = appa("observations", "send", *where, "--json", **about)
    answer = json.loads(again.stdout)
    assert answer["uploads"] == {"sent": 0, "to": server.uploads_url.rstrip("/")}
    assert (again.returncode, list(answer["not_sent"])) == (1, [damaged.id])
