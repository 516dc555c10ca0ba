"""Many small batches: one commit for several, each published once, small files merged soon."""

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from model.domain.errors import StorageError
from model.domain.windows import AssimilationWindow
from tests.objects.conftest import server
from tests.worker.tables import make_table
from worker.contract.records import new_id
from worker.observations.store import compaction
from worker.observations.store.commits import CommitLog, FileLog
from worker.observations.store.compaction import SmallFileMerger, sweep_unpublished
from worker.observations.store.group_commit import NewBatch, publish_many
from worker.observations.store.store import ObservationStore

__all__ = ["server"]

NOW = datetime.now(UTC).replace(minute=10, second=0, microsecond=0)
HOUR = NOW.replace(minute=0)
WINDOW = AssimilationWindow(HOUR - timedelta(hours=2), HOUR + timedelta(hours=1))


def batch(number, *, minutes=(5, -30), now=NOW):
    """Two rows, one in this hour and one in the hour before."""
    arrival = now + timedelta(seconds=number)
    name = f"{new_id('batch', arrival)[:-8]}{number:08x}"
    start = np.datetime64(now.replace(minute=0, tzinfo=None), "ns")
    times = start + np.array(minutes) * np.timedelta64(1, "m")
    table = make_table(
        len(minutes), batch_id=name, received=arrival, time=times, obs_value=280.0 + number
    )
    return NewBatch(table, name, arrival, {"summary": {"observations": 2}, "quality_control": LONG})


LONG = {"parameters": "x" * 1_000}


@pytest.fixture(params=["disk", "bucket"])
def store(request, tmp_path):
    if request.param == "disk":
        return ObservationStore(str(tmp_path / "obs"))
    server = request.getfixturevalue("server")
    return ObservationStore(server.observations_url, str(tmp_path / "copies"))


on_disk = pytest.mark.parametrize("store", ["disk"], indirect=True)


def found(store, cut_off=None):
    table = store.read_window(WINDOW, cut_off=cut_off)
    return sorted(zip(table["batch_id"].to_pylist(), table["obs_value"].to_pylist(), strict=True))


def wanted(batches):
    return sorted(
        (b.batch_id, value) for b in batches for value in b.table["obs_value"].to_pylist()
    )


@on_disk
def test_batches_share_files_and_each_has_its_manifest(store, tmp_path):
    batches = [batch(n) for n in range(5)]
    manifests = publish_many(store.files, batches)
    assert found(store) == wanted(batches)
    assert len(list((tmp_path / "obs").glob("date=*/hour=*/*.parquet"))) == 2
    assert [m.batch_id for m in manifests] == [b.batch_id for b in batches]
    assert [[f.rows for f in m.files] for m in manifests] == [[1, 1]] * 5
    for made in manifests:
        assert store.files.manifest(made.batch_id) == made
        assert made.provenance["quality_control"] == LONG
    assert len({m.content_hash for m in manifests}) == 5
    assert list(store.files.batches()) == [b.batch_id for b in batches]
    asked = [batches[3].batch_id, "superobservations", batches[1].batch_id, "batch-of nobody"]
    hashes = store.files.content_hashes(asked)
    assert hashes == {asked[0]: manifests[3].content_hash, asked[2]: manifests[1].content_hash}
    alone = publish_many(ObservationStore(str(tmp_path / "other")).files, batches[:1])
    assert alone[0].content_hash == manifests[0].content_hash


@on_disk
def test_before_its_line_nothing_of_a_commit_is_there_and_after_it_all(store, monkeypatch):
    batches = [batch(n) for n in range(3)]
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(FileLog, "_write", full)
        with pytest.raises(StorageError, match="No space left"):
            publish_many(store.files, batches)
    assert found(store) == [] and not list(store.files.batches())
    publish_many(store.files, batches)
    assert found(store) == wanted(batches)


