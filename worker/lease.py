"""Hold a lease on a record while working on it, and report progress under it.

The lease is kept by heartbeats from a thread and guarded by a fencing token. The token in the
record is the authority: an attempt whose token is no longer the newest may change nothing. The
lease key only says that the holder is alive; it may expire while the Redis server is down, and the
next heartbeat restores it. Progress is stored at most once a second; reporting it is where a
cancel is noticed.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any

from redis.exceptions import RedisError

from model.domain.errors import AppaError, JobCancelled
from worker.contract.jobs import JobState, JobStore, Phase, Progress
from worker.contract.record_store import LeaseLost, NoSuchRecord, RecordStore

__all__ = ["JobTooLong", "Lease", "ProgressReporter"]


class Lease:
    """Keep a record leased to this worker: a context manager around the work on it.

    Arguments:
        store: Jobs or batches.
        record_id: The record, already claimed.
        token: The token that came with the claim.
        lifetime: Without heartbeats the lease ends after this.
    """

    def __init__(
        self, store: RecordStore[Any], record_id: str, token: int, lifetime: timedelta
    ) -> None:
        self.store = store
        self.record_id = record_id
        self.token = token
        self.lifetime = lifetime
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._beat_on, name=f"lease-{record_id}", daemon=True
        )

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def check(self) -> None:
        """Check that the work may go on; call it between any two steps.

        Raises:
            JobCancelled: If the job was cancelled.
            LeaseLost: If a newer attempt holds the record.
        """
        state, token = self.store.state_and_token(self.record_id)
        if state == JobState.CANCELLING and token == self.token:
            raise JobCancelled(f"Job '{self.record_id}' was cancelled.", id=self.record_id)
        if self.lost.is_set() or token != self.token or state not in self.store.leased:
            raise LeaseLost(
                f"Another attempt holds {self.store.noun} '{self.record_id}'.", id=self.record_id
            )

    def _beat_on(self) -> None:
        pause = self.lifetime.total_seconds() / 4
        while not self._stop.wait(pause):
            try:
                self.store.beat(self.record_id, self.token, self.lifetime)
            except (LeaseLost, NoSuchRecord):
                self.lost.set()
                return
            except RedisError:  # the server restarts: the token still counts, try again
                continue


class JobTooLong(AppaError):
    """A job that takes longer than any job may; trying it again would take as long."""

    code = "job_too_long"


class ProgressReporter:
    """Report to the job store how far a job is.

    Calling it with (step, steps) is the `on_step` of the model: it raises at once when the job is
    cancelled, taken over by another worker, or the process stops.

    Arguments:
        store: The job store.
        lease: Of the attempt.
        check_stopping: Raises when the process was asked to stop.
        interval: Seconds between two stored values of the same phase.
        limit_seconds: A job that takes longer is stopped.
    """

    def __init__(
        self,
        store: JobStore,
        lease: Lease,
        check_stopping: Callable[[], None],
        interval: float = 1.0,
        limit_seconds: float = float("inf"),
    ) -> None:
        self.store = store
        self.lease = lease
        self.check_stopping = check_stopping
        self.interval = interval
        self.progress = Progress(phase=Phase.LOADING)
        self._last_reported = float("-inf")
        self._sampling_since = 0.0
        self._limit = limit_seconds
        self._started = time.monotonic()

    def phase(self, phase: Phase, message: str = "") -> None:
        """Enter a phase and report it at once."""
        self.check()
        update = {"phase": phase, "message": message, "eta_seconds": None}
        self.progress = self.progress.model_copy(update=update)
        if phase is Phase.SAMPLING:
            self._sampling_since = time.monotonic()
        self._report()

    def __call__(self, step: int, steps: int) -> None:
        """Report diffusion step `step` (from 0) of `steps`; call it before the step."""
        self.check()
        now = time.monotonic()
        eta = (now - self._sampling_since) / step * (steps - step) if step else None
        update = {"step": step, "steps": steps, "eta_seconds": eta}
        self.progress = self.progress.model_copy(update=update)
        if now - self._last_reported >= self.interval or step >= steps:
            self._report()

    def done(self) -> Progress:
        """Return the last progress of a job that succeeded."""
        update = {"phase": Phase.DONE, "step": self.progress.steps, "eta_seconds": 0.0}
        return self.progress.model_copy(update=update)

    def check(self) -> None:
        """Raise if the work must stop: worker stopping, time limit, cancel, or lease lost."""
        self.check_stopping()
        if time.monotonic() - self._started > self._limit:
            raise JobTooLong(
                f"Expected the job to take at most {self._limit:.0f} s; it took longer. Ask for "
                "fewer members or steps, or raise APPA_JOB_LIMIT_SECONDS."
            )
        try:
            self.lease.check()
        except RedisError:  # the server restarts; the gate before publication is what counts
            return

    def _report(self) -> None:
        self._last_reported = time.monotonic()
        try:
            self.store.report(self.lease.record_id, self.lease.token, self.progress)
        except RedisError:
            return
