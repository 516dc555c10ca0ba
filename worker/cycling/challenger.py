"""Cycle a second suite beside the champion: same hours and observations, at lower priority.

The challenger recomputes each final analysis that the champion has published, with the same cut-off,
one at a time and in order, because each is the background of the next. It therefore delays the
champion by at most one running job. Early analyses are not repeated, because no final analysis
depends on them.

A trial begins when the policy names a challenger, whose suite is then frozen: a changed suite is
another suite with another trial. Trials and their outcomes are in `suites.sqlite`. Any number of
schedulers may run, because jobs have deterministic idempotency keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from model.domain.errors import ConfigurationError, StorageError
from model.domain.windows import HOUR
from worker.contract.cycles import CycleRecord, CycleState, Flavour
from worker.contract.events import EventType
from worker.contract.jobs import JobState
from worker.contract.layout import Layout
from worker.contract.measures import Measures
from worker.contract.queues import GPU_QUEUE, TaskSender
from worker.contract.records import utc_now
from worker.contract.store import Stores
from worker.contract.suites import (
    CHALLENGER,
    CHALLENGES,
    Difference,
    Outcome,
    PairedSquares,
    Suite,
    SuiteStore,
    Trial,
    TrialCycle,
)
from worker.cycling.due import is_too_old
from worker.cycling.policy import CyclePolicy, frozen_suite
from worker.cycling.submit import cycle_facts, filtering_spec, queue_as, why_failed
from worker.results.manifest import read_manifest
from worker.results.verification.paired import differences, pairs_in

__all__ = ["Challenge"]

log = structlog.get_logger()

_LOOKED_AT = 500
"""Maximum number of cycles of the champion examined in one tick."""


@dataclass
class Challenge:
    """Handling of the challenger by one scheduler.

    Attributes:
        stores: All records.
        layout: The data folder.
        sender: Sends task messages.
        measures: Count the cycles of challengers.
    """

    stores: Stores
    layout: Layout
    sender: TaskSender
    measures: Measures
    _complained: str = ""

    @property
    def suites(self) -> SuiteStore:
        """Return the store of champions and trials."""
        return SuiteStore(self.layout.suites_file)

    def tick(self, policy: CyclePolicy, now: datetime, *, hold: Callable[[], bool]) -> int:
        """Begin or end the trial as the policy says, follow its job, submit the next one.

        Arguments:
            policy: The policy as read, without the suite of the champion.
            now: Operational present (UTC).
            hold: Returns whether submission is paused for lack of disk space.

        Returns:
            The number of the challenger's cycles that changed state.
        """
        trial = self._trial(policy)
        if trial is None:
            return 0
        moved = self._settle(policy, trial)
        if self.suites.newest(trial, state=CycleState.SUBMITTED) is not None or hold():
            return moved
        return moved + self._submit(policy, trial, now)

    # -- the trial

    def _trial(self, policy: CyclePolicy) -> Trial | None:
        """Return the running trial after starting or ending it as the policy says; None without one."""
        suites = self.suites
        trial = suites.trial()
        try:
            wanted = self._wanted(policy)
        except ConfigurationError as error:
            self._complain(error.message)
            return trial
        self._complained = ""
        if trial is not None and (wanted is None or wanted.id != trial.suite_id):
            outcome = Outcome.REPLACED if wanted else Outcome.WITHDRAWN
            self._end(trial, outcome)
            trial = None
        if trial is not None or wanted is None or self._was_decided(wanted):
            return trial
        return self._begin(policy, wanted)

    def _wanted(self, policy: CyclePolicy) -> Suite | None:
        if policy.challenger is None:
            return None
        return frozen_suite(policy.challenger, self.layout.root)

    def _was_decided(self, wanted: Suite) -> bool:
        """Return whether this suite is champion or was dropped; such a suite gets no other trial."""
        champion = self.suites.champion()
        last = self.suites.last_trial_of(wanted)
        dropped = last is not None and last.outcome is Outcome.DROPPED
        return dropped or (champion is not None and champion.id == wanted.id)

    def _begin(self, policy: CyclePolicy, suite: Suite) -> Trial:
        """Begin a trial at the newest published final analysis, or else at the next one."""
        challenger = policy.challenger
        assert challenger is not None  # noqa: S101  # it names the suite
        published = self._published(None)
        first = published[-1].valid_time if published else policy.start
        champion = self.suites.champion()
        trial = Trial(
            id=0,
            suite=suite,
            suite_id=suite.id,
            champion_id=champion.id if champion else "",
            begun=utc_now(),
            first_time=first,
            counted_from=first + challenger.spin_up_hours * HOUR,
            least_cycles=challenger.least_cycles,
        )
        log.info("challenger begins", suite=suite.id, beside=trial.champion_id, first=str(first))
        return self.suites.begin(trial)

    def _end(self, trial: Trial, outcome: Outcome) -> None:
        self.suites.end(trial, outcome, note="by the policy")
        log.info("challenger ends", suite=trial.suite_id, outcome=outcome.value)
        about = {"suite": trial.suite_id, "outcome": outcome.value, "trial": trial.id}
        self.stores.events.emit(EventType.CHALLENGER_ENDED, str(trial.id), about)

    def _complain(self, message: str) -> None:
        if message != self._complained:
            self._complained = message
            log.error("challenger refused", reason=message, effect="what runs goes on")

    # -- its cycles

    def _published(self, after: datetime | None) -> Sequence[CycleRecord]:
        """Return the champion's final cycles valid after a time, oldest first."""
        limit = 1 if after is None else _LOOKED_AT
        start = None if after is None else after + timedelta(seconds=1)
        page = self.stores.cycles.select(
            state=CycleState.PUBLISHED, flavour=Flavour.FINAL, start=start, limit=limit
        )
        found = [record for record in page.items if after is None or record.valid_time > after]
        return found[::-1]

    def _submit(self, policy: CyclePolicy, trial: Trial, now: datetime) -> int:
        """Enqueue the next cycle of the challenger; return the number of cycles that changed state."""
        again = self.suites.newest(trial, state=CycleState.DUE)
        if again is not None:
            record = self.stores.cycles.find(again.key)
            if record is not None:
                return self._queue(policy, trial, record, again.attempts)
        newest, moved = self.suites.newest(trial), 0
        after = newest.valid_time if newest else trial.first_time - timedelta(seconds=1)
        for record in self._published(after):
            if not is_too_old(policy, now, record.cut_off):
                return moved + self._queue(policy, trial, record, 0)
            self._note(trial, record, CycleState.SKIPPED, message="too old: no room for it")
            moved += 1
        return moved

    def _queue(self, policy: CyclePolicy, trial: Trial, record: CycleRecord, attempts: int) -> int:
        missing = self._workers_without(trial.suite.model)
        if missing:
            self._wait(trial, f"'{trial.suite.model}' is not loaded by {', '.join(missing)}")
            return 0
        self._wait(trial, "")
        suited = policy.with_suite(trial.suite)
        outputs = policy.challenger.outputs if policy.challenger else ["feedback"]
        spec = filtering_spec(suited, record).model_copy(update={"outputs": outputs})
        job = queue_as(
            self.stores,
            self.sender,
            spec,
            f"challenger:{trial.id}:{record.id}:{attempts}",
            flavour=CHALLENGER,
            revision=record.revision,
            cycle=self._facts(suited, trial, record, attempts),
        )
        self._note(trial, record, CycleState.SUBMITTED, attempts + 1, job.id, job.analysis_id)
        log.info("challenger submitted", cycle=record.key, job=job.id, suite=trial.suite_id)
        return 1

    def _facts(
        self, suited: CyclePolicy, trial: Trial, record: CycleRecord, attempts: int
    ) -> dict[str, Any]:
        about = {
            "analysis_id": record.analysis_id,
            "hours": suited.step_hours,
            "branched": trial.first_time.isoformat(),
        }
        facts = cycle_facts(suited, record)
        facts.pop("remark", None)
        return {**facts, "attempt": attempts + 1, CHALLENGES: about}

    def _workers_without(self, model: str | None) -> list[str]:
        """Return the model workers without the checkpoint; any model worker may take the job."""
        if model is None:
            return []
        ready = self.stores.workers.ready(GPU_QUEUE)
        return [w.name for w in ready if model not in [m.name for m in w.capabilities.models]]

    def _wait(self, trial: Trial, why: str) -> None:
        running = self.suites.trial()
        if running is not None and running.id == trial.id and running.note != why:
            self.suites.update(trial, note=why)
            if why:
                log.warning("challenger waits", suite=trial.suite_id, reason=why)

    def _note(
        self,
        trial: Trial,
        record: CycleRecord,
        state: CycleState,
        attempts: int = 0,
        job_id: str = "",
        analysis_id: str = "",
        message: str = "",
    ) -> None:
        cycle = TrialCycle(
            record.id,
            record.valid_time,
            state.value,
            attempts,
            job_id,
            analysis_id,
            record.analysis_id,
            message,
        )
        self.suites.note_cycle(trial, cycle)
        if state is CycleState.SKIPPED:
            self.measures.challenger_cycles.labels(state.value).inc()

    # -- outcomes

    def _settle(self, policy: CyclePolicy, trial: Trial) -> int:
        """Follow the submitted job; return the number of cycles that changed state."""
        cycle = self.suites.newest(trial, state=CycleState.SUBMITTED)
        if cycle is None:
            return 0
        state, _ = self.stores.jobs.state_and_token(cycle.job_id)
        if state == JobState.SUCCEEDED:
            return self._finish(trial, cycle, CycleState.PUBLISHED, "", self._pairs(cycle))
        if state == JobState.CANCELLED:
            return self._finish(trial, cycle, CycleState.CANCELLED, "its job was cancelled")
        if state and state != JobState.FAILED:
            return 0
        job = self.stores.jobs.find(cycle.job_id) if state else None
        why = why_failed(job) if job else f"job '{cycle.job_id}' is gone"
        retried = cycle.attempts <= policy.retries
        return self._finish(trial, cycle, CycleState.DUE if retried else CycleState.FAILED, why)

    def _pairs(self, cycle: TrialCycle) -> list[PairedSquares]:
        try:
            return pairs_in(read_manifest(self.layout, cycle.analysis_id).scores)
        except StorageError as error:
            log.warning("challenger not compared", cycle=cycle.key, reason=error.message)
            return []

    def _finish(
        self,
        trial: Trial,
        cycle: TrialCycle,
        state: CycleState,
        message: str,
        pairs: Sequence[PairedSquares] = (),
    ) -> int:
        self.suites.note_cycle(trial, replace(cycle, state=state.value, message=message), pairs)
        log.info("challenger moved", cycle=cycle.key, state=state.value, reason=message)
        if state is not CycleState.DUE:
            self.measures.challenger_cycles.labels(state.value).inc()
        if pairs:
            found = differences(self.suites.pairs(trial).values())
            self.suites.update(trial, differences=found)
            self._tell(trial.model_copy(update={"differences": found}))
        return 1

    def _tell(self, trial: Trial) -> None:
        """Emit the event of the first verdict of a trial."""
        if trial.verdict == "undecided":
            return
        whole: Difference = trial.differences[0]
        about = {"suite": trial.suite_id, "verdict": trial.verdict, "trial": trial.id}
        self.stores.events.emit(
            EventType.CHALLENGER_DECIDED, str(trial.id), about | whole.model_dump(mode="json")
        )
