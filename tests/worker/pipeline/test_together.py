"""Small uploads ingested together: each record ends by itself, whatever becomes of the others."""

import hashlib
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from celery.exceptions import Reject, Retry

from model.domain.errors import StorageError
from tests.worker.decoders.bufr_messages import synop
from worker.contract.batches import BatchRecord, BatchState, Lane
from worker.contract.records import Problem, new_id
from worker.observations.decoders import decode as decode_module
from worker.observations.store.store import ObservationStore
from worker.pipeline import ingest as pipeline
from worker.runtime import WorkerStopping, open_runtime
from worker.settings import WorkerSettings
from worker.tasks import ingest as tasks
from worker.tasks.attempt import attempt, attempt_batch
from worker.tasks.ingest import _alone, _together

FATAL = b"this ends the process"


class Outbox:
    """Where messages go instead of a broker."""

    def __init__(self):
        self.sent = []

    def send_task(self, name, args, **options):
        self.sent.append(args[0])

    def retry(self, **options):
        self.sent.append(options["args"][0])
        return Retry()


@pytest.fixture
def runtime(shared_broker, prefix, tmp_path):
    settings = WorkerSettings(
        redis_url=shared_broker.url, redis_prefix=prefix, data_dir=tmp_path / "data"
    )
    opened = open_runtime(settings, ["ingest"], "worker-1", Outbox())
    yield opened
    opened.stores.redis.close()


def upload(runtime, content, key=""):
    batch_id = new_id("batch")
    path = runtime.layout.raw_file(batch_id)
    path.parent.mkdir()
    path.write_bytes(content)
    record = BatchRecord(
        id=batch_id,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        container="bufr",
        api_key=key,
    )
    return runtime.stores.batches.create(record)[0]


def ingest_waiting(runtime):
    """As the task does with the message of any of them."""
    store = runtime.stores.batches
    taken, _ = store.take(
        Lane.SMALL, "worker-1", runtime.settings.lease, max_records=64, max_bytes=10**7
    )
    attempt_batch(runtime.sender, runtime, store, taken, partial(_together, runtime))
    return taken


def states(runtime, batches):
    return [runtime.stores.batches.get(batch.id).state for batch in batches]


def stored(runtime):
    return list(ObservationStore(str(runtime.layout.observations)).files.batches())


def test_each_ends_by_itself_with_what_it_would_have_had_alone(runtime):
    good = [upload(runtime, synop(airTemperature=280.0 + n), f"k{n % 2}") for n in range(5)]
    bad = upload(runtime, b"BUFR, but not really" * 5)
    ingest_waiting(runtime)
    assert states(runtime, good) == [BatchState.INGESTED] * 5
    done = [runtime.stores.batches.get(batch.id) for batch in good]
    assert [(b.attempts, b.summary.observations, b.summary.messages) for b in done] == [
        (1, 1, 1)
    ] * 5
    rejected = runtime.stores.batches.get(bad.id)
    assert (rejected.state, rejected.attempts) == (BatchState.REJECTED, 1)
    assert rejected.summary.decode_report["rejected"]
    assert stored(runtime) == sorted(batch.id for batch in good)
    files = list(Path(runtime.layout.observations).glob("date=*/hour=*/*.parquet"))
    assert len(files) == 1
    assert runtime.sender.sent == []


def decode_alone_or_die(path, format, context, mark):
    os.abort()


def test_one_that_ends_its_child_costs_itself_only(runtime, monkeypatch):
    before = [upload(runtime, synop(airTemperature=280.0 + n)) for n in range(2)]
    fatal = upload(runtime, FATAL + synop(airTemperature=290.0))
    after = [upload(runtime, synop(airTemperature=285.0 + n)) for n in range(2)]
    monkeypatch.setattr(decode_module, "_decode_each", decode_and_die)
    ingest_waiting(runtime)
    assert states(runtime, [*before, *after]) == [BatchState.INGESTED] * 4
    waiting = runtime.stores.batches.get(fatal.id)
    assert (waiting.state, waiting.error.code) == (BatchState.RECEIVED, "decoded_alone")
    assert runtime.sender.sent == [fatal.id]
    monkeypatch.setattr(decode_module, "_decode", decode_alone_or_die)
    attempt(runtime.sender, runtime, runtime.stores.batches, fatal.id, _alone(runtime))
    ended = runtime.stores.batches.get(fatal.id)
    assert (ended.state, ended.error.context["reason"]) == (BatchState.REJECTED, "crashed")


def test_one_whose_bytes_are_lost_costs_itself_only(runtime):
    kept = [upload(runtime, synop(airTemperature=280.0 + n)) for n in range(2)]
    lost = upload(runtime, synop(airTemperature=290.0))
    runtime.layout.raw_file(lost.id).unlink()
    ingest_waiting(runtime)
    assert states(runtime, kept) == [BatchState.INGESTED] * 2
    waiting = runtime.stores.batches.get(lost.id)
    assert (waiting.state, waiting.error.code) == (BatchState.RECEIVED, "decoded_alone")
    attempt(runtime.sender, runtime, runtime.stores.batches, lost.id, _alone(runtime))
    ended = runtime.stores.batches.get(lost.id)
    assert ended.state is BatchState.FAILED  # our own fault: never a rejection
    assert f"the bytes of upload '{lost.id}' are not kept" in ended.error.message


