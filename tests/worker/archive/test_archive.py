"""Records that ended, on disk and in a real Valkey: moved, found by every question, restored."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from model.domain.errors import StorageError
from worker.archivist import Archivist
from worker.contract.archive import RecordArchive
from worker.contract.batches import BatchRecord, BatchState, IngestSummary
from worker.contract.cycles import CycleRecord, CycleState, Flavour, cycle_key
from worker.contract.disk import is_disk_full
from worker.contract.jobs import JobRecord, JobState, Progress
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.record_store import MoveRefused, NoSuchRecord
from worker.contract.records import Problem, first_id, new_id
from worker.contract.store import open_stores
from worker.contract.webhooks import Webhook

LEASE = timedelta(seconds=30)
FAULT = Problem(code="worker_lost", message="It died.")
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


class Messages:
    """Task messages that were sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send_task(self, name, args, **options):
        self.sent.append(args[0])


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data").create()


@pytest.fixture
def stores(shared_broker, prefix, layout):
    opened = open_stores(shared_broker.url, prefix, layout)
    yield opened
    opened.redis.close()
    opened.archive.close()


@pytest.fixture
def messages():
    return Messages()


@pytest.fixture
def archivist(stores, layout, messages):
    """Moves what ended at once."""
    return Archivist(stores, layout, messages, ended_seconds=0.0)


def job(**values) -> JobRecord:
    name = new_id("job")
    spec = FilteringSpec(valid_time=NOON)
    return JobRecord(id=name, analysis_id=name.replace("job", "an", 1), spec=spec, **values)


def batch(content: str, **values) -> BatchRecord:
    return BatchRecord(id=new_id("batch"), sha256=content, size=1, container="csv", **values)


def ended_job(stores, **values) -> JobRecord:
    record, _ = stores.jobs.create(job(**values))
    claimed = stores.jobs.claim(record.id, "w", LEASE)
    stores.jobs.succeed(record.id, claimed.token, Progress(step=4, steps=4))
    return stores.jobs.get(record.id)


def ended_batch(stores, content: str, state=BatchState.INGESTED, **values) -> BatchRecord:
    record, _ = stores.batches.create(batch(content, **values))
    claimed = stores.batches.claim(record.id, "w", LEASE)
    if state is BatchState.INGESTED:
        stores.batches.finish(record.id, claimed.token, IngestSummary(observations=3))
    else:
        stores.batches.fail(record.id, claimed.token, FAULT)
    return stores.batches.get(record.id)


def cycle(hour: int, **values) -> CycleRecord:
    time = datetime(2025, 1, 1, hour, tzinfo=UTC)
    key = cycle_key(time, Flavour.EARLY)
    return CycleRecord(id=key, valid_time=time, flavour="early", cut_off=time, **values)


def ended_cycle(stores, hour: int) -> CycleRecord:
    record, _ = stores.cycles.create(cycle(hour))
    assert stores.cycles.change(record, CycleState.DUE)
    stores.cycles.change(stores.cycles.get(record.id), CycleState.SUBMITTED, job_id=f"job-{hour}")
    stores.cycles.change(stores.cycles.get(record.id), CycleState.PUBLISHED, analysis_id="an-1")
    return stores.cycles.get(record.id)


def in_redis(stores) -> set[str]:
    """Keys that are about records."""
    found = set(stores.redis.scan_iter(f"{stores.keys.prefix}:*"))
    return {key for key in found if ":once:" not in key}


def test_an_ended_job_leaves_redis_and_answers_as_before(stores, archivist):
    before = ended_job(stores, api_key="k")
    events = stores.jobs.events(before.id)
    newest = stores.jobs.newest_event(before.id)
    assert [data["state"] for _, _, data in events] == ["queued", "running", "succeeded"]
    archivist.tick()
    assert in_redis(stores) == set()
    assert stores.jobs.get(before.id) == before
    assert stores.jobs.read(before.id) == before
    assert stores.jobs.events(before.id) == events
    assert stores.jobs.events(before.id, events[1][0]) == events[2:]
    assert stores.jobs.newest_event(before.id) == newest
    assert stores.jobs.state_and_token(before.id) == ("succeeded", 1)
    assert stores.jobs.count("succeeded") == 1
    assert stores.jobs.known([before.id, "job-no"]) == {before.id}
    assert stores.jobs.find("job-no") is None
    with pytest.raises(MoveRefused, match="succeeded"):
        stores.jobs.cancel(before.id)
    with pytest.raises(NoSuchRecord):
        stores.jobs.cancel("job-no")
    assert stores.jobs.events(before.id) == events
    archivist.tick()  # what was brought back to be refused goes again
    assert in_redis(stores) == set()
    assert stores.jobs.get(before.id) == before