@on_disk
def test_a_torn_line_is_never_read_and_cut_off_by_the_next_writer(store):
    first, second, third = (batch(n) for n in range(3))
    publish_many(store.files, [first])
    log = store.files.log(HOUR)
    whole = log.path.read_bytes()
    publish_many(store.files, [second])
    line = log.path.read_bytes()[len(whole) :]
    for torn in (line[:-1], line[:40], b"\0" * 100, line[:30] + b"\0" * 10 + b"\n"):
        log.path.write_bytes(whole + torn)
        log._forget(0)
        assert found(store) == wanted([first])
        assert store.files.manifest(second.batch_id) is None
    publish_many(store.files, [third])
    assert found(store) == wanted([first, third])
    publish_many(store.files, [second])
    assert found(store) == wanted([first, second, third])


def test_a_batch_of_two_attempts_is_published_once(store):
    batches = [batch(n) for n in range(6)]
    with ThreadPoolExecutor(3) as pool:
        made = list(
            pool.map(partial(publish_many, store.files), [batches[:4], batches[2:], batches])
        )
    assert found(store) == wanted(batches)
    assert {m.batch_id: m for m in made[0]} | {m.batch_id: m for m in made[1]} == {
        m.batch_id: m for m in made[2]
    }


def publish_elsewhere(store, numbers, now):
    for number in numbers:
        publish_many(store.files, [batch(number, now=now), batch(number + 1, now=now)])


def test_writers_in_several_processes_and_a_merger_lose_and_double_nothing(store, tmp_path):
    merger = SmallFileMerger(store.files, max_files=2, grace=timedelta(0))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(publish_elsewhere, store, range(k, k + 12), NOW) for k in (0, 6)]
        while not all(job.done() for job in jobs):
            merger.turn()
            names = [name for name, _ in found(store)]
            assert all(names.count(name) == 2 for name in names)
        for job in jobs:
            job.result()
    merger.turn()
    assert found(store) == wanted([batch(n) for n in range(19)])


def test_any_past_state_is_reproducible_from_shared_and_merged_files(store):
    batches = [batch(n) for n in range(6)]
    publish_many(store.files, batches[:3])
    publish_many(store.files, batches[3:])
    merger = SmallFileMerger(store.files, max_files=2, grace=timedelta(0))
    for _ in range(3):
        for count in range(1, 7):
            cut_off = batches[count - 1].received_time
            assert found(store, cut_off) == wanted(batches[:count])
        merger.turn()


@on_disk
def test_an_hour_keeps_few_files_however_many_batches_come(store, tmp_path):
    merger = SmallFileMerger(store.files, max_files=8, grace=timedelta(0))
    merger.turn()
    batches = [batch(n) for n in range(60)]
    peak = 0
    for one in batches:
        publish_many(store.files, [one])
        merger.turn()
        peak = max(peak, len(store.files.visible(HOUR).paths))
    assert peak <= 9
    assert found(store) == wanted(batches)
    merger.turn()
    assert len(list((tmp_path / "obs").glob("date=*/hour=*/*.parquet"))) <= 2 * 9
    # One that starts later counts what is there.
    later = SmallFileMerger(store.files, max_files=2, grace=timedelta(0))
    later.turn()
    assert len(store.files.visible(HOUR).paths) == 1
    assert found(store) == wanted(batches)


def test_reading_an_hour_opens_no_manifest_of_a_batch(store, monkeypatch):
    batches = [batch(n) for n in range(40)]
    for one in batches:
        publish_many(store.files, [one])
    SmallFileMerger(store.files, max_files=8).turn()
    read: list[str] = []
    real = type(store.files).read_text
    monkeypatch.setattr(
        type(store.files), "read_text", lambda self, path: read.append(path) or real(self, path)
    )
    assert found(store) == wanted(batches)
    assert {path.rsplit("/", 1)[-1] for path in read} == {"_compaction-000001.json"}


def test_files_of_a_commit_that_never_came_about_are_removed_a_day_later(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(CommitLog, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish_many(store.files, [batch(0)])
    publish_many(store.files, [batch(1)])
    assert sweep_unpublished(store.files, HOUR) == 0
    monkeypatch.setattr(compaction, "utc_now", lambda: datetime.now(UTC) + timedelta(hours=25))
    assert sweep_unpublished(store.files, HOUR) == 1
    assert found(store) == wanted([batch(1)])
