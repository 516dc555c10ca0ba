"""Progress of a job: stored at most once a second, and the place where a cancel is heard."""

import time
from collections.abc import Callable

from redis.exceptions import RedisError

from model.domain.errors import AppaError
from worker.jobs.job import Phase, Progress
from worker.jobs.lease import Lease
from worker.jobs.store import JobStore

__all__ = ["JobTooLong", "ProgressReporter"]


class JobTooLong(AppaError):
    """A job that takes longer than any job may; trying it again would take as long."""

    code = "job_too_long"


class ProgressReporter:
    """Tells the job store how far a job is.

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
        self._last_told = float("-inf")
        self._sampling_since = 0.0
        self._limit = limit_seconds
        self._started = time.monotonic()

    def phase(self, phase: Phase, message: str = "") -> None:
        """Enters a phase; told at once."""
        self.check()
        update = {"phase": phase, "message": message, "eta_seconds": None}
        self.progress = self.progress.model_copy(update=update)
        if phase is Phase.SAMPLING:
            self._sampling_since = time.monotonic()
        self._tell()

    def __call__(self, step: int, steps: int) -> None:
        """Before diffusion step `step` (from 0) of `steps`."""
        self.check()
        now = time.monotonic()
        eta = (now - self._sampling_since) / step * (steps - step) if step else None
        update = {"step": step, "steps": steps, "eta_seconds": eta}
        self.progress = self.progress.model_copy(update=update)
        if now - self._last_told >= self.interval or step >= steps:
            self._tell()

    def done(self) -> Progress:
        """The last progress of a job that succeeded."""
        update = {"phase": Phase.DONE, "step": self.progress.steps, "eta_seconds": 0.0}
        return self.progress.model_copy(update=update)

    def check(self) -> None:
        """Raises when the work must stop."""
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

    def _tell(self) -> None:
        self._last_told = time.monotonic()
        try:
            self.store.report(self.lease.record_id, self.lease.token, self.progress)
        except RedisError:
            return
