"""Run one tick of the cycles: determine every few seconds which cycles are due and missing.

The ticks come from our own scheduler process, not from Celery beat: a schedule entry of beat fires at
a fixed time, while a tick determines what is missing, so that a lost tick is made up for by the next
one. Any number of schedulers may run: records are created under unique keys, jobs under idempotency
keys that are the same for all schedulers, and every transition is compare-and-set on the version that
was read. The slower of two schedulers finds the work done. Schedulers are stateless: one that is
killed at any point can be replaced by another.

A cycle uses the observations received by its cut-off, no more and no fewer, so it waits, within
limits, for uploads that arrived in time and are still being ingested.

After Redis lost its data, the records are rebuilt from the published analyses; otherwise the hours
within catch-up would be analysed again, under revisions that exist already.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from model.domain.errors import AppaError, ConfigurationError
from worker.contract import clock
from worker.contract.batches import BatchState, BatchStore
from worker.contract.cycles import (
    FIRST_REVISION,
    CycleRecord,
    CycleState,
    CycleStore,
    parse_cycle_key,
)
from worker.contract.disk import DiskSettings, disk_state
from worker.contract.kinds import KINDS
from worker.contract.layout import Layout
from worker.contract.measures import Measures
from worker.contract.queues import TaskSender
from worker.contract.store import Stores
from worker.contract.suites import SuiteStore
from worker.cycling.challenger import Challenge
from worker.cycling.due import DueCycle, choose, decide, first_considered, is_too_old
from worker.cycling.policy import CyclePolicy, read_policy
from worker.cycling.submit import count_ended, settle, submit_cycle
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest
from worker.runtime import Runtime

__all__ = ["Cycling", "PendingUploads", "cycling_tick", "oldest_unfinished", "recover"]

SETTLE_SECONDS = 0.5
"""Real seconds after a cut-off during which an upload may have an arrival time but no record yet."""


def oldest_unfinished(batches: BatchStore) -> datetime | None:
    """Return the arrival of the oldest upload not ingested yet; None when there is none."""
    arrivals = []
    for state in (BatchState.RECEIVED, BatchState.INGESTING):
        ids = batches.ids(state)
        first = batches.find(ids[0]) if ids else None  # ids sort by arrival
        if first is not None:
            arrivals.append(first.created)
    return min(arrivals, default=None)


@dataclass
class PendingUploads:
    """Remember since when each cycle waits; after a restart of the scheduler waiting starts over.

    Attributes:
        batches: Uploads.
    """

    batches: BatchStore
    _since: dict[str, float] = field(default_factory=dict)

    def complete(
        self, cycles: Sequence[DueCycle], now: datetime, grace_seconds: float
    ) -> Mapping[DueCycle, str]:
        """Return the cycles that need not wait longer, with a remark where uploads are missing.

        Arguments:
            cycles: Their cut-offs have passed.
            now: Operational present.
            grace_seconds: Maximum real time to wait, from when this process first saw the cycle.
        """
        oldest = oldest_unfinished(self.batches) if cycles else None
        present = {cycle.key for cycle in cycles}
        self._since = {key: t for key, t in self._since.items() if key in present}
        done: dict[DueCycle, str] = {}
        for cycle in cycles:
            since = self._since.setdefault(cycle.key, time.monotonic())
            waited = time.monotonic() - since
            if (now - cycle.cut_off).total_seconds() < SETTLE_SECONDS * clock.speed():
                continue
            if oldest is None or oldest > cycle.cut_off:
                done[cycle] = ""
            elif waited >= grace_seconds:
                done[cycle] = (
                    f"uploads that arrived from {oldest.isoformat(timespec='seconds')} on were "
                    f"still being taken in after {grace_seconds:g} s and may be missing"
                )
        return done


log = structlog.get_logger()


def recover(cycles: CycleStore, layout: Layout) -> int:
    """Rebuild an empty store from the published analyses of cycles; return the number of records.

    A store with any cycle is left unchanged. Safe to run concurrently: the first record under a key
    stays.
    """
    if cycles.newest() is not None:
        return 0
    newest: dict[str, AnalysisManifest] = {}
    with Catalogue(layout) as catalogue:
        for manifest in catalogue.manifests(ResultFilter()):
            key = str(manifest.cycle.get("key", "")) if KINDS[manifest.kind].cycled else ""
            if key and (key not in newest or newest[key].revision < manifest.revision):
                newest[key] = manifest
    for key, manifest in newest.items():
        cycles.create(_recovered(key, manifest))
    if newest:
        log.warning("cycles recovered from published analyses", count=len(newest))
    return len(newest)


def _recovered(key: str, manifest: AnalysisManifest) -> CycleRecord:
    time, flavour = parse_cycle_key(key)
    return CycleRecord(
        id=key,
        valid_time=time,
        flavour=flavour,
        cut_off=manifest.cut_off or time,
        state=CycleState.PUBLISHED,
        job_id=manifest.job_id,
        analysis_id=manifest.id,
        revision=manifest.revision,
        caught_up=bool(manifest.cycle.get("caught_up")),
        message="recovered from its manifest",
    )


@dataclass
class PolicyFile:
    """`cycles.yaml`, reloaded when it changes; while it is invalid, the last valid version is used."""

    layout: Layout
    _stamp: tuple[int, int] | None = None
    _policy: CyclePolicy | None = None

    def read(self) -> CyclePolicy | None:
        """Return the policy, read again if the file has changed; None without the file."""
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
                effect = "the previous one stays in force" if self._policy else "nothing is cycled"
                log.error("policy refused", reason=error.message, effect=effect)
        return self._policy


@dataclass
class Cycling:
    """Handling of the cycles of an installation by one scheduler.

    Attributes:
        stores: All records.
        layout: Where the policy is.
        sender: Sends task messages.
        disk: The watermark below which nothing is submitted.
        measures: Count the cycles that end.
    """

    stores: Stores
    layout: Layout
    sender: TaskSender
    disk: DiskSettings
    measures: Measures = field(default_factory=Measures)
    _policy: PolicyFile = field(init=False)
    _arrivals: PendingUploads = field(init=False)
    _challenge: Challenge = field(init=False)
    _recovered: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._policy = PolicyFile(self.layout)
        self._arrivals = PendingUploads(self.stores.batches)
        self._challenge = Challenge(self.stores, self.layout, self.sender, self.measures)

    def tick(self, now: datetime | None = None) -> int:
        """Follow submitted cycles, decide which are due, and submit as many as may run.

        Arguments:
            now: Operational present; read from the clock when absent.

        Returns:
            The number of cycles that changed state.
        """
        written = self._policy.read()
        champion = SuiteStore(self.layout.suites_file).champion()
        policy = written.with_suite(champion) if written else None
        moves = settle(self.stores, self.sender, policy, self.measures)
        if written is None or policy is None:
            return moves
        if not self._recovered:
            recover(self.stores.cycles, self.layout)
            self._recovered = True
        moment = now or clock.now()
        moves += self._decide(policy, moment) + self._submit(policy, moment)
        return moves + self._challenger(written, moment)

    def _challenger(self, policy: CyclePolicy, now: datetime) -> int:
        """Run the challenger's tick; its errors do not affect the cycles of the champion."""
        try:
            return self._challenge.tick(
                policy, now, hold=lambda: disk_state(self.layout, self.disk).low
            )
        except (AppaError, OSError) as error:
            log.warning("challenger not followed", reason=str(error))
            return 0

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

    def _skip(self, cycle: DueCycle, reason: str) -> bool:
        record, _ = self.stores.cycles.create(_record(cycle))
        if record.state is not CycleState.WAITING:
            return False
        return self._end_skipped(record, reason)

    def _end_skipped(self, record: CycleRecord, reason: str) -> bool:
        moved = self.stores.cycles.change(record, CycleState.SKIPPED, message=reason)
        if moved:
            count_ended(self.measures, self.stores.cycles.get(record.id))
        return moved

    def _make_due(
        self, policy: CyclePolicy, now: datetime, cycle: DueCycle, record: CycleRecord, remark: str
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
        moves = sum(self._end_skipped(r, message) for r in old)
        rest = [r for r in due if r not in old]
        disk = disk_state(self.layout, self.disk)
        if disk.low:
            log.warning("cycles held", reason=disk.message, due=len(rest))
            return moves + sum(_hold(cycles, record) for record in rest)
        for record in choose(policy, rest, cycles.in_state(CycleState.SUBMITTED)):
            moves += submit_cycle(self.stores, self.sender, policy, record)
        return moves


def _hold(cycles: CycleStore, record: CycleRecord) -> bool:
    """Record once why a due cycle is not submitted; the manifest of its analysis repeats it."""
    if "disk_low" in record.message:
        return False
    why = "disk_low: it waited for free space"
    remark = f"{record.message}; {why}" if record.message else why
    return cycles.change(record, CycleState.DUE, message=remark)


def _record(cycle: DueCycle) -> CycleRecord:
    return CycleRecord(
        id=cycle.key,
        valid_time=cycle.valid_time,
        flavour=cycle.flavour,
        cut_off=cycle.cut_off,
        revision=FIRST_REVISION[cycle.flavour],
    )


def cycling_tick(runtime: Runtime) -> Callable[[], object]:
    """Return the tick of the cycles, for `run_scheduler`."""
    cycling = Cycling(
        runtime.stores, runtime.layout, runtime.sender, runtime.settings, runtime.measures
    )
    return cycling.tick
