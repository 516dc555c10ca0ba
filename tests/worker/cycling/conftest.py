"""One installation whose scheduler ticks when told, at a time that is told; Redis is real."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.cycles import CycleRecord, CycleState
from worker.contract.jobs import JobRecord, Progress
from worker.contract.layout import Layout
from worker.contract.records import Problem, new_id
from worker.contract.store import Stores
from worker.cycling.tick import Cycling
from worker.results.manifest import AnalysisManifest

LEASE = timedelta(seconds=30)
DAY = datetime(2003, 10, 1, tzinfo=UTC)


def at(hour: int, minute: int = 0) -> datetime:
    return DAY + timedelta(hours=hour, minutes=minute)


class Messages:
    """Takes what a broker would be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []
        self.priorities: dict[str, int] = {}

    def send_task(self, name: str, args: tuple, **options) -> None:
        self.sent.append((name, args[0]))
        self.priorities[args[0]] = options["priority"]


@dataclass(frozen=True)
class Disk:
    disk_low_bytes: int = 0
    disk_low_percent: float = 0.0


@dataclass
class Installation:
    stores: Stores
    layout: Layout
    messages: Messages = field(default_factory=Messages)
    scores: Callable[[JobRecord], dict] = field(default=lambda _: {})

    def scheduler(self, disk: Disk | None = None) -> Cycling:
        return Cycling(self.stores, self.layout, self.messages, disk or Disk())

    def policy(self, **values) -> None:
        text = {
            "start": at(0).isoformat(),
            "early_cut_off_minutes": 20,
            "final_cut_off_minutes": 180,
            "members": 2,
            "ingest_grace_seconds": 0,
            **values,
        }
        self.layout.cycles_file.write_text(yaml.safe_dump(text))

    def cycle(self, key: str) -> CycleRecord:
        return self.stores.cycles.get(f"20031001T{key}")

    def states(self) -> dict[str, str]:
        found = self.stores.cycles.select(limit=500).items
        return {c.id.removeprefix("20031001T"): c.state.value for c in reversed(found)}

    def jobs(self) -> list[JobRecord]:
        return list(reversed(self.stores.jobs.page(limit=500).items))

    def work(self, *, fail: str = "") -> JobRecord | None:
        """Does the oldest waiting job, as a worker would."""
        waiting = self.stores.jobs.ids("queued")
        return self.do(self.stores.jobs.get(waiting[0]), fail=fail) if waiting else None

    def do(self, job: JobRecord, *, fail: str = "") -> JobRecord:
        """Finish a queued job as a model worker would, or fail it."""
        job = self.stores.jobs.claim(job.id, "worker", LEASE)
        if fail:
            self.stores.jobs.fail(job.id, job.token, Problem(code="broken", message=fail))
        else:
            self._publish(job)
            self.stores.jobs.succeed(job.id, job.token, Progress())
        return job

    def _publish(self, job: JobRecord) -> None:
        manifest = AnalysisManifest(
            id=job.analysis_id, job_id=job.id, kind=job.kind, valid_time=job.spec.valid_time,
            times=[], files=[], members=1, flavour=job.flavour, revision=job.revision,
            cycle=job.cycle, cut_off=job.spec.observations.cut_off, spec=job.spec,
            scores=self.scores(job),
        )  # fmt: skip
        self.layout.analysis(job.analysis_id).mkdir()
        self.layout.manifest(job.analysis_id).write_text(manifest.model_dump_json())

    def upload(self, arrived: datetime) -> BatchRecord:
        name = new_id("batch")
        batch = BatchRecord(id=name, sha256=name, size=1, container="bufr", created=arrived)
        return self.stores.batches.create(batch)[0]

    def take_in(self, batch: BatchRecord) -> None:
        claimed = self.stores.batches.claim(batch.id, "worker", LEASE)
        self.stores.batches.finish(batch.id, claimed.token, IngestSummary())

    def run_until(self, now: datetime, scheduler: Cycling | None = None) -> None:
        """Ticks and works until there is nothing left to do at `now`."""
        scheduler = scheduler or self.scheduler()
        for _ in range(1000):
            if not scheduler.tick(now) and self.work() is None:
                return
        raise AssertionError("no end")

    def of(self, *states: CycleState) -> list[str]:
        wanted = {s.value for s in states}
        return [key for key, state in self.states().items() if state in wanted]


@pytest.fixture
def installation(stores: Stores, tmp_path: Path) -> Installation:
    return Installation(stores, Layout(tmp_path).create())
