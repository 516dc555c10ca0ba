"""One tick of the cycles: asked every few seconds which cycles are due and missing.

Our own scheduler process ticks, not Celery beat: a schedule entry of beat would fire at an hour,
this asks what is missing, so a tick that was lost is made up for by the next one. Any number of
schedulers may tick at once: records are created under unique keys, jobs under keys that all
schedulers make alike, and every move of a record is compare-and-set on the version that was read.
The slower of two schedulers finds the work done. None holds state that matters: one that is killed
at any point is replaced by any other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from model.domain.errors import ConfigurationError
from worker.cycling.arrivals import Arrivals
from worker.cycling.due import Cycle, choose, decide, first_considered, is_too_old
from worker.cycling.recover import recover
from worker.cycling.settle import settle
from worker.cycling.submit import submit_cycle
from worker.jobs import clock
from worker.jobs.cycle import FIRST_REVISION, CycleRecord, CycleState
from worker.jobs.cycle_policy import CyclePolicy, read_policy
from worker.jobs.cycle_store import CycleStore
from worker.jobs.disk import DiskSettings, disk_state
from worker.jobs.layout import Layout
from worker.jobs.queues import TaskSender
from worker.jobs.store import Stores
from worker.runtime import Runtime

__all__ = ["Cycling", "cycling_tick"]

log = structlog.get_logger()


@dataclass
class PolicyFile:
    """`cycles.yaml`, read again when it changed; after a mistake in it the last good one counts."""

    layout: Layout
    _stamp: tuple[int, int] | None = None
    _policy: CyclePolicy | None = None

    def read(self) -> CyclePolicy | None:
        """The policy; None without the file."""
        try:
            status = self.layout.cycles_file.stat()
        except FileNotFoundError:
            self._stamp, self._policy = None, None
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._policy = read_policy(self.layout.cycles_file)
            except ConfigurationError as error:
                kept = "the one before it is kept" if self._policy else "nothing is cycled"
                log.error("policy refused", reason=error.message, so=kept)
        return self._policy


@dataclass
class Cycling:
    """The cycles of one installation, seen from one scheduler.

    Attributes:
        stores: All records.
        layout: Where the policy is.
        sender: Sends task messages.
        disk: The watermark below which nothing is submitted.
    """

    stores: Stores
    layout: Layout
    sender: TaskSender
    disk: DiskSettings
    _policy: PolicyFile = field(init=False)
    _arrivals: Arrivals = field(init=False)
    _recovered: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._policy = PolicyFile(self.layout)
        self._arrivals = Arrivals(self.stores.batches)

    def tick(self, now: datetime | None = None) -> int:
        """Settles what has ended, decides what is due, submits what there is room for.

        Arguments:
            now: Operational present; asked from the clock when absent.

        Returns:
            Moves made.
        """
        policy = self._policy.read()
        moves = settle(self.stores, self.sender, policy)
        if policy is None:
            return moves
        if not self._recovered:
            recover(self.stores.cycles, self.layout)
            self._recovered = True
        moment = now or clock.now()
        return moves + self._decide(policy, moment) + self._submit(policy, moment)

    def _decide(self, policy: CyclePolicy, now: datetime) -> int:
        cycles = self.stores.cycles
        first = first_considered(policy, now, cycles.newest())
        found = decide(policy, now, cycles.states(first), first)
        for cycle in found.announced:
            cycles.create(_record(cycle))
        moves = sum(self._skip(cycle, reason) for cycle, reason in found.skipped)
        complete = self._arrivals.complete(found.ready, now, policy.ingest_grace_seconds)
        for cycle in found.ready:
            record, _ = cycles.create(_record(cycle))
            if cycle in complete and record.state is CycleState.WAITING:
                moves += self._make_due(policy, now, cycle, record, complete[cycle])
        return moves + len(found.announced)

    def _skip(self, cycle: Cycle, reason: str) -> bool:
        record, _ = self.stores.cycles.create(_record(cycle))
        waits = record.state is CycleState.WAITING
        return waits and self.stores.cycles.change(record, CycleState.SKIPPED, message=reason)

    def _make_due(
        self, policy: CyclePolicy, now: datetime, cycle: Cycle, record: CycleRecord, remark: str
    ) -> bool:
        following = policy.cut_off(cycle.valid_time + policy.step, cycle.flavour)
        return self.stores.cycles.change(
            record,
            CycleState.DUE,
            cut_off=cycle.cut_off,  # of the policy as it is now
            decided=now,
            behind_seconds=round((now - cycle.cut_off).total_seconds(), 3),
            caught_up=following <= now,
            message=remark,
        )

    def _submit(self, policy: CyclePolicy, now: datetime) -> int:
        cycles = self.stores.cycles
        due = cycles.in_state(CycleState.DUE)
        if not due:
            return 0
        old = [r for r in due if not r.rerun and is_too_old(policy, now, r.cut_off)]
        message = f"too old: no room for it within {policy.catch_up.max_age_hours:g} h"
        moves = sum(cycles.change(r, CycleState.SKIPPED, message=message) for r in old)
        rest = [r for r in due if r not in old]
        disk = disk_state(self.layout, self.disk)
        if disk.low:
            log.warning("cycles held", reason=disk.message, due=len(rest))
            return moves + sum(_hold(cycles, record) for record in rest)
        for record in choose(policy, rest, cycles.in_state(CycleState.SUBMITTED)):
            moves += submit_cycle(self.stores, self.sender, policy, record)
        return moves


def _hold(cycles: CycleStore, record: CycleRecord) -> bool:
    """Says once why a due cycle is not submitted; the analysis it becomes says so, too."""
    if "disk_low" in record.message:
        return False
    why = "disk_low: it waited for free space"
    remark = f"{record.message}; {why}" if record.message else why
    return cycles.change(record, CycleState.DUE, message=remark)


def _record(cycle: Cycle) -> CycleRecord:
    return CycleRecord(
        id=cycle.key,
        valid_time=cycle.valid_time,
        flavour=cycle.flavour,
        cut_off=cycle.cut_off,
        revision=FIRST_REVISION[cycle.flavour],
    )


def cycling_tick(runtime: Runtime) -> Callable[[], object]:
    """The cycles' question for `run_scheduler`."""
    cycling = Cycling(runtime.stores, runtime.layout, runtime.sender, runtime.settings)
    return cycling.tick
