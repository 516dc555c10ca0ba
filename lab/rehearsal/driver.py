"""Drive the real stack through a scenario: follow the day, kill and restart what the scenario says."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from deploy.local import LocalStack, StackOptions, free_port
from lab.rehearsal.evidence import OutageRecord
from lab.rehearsal.scenario import Scenario
from lab.rehearsal.sender import ReportSender
from model.domain.errors import AppaError
from model.domain.windows import HOUR
from worker.contract.batches import BatchState
from worker.contract.clock import Clock
from worker.contract.cycles import CYCLE_DONE, CycleState, Flavour, cycle_key
from worker.contract.jobs import JobState
from worker.contract.store import Stores

__all__ = ["Driver", "RehearsalPace", "RehearsalStack", "Report"]

_TEND_SECONDS = 0.1


class RehearsalStack:
    """The one-machine stack, supervised by a thread.

    Arguments:
        options: What to run; the port stays the same over restarts.
    """

    def __init__(self, options: StackOptions) -> None:
        self.options = replace(options, port=options.port or free_port(options.host))
        self.url = f"http://{options.host}:{self.options.port}"
        self._stack: LocalStack | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tend, name="tend", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.stop()

    @property
    def stores(self) -> Stores:
        """Return the stores of the running stack."""
        return self._running.stores

    @property
    def _running(self) -> LocalStack:
        if self._stack is None:
            raise AppaError("Expected the stack to run; it was stopped.")
        return self._stack

    def start(self, seconds: float) -> float:
        """Start all processes; return the real seconds until they were ready.

        Raises:
            AppaError: If they are not within `seconds`.
        """
        began = time.monotonic()
        stack = LocalStack(self.options)
        stack.__enter__()
        ready = False
        try:
            ready = stack.wait_ready(seconds)
        finally:
            if not ready:
                stack.__exit__(None, None, None)
        if not ready:
            log = (stack.layout.logs / "appa.log").read_text()[-2000:]
            raise AppaError(f"Expected the system to be ready within {seconds:.0f} s.\n{log}")
        with self._lock:  # until here `wait_ready` supervised it
            self._stack = stack
        return time.monotonic() - began

    def stop(self) -> None:
        """Stop all processes gracefully."""
        with self._lock:
            stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(None, None, None)

    def kill_all(self) -> None:
        """Kill every process at once, as a power cut does; none is restarted."""
        with self._lock:
            stack = self._running
            self._stack = None
        for child in stack.supervisor.children.values():
            _kill_group(child.process.pid)
        for child in stack.supervisor.children.values():
            child.process.wait()
        stack.__exit__(None, None, None)  # closes log, lock and connections

    def kill(self, part: str) -> int:
        """Kill one part, which the supervisor then restarts; return its process id."""
        with self._lock:
            pid = self._running.supervisor.pid(part)
            _kill_group(pid)
        return pid

    def part_of(self, worker: str) -> str | None:
        """Return the part whose process registered as `worker` (`gpu.<pid>@<host>`)."""
        with self._lock:
            children = self._running.supervisor.children
            pids = {child.process.pid: name for name, child in children.items()}
        number = worker.partition("@")[0].rpartition(".")[2]
        return pids.get(int(number)) if number.isdigit() else None

    def _tend(self) -> None:
        while not self._ended.wait(_TEND_SECONDS):
            with self._lock:
                if self._stack is not None:
                    self._stack.supervisor.tend()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


Report = Callable[[str], None]

_POLL = 0.2
_RESTART_SECONDS = 300.0
_LAG = 1.5 * HOUR


@dataclass(frozen=True)
class RehearsalPace:
    """Speed of the operational clock, and the timeouts of the driver.

    Attributes:
        speed: Operational seconds in a real one.
        start_seconds: Real time that the stack gets to start; doubled and tried again if it is not
            enough.
        patience: Real seconds without progress after which a day is aborted.
        limit: Real seconds after which a day is evaluated as it is; None for no limit.
    """

    speed: float
    start_seconds: float = 20.0
    patience: float = 600.0
    limit: float | None = None


@dataclass
class Driver:
    """Drive one day on a running stack: outage, kills, reruns, the end."""

    scenario: Scenario
    pace: RehearsalPace
    clock: Clock
    stack: RehearsalStack
    sender: ReportSender
    report: Report
    outage: OutageRecord | None = None
    kills: list[datetime] = field(default_factory=list)
    longest_lag: timedelta = timedelta(0)
    _told_lag: bool = False
    _ended: set[str] = field(default_factory=set)
    _moved: float = 0.0

    @property
    def keys(self) -> list[str]:
        """Return the keys of all cycles of the day."""
        return [cycle_key(time, flavour) for time in self.scenario.cycles for flavour in Flavour]

    def now(self) -> datetime:
        """Return the present time of the operational clock (UTC)."""
        return self.clock.at(time.time())

    def follow(self) -> None:
        """Follow the day until every cycle has ended and every file is sent."""
        began = self._moved = time.monotonic()
        while True:
            if self.sender.error is not None:
                raise self.sender.error
            outage = self.scenario.outage
            if outage is not None and self.outage is None and self.now() >= outage.start:
                self._outage(outage.end)
            self._kill_a_model_worker()
            done = self._look()
            if done == len(self.keys) and not self.sender.is_alive() and self._all_ingested():
                return
            if self.pace.limit is not None and time.monotonic() - began > self.pace.limit:
                self.report(f"time is up: {done} of {len(self.keys)} cycles have ended")
                return
            if time.monotonic() - self._moved > self.pace.patience:
                raise AppaError(
                    f"Expected all {len(self.keys)} cycles to end; {done} have, and none did for "
                    f"{self.pace.patience:.0f} s."
                )
            time.sleep(_POLL)

    def _all_ingested(self) -> bool:
        batches = self.stack.stores.batches
        return not any(batches.count(s) for s in (BatchState.RECEIVED, BatchState.INGESTING))

    def _look(self) -> int:
        """Count the ended cycles and record the lag of the others."""
        records = self.stack.stores.cycles.load(self.keys)
        ended = {r.key: r.state.value for r in records if r.state in CYCLE_DONE}
        fresh = sorted(set(ended) - self._ended)
        if fresh:
            self._ended, self._moved = set(ended), time.monotonic()
            told = ", ".join(f"{key} {ended[key]}" for key in fresh)
            self.report(f"{self.now():%d %b %H:%M} UTC: {told}")
        lags = [
            self.now() - r.cut_off
            for r in records
            if r.state in (CycleState.DUE, CycleState.SUBMITTED)
        ]
        lag = max(lags, default=timedelta(0))
        self.longest_lag = max(self.longest_lag, lag)
        if lag > _LAG and not self._told_lag:
            self.report(f"jobs lag: {len(lags)} cycles are due, the oldest for {lag / HOUR:.1f} h")
        self._told_lag = lag > _LAG
        return len(ended)

    def _outage(self, end: datetime) -> None:
        """Kill everything, and start it again at `end`."""
        killed = self.now()
        self.stack.kill_all()
        self.report(f"{killed:%d %b %H:%M} UTC: everything killed")
        time.sleep(max((end - killed).total_seconds() / self.clock.speed, 0.0))
        restarted = self.now()
        self.stack.start(_RESTART_SECONDS)
        self.outage = OutageRecord(killed, restarted, self.now())
        self._moved = time.monotonic()
        self.report(f"{self.now():%d %b %H:%M} UTC: everything runs again")

    def _kill_a_model_worker(self) -> None:
        """Kill the last model worker, once the planned time has come and it runs a job."""
        if len(self.kills) >= len(self.scenario.kills):
            return
        if self.now() < self.scenario.start + self.scenario.kills[len(self.kills)] * HOUR:
            return
        jobs = self.stack.stores.jobs
        workers = [jobs.get(job).worker for job in jobs.ids(JobState.RUNNING)]
        parts = {self.stack.part_of(worker) for worker in workers if worker} - {None}
        count = self.scenario.model_workers
        victim = "model" if count == 1 else f"model-{count}"
        if victim in parts:
            self.stack.kill(victim)
            self.kills.append(self.now())
            self.report(f"{self.now():%d %b %H:%M} UTC: {victim} killed at work")
