"""Decide which cycles are due and missing, as pure functions of policy, time and known cycles.

A cycle is due once its cut-off has passed, no matter when that is noticed, so that a scheduler catches
up by itself after an outage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from model.domain.windows import HOUR
from worker.contract.cycles import CycleRecord, CycleState, Flavour, cycle_key, parse_cycle_key
from worker.cycling.policy import CyclePolicy

__all__ = ["DueCycle", "Decisions", "choose", "decide", "first_considered", "is_too_old"]

MAX_GAP = timedelta(days=31)
"""Missed cycles older than this are not even recorded as skipped."""

_RANK = {Flavour.EARLY: 0, Flavour.FINAL: 1}


@dataclass(frozen=True)
class DueCycle:
    """An analysis to compute: its valid time, flavour and cut-off for arrivals (UTC)."""

    valid_time: datetime
    flavour: Flavour
    cut_off: datetime

    @property
    def key(self) -> str:
        """Return the key of the record of this cycle."""
        return cycle_key(self.valid_time, self.flavour)


@dataclass(frozen=True)
class Decisions:
    """Decisions on cycles, each list in order of valid time.

    Attributes:
        announced: New cycles whose cut-off is ahead, to be recorded as waiting.
        ready: Cycles whose cut-off has passed and that are still undecided.
        skipped: Cycles that will not be computed, with the reason.
    """

    announced: tuple[DueCycle, ...] = ()
    ready: tuple[DueCycle, ...] = ()
    skipped: tuple[tuple[DueCycle, str], ...] = ()


def first_considered(policy: CyclePolicy, now: datetime, newest: str | None) -> datetime:
    """Return the first valid time of the policy's grid that may still need a decision.

    Arguments:
        policy: Start and step of the grid, age limit.
        now: Operational present (UTC).
        newest: Key of the known cycle with the latest valid time, after which an outage began.
    """
    begin = now - timedelta(hours=policy.catch_up.max_age_hours)
    if newest is not None:
        begin = min(begin, max(parse_cycle_key(newest)[0], now - MAX_GAP))
    steps = max(0, -((policy.start - begin) // policy.step))
    return policy.start + steps * policy.step


def decide(
    policy: CyclePolicy, now: datetime, known: Mapping[str, CycleState], first: datetime
) -> Decisions:
    """Return which cycles are to be announced, decided and skipped.

    Arguments:
        policy: The grid of valid times, cut-offs, catching up.
        now: Operational present (UTC).
        known: State of the recorded cycles valid at `first` or later, and of all that wait.
        first: From `first_considered`.
    """
    announced, ready, skipped = [], [], []
    for cycle in _undecided(policy, now, known, first):
        reason = _reason_to_skip(policy, now, cycle)
        if reason:
            skipped.append((cycle, reason))
        elif cycle.cut_off <= now:
            ready.append(cycle)
        elif cycle.key not in known:
            announced.append(cycle)
    return Decisions(tuple(announced), tuple(ready), tuple(skipped))


def _undecided(
    policy: CyclePolicy, now: datetime, known: Mapping[str, CycleState], first: datetime
) -> list[DueCycle]:
    """Return cycles of the grid without a record, and waiting ones, including those of older policies."""
    last = now if policy.end is None else min(now, policy.end)
    times = [first + i * policy.step for i in range(max(0, (last - first) // policy.step + 1))]
    grid = [(time, flavour) for time in times for flavour in Flavour]
    fresh = [(t, f) for t, f in grid if cycle_key(t, f) not in known]
    waiting = [parse_cycle_key(k) for k, state in known.items() if state is CycleState.WAITING]
    found = [DueCycle(t, f, policy.cut_off(t, f)) for t, f in {*fresh, *waiting}]
    return sorted(found, key=lambda cycle: (cycle.valid_time, _RANK[cycle.flavour]))


def is_too_old(policy: CyclePolicy, now: datetime, cut_off: datetime) -> bool:
    """Return whether a missed cycle is too old to be caught up."""
    return now - cut_off > timedelta(hours=policy.catch_up.max_age_hours)


def _reason_to_skip(policy: CyclePolicy, now: datetime, cycle: DueCycle) -> str:
    if is_too_old(policy, now, cycle.cut_off):
        hours = (now - cycle.cut_off) / HOUR
        limit = policy.catch_up.max_age_hours
        return f"too old: its cut-off was {hours:.1f} h ago, catch-up goes back {limit:g} h"
    final = policy.cut_off(cycle.valid_time, Flavour.FINAL)
    if cycle.flavour is Flavour.EARLY and policy.catch_up.early == "skip" and final <= now:
        return "superseded: the cut-off of the final analysis has passed, too"
    return ""


def choose(
    policy: CyclePolicy, due: Sequence[CycleRecord], in_flight: Sequence[CycleRecord]
) -> list[CycleRecord]:
    """Return the due cycles to submit now, in order.

    At most `at_once` cycles are in flight. A cycle waits for its predecessor (a final one also for the
    early one of the same time) if that is in flight or chosen too, so that it can use its analysis as
    background.
    """
    room = policy.catch_up.at_once - len(in_flight)
    chosen: list[CycleRecord] = []
    ahead = list(in_flight)
    for record in _in_order(policy, due):
        if len(chosen) >= room:
            break
        if not any(_comes_before(other, record, policy.step) for other in ahead):
            chosen.append(record)
        ahead.append(record)
    return chosen


def _in_order(policy: CyclePolicy, due: Iterable[CycleRecord]) -> list[CycleRecord]:
    newest_first = policy.catch_up.order == "newest_first"
    sign = -1.0 if newest_first else 1.0
    return sorted(due, key=lambda r: (sign * r.valid_time.timestamp(), _RANK[r.flavour]))


def _comes_before(other: CycleRecord, record: CycleRecord, step: timedelta) -> bool:
    """Return whether `other` must end first, as the background of `record` or by order."""
    if other.valid_time == record.valid_time:
        return _RANK[other.flavour] <= _RANK[record.flavour]
    return record.valid_time - step <= other.valid_time < record.valid_time