def decode_and_die(files, results, limits):
    """In the child: one file is fatal, as a decoder's bug would be."""
    from worker.observations.decoders.decode import _decode_each

    for file in files:
        if FATAL in Path(file[0]).read_bytes():
            os.abort()
        _decode_each([file], results, limits)


def decode_without_end(files, results, limits):
    """In the child: the files of one sender take for ever."""
    from worker.observations.decoders.decode import _decode_each

    for file in files:
        while FATAL in Path(file[0]).read_bytes():
            pass
        _decode_each([file], results, limits)


def test_a_sender_of_slow_files_delays_itself_only(runtime, monkeypatch):
    slow = [upload(runtime, FATAL + synop(airTemperature=250.0 + n), "slow") for n in range(9)]
    quick = [upload(runtime, synop(airTemperature=280.0 + n), f"k{n}") for n in range(2)]
    monkeypatch.setattr(decode_module, "_decode_each", decode_without_end)
    monkeypatch.setattr(pipeline, "SENDER_SECONDS", 5.0)
    began = time.monotonic()
    ingest_waiting(runtime)
    assert time.monotonic() - began < 25.0  # not nine times five seconds
    assert states(runtime, quick) == [BatchState.INGESTED] * 2
    assert states(runtime, slow) == [BatchState.RECEIVED] * 9
    assert sorted(runtime.sender.sent) == sorted(batch.id for batch in slow)


def test_a_fault_of_ours_brings_all_back_each_by_its_own_message(runtime, monkeypatch):
    batches = [upload(runtime, synop(airTemperature=280.0 + n)) for n in range(3)]
    with monkeypatch.context() as patch:

        def full(*_):
            raise StorageError("Cannot write: No space left on device.")

        patch.setattr(tasks, "publish_many", full)
        ingest_waiting(runtime)
    assert states(runtime, batches) == [BatchState.RECEIVED] * 3
    assert sorted(runtime.sender.sent) == sorted(batch.id for batch in batches)
    assert stored(runtime) == []
    for batch in batches:
        runtime.stores.redis.hset(runtime.stores.keys.record("batch", batch.id), "retry_at", "null")
        with suppress(Retry, Reject):
            attempt(runtime.sender, runtime, runtime.stores.batches, batch.id, _alone(runtime))
    assert states(runtime, batches) == [BatchState.INGESTED] * 3


def test_a_stopping_worker_gives_all_back(runtime, monkeypatch):
    batches = [upload(runtime, synop(airTemperature=280.0 + n)) for n in range(3)]

    def stop(*_):
        raise WorkerStopping("bye")

    monkeypatch.setattr(tasks, "decode_small", stop)
    ingest_waiting(runtime)
    assert states(runtime, batches) == [BatchState.RECEIVED] * 3
    assert sorted(runtime.sender.sent) == sorted(batch.id for batch in batches)


def test_one_that_another_attempt_took_over_is_not_published_here(runtime, monkeypatch):
    batches = [upload(runtime, synop(airTemperature=280.0 + n)) for n in range(3)]
    real = tasks.decode_small

    def slow(fresh, layout):
        yield from real(fresh, layout)
        store = runtime.stores.batches
        store.redis.delete(store.keys.lease("batch", batches[1].id))
        store.reap(batches[1].id, 5, tasks_problem())

    monkeypatch.setattr(tasks, "decode_small", slow)
    ingest_waiting(runtime)
    expected = [BatchState.INGESTED, BatchState.RECEIVED, BatchState.INGESTED]
    assert states(runtime, batches) == expected
    assert stored(runtime) == sorted([batches[0].id, batches[2].id])


def tasks_problem():
    return Problem(code="worker_lost", message="gone")


def test_what_was_published_before_a_crash_is_only_finished(runtime):
    batches = [upload(runtime, synop(airTemperature=280.0 + n)) for n in range(2)]
    store = runtime.stores.batches
    taken, _ = store.take(
        Lane.SMALL, "dead", runtime.settings.lease, max_records=9, max_bytes=10**7
    )
    with runtime.busy_with("x"):
        _together(runtime, taken, _Held(taken))
    rows = stored(runtime)
    for batch in batches:  # nobody wrote the outcome down; another attempt does
        store.redis.delete(store.keys.lease("batch", batch.id))
        store.reap(batch.id, 5, tasks_problem())
        attempt(runtime.sender, runtime, store, batch.id, _alone(runtime))
    assert states(runtime, batches) == [BatchState.INGESTED] * 2
    assert stored(runtime) == rows
    assert [store.get(batch.id).summary.observations for batch in batches] == [1, 1]


class _Held:
    def __init__(self, batches):
        self.ids = {batch.id for batch in batches}

    def held(self):
        return self.ids
