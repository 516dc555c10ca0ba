"""Hold a lease on a record while working on it, and report progress under it.

The lease is renewed by heartbeats from a thread and guarded by a fencing token. The token in the
record is authoritative: an attempt whose token is no longer the newest may change nothing. The lease
key only shows that the holder is alive; it may expire while the Redis server is down, and the next
heartbeat restores it. Progress is stored at most once a second; a cancel is noticed when progress is
reported.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from redis.exceptions import RedisError

from model.domain.errors import AppaError, JobCancelled
from worker.contract import traces
from worker.contract.jobs import JobState, JobStore, Phase, Progress
from worker.contract.measures import JobMeter
from worker.contract.record_store import LeaseLost, NoSuchRecord, RecordStore

__all__ = ["JobTooLong", "Lease", "ProgressReporter", "SharedLease"]


class Lease:
    """Keep a record leased to this worker: a context manager around the work on it.

    Arguments:
        store: Jobs or batches.
        record_id: The record, already claimed.
        token: The token that came with the claim.
        lifetime: Time without heartbeats after which the lease expires.
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
        """Check, between any two steps of the work, that this attempt may continue.

        Raises:
            JobCancelled: If the job is being cancelled.
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
        while not self._stop.wait(pause) and not self.lost.is_set():
            self.beat()

    def beat(self) -> None:
        """Renew the lease, or record that it is lost."""
        try:
            self.store.beat(self.record_id, self.token, self.lifetime)
        except (LeaseLost, NoSuchRecord):
            self.lost.set()
        except RedisError:  # a restart: the token still holds, retry
            return


class SharedLease:
    """Keep several batches leased to this worker by one thread: a context manager.

    Arguments:
        store: The batches.
        tokens: Tokens of the claims, by record.
        lifetime: Time without heartbeats after which the leases expire.
    """

    def __init__(
        self, store: RecordStore[Any], tokens: Mapping[str, int], lifetime: timedelta
    ) -> None:
        self.store = store
        self.leases = {
            record: Lease(store, record, token, lifetime) for record, token in tokens.items()
        }
        self._pause = lifetime.total_seconds() / 4
        self._stop = threading.Event()
        # Most groups end before the first heartbeat is due.
        self._timer = threading.Timer(self._pause, self._beat_on)
        self._timer.daemon = True

    def __enter__(self) -> "SharedLease":
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._timer.cancel()
        self._timer.join(timeout=5)

    def held(self) -> set[str]:
        """Return the records that no newer attempt holds."""
        found = self.store.states_and_tokens(list(self.leases))
        return {
            record
            for record, (state, token) in found.items()
            if token == self.leases[record].token and state in self.store.leased
        }

    def check(self, record_id: str) -> None:
        """Check, between any two steps of the work on one record, that it may continue.

        Raises:
            LeaseLost: If a newer attempt holds the record.
        """
        self.leases[record_id].check()

    def _beat_on(self) -> None:
        while not self._stop.is_set():
            for lease in self.leases.values():
                lease.beat()
            self._stop.wait(self._pause)


class JobTooLong(AppaError):
    """A job that takes longer than any job may; a retry would take as long."""

    code = "job_too_long"


class ProgressReporter:
    """Publish the progress of a job to the job store.

    Calling it with (step, steps) is the `on_step` of the model: it raises at once when the job is
    cancelled, taken over by another worker, or the process stops.

    Arguments:
        store: The job store.
        lease: Lease of the attempt.
        check_stopping: Raises when the process was asked to stop.
        interval: Seconds between two stored values of the same phase.
        limit_seconds: Duration after which a job is stopped.
        meter: Metrics of the attempt; None to collect none.

    Attributes:
        shared: If several processes work on the job: called with the steps of this process, returns
            those of all.
    """

    def __init__(
        self,
        store: JobStore,
        lease: Lease,
        check_stopping: Callable[[], None],
        interval: float = 1.0,
        limit_seconds: float = float("inf"),
        meter: JobMeter | None = None,
    ) -> None:
        self.store = store
        self.lease = lease
        self.meter = meter
        self.check_stopping = check_stopping
        self.interval = interval
        self.progress = Progress(phase=Phase.LOADING)
        self.shared: Callable[[int, int], tuple[int, int]] | None = None
        self._last_published = float("-inf")
        self._sampling_since = 0.0
        self._limit = limit_seconds
        self._started = time.monotonic()

    def phase(self, phase: Phase, message: str = "") -> None:
        """Enter a phase and publish it at once."""
        self.check()
        if self.meter is not None:
            self.meter.phase(phase)
        traces.phase(phase.value)
        counts = phase in (Phase.BACKGROUND, Phase.SAMPLING)
        # After sampling its last step has ended, which the start of another would have told.
        step = 0 if counts else self.progress.steps
        update = {"phase": phase, "message": message, "eta_seconds": None, "step": step}
        self.progress = self.progress.model_copy(update=update)
        if counts:
            self._sampling_since = time.monotonic()
        self._publish()

    def __call__(self, step: int, steps: int) -> None:
        """Report that diffusion step `step` (from 0) of `steps` begins."""
        self.check()
        if self.meter is not None:
            self.meter.step()
        now = time.monotonic()
        eta = (now - self._sampling_since) / step * (steps - step) if step else None
        update = {"step": step, "steps": steps, "eta_seconds": eta}
        self.progress = self.progress.model_copy(update=update)
        if now - self._last_published >= self.interval or step >= steps:
            self._publish()

    def done(self) -> Progress:
        """Return the last progress of a job that succeeded."""
        if self.meter is not None:
            self.meter.end()
        update = {"phase": Phase.DONE, "step": self.progress.steps, "eta_seconds": 0.0}
        return self.progress.model_copy(update=update)

    def check(self) -> None:
        """Raise an error when the work must stop: cancelled, taken over, too long, or shutdown."""
        self.check_stopping()
        if time.monotonic() - self._started > self._limit:
            raise JobTooLong(
                f"Expected the job to take at most {self._limit:.0f} s; it took longer. Ask for "
                "fewer members or steps, or raise APPA_JOB_LIMIT_SECONDS."
            )
        try:
            self.lease.check()
        except RedisError:  # a restart; publication checks again
            return

    def wait(self) -> None:
        """Check as `check` does, and publish the progress of other processes while this one waits."""
        self.check()
        if time.monotonic() - self._last_published >= self.interval:
            self._publish()

    def adopt_shared_progress(self) -> None:
        """Adopt the steps of all processes as the progress of the job after the shared work has ended."""
        if self.shared is not None:
            step, steps = self.shared(self.progress.step, self.progress.steps)
            self.progress = self.progress.model_copy(update={"step": step, "steps": steps})
            self.shared = None

    def _publish(self) -> None:
        self._last_published = time.monotonic()
        try:
            progress = self.progress
            if self.shared is not None:
                step, steps = self.shared(progress.step, progress.steps)
                progress = progress.model_copy(update={"step": step, "steps": steps})
            self.store.report(self.lease.record_id, self.lease.token, progress)
        except RedisError:
            return
