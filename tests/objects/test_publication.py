"""Results in a bucket: whole or not at all, once, read anywhere, deleted manifest first.

The answers come from a real server, asked over HTTP besides our own client.
"""

import hashlib
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from model.domain.errors import ConfigurationError
from tests.objects.conftest import MakeLayout
from tests.objects.s3_server import S3Server
from worker.contract import objects
from worker.contract.buckets import BucketUnavailable
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.objects import Bucket
from worker.results.bucket import BucketStore, file_object
from worker.results.catalogue import Catalogue
from worker.results.manifest import AnalysisManifest, Pin, describe_file, pin, read_manifest
from worker.results.publication import sweep_leftovers, write_manifest
from worker.results.retention.plan import RetentionItem, RetentionPlan
from worker.results.retention.run import remove, remove_all
from worker.results.store import PublishOutcome, result_store
from worker.settings import WorkerSettings

BASE = datetime(2025, 1, 1, tzinfo=UTC)
LARGE = bytes(range(256)) * 50_000  # 12.8 MB: more than one part


def stage(layout: Layout, name: str, data: bytes = LARGE, hour: int = 0, token: int = 1):
    """A finished folder of an attempt, as a worker leaves it."""
    folder = layout.staging(name, token)
    folder.mkdir()
    (folder / "a.nc").write_bytes(data)
    (folder / "restart.safetensors").write_bytes(b"r" * 500)
    (folder / "scratch.bin").write_bytes(b"of the solver")
    time = BASE + timedelta(hours=hour)
    files = [
        describe_file(folder / "a.nc"),
        describe_file(folder / "restart.safetensors", "restart"),
    ]
    manifest = AnalysisManifest(
        id=name, job_id="job-x", kind="filtering", valid_time=time, times=[time], files=files,
        members=1, spec=FilteringSpec(valid_time=time), flavour="final",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def publish(layout: Layout, name: str, **values) -> PublishOutcome:
    store, folder = result_store(layout), stage(layout, name, **values)
    store.prepare(folder)
    return store.publish(folder, name)


def item(what: str, name: str) -> RetentionItem:
    return RetentionItem(what=what, name=name, size=1, age_days=1.0, reason="test")


def test_files_come_first_and_the_manifest_makes_the_result(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    store, folder = result_store(layout), stage(layout, "an-1")
    store.prepare(folder)
    sha = hashlib.sha256(LARGE).hexdigest()
    assert f"files/an-1/{sha}/a.nc" in server.names()
    assert len(server.names("files/")) == 2  # not the solver's scratch file
    assert server.names("manifests/") == []
    elsewhere = Catalogue(machine())
    assert elsewhere.find("an-1") is None and elsewhere.rebuild() == 0
    assert store.publish(folder, "an-1") is PublishOutcome.PUBLISHED
    assert server.names("manifests/") == ["manifests/an-1.json"]
    assert server.get(f"files/an-1/{sha}/a.nc") == LARGE
    assert elsewhere.get("an-1").files[0].sha256 == sha
    assert elsewhere.rebuild() == 1
    parts = [path for method, path, _ in server.requests if method == "PUT" and "a.nc" in path]
    assert len(parts) > 1  # sent in parts
    assert list(layout.tmp.glob("an-*")) == []


def test_the_first_of_two_attempts_wins_and_the_second_leaves_nothing(
    machine: MakeLayout, server: S3Server
) -> None:
    one, two = machine(), machine()
    ready = threading.Barrier(2)
    outcomes: dict[int, PublishOutcome] = {}

    def attempt(number: int, layout: Layout) -> None:
        folder = stage(layout, "an-1", data=b"%d" % number * 1000)
        store = result_store(layout)
        store.prepare(folder)
        ready.wait()
        outcomes[number] = store.publish(folder, "an-1")

    threads = [threading.Thread(target=attempt, args=a) for a in ((1, one), (2, two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == [PublishOutcome.ALREADY_PUBLISHED, PublishOutcome.PUBLISHED]
    winner = next(n for n, outcome in outcomes.items() if outcome is PublishOutcome.PUBLISHED)
    for layout in (one, two, machine()):
        assert result_store(layout).file("an-1", "a.nc").read_bytes() == b"%d" % winner * 1000
    assert len(server.names("files/")) == 2  # the loser's own file is gone, the equal one is not


def test_an_answer_that_was_lost_is_no_defeat(machine: MakeLayout, server: S3Server) -> None:
    layout = machine()
    store, folder = result_store(layout), stage(layout, "an-1")
    store.prepare(folder)
    text = (folder / "manifest.json").read_bytes()
    assert store.bucket.create("manifests/an-1.json", text)  # done; the worker never learned
    assert store.publish(folder, "an-1") is PublishOutcome.PUBLISHED
    assert len(server.names("files/")) == 2


def test_errors_for_a_while_are_waited_out_and_for_long_are_told(
    machine: MakeLayout, server: S3Server, monkeypatch
) -> None:
    layout = machine()
    failures = iter([500, 503])
    server.meddle = lambda method, path: next(failures, None)
    assert publish(layout, "an-1") is PublishOutcome.PUBLISHED
    assert next(failures, None) is None
    server.meddle = lambda method, path: 500
    monkeypatch.setattr(objects, "_PATIENT", {"max_retries": 1})
    store = BucketStore(layout)
    folder = stage(layout, "an-2")
    with pytest.raises(BucketUnavailable, match="Expected the bucket s3://") as caught:
        store.prepare(folder)
    assert caught.value.retryable
    server.meddle = lambda method, path: None
    assert server.names("manifests/") == ["manifests/an-1.json"]


def test_a_bucket_that_is_not_there_is_no_missing_result(server: S3Server) -> None:
    absent = Bucket("s3://no-such-bucket/x")
    assert "no-such-bucket" in absent.problem()
    with pytest.raises(BucketUnavailable):
        absent.create("manifests/a.json", b"{}")
    with pytest.raises(BucketUnavailable):
        list(absent.list("manifests"))
    assert Bucket(server.url).problem() == ""


def test_what_another_machine_publishes_changes_and_deletes_is_seen(
    machine: MakeLayout, server: S3Server
) -> None:
    here, there = machine(), machine()
    for hour in range(3):
        publish(there, f"an-{hour}", data=b"x", hour=hour)
    catalogue, store = Catalogue(here), result_store(here)
    assert [entry.id for entry in catalogue.entries()] == ["an-2", "an-1", "an-0"]
    assert remove(there, item("restart", "an-1"))
    assert remove(there, item("analysis", "an-0"))
    store.refresh(now=True)
    assert [entry.id for entry in catalogue.entries()] == ["an-2", "an-1"]
    assert catalogue.get("an-1").flags == ["restart_removed"]
    assert [file.name for file in catalogue.get("an-1").files] == ["a.nc"]
    assert not [name for name in server.names() if "an-0" in name]
    assert not [name for name in server.names() if "an-1" in name and "restart" in name]
    before = len(server.requests)
    store.refresh(now=True)
    assert [r[0] for r in server.requests[before:]] == ["GET"]  # one list, no manifest again


def test_a_lost_data_folder_is_filled_again_from_the_bucket(machine: MakeLayout) -> None:
    before, after = machine(), machine()
    for hour in range(4):
        publish(before, f"an-{hour}", data=b"%d" % hour, hour=hour)
    told = {e.id: (e.valid_time, e.restart_bytes) for e in Catalogue(before).entries()}
    with Catalogue(after) as catalogue:
        assert catalogue.rebuild() == 4
        assert {e.id: (e.valid_time, e.restart_bytes) for e in catalogue.entries()} == told
    assert result_store(after).file("an-3", "a.nc").read_bytes() == b"3"
    assert read_manifest(after, "an-2").files[1].role == "restart"


def test_a_pin_that_comes_between_brings_the_result_back(machine: MakeLayout, monkeypatch) -> None:
    layout = machine()
    publish(layout, "an-1", data=b"x")
    unpublish = BucketStore.unpublish

    def pinned_meanwhile(self: BucketStore, name: str) -> bool:
        pin(layout, Pin(analysis_id=name))
        return unpublish(self, name)

    monkeypatch.setattr(BucketStore, "unpublish", pinned_meanwhile)
    assert remove_all(layout, RetentionPlan((item("analysis", "an-1"),), {})) == []
    assert result_store(machine()).file("an-1", "a.nc").read_bytes() == b"x"
    assert Catalogue(layout).get("an-1").id == "an-1"


def test_what_a_killed_attempt_left_is_collected_and_nothing_else(
    machine: MakeLayout, server: S3Server
) -> None:
    layout = machine()
    publish(layout, "an-1", data=b"x")
    store = result_store(layout)
    store.prepare(stage(layout, "an-2", data=b"y"))  # and was killed
    store.prepare(stage(layout, "an-1", data=b"z", token=2))  # a second attempt, killed too
    assert len(server.names("files/")) == 5
    assert sweep_leftovers(layout, 3600.0) == 0  # it may be under way
    assert store.sweep(-60.0) == 3
    listed = {file_object("an-1", file) for file in read_manifest(layout, "an-1").files}
    assert set(server.names("files/")) == listed


def test_copies_are_bounded_and_what_was_just_used_stays(
    machine: MakeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = machine(), machine(results_cache_bytes=2_500)
    for hour in range(4):
        publish(writer, f"an-{hour}", data=b"%d" % hour * 1000, hour=hour)
    store = result_store(reader)
    for hour in range(4):
        assert store.file(f"an-{hour}", "a.nc").read_bytes() == b"%d" % hour * 1000
    files = reader.analyses.glob("*/a.nc")
    assert len(list(files)) == 4  # all were just given to somebody
    monkeypatch.setattr("worker.contract.file_cache._JUST_USED_SECONDS", 0.0)
    time.sleep(0.01)
    assert store.copies.use(reader.analysis_file("an-0", "a.nc"))
    assert store.copies.trim() == 2
    left = {path.parent.name for path in reader.analyses.glob("*/a.nc")}
    assert left == {"an-0", "an-3"}
    assert len(list(reader.analyses.glob("*/manifest.json"))) == 4
    assert store.file("an-1", "a.nc").read_bytes() == b"1" * 1000  # fetched again


def test_bytes_that_are_not_those_of_the_manifest_are_refused(
    machine: MakeLayout, server: S3Server
) -> None:
    writer, reader = machine(), machine()
    publish(writer, "an-1", data=b"right")
    entry = read_manifest(writer, "an-1").files[0]
    (writer.tmp / "wrong").write_bytes(b"wrong")
    result_store(writer).bucket.send(writer.tmp / "wrong", file_object("an-1", entry))
    with pytest.raises(BucketUnavailable, match="SHA-256"):
        result_store(reader).file("an-1", "a.nc")
    assert not reader.analysis_file("an-1", "a.nc").exists()


def test_a_catalogue_answers_from_copies_while_the_bucket_is_gone(
    machine: MakeLayout, server: S3Server
) -> None:
    layout, new = machine(), machine()
    publish(layout, "an-1", data=b"x")
    catalogue = Catalogue(layout)
    assert catalogue.latest is not None and len(catalogue.entries()) == 1
    server.stop()
    assert [entry.id for entry in catalogue.entries()] == ["an-1"]
    assert result_store(layout).file("an-1", "a.nc").read_bytes() == b"x"
    assert "Expected the bucket" in result_store(layout).bucket.problem()
    with pytest.raises(BucketUnavailable):
        Catalogue(new).find("an-1")  # nobody here can say whether it exists
    with pytest.raises(BucketUnavailable):
        catalogue.rebuild()


def test_a_server_that_ignores_conditions_is_found_out(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [fault for _, fault in Bucket(server.url).faults()] == ["", "", "", ""]
    assert server.names("checks/") == []
    answer = server._answer

    def deaf(environ, start_response):
        environ.pop("HTTP_IF_NONE_MATCH", None)
        environ.pop("HTTP_IF_MATCH", None)
        return answer(environ, start_response)

    server.stop()
    monkeypatch.setattr(server, "_answer", deaf)
    server.start()
    faults = dict(Bucket(server.url).faults())
    assert "If-None-Match: * was ignored" in faults["an object is created once"]
    assert "If-Match was ignored" in faults["another's change is not overwritten"]


def test_variables_that_are_empty_are_none_and_wrong_ones_are_named(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    assert Bucket(server.url).problem() == ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "s3.example.org")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL such as https://"):
        Bucket(server.url)
    with pytest.raises(ConfigurationError, match="APPA_RESULTS_URL such as s3://"):
        WorkerSettings(results_url="gs://bucket")
