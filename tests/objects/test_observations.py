"""The observation store in a bucket: commits by conditional writes, files read from copies.

What every store does is tested with both kinds in `tests/worker/observation_store`; here is what a
bucket, its server and several machines bring along.
"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from csv import DictReader
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from model.domain.errors import StorageError
from tests.faults.test_reconcile import csv
from tests.objects.s3_server import OBSERVATIONS, UPLOADS, S3Server
from tests.objects.test_service import appa
from tests.objects.test_upload_faults import Hold, ingested, send
from tests.service.gateway_process import GatewayProcess
from tests.worker.observation_store.test_commits import HOUR, batch, found, wanted
from tests.worker.processes import Processes, wait_for
from worker.contract import file_cache
from worker.contract.buckets import BucketUnavailable
from worker.contract.layout import Layout
from worker.observations.store import commits, compaction
from worker.observations.store.compaction import compact_hour, sweep_hour, sweep_unpublished
from worker.observations.store.group_commit import publish_many
from worker.observations.store.store import ObservationStore
from worker.results.retention.plan import RetentionItem
from worker.results.retention.run import remove


@pytest.fixture
def store(server: S3Server, tmp_path: Path) -> ObservationStore:
    return ObservationStore(server.observations_url, str(tmp_path / "copies"))


def afresh(store: ObservationStore, folder: Path) -> ObservationStore:
    """The same store in a process that has read nothing of it yet."""
    commits._bucket_log.cache_clear()
    return ObservationStore(store.url, str(folder))


def objects(server: S3Server, ending: str) -> list[str]:
    return [name for name in server.names(below=OBSERVATIONS) if name.endswith(ending)]


def test_rows_come_first_and_a_conditional_write_makes_them_count(
    store: ObservationStore, server: S3Server, tmp_path: Path
) -> None:
    batches = [batch(n) for n in range(3)]
    server.meddle = lambda method, path: 500 if method == "PUT" and "/commits/" in path else None
    with pytest.raises(BucketUnavailable):
        publish_many(store.files, batches)
    server.meddle = lambda method, path: None
    assert len(objects(server, ".parquet")) == 2 and objects(server, ".log") == []
    assert found(store) == [] and list(store.files.batches()) == []
    publish_many(store.files, batches)
    assert found(store) == found(afresh(store, tmp_path / "other")) == wanted(batches)
    # what is in the bucket is Parquet that any reader opens
    name = max(store.files.visible(HOUR).paths)
    table = pa.parquet.read_table(pa.BufferReader(server.get(name, OBSERVATIONS)))
    assert set(table["batch_id"].to_pylist()) == {one.batch_id for one in batches}


def test_an_answer_that_was_lost_is_no_second_commit(
    store: ObservationStore, server: S3Server
) -> None:
    for n in range(3):  # a part is created by the first and written anew by the others
        lost = iter([1])
        server.lose = lambda method, path, lost=lost: (
            next(lost, None) if method == "PUT" and "/commits/" in path else None
        )
        publish_many(store.files, [batch(n)])
        assert next(lost, None) is None
    assert found(store) == wanted([batch(n) for n in range(3)])
    (part,) = objects(server, ".log")
    assert server.get(part, OBSERVATIONS).count(b"\n") == 3


def test_an_attempt_whose_outcome_is_open_is_made_again_safely(
    store: ObservationStore, server: S3Server
) -> None:
    server.lose = lambda method, path: 1 if method == "PUT" and "/commits/" in path else None
    with pytest.raises(BucketUnavailable):  # done, but nobody ever said so
        publish_many(store.files, [batch(0)])
    server.lose = lambda method, path: None
    (manifest,) = publish_many(store.files, [batch(0)])
    assert found(store) == wanted([batch(0)])
    assert store.files.manifest(batch(0).batch_id) == manifest


def test_parts_that_are_full_are_followed_by_others_and_no_writer_is_lost(
    store: ObservationStore, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "FULL", 2_000)  # two lines or three
    groups = [[batch(n), batch(n + 1)] for n in (*range(0, 24, 2), *range(1, 23, 2))]
    with ThreadPoolExecutor(4) as pool:  # each batch of two attempts
        list(pool.map(partial(publish_many, store.files), groups))
    every = [batch(n) for n in range(24)]
    other = afresh(store, tmp_path / "other")
    assert found(store) == found(other) == wanted(every)
    parts = objects(server, ".log")
    assert len(parts) > 3
    lines = [line for part in parts for line in server.get(part, OBSERVATIONS).splitlines()]
    named = [name for line in lines for name in line.split(b"\t")[2].decode().split(",")]
    assert sorted(named) == sorted(one.batch_id for one in every)  # each in one line
    hashes = other.files.content_hashes([one.batch_id for one in every])
    assert len(hashes) == 24
    later = batch(30)
    publish_many(other.files, [later])
    assert found(store) == wanted([*every, later])


def test_a_line_that_is_damaged_hides_itself_alone(
    store: ObservationStore, server: S3Server, tmp_path: Path
) -> None:
    publish_many(store.files, [batch(0)])
    (part,) = objects(server, ".log")
    content = server.get(part, OBSERVATIONS) + b"torn by hand\n"
    server.client().put_object(Bucket=server.bucket, Key=f"{OBSERVATIONS}{part}", Body=content)
    other = afresh(store, tmp_path / "other")
    assert found(other) == wanted([batch(0)])
    publish_many(other.files, [batch(1)])
    assert found(afresh(store, tmp_path / "third")) == wanted([batch(0), batch(1)])


def test_a_merger_that_dies_or_comes_second_changes_nothing(
    store: ObservationStore, server: S3Server
) -> None:
    batches = [batch(n) for n in range(4)]
    for one in batches:
        publish_many(store.files, [one])
    server.meddle = lambda method, path: 500 if "_compaction" in path and method == "PUT" else None
    with pytest.raises(StorageError):
        compact_hour(store.files, HOUR)
    server.meddle = lambda method, path: None
    assert found(store) == wanted(batches)
    first = compact_hour(store.files, HOUR)
    # another machine, whose list does not show that manifest, tries the same generation
    taken = f"date={HOUR:%Y-%m-%d}/hour={HOUR:%H}/_compaction-000001.json"
    with pytest.raises(FileExistsError):
        store.files.place.write(taken, b"{}", exclusive=True)
    assert store.files.compaction(HOUR) == first
    assert found(store) == wanted(batches)
    assert sweep_hour(store.files, HOUR, timedelta(0)) == 4
    assert found(store) == wanted(batches)


def test_lists_that_lag_behind_lose_and_double_nothing(
    store: ObservationStore, server: S3Server, tmp_path: Path
) -> None:
    early, late = [batch(n) for n in range(3)], batch(3)
    for one in early:
        publish_many(store.files, [one])
    assert found(store) == wanted(early)
    server.lists_are_stale = True
    publish_many(store.files, [late])
    assert found(store) == wanted(early)  # as the lists say
    merged = compact_hour(store.files, HOUR)  # does not see the late one
    assert set(merged.batches) == {one.batch_id for one in early}
    with pytest.raises(StorageError, match="another writer won"):
        compact_hour(store.files, HOUR)  # nor its own manifest
    server.lists_are_stale = False
    for folder in ("copies", "other"):
        assert found(afresh(store, tmp_path / folder)) == wanted([*early, late])


def test_files_of_a_commit_that_never_came_about_go_a_day_later(
    store: ObservationStore, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.meddle = lambda method, path: 500 if method == "PUT" and "/commits/" in path else None
    with pytest.raises(BucketUnavailable):
        publish_many(store.files, [batch(0)])
    server.meddle = lambda method, path: None
    publish_many(store.files, [batch(1)])
    assert sweep_unpublished(store.files, HOUR) == 0
    monkeypatch.setattr(compaction, "utc_now", lambda: datetime.now(UTC) + timedelta(hours=25))
    assert sweep_unpublished(store.files, HOUR) == 1
    assert found(store) == wanted([batch(1)])


def test_files_are_fetched_once_checked_and_bounded(
    store: ObservationStore, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        publish_many(store.files, [batch(n)])
    assert found(store) == wanted([batch(n) for n in range(3)])
    before = len(server.requests)
    found(store)
    since = server.requests[before:]
    assert not [path for _, path, _ in since if path.endswith(".parquet")]
    small = ObservationStore(store.url, str(tmp_path / "small"), 1)
    assert found(small) == found(store)  # all were just given to somebody
    monkeypatch.setattr(file_cache, "_JUST_USED_SECONDS", 0.0)
    assert small.files.place.copies.trim() == 6
    assert found(store) == wanted([batch(n) for n in range(3)])
    name = max(objects(server, ".parquet"))
    wrong = server.get(min(objects(server, ".parquet")), OBSERVATIONS)
    server.client().put_object(Bucket=server.bucket, Key=f"{OBSERVATIONS}{name}", Body=wrong)
    shutil.rmtree(tmp_path / "copies")  # may be deleted at any time
    with pytest.raises(BucketUnavailable, match="SHA-256"):
        found(store)


def test_a_day_is_removed_with_its_copies(
    machine, store: ObservationStore, server: S3Server
) -> None:
    layout = Layout(machine().root, observations_url=server.observations_url).create()
    here = ObservationStore.of(layout)
    publish_many(here.files, [batch(n) for n in range(2)])
    compact_hour(here.files, HOUR)
    assert found(here) == wanted([batch(0), batch(1)])
    days = list(here.files.days())
    assert HOUR.replace(hour=0) in days and all(here.files.day_bytes(day) > 0 for day in days)
    for day in days:
        item = RetentionItem("observations", f"{day:%Y-%m-%d}", 1, 1.0, "test")
        assert remove(layout, item) and not remove(layout, item)
    assert found(here) == [] and list(here.files.days()) == []
    assert objects(server, ".parquet") == [] and list(layout.observations.rglob("*.parquet")) == []
    publish_many(here.files, [batch(0)])  # is known: what was removed does not come back
    assert found(here) == []


def test_a_store_of_a_folder_is_sent_to_a_bucket(machine, server: S3Server, tmp_path: Path) -> None:
    layout = Layout(machine().root, observations_url=server.observations_url)
    folder = ObservationStore.of(Layout(layout.root))
    for n in range(3):
        publish_many(folder.files, [batch(n)])
    compact_hour(folder.files, HOUR)
    publish_many(folder.files, [batch(3), batch(4)])
    before = {name: folder.files.manifest(name) for name in folder.files.batches()}
    about = {"APPA_OBSERVATIONS_URL": server.observations_url}
    where = ["--data", str(layout.root)]
    doctor = appa("doctor", *where, "--json", **about)
    told = {
        f["name"]: f for f in json.loads(doctor.stdout)["findings"] if f["area"] == "observations"
    }
    assert re.match(r"1 day in |[02-9] days in ", told["data folder"]["found"])
    assert told["an object is created once"]["state"] == "ok"
    failures = iter([None] * 5)  # cut off in the middle
    server.meddle = lambda method, path: next(failures, 500) if method == "PUT" else None
    assert appa("observations", "send", *where, **about).returncode == 2
    server.meddle = lambda method, path: None
    assert found(afresh(ObservationStore(server.observations_url), tmp_path / "a")) == []
    done = appa("observations", "send", *where, **about)
    assert done.returncode == 0, done.stderr
    store = ObservationStore.of(layout)
    assert found(store) == wanted([batch(n) for n in range(5)])
    assert {name: store.files.manifest(name) for name in store.files.batches()} == before
    assert store.files.manifests([*before, "no-such"]) == before
    assert not (layout.root / "observations").exists()
    assert "0 files" in appa("observations", "send", *where, **about).stdout


def test_machines_that_share_no_folder_ingest_and_answer(
    stores, processes: Processes, server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    about = {
        "APPA_UPLOADS_URL": server.uploads_url,
        "APPA_OBSERVATIONS_URL": server.observations_url,
        "APPA_RECONCILE_SECONDS": "0.5",
    }
    folder = tmp_path_factory.mktemp("gateway")
    gateway = GatewayProcess(processes.redis_url, folder, processes.prefix, about).start()
    workers = [
        Processes(processes.redis_url, processes.prefix, tmp_path_factory.mktemp("worker"), about)
        for _ in range(2)
    ]
    times = {"start": "2025-01-01T00:00Z", "end": "2025-01-01T12:00Z", "format": "csv"}

    def values() -> list[float]:
        answer = httpx.get(f"{gateway.url}/v1/observations", params=times, timeout=60)
        assert answer.status_code == 200, answer.text
        return sorted(float(row["obs_value"]) for row in DictReader(answer.text.splitlines()))

    try:
        hold = Hold(server, "PUT", "/commits/", 503)
        killed = workers[0].appa("worker", "ingest")
        workers[1].appa("worker", "scheduler")
        sent = [send(gateway, csv(250.0 + n)).json()["id"] for n in range(4)]
        assert hold.came.wait(60), workers[0].log()
        workers[0].kill(killed)  # between the rows and their commit
        hold.go.set()
        assert values() == []
        workers[1].appa("worker", "ingest")
        workers[0].appa("worker", "ingest")
        wait_for(lambda: all(ingested(stores, name) for name in sent), 90)
        assert values() == [250.0, 251.0, 252.0, 253.0]
        server.stop()
        answer = httpx.get(f"{gateway.url}/v1/observations", params=times, timeout=120)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_error")
        ready = f"{gateway.url}/health/ready?part=gateway"
        wait_for(lambda: not httpx.get(ready).json()["checks"]["observations"]["ok"])
        server.start()
        assert len(values()) == 4
        wait_for(lambda: httpx.get(ready).json()["checks"]["observations"]["ok"])
        assert len(server.names("records/", UPLOADS)) == 4
        for made in (gateway.layout, *(Layout(one.data) for one in workers)):
            assert not list(made.raw.iterdir()) and not list(made.root.glob("observations/*"))
    finally:
        for one in workers:
            one.end()
        gateway.stop()