def test_pages_hold_both_in_order_once(stores, archivist):
    ids = []
    for number in range(12):
        record = ended_job(stores) if number % 3 else stores.jobs.create(job())[0]
        ids.append(record.id)
        if number == 7:
            archivist.tick()
    ids.sort(reverse=True)

    def pages(**asked):
        cursor, found, totals = "", [], set()
        while cursor is not None:
            page = stores.jobs.page(cursor=cursor, limit=5, **asked)
            found += [record.id for record in page.items]
            totals.add(page.total)
            cursor = page.next_cursor
        return found, totals

    states = {i: stores.jobs.get(i).state.value for i in ids}
    for asked, wanted in (
        ({}, ids),
        ({"kind": "filtering"}, ids),
        ({"kind": "forecast"}, []),
        ({"state": "succeeded"}, [i for i in ids if states[i] == "succeeded"]),
        ({"state": "queued", "kind": "filtering"}, [i for i in ids if states[i] == "queued"]),
        ({"state": "succeeded", "kind": "filtering"}, [i for i in ids if states[i] != "queued"]),
    ):
        assert pages(**asked) == (wanted, {len(wanted)})


def test_an_owner_has_the_same_pages_before_and_after_records_left(stores, archivist):
    """Half of the uploads of two keys, of a source and of nobody are in the archive."""
    owners = {"k1": "k1", "k2": "k2", "source:wis2": "", "": ""}
    sent = {}
    for i in range(24):
        key, end = list(owners)[i % 4], (BatchState.INGESTED, BatchState.REJECTED)[i // 4 % 2]
        one = (
            ended_batch(stores, f"{i:064x}", end, api_key=key)
            if i < 12
            else stores.batches.create(batch(f"{i:064x}", api_key=key))[0]
        )
        sent[one.id] = (owners[key], stores.batches.get(one.id).state.value)
        if i == 11:
            archivist.tick()
    assert stores.archive.count("batch") == 12
    for asked in ({"k1"}, {"k2", ""}, {""}, {"unknown"}, set(), None):
        for state in ("", "ingested", "rejected", "received"):
            wanted = sorted(
                (
                    i
                    for i, (owner, its) in sent.items()
                    if (asked is None or owner in asked) and state in ("", its)
                ),
                reverse=True,
            )
            found, cursor = [], ""
            while cursor is not None:
                page = stores.batches.page(state=state, owners=asked, cursor=cursor, limit=2)
                assert page.total == len(wanted)
                found += [record.id for record in page.items]
                cursor = page.next_cursor
            assert found == wanted, (asked, state)
    index = stores.redis.zrange(f"{stores.keys.index('batch')}:owner:k1", 0, -1)
    assert set(index) == set(stores.batches.ids("received")) & {
        i for i, (owner, _) in sent.items() if owner == "k1"
    }


def test_times_of_arrival_bound_pages_here_and_in_the_archive(stores, archivist):
    """One upload a minute; the older half has left Redis."""
    minutes = [datetime(2025, 1, 1, 0, minute, tzinfo=UTC) for minute in range(10)]
    ids = []
    for i, minute in enumerate(minutes):
        name = new_id("batch", minute)
        record = batch(f"{i:064x}", api_key=f"k{i % 2}").model_copy(update={"id": name})
        stores.batches.create(record)
        if i < 5:
            claimed = stores.batches.claim(name, "w", LEASE)
            stores.batches.finish(name, claimed.token, IngestSummary(observations=3))
        ids.append(name)
        if i == 4:
            archivist.tick()
    assert stores.archive.count("batch") == 5
    low, high = first_id("batch", minutes[2]), first_id("batch", minutes[8])
    found, cursor = [], ""
    while cursor is not None:
        page = stores.batches.page(low=low, high=high, cursor=cursor, limit=4)
        found += [record.id for record in page.items]
        cursor = page.next_cursor
        assert page.total == 10  # whenever they arrived
    assert found == ids[2:8][::-1]
    page = stores.batches.page(owners={"k0"}, state="ingested", low=low)
    assert [record.id for record in page.items] == [ids[4], ids[2]]
    page = stores.batches.page(high=low)
    assert [record.id for record in page.items] == ids[:2][::-1]


def test_who_sent_a_known_content_is_known_after_it_left(stores, archivist):
    first = ended_batch(stores, "a" * 64, api_key="k1")
    stores.batches.create(batch("a" * 64, api_key="k2"))
    archivist.tick()
    stores.batches.create(batch("a" * 64, api_key="k3"))
    for name in stores.redis.scan_iter(f"{stores.keys.prefix}:unique:*"):
        stores.redis.delete(name)
    known = {key: stores.batches.sent_by(first, key) for key in ("k1", "k2", "k3", "k4")}
    assert known == {"k1": True, "k2": True, "k3": True, "k4": False}


def test_a_file_without_owners_is_brought_up_to_date(stores, archivist, layout):
    for i, key in enumerate(("k1", "k2", "k1", "")):
        ended_batch(stores, f"{i:064x}", api_key=key)
    archivist.tick()
    stores.archive.close()
    # Back to the tables of version 1, which had no owners and counted by state and kind.
    with sqlite3.connect(layout.records_file, isolation_level=None) as old:
        names = "SELECT type, name FROM sqlite_master WHERE name IN"
        for kind, name in old.execute(
            f"{names} ('added', 'dropped', 'left', 'came', 'by_owner', 'by_owner_and_state')"
        ).fetchall():
            old.execute(f"DROP {kind} {name}")
        old.execute("ALTER TABLE records DROP COLUMN owner")
        old.execute("DROP TABLE totals")
        old.execute("CREATE TABLE totals (noun, state, kind, count)")
        for name in ("added", "dropped", "left", "came"):
            old.execute(f"CREATE TRIGGER {name} AFTER UPDATE ON records BEGIN SELECT 1; END")
        old.execute("PRAGMA user_version = 1")
    old.close()
    pages = {owner: stores.batches.page(owners={owner}) for owner in ("k1", "k2", "", "x")}
    assert {owner: page.total for owner, page in pages.items()} == {"k1": 2, "k2": 1, "": 1, "x": 0}
    assert {owner: len(page.items) for owner, page in pages.items()} == {
        "k1": 2,
        "k2": 1,
        "": 1,
        "x": 0,
    }
    assert stores.batches.page().total == stores.archive.count("batch", state="ingested") == 4
    ended_batch(stores, "f" * 64, api_key="k2")
    archivist.tick()
    assert stores.archive.count("batch", owner="k2") == 2


def test_idempotency_keys_hold_after_their_record_left(stores, archivist):
    first, made = stores.jobs.create(job(), unique_key="k:one")
    assert made
    stores.jobs.cancel(first.id)
    archivist.tick()
    stores.redis.delete(stores.keys.unique("job", "k:one"))  # as it does after two minutes
    again, made = stores.jobs.create(job(), unique_key="k:one")
    assert (again.id, made, again.state) == (first.id, False, JobState.CANCELLED)
    assert stores.archive.known("job", [first.id]) == {first.id}
    assert stores.jobs.page().total == 1


def test_the_content_of_an_archived_upload_is_known_under_every_key(stores, archivist):
    first = ended_batch(stores, "a" * 64, api_key="k")
    stores.batches.create(batch("a" * 64, api_key="k"), idempotency_key="one")
    archivist.tick()
    unique = list(stores.redis.scan_iter(f"{stores.keys.prefix}:unique:*"))
    assert all(0 < stores.redis.ttl(key) <= 120 for key in unique)
    stores.redis.delete(*unique)
    for key in ("", "one", "two", "two"):
        known, made = stores.batches.create(batch("a" * 64, api_key="k"), idempotency_key=key)
        assert (known, made) == (first, False)
    for name in stores.redis.scan_iter(f"{stores.keys.prefix}:unique:*"):
        stores.redis.delete(name)
    assert stores.batches.find_content("a" * 64) == first.id
    for key in ("one", "two"):  # bound for ever, also the key that came after the archive
        with pytest.raises(Exception, match="same content"):
            stores.batches.create(batch("b" * 64, api_key="k"), idempotency_key=key)


def test_a_failed_upload_is_sent_again_or_retried_after_it_left(stores, archivist):
    sent_again = ended_batch(stores, "c" * 64, BatchState.FAILED)
    retried = ended_batch(stores, "d" * 64, BatchState.FAILED)
    archivist.tick()
    for name in stores.redis.scan_iter(f"{stores.keys.prefix}:unique:*"):
        stores.redis.delete(name)
    new, made = stores.batches.create(batch("c" * 64))
    assert made and new.id != sent_again.id
    with pytest.raises(MoveRefused, match=new.id):
        stores.batches.retry(sent_again.id)
    assert stores.batches.retry(retried.id).state is BatchState.RECEIVED
    assert stores.batches.ids("received") == sorted([new.id, retried.id])
    assert stores.batches.page(state="failed").total == 1
    archivist.tick()
    claimed = stores.batches.claim(retried.id, "w", LEASE)
    stores.batches.finish(retried.id, claimed.token, IngestSummary())
    archivist.tick()
    assert stores.batches.get(retried.id).state is BatchState.INGESTED
    assert stores.batches.page(state="ingested").total == 1
    assert stores.batches.page().total == 3


def test_an_archived_cycle_is_listed_not_decided_again_and_can_be_rerun(stores, archivist):
    ended = [ended_cycle(stores, hour) for hour in (1, 2, 3)]
    archivist.tick()
    waiting, _ = stores.cycles.create(cycle(4))
    key = ended[1].id
    assert not stores.redis.exists(stores.keys.record("cycle", key))
    assert stores.cycles.states(NOON - timedelta(hours=10)) == {
        ended[1].id: "published", ended[2].id: "published", waiting.id: "waiting",
    }  # fmt: skip
    assert stores.cycles.create(cycle(2)) == (ended[1], False)
    assert stores.cycles.newest() == waiting.id
    assert stores.cycles.newest(state=CycleState.PUBLISHED) == ended[2].id
    assert stores.cycles.of_hour(ended[0].valid_time) == {Flavour.EARLY: ended[0]}
    page = stores.cycles.select(start=ended[1].valid_time, end=ended[2].valid_time, limit=1)
    assert (page.total, [c.id for c in page.items], page.next_cursor) == (
        2,
        [ended[2].id],
        ended[2].id,
    )
    asked = {"unique_key": "again", "request": '{"cut_off": null}'}
    again = stores.cycles.rerun(ended[1], NOON, NOON, **asked)
    assert (again.state, again.revision) == (CycleState.DUE, 3)
    assert [c.id for c in stores.cycles.in_state(CycleState.DUE)] == [key]
    stores.cycles.change(again, CycleState.SKIPPED)
    archivist.tick()
    for name in stores.redis.scan_iter(f"{stores.keys.prefix}:unique:*"):
        stores.redis.delete(name)
    assert stores.cycles.earlier_request(key, "again") == '{"cut_off": null}'
    assert stores.cycles.select(state="published").total == 2


def test_what_goes_on_meanwhile_stays_in_redis(stores, archivist, monkeypatch):
    failed = ended_batch(stores, "e" * 64, BatchState.FAILED)
    evict = stores.batches.evict

    def retried_first(kept, score):
        stores.batches.retry(failed.id)
        return evict(kept, score)

    monkeypatch.setattr(stores.batches, "evict", retried_first)
    archivist.tick()
    assert stores.redis.exists(stores.keys.record("batch", failed.id))
    assert stores.batches.ids("received") == [failed.id]
    assert stores.batches.page().total == 1


def test_jobs_and_cycles_come_back_when_redis_lost_its_data(stores, archivist, layout, messages):
    archivist.ended_seconds = 600.0
    archivist.every = 0.0
    done = ended_job(stores)
    queued, _ = stores.jobs.create(job(api_key="k"), unique_key="mine")
    running, _ = stores.jobs.create(job())
    old_token = stores.jobs.claim(running.id, "w", LEASE).token
    published, _ = stores.jobs.create(job())
    layout.analysis(published.analysis_id).mkdir()
    layout.manifest(published.analysis_id).write_text("{}")
    cycles = [ended_cycle(stores, 1), stores.cycles.create(cycle(2))[0]]
    hook = Webhook(
        id="wh-1", url="http://a.example/", events=["cycle.failed"], secret="s", since=""
    )
    stores.webhooks.create(hook)
    archivist.tick()
    for key in list(stores.redis.scan_iter(f"{stores.keys.prefix}:*")):
        stores.redis.delete(key)
    assert stores.jobs.get(done.id) == done  # also before anything is restored
    assert stores.jobs.state_and_token(queued.id) == ("queued", 0)

    for kept in (queued, running, published):  # as if they were older than a moment
        _age(stores.archive, kept.id)
    again = Archivist(stores, layout, messages, ended_seconds=600.0, every=0.0)
    again.tick()
    assert sorted(messages.sent) == sorted([queued.id, running.id])
    assert [stores.jobs.get(j.id).state for j in (done, queued, running, published)] == [
        "succeeded", "queued", "queued", "succeeded",
    ]  # fmt: skip
    assert stores.jobs.create(job(), unique_key="mine")[0].id == queued.id
    assert stores.jobs.active("k") == 1
    assert [stores.cycles.get(c.id) for c in cycles] == cycles
    assert stores.cycles.create(cycle(1))[1] is False
    assert [w.id for w in stores.webhooks.all()] == ["wh-1"]
    # the attempt that was under way when the data were lost can change nothing any more
    claimed = stores.jobs.claim(running.id, "w", LEASE)
    assert claimed.token > old_token + 1_000_000
    with pytest.raises(Exception, match="Another attempt"):
        stores.jobs.begin_publication(running.id, old_token)
    messages.sent.clear()
    again.tick()
    assert messages.sent == []


def _age(archive, record_id: str) -> None:
    with sqlite3.connect(archive.layout.records_file) as database:
        database.execute("UPDATE records SET written = written - 3600 WHERE id = ?", (record_id,))


def test_a_job_that_cannot_be_kept_is_refused_and_leaves_nothing(stores, layout, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError

    stores.archive.get_note("x")
    stores.archive.close()
    limit = sqlite3.connect(layout.records_file)
    pages = limit.execute("PRAGMA page_count").fetchone()[0]
    limit.close()
    connect = sqlite3.connect

    def small(*args, **options):
        database = connect(*args, **options)
        database.execute(f"PRAGMA max_page_count = {pages}")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(StorageError) as refused:
        for _ in range(200):
            stores.jobs.create(job())
    assert is_disk_full(refused.value)
    kept = {k.id for k in stores.archive.in_redis("job")}
    assert set(stores.jobs.ids("queued")) == kept


def test_a_damaged_file_is_set_aside_and_begun_anew(layout):
    archive = RecordArchive(layout)
    layout.records_file.write_bytes(b"no database" * 500)
    assert archive.find("job", "job-1") is None
    archive.set_note("a", "b")
    assert archive.get_note("a") == "b"
    assert len(list(layout.root.glob("records.sqlite.damaged-*"))) == 1
    assert stat.S_IMODE(layout.records_file.stat().st_mode) == 0o600
    archive.close()


def test_a_forked_process_opens_the_file_itself(layout):
    program = """
import os, sys
from pathlib import Path
from worker.contract.archive import RecordArchive
from worker.contract.layout import Layout
archive = RecordArchive(Layout(Path(sys.argv[1])))
archive.set_note("parent", "1")
child = os.fork()
archive.set_note("child" if child == 0 else "after", "1")
if child == 0:
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, archive.get_note("child"), archive.get_note("after"))
"""
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(layout.root)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.split() == ["0", "1", "1"]


def test_the_sqlite_that_eccodes_brings_can_use_the_file(stores, archivist, layout):
    """Which is of 2018: a process that imports eccodes first has no other."""
    ended_batch(stores, "a" * 64)
    archivist.tick()
    with sqlite3.connect(layout.records_file, isolation_level=None) as old:
        # Back to version 2, whose conflicts did not name their columns.
        for name in ("added", "came"):
            (text,) = old.execute(
                "SELECT sql FROM sqlite_master WHERE name = ?", (name,)
            ).fetchone()
            old.execute(f"DROP TRIGGER {name}")
            old.execute(text.replace("(noun, owner, state, kind) DO", "DO"))
        old.execute("PRAGMA user_version = 2")
    old.close()
    stores.archive.close()
    ended_batch(stores, "b" * 64)
    archivist.tick()
    program = """
import sys
import eccodes, sqlite3
from pathlib import Path
from worker.contract.archive import RecordArchive
from worker.contract.layout import Layout
archive = RecordArchive(Layout(Path(sys.argv[1])))
archive.set_note("seen", "1")
print(sqlite3.sqlite_version_info < (3, 35), archive.count("batch"))
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(layout.root)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.split()[1] == "2"


def test_old_records_expire_and_their_content_is_new_again(stores, archivist, layout):
    old = ended_batch(stores, "f" * 64)
    young = ended_batch(stores, "9" * 64)
    archivist.tick()
    with sqlite3.connect(layout.records_file) as database:
        database.execute("UPDATE records SET ended = ended - 91 * 86400 WHERE id = ?", (old.id,))
    archivist._expired = float("-inf")
    archivist.tick()
    assert stores.batches.find(old.id) is None
    assert stores.batches.find(young.id) == young
    assert stores.batches.page().total == stores.batches.count("ingested") == 1
    assert stores.archive.names("batch", [stores.keys.unique("batch", old.identity)]) == {}


@pytest.fixture
def month(own_broker, layout, messages):
    stores = open_stores(own_broker.url, "month", layout)
    yield stores, Archivist(stores, layout, messages, ended_seconds=0.0)
    stores.redis.close()
    stores.archive.close()


def test_redis_is_flat_over_a_month_in_compressed_time(month, layout, capsys):
    """30 days of uploads, jobs and cycles: what Redis holds does not depend on the day."""
    stores, archivist = month
    start, sizes, keys = datetime(2025, 1, 1, tzinfo=UTC), [], []
    for day in range(30):
        for number in range(40):
            ended_batch(stores, f"{day:032d}{number:032d}", api_key="k", file_name="a" * 60)
        for hour in range(0, 24, 6):
            time = start + timedelta(days=day, hours=hour)
            done = ended_job(stores)
            record, _ = stores.cycles.create(
                CycleRecord(
                    id=cycle_key(time, "early"), valid_time=time, flavour="early", cut_off=time
                )
            )
            stores.cycles.change(record, CycleState.DUE)
            record = stores.cycles.get(record.id)
            stores.cycles.change(record, CycleState.SUBMITTED, job_id=done.id)
            stores.cycles.change(stores.cycles.get(record.id), CycleState.PUBLISHED)
        archivist.tick()
        for name in stores.redis.scan_iter("month:unique:*"):  # gone after two minutes
            assert stores.redis.ttl(name) > 0
            stores.redis.delete(name)
        stores.redis.memory_purge()
        sizes.append(int(stores.redis.info("memory")["used_memory"]))
        days = list(
            stores.redis.scan_iter("month:quota:k:day:*")
        )  # what the key used, by real days
        assert 1 <= len(days) <= 2 and all(stores.redis.ttl(name) > 0 for name in days)
        keys.append(stores.redis.dbsize() - len(days))
    assert set(keys) == {1}  # the mark of the archivist
    assert max(sizes[2:]) - min(sizes[2:]) < 100_000, sizes
    assert stores.batches.page().total == 1200
    assert stores.cycles.select().total == stores.jobs.page().total == 120
    disk = layout.records_file.stat().st_size
    with capsys.disabled():
        print(json.dumps({"used_memory": [sizes[2], sizes[-1]], "disk_per_record": disk // 1440}))


def test_events_of_years_are_capped_and_their_marks_expire(stores, monkeypatch):
    monkeypatch.setattr("worker.contract.events.LENGTH", 200)
    for number in range(1000):
        assert stores.events.emit("analysis.published", f"an-{number}", {"files": ["a" * 60]})
    marks = list(stores.redis.scan_iter(stores.keys.emitted("*")))
    assert len(marks) == 1000 and all(0 < stores.redis.ttl(m) <= 90 * 86_400 for m in marks)
    # Redis trims whole nodes of a stream, of at most 100 entries.
    assert 200 <= stores.redis.xlen(stores.events.stream) <= 300
    assert stores.events.last(1)[0].data == {"files": ["a" * 60]}
