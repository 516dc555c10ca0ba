"""`appa backup` and `appa restore` on a real server: what is in a backup, and what is refused."""

import fcntl
import json
import sqlite3
import tarfile
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from typer.testing import CliRunner

from deploy.commands.backup import backup_app, recover_app, restore_app
from deploy.local import embedded_broker
from model.domain.errors import AppaError
from tests.worker.retention import results
from worker.backup.broker import dump_keys, restore_keys
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.queues import WorkerReport
from worker.contract.records import new_id
from worker.contract.store import Stores, open_stores
from worker.feeds.backlog import Backlog

SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    yield
    structlog.reset_defaults()


@pytest.fixture
def stores(own_broker, layout, monkeypatch):
    monkeypatch.setenv("APPA_REDIS_URL", own_broker.url)
    opened = open_stores(own_broker.url, "appa", layout)
    yield opened
    opened.redis.close()


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path / "data").create()


def call(app, *words: str, data: Layout) -> str:
    done = CliRunner().invoke(app, [*words, "--data", str(data.root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refusal(app, *words: str, data: Layout) -> str:
    with pytest.raises(AppaError) as found:
        call(app, *words, data=data)
    return found.value.message


def new_job(stores: Stores) -> JobRecord:
    job_id = new_id("job")
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, 12, tzinfo=UTC))
    job, _ = stores.jobs.create(
        JobRecord(id=job_id, analysis_id=job_id.replace("job", "an", 1), spec=spec)
    )
    return job


def new_upload(stores: Stores, layout: Layout, name: str) -> BatchRecord:
    layout.raw_batch(name).mkdir()
    layout.raw_file(name).write_bytes(name.encode())
    batch, _ = stores.batches.create(
        BatchRecord(id=name, sha256=name, size=len(name), container="csv")
    )
    return batch


def test_a_backup_has_every_file_of_the_layout_and_every_key(stores, layout, tmp_path):
    """The names come from the layout, so that one that is added later is not forgotten."""
    own = [n for n in dir(Layout) if n.endswith("_file") and isinstance(vars(Layout)[n], property)]
    for name in own:
        path = getattr(layout, name) or layout.root / f"{name.removesuffix('_file')}.yaml"
        if path.suffix != ".sqlite":
            path.write_text(name)
    Backlog(layout.backlog_file).close()
    with sqlite3.connect(layout.suites_file) as suites:  # made when the first trial begins
        suites.execute("CREATE TABLE reigns (suite TEXT)")
    suites.close()
    results.publish(layout, "an-1", age_days=1, hour=1)
    layout.pins.mkdir()
    layout.pin("an-1").write_text("{}")
    job = new_job(stores)
    place = tmp_path / "backup"
    made = json.loads(call(backup_app, str(place), "--json", data=layout))
    names = {part["name"] for part in made["parts"]}
    for name in set(own) - {"audit_file", "disk_low_file"}:  # a log, and a mark of processes
        path = getattr(layout, name)
        assert f"files/{path.name}" in names, name
    assert {"broker.jsonl", "results.txt", "files/pins/an-1", "files/catalogue.sqlite"} <= names
    assert (place / "results.txt").read_text() == "an-1\n"
    assert made["one_moment"] and made["keys"] == len(stores.redis.keys("*"))
    assert all(p.stat().st_mode & 0o077 == 0 for p in [place, *place.rglob("*")])

    new = Layout(tmp_path / "new")
    stores.redis.flushall()
    call(restore_app, str(place), data=new)
    assert stores.jobs.get(job.id) == job
    assert new.sources_file.read_text() == "sources_file"
    with closing(sqlite3.connect(new.records_file)) as database:
        assert database.execute("SELECT id FROM records").fetchall() == [(job.id,)]
    Backlog(new.backlog_file).close()


def test_all_keys_are_of_one_moment_while_others_write(own_broker, stores, tmp_path):
    """Two keys that are always equal are equal in the copy, whatever lies between them."""
    stores.redis.mset({f"appa:filler:{i}": "x" * 50 for i in range(2_000)})
    stop, written = threading.Event(), threading.Event()

    def write():
        redis, number = open_stores(own_broker.url).redis, 0
        with closing(redis):
            while not stop.is_set():
                number += 1
                redis.mset({"appa:first": number, "appa:last": number})
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        written.wait(10)
        copies = [dump_keys(own_broker.url, "appa", tmp_path / f"{i}.jsonl") for i in range(5)]
    finally:
        stop.set()
        writer.join()
    assert all(copy.one_moment and copy.keys == 2_002 for copy in copies)
    seen = set()
    for number in range(5):
        stores.redis.flushall()
        restore_keys(own_broker.url, tmp_path / f"{number}.jsonl")
        first, last = stores.redis.mget("appa:first", "appa:last")
        assert first == last
        seen.add(first)
    assert len(seen) > 1  # the writer was not held up throughout
    parts = dump_keys(own_broker.url, "appa", tmp_path / "parts.jsonl", at_once_keys=100)
    assert (parts.one_moment, parts.keys) == (False, 2_002)


def test_keys_keep_their_end_and_those_of_processes_are_left_out(own_broker, stores, tmp_path):
    redis = stores.redis
    job = new_job(stores)
    stores.jobs.claim(job.id, "a worker", 30 * SECOND)
    stores.workers.register(WorkerReport(name="a worker", queues=["gpu"]), 30 * SECOND)
    redis.set("appa:once:archive-mark", "now")
    redis.set("appa:unique:job:long", "1", ex=1_000)
    redis.set("appa:unique:job:short", "1", px=400)
    redis.set("appa-two:job:x", "of another installation")
    dump_keys(own_broker.url, "appa", tmp_path / "keys.jsonl")
    ends = redis.pexpiretime("appa:unique:job:long")
    redis.flushall()
    threading.Event().wait(0.5)
    restore_keys(own_broker.url, tmp_path / "keys.jsonl")
    assert redis.pexpiretime("appa:unique:job:long") == ends
    gone = ["appa:unique:job:short", "appa-two:job:x", "appa:once:archive-mark", "appa:workers"]
    assert redis.exists(*gone, f"appa:job:{job.id}:lease") == 0
    assert stores.jobs.get(job.id).worker == "a worker"


def test_a_backup_that_is_not_whole_is_refused_by_name(stores, layout, tmp_path):
    layout.keys_file.write_text('{"keys": []}')
    place = tmp_path / "backup"
    call(backup_app, str(place), data=layout)
    new = Layout(tmp_path / "new")
    stores.redis.flushall()
    good = (place / "files/keys.json").read_bytes()
    (place / "files/keys.json").write_text('{"keys": [1]}')
    assert "Expected 'files/keys.json'" in refusal(restore_app, str(place), data=new)
    (place / "files/keys.json").unlink()
    assert "has nothing" in refusal(restore_app, str(place), data=new)
    (place / "files/keys.json").write_bytes(good)
    manifest = json.loads((place / "manifest.json").read_text())
    for name in ("../keys.json", "/etc/passwd", "files/../../x", "other"):
        part = {**manifest["parts"][0], "name": name}
        (place / "manifest.json").write_text(json.dumps(manifest | {"parts": [part]}))
        assert "parts below 'files/'" in refusal(restore_app, str(place), data=new)
    (place / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    assert "version" in refusal(restore_app, str(place), data=new)
    (place / "manifest.json").unlink()
    assert f"'{place}' has none" in refusal(restore_app, str(place), data=new)
    torn = tmp_path / "torn.tar.gz"
    call(backup_app, str(torn), data=layout)
    torn.write_bytes(torn.read_bytes()[:-200])
    assert "cannot be unpacked" in refusal(restore_app, str(torn), data=new)
    assert not new.root.exists() and not stores.redis.keys("*")


def test_places_that_hold_something_are_refused(stores, layout, tmp_path, monkeypatch):
    job = new_job(stores)
    layout.keys_file.write_text("old")
    place = tmp_path / "backup.tar"
    call(backup_app, str(place), data=layout)
    with tarfile.open(place) as archive:
        assert archive.getnames()[-1] == "manifest.json"
    assert place.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in tmp_path.iterdir() if "backup" in p.name) == ["backup.tar"]
    assert "holds something" in refusal(backup_app, str(place), data=layout)
    assert "outside the data folder" in refusal(backup_app, f"{layout.root}/b", data=layout)

    assert "Expected a Redis without keys" in refusal(
        restore_app, str(place), data=Layout(tmp_path / "new")
    )
    stores.redis.flushall()
    layout.keys_file.write_text("new")
    assert ", keys.json" in refusal(restore_app, str(place), data=layout)
    monkeypatch.setenv("APPA_REDIS_PREFIX", "other")
    assert "APPA_REDIS_PREFIX=appa" in refusal(restore_app, str(place), "--replace", data=layout)
    monkeypatch.delenv("APPA_REDIS_PREFIX")
    stores.workers.register(WorkerReport(name="gpu.1@here", queues=["gpu"]), 30 * SECOND)
    assert "gpu.1@here report" in refusal(restore_app, str(place), "--replace", data=layout)
    stores.workers.leave("gpu.1@here")
    stores.redis.set("appa:left", "over")
    told = json.loads(call(restore_app, str(place), "--replace", "--json", data=layout))
    assert layout.keys_file.read_text() == "old"
    assert (layout.root / told["aside"] / "keys.json").read_text() == "new"
    assert not stores.redis.exists("appa:left")
    assert stores.jobs.get(job.id) == job


def test_the_check_names_what_is_missing_or_damaged(stores, layout, tmp_path):
    for hour in range(4):
        results.publish(layout, f"an-{hour}", age_days=1, hour=hour)
    new_upload(stores, layout, "batch-1")
    new_upload(stores, layout, "batch-2")
    stored = new_upload(stores, layout, "batch-3")
    stores.batches.claim(stored.id, "a worker", 30 * SECOND)
    stores.batches.move(stored.id, BatchState.INGESTED, token=1, terminal=True)
    place = tmp_path / "backup"
    call(backup_app, str(place), data=layout)
    results.publish(layout, "an-new", age_days=0, hour=5)

    def check(*words: str) -> dict:
        command = [str(place), "--check", "--json", *words, "--data", str(layout.root)]
        done = CliRunner().invoke(restore_app, command)
        found = json.loads(done.stdout)
        assert done.exit_code == bool(found["missing"])
        return found

    assert check()["missing"].keys() == {"batch-3"}  # ingested, it says, but there are no rows
    files = [next(p for p in layout.analysis(f"an-{i}").iterdir() if p.suffix != ".json")
             for i in range(3)]  # fmt: skip
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    damaged = bytearray(files[2].read_bytes())
    damaged[0] ^= 1
    files[2].write_bytes(damaged)
    layout.raw_file("batch-2").unlink()
    found = check()
    assert found["missing"].keys() == {"an-0", "an-1", "batch-2", "batch-3"}
    assert (found["results"], found["uploads"], found["newer"]) == (4, 3, 1)
    assert check("--digests")["missing"].keys() == found["missing"].keys() | {"an-2"}


def test_the_embedded_server_is_started_for_a_backup_and_a_restore(tmp_path, monkeypatch):
    monkeypatch.delenv("APPA_REDIS_URL", raising=False)
    old, new = Layout(tmp_path / "old").create(), Layout(tmp_path / "new")
    with embedded_broker(old) as url:
        stores = open_stores(url, "appa", old)
        job = new_job(stores)
        running = call(backup_app, str(tmp_path / "of-running"), data=old)  # the one that runs
        stores.redis.close()
    stopped = call(backup_app, str(tmp_path / "of-stopped"), data=old)
    assert running.splitlines()[1] == stopped.splitlines()[1]
    call(restore_app, str(tmp_path / "of-stopped"), data=new)
    with embedded_broker(new) as url:
        stores = open_stores(url, "appa", new)
        assert stores.jobs.get(job.id) == job
        stores.redis.flushall()
        stores.redis.close()
    told = json.loads(call(recover_app, "--grace", "0", "--json", data=new))
    assert (told["jobs"], told["restored"]["job"]) == ({"queued": 1}, 1)
    with (new.root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in refusal(recover_app, data=new)
