"""The job store: the one truth about jobs, their states and their progress."""

from dataclasses import dataclass

from redis import Redis

from worker.jobs import scripts
from worker.jobs.batch_store import BatchStore
from worker.jobs.connection import connect
from worker.jobs.cycle_store import CycleStore
from worker.jobs.event_log import EventLog
from worker.jobs.job import ALLOWED_MOVES, JobRecord, JobState, Problem, Progress, utc_now
from worker.jobs.keyspace import Keyspace
from worker.jobs.quotas import QuotaCounters
from worker.jobs.record_store import RecordStore
from worker.jobs.webhook_store import WebhookStore
from worker.jobs.workers import WorkerDirectory

__all__ = ["JobStore", "Stores", "open_stores"]


class JobStore(RecordStore[JobRecord]):
    """Jobs in Redis."""

    noun = "job"
    model = JobRecord
    waiting = JobState.QUEUED
    working = JobState.RUNNING
    leased = (JobState.RUNNING, JobState.CANCELLING)

    def _sources(self, to: str) -> list[str]:
        return [state for state, moves in ALLOWED_MOVES.items() if to in moves]

    def create(self, record: JobRecord, *, unique_key: str = "") -> tuple[JobRecord, bool]:
        """Stores a new job.

        Arguments:
            record: In state `queued`.
            unique_key: A caller's own key (idempotency key, cycle): a second job under it is not
                created.

        Returns:
            The job under that key, and whether it was created now.
        """
        return self._create(record, kind=record.kind, unique=[unique_key] if unique_key else ())

    def read(self, record_id: str) -> JobRecord:
        """The job with its place in the queue filled in: what the gateway shows.

        Raises:
            NoSuchRecord: If there is none.
        """
        job = self.get(record_id)
        if job.state is JobState.QUEUED:
            place = self.position(record_id)
            job.progress = job.progress.model_copy(update={"queue_position": place})
        return job

    def cancel(self, record_id: str) -> JobState:
        """Asks for the end of a job: `cancelled` when it waited, else `cancelling`.

        Raises:
            MoveRefused: If it is finished, or its result is being published.
            NoSuchRecord: If there is none.
        """
        end = {"finished": utc_now().isoformat()}
        return JobState(
            self._run(
                scripts.CANCEL,
                record_id,
                self._fields(end),
                self._event(JobState.CANCELLED),
                self._event(JobState.CANCELLING),
            )
        )

    def report(self, record_id: str, token: int, progress: Progress) -> JobState:
        """Stores and announces progress; the state comes back, so that a cancel is seen.

        Raises:
            LeaseLost: If a newer attempt holds the job.
        """
        text = progress.model_dump_json()
        return JobState(self._run(scripts.PROGRESS, record_id, token, text))

    def open_gate(self, record_id: str, token: int) -> None:
        """Passes the gate in front of publication; from here on a cancel is refused.

        Raises:
            LeaseLost: If a newer attempt holds the job.
            MoveRefused: If it is being cancelled.
        """
        self._run(scripts.PUBLISH, record_id, token, JobState.RUNNING)

    def succeed(self, record_id: str, token: int, progress: Progress) -> None:
        """The result is visible; the job is done."""
        to = JobState.SUCCEEDED
        self.move(record_id, to, token=token, terminal=True, progress=progress, error=None)

    def fail(self, record_id: str, token: int | None, problem: Problem) -> None:
        """The job has failed for good."""
        self.move(record_id, JobState.FAILED, token=token, terminal=True, error=problem)

    def confirm_cancel(self, record_id: str, token: int) -> None:
        """The worker has stopped."""
        self.move(record_id, JobState.CANCELLED, token=token, terminal=True)

    def requeue(self, record_id: str, token: int, problem: Problem) -> None:
        """Back to the queue after a retryable error."""
        values = {"error": problem, "publishing": False, "progress": Progress()}
        self.move(record_id, JobState.QUEUED, token=token, terminal=False, **values)


@dataclass(frozen=True)
class Stores:
    """All that is kept in Redis, over one connection pool."""

    redis: Redis
    keys: Keyspace
    jobs: JobStore
    batches: BatchStore
    workers: WorkerDirectory
    quotas: QuotaCounters
    cycles: CycleStore
    events: EventLog
    webhooks: WebhookStore


def open_stores(url: str, prefix: str = "appa") -> Stores:
    """The stores on the Redis server at `url` (`redis://…` or `unix://…`).

    No connection is made before the first call; calls wait and try again for some seconds while
    the server restarts.
    """
    redis = connect(url)
    keys = Keyspace(prefix)
    events = EventLog(redis, keys)
    return Stores(
        redis,
        keys,
        JobStore(redis, keys),
        BatchStore(redis, keys),
        WorkerDirectory(redis, keys),
        QuotaCounters(redis, keys),
        CycleStore(redis, keys),
        events,
        WebhookStore(redis, keys, events),
    )
