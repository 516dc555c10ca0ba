"""Waiting uploads in two lanes, taken together with a fair share for every key."""

from datetime import timedelta

import pytest

from worker.contract.batches import (
    CALL_LIFETIME,
    SMALL_BYTES,
    BatchRecord,
    BatchState,
    IngestSummary,
    Lane,
)
from worker.contract.queues import INGEST_LARGE_QUEUE, WorkerReport, submit_batch
from worker.contract.record_store import MoveRefused
from worker.contract.records import Problem, new_id
from worker.contract.store import open_stores

LEASE = timedelta(seconds=30)


@pytest.fixture
def stores(shared_broker, prefix):
    opened = open_stores(shared_broker.url, prefix)
    yield opened
    opened.redis.close()


def upload(stores, number, key="", size=1_000, container="bufr"):
    record = BatchRecord(
        id=f"{new_id('batch')[:-8]}{number:08x}",
        sha256=f"{number:064x}",
        size=size,
        container=container,
        api_key=key,
    )
    return stores.batches.create(record)[0]


def take(stores, max_records=100, lane=Lane.SMALL, max_bytes=10**9):
    return stores.batches.take(
        lane, "worker-1", LEASE, max_records=max_records, max_bytes=max_bytes
    )


def test_what_is_small(stores):
    lanes = [
        upload(stores, 1).lane,
        upload(stores, 2, size=SMALL_BYTES + 1).lane,
        upload(stores, 3, container="grib").lane,  # ten kilobytes may hold sixty million points
    ]
    assert lanes == [Lane.SMALL, Lane.LARGE, Lane.LARGE]
    assert [b.lane for b in take(stores)[0]] == [Lane.SMALL]
    assert [b.lane for b in take(stores, lane=Lane.LARGE)[0]] == [Lane.LARGE] * 2


def test_a_sender_of_many_delays_itself_only(stores):
    many = [upload(stores, n, "flood") for n in range(20)]
    one, two = upload(stores, 100, "quiet"), upload(stores, 101, "other")
    taken, more = take(stores, max_records=4)
    assert more
    assert {one.id, two.id} < {batch.id for batch in taken}
    # Of one sender the oldest first, and after a turn the others come before it again.
    assert [b.id for b in taken if b.api_key == "flood"] == [many[0].id, many[1].id]
    late = upload(stores, 102, "quiet")
    assert late.id in {batch.id for batch in take(stores, max_records=2)[0]}
    rest, more = take(stores)
    assert not more
    assert [b.id for b in rest if b.api_key == "flood"] == [b.id for b in many[-len(rest) :]]


def test_a_sender_cannot_jump_the_queue_by_being_new(stores):
    for number in range(3):
        upload(stores, number, "a")
        upload(stores, 10 + number, "b")
    assert len(take(stores, max_records=2)[0]) == 2
    upload(stores, 20, "c")
    assert {batch.api_key for batch in take(stores, max_records=2)[0]} == {"a", "b"}
    assert "c" in {batch.api_key for batch in take(stores, max_records=1)[0]}


def test_taking_is_claiming(stores):
    upload(stores, 1, "k")
    ((batch,), more) = take(stores)
    assert not more
    assert (batch.state, batch.attempts, batch.token) == (BatchState.INGESTING, 1, 1)
    assert batch.worker == "worker-1" and batch.started is not None
    assert batch == stores.batches.get(batch.id)
    assert stores.redis.exists(stores.keys.lease("batch", batch.id))
    assert [data["state"] for _, _, data in stores.batches.events(batch.id)] == [
        "received",
        "ingesting",
    ]
    assert stores.batches.ids(BatchState.RECEIVED) == []
    with pytest.raises(MoveRefused):
        stores.batches.claim(batch.id, "worker-2", LEASE)
    stores.batches.finish(batch.id, batch.token, IngestSummary(observations=1))
    assert take(stores) == ([], False)
    assert not stores.redis.keys(f"{stores.keys.prefix}:index:batch:lane:*")


def test_one_that_was_begun_waits_alone(stores):
    upload(stores, 1)
    ((batch,), _) = take(stores)
    assert stores.batches.lane_of_record(batch.id) == (Lane.SMALL, False)
    stores.batches.requeue(batch.id, batch.token, Problem(code="x", message="later"))
    assert take(stores) == ([], False)
    assert stores.batches.lane_of_record(batch.id) == (Lane.SMALL, True)
    assert stores.batches.claim(batch.id, "worker-2", LEASE).attempts == 2
    assert stores.batches.lane_of_record("batch-unknown") == (None, False)


def test_bytes_taken_together_are_bounded_but_one_is_always_taken(stores):
    for number in range(4):
        upload(stores, number, size=1_000)
    assert len(take(stores, max_bytes=2_500)[0]) == 2
    assert len(take(stores, max_bytes=1)[0]) == 1


def test_one_message_is_enough_while_it_is_on_its_way(stores):
    calls = [stores.batches.needs_message(Lane.SMALL, CALL_LIFETIME) for _ in range(3)]
    assert calls == [True, False, False]
    take(stores)  # it has arrived: whoever comes later needs another
    assert stores.batches.needs_message(Lane.SMALL, CALL_LIFETIME)
    take(stores)
    assert stores.batches.needs_message(Lane.SMALL, timedelta(milliseconds=1))
    stores.redis.delete(stores.batches._index("called", Lane.SMALL))  # as if it had run out
    assert stores.batches.needs_message(Lane.SMALL, CALL_LIFETIME)


class Sender:
    def __init__(self):
        self.queues = []

    def send_task(self, name, args, **options):
        self.queues.append(options.get("queue"))


def test_large_uploads_have_a_queue_of_their_own_while_somebody_takes_it(stores):
    sender = Sender()
    submit_batch(sender, stores.workers, "batch-1", large=True)
    report = WorkerReport(name="w", queues=[INGEST_LARGE_QUEUE], ready=True)
    stores.workers.register(report, LEASE)
    submit_batch(sender, stores.workers, "batch-1", large=True)
    submit_batch(sender, stores.workers, "batch-1", large=False)
    assert sender.queues == [None, INGEST_LARGE_QUEUE, None]
