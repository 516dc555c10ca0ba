"""What the analyses of a day cost, in real seconds: by phase, and from cut-off to publication."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from worker.jobs.clock import Clock
from worker.jobs.store import Stores

__all__ = ["CycleTiming", "Medians", "medians", "phase_seconds", "timings"]

PHASES = ("loading", "gathering", "background", "sampling", "writing", "publishing")


@dataclass(frozen=True)
class CycleTiming:
    """One published cycle.

    Attributes:
        key: Of the cycle.
        valid_time, flavour: Of the cycle.
        attempts: Starts of its job.
        behind: From cut-off to decision, by the operational clock; s.
        waited: From the job's creation to its last start; real s.
        phases: Real s by phase of the last attempt.
        cost: From its last start to publication; real s.
        fresh: From cut-off to publication; real s.
        queued: Of these, what it waited for earlier cycles; real s.
    """

    key: str
    valid_time: datetime
    flavour: str
    attempts: int
    behind: float
    waited: float
    phases: dict[str, float]
    cost: float
    fresh: float
    queued: float = 0.0


def timings(stores: Stores, keys: Iterable[str], clock: Clock) -> list[CycleTiming]:
    """Of all published cycles, by key."""
    found = []
    for record in stores.cycles.load(keys):
        job = stores.jobs.find(record.job_id) if record.job_id else None
        if job is None or job.started is None or job.finished is None or record.published is None:
            continue
        cost = (job.finished - job.started).total_seconds()
        fresh = (record.published - record.cut_off).total_seconds() / clock.speed
        found.append(
            CycleTiming(
                key=record.key,
                valid_time=record.valid_time,
                flavour=record.flavour.value,
                attempts=job.attempts,
                behind=record.behind_seconds,
                waited=(job.started - job.created).total_seconds(),
                phases=phase_seconds(stores.jobs.events(job.id)),
                cost=cost,
                fresh=fresh,
                queued=fresh - cost - record.behind_seconds / clock.speed,
            )
        )
    return sorted(found, key=lambda t: t.key)


def phase_seconds(events: Sequence[tuple[str, str, Any]]) -> dict[str, float]:
    """Seconds between the first event of each phase and that of the next, in the last attempt.

    The server stamps events with its own time in milliseconds.
    """
    first: dict[str, int] = {}
    for event, kind, data in events:
        name = str(data.get("phase") if kind == "progress" else data.get("state"))
        if name == "running":
            first.clear()
        first.setdefault(name, int(event.partition("-")[0]))
    names = list(first)
    return {
        a: (first[b] - first[a]) / 1000
        for a, b in zip(names, names[1:], strict=False)
        if a in PHASES
    }


@dataclass(frozen=True)
class Medians:
    """Medians over the warm cycles of a day that ran undisturbed, in real seconds."""

    count: int
    cost: float
    fresh: float
    longest_fresh: float
    unqueued: float
    phases: dict[str, float]


def medians(found: Iterable[CycleTiming], warm: Iterable[str]) -> Medians | None:
    """Of the cycles that started warm at the first attempt and without delay; None if none did.

    Arguments:
        found: From `timings`.
        warm: Keys of the cycles that continued an earlier analysis.
    """
    wanted = set(warm)
    runs = [t for t in found if t.key in wanted and t.attempts == 1 and t.behind < 3600.0]
    if not runs:
        return None
    return Medians(
        count=len(runs),
        cost=median(t.cost for t in runs),
        fresh=median(t.fresh for t in runs),
        longest_fresh=max(t.fresh for t in runs),
        unqueued=median(t.fresh - t.queued for t in runs),
        phases={name: median(t.phases.get(name, 0.0) for t in runs) for name in PHASES},
    )
