"""Plan an exercise from its seed: the times of uploads, jobs, cycles and faults.

The same minutes and seed give the same plan. A slow machine may not complete it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.random import Generator

__all__ = [
    "FORMS",
    "PARTS",
    "Fault",
    "FaultKind",
    "PlannedJob",
    "ChaosPlan",
    "Rates",
    "PlannedUpload",
    "chaos_plan",
]

FORMS = ("bufr", "csv", "geojson", "parquet", "csv.gz", "tar.gz")
"""Formats of the uploads; the last one is queued with large files."""

PARTS = ("gateway", "ingest", "ingest-large", "model", "scheduler")
"""Parts of `appa up` that are killed and paused."""

_FORKING = ("ingest", "ingest-large", "model")


class FaultKind(StrEnum):
    """Kinds of fault that an exercise injects."""

    KILL = "kill"
    """SIGKILL for the process of a part; with `Fault.whole` also for those it started."""
    KILL_CHILD = "kill child"
    """SIGKILL for a process that a part has started: a Celery child, a decoder."""
    PAUSE = "pause"
    """SIGSTOP for a part and all it started, later SIGCONT."""
    FULL_DISK = "full disk"
    """No byte is left on the file system of the data folder."""
    BROKER_KILL = "broker killed"
    """SIGKILL for Valkey, which comes back with its append-only file."""
    BROKER_PAUSE = "broker paused"
    """SIGSTOP for Valkey, later SIGCONT."""
    BROKER_CLIENTS = "connections cut"
    """Valkey closes the connections of all its clients."""


KILLS = frozenset({FaultKind.KILL, FaultKind.KILL_CHILD})
BROKER_CUTS = frozenset({FaultKind.BROKER_KILL, FaultKind.BROKER_PAUSE, FaultKind.BROKER_CLIENTS})


@dataclass(frozen=True)
class Fault:
    """One fault to be injected, with its time and target.

    Attributes:
        at: Seconds from the start.
        kind: Kind of fault.
        part: Which part it hits, for kills and pauses.
        seconds: How long it lasts.
        whole: Whether a kill takes the processes that the part started with it.
        choice: In [0, 1): picks one of several processes.
    """

    at: float
    kind: FaultKind
    part: str = ""
    seconds: float = 0.0
    whole: bool = False
    choice: float = 0.0


@dataclass(frozen=True)
class PlannedUpload:
    """An upload to be sent at a given time of the exercise.

    Attributes:
        at: Seconds from the start.
        number: Of its content; repeated uploads of a content share it.
        form: One of `FORMS`.
        mutated: Whether its bytes are damaged.
        keyed: Whether it comes with an idempotency key.
    """

    at: float
    number: int
    form: str
    mutated: bool = False
    keyed: bool = False


@dataclass(frozen=True)
class PlannedJob:
    """A job to be submitted: the analysis of an hour.

    Attributes:
        at: Seconds from the start.
        number: Of the job; its idempotency key is made of it.
        members: Of its ensemble.
        steps: Diffusion steps.
    """

    at: float
    number: int
    members: int
    steps: int


@dataclass(frozen=True)
class Rates:
    """Mean numbers of uploads, jobs and faults per minute; a release must pass ten minutes of these.

    Attributes:
        uploads: Valid contents.
        mutated: Damaged ones.
        posted: Share of the damaged ones that is uploaded; the others are decoded in batches.
        jobs: Small analyses.
        hours: Operational hours, each with an early and a final cycle; sets the speed of the clock.
        kills, pauses, full_disks, broker_cuts: Faults of each kind.
    """

    uploads: int = 110
    mutated: int = 1000
    posted: float = 0.3
    jobs: int = 6
    hours: int = 3
    kills: int = 11
    pauses: int = 2
    full_disks: int = 1
    broker_cuts: int = 2


@dataclass(frozen=True)
class ChaosPlan:
    """Schedule of an exercise: uploads, jobs and faults, each in order of time.

    Attributes:
        seed: What it was drawn from.
        seconds: Duration of traffic and faults.
        uploads, jobs, faults: What is sent, submitted and injected.
        batched: Damaged contents that are decoded in batches, without a time of their own.
        hours: How many hours are cycled.
        speed: Operational seconds per real second.
        watermark: Whether work is refused before the disk is full.
    """

    seed: int
    seconds: float
    uploads: tuple[PlannedUpload, ...]
    jobs: tuple[PlannedJob, ...]
    faults: tuple[Fault, ...]
    batched: tuple[PlannedUpload, ...]
    hours: int
    speed: float
    watermark: bool

    def hours_at(self, at: float) -> int:
        """Return the full operational hours that have passed when an upload or a job is due."""
        return int(at * self.speed // 3600.0)


_REPEATED = 0.05
_KEYED = 0.2


def chaos_plan(minutes: float, seed: int, rates: Rates | None = None) -> ChaosPlan:
    """Return the plan of an exercise.

    Arguments:
        minutes: Duration of traffic and faults.
        seed: Seed of all random choices.
        rates: Mean numbers per minute.
    """
    rates = rates or Rates()
    generator = np.random.default_rng([seed, 0])
    seconds = 60.0 * minutes
    uploads = _uploads(generator, minutes, rates)
    return ChaosPlan(
        seed=seed,
        seconds=seconds,
        uploads=uploads,
        jobs=tuple(
            PlannedJob(at, number, 2, int(generator.integers(2, 6)))
            for number, at in enumerate(_times(generator, minutes, rates.jobs))
        ),
        faults=_faults(generator, minutes, rates),
        batched=_batched(generator, uploads, minutes, rates),
        hours=max(1, int(rates.hours * minutes)) if rates.hours else 0,
        speed=60.0 * rates.hours or 1.0,
        watermark=bool(generator.random() < 0.5),
    )


def _times(generator: Generator, minutes: float, rate: float) -> list[float]:
    """Return times in seconds at a mean rate per minute, one drawn in each of equal intervals."""
    number = max(1, round(rate * minutes)) if rate else 0
    stretch = 60.0 * minutes / max(number, 1)
    return [float((i + generator.random()) * stretch) for i in range(number)]


def _uploads(generator: Generator, minutes: float, rates: Rates) -> tuple[PlannedUpload, ...]:
    found: list[PlannedUpload] = []
    for mutated, rate in ((False, rates.uploads), (True, rates.posted * rates.mutated)):
        for at in _times(generator, minutes, rate):
            keyed = not mutated and generator.random() < _KEYED
            found.append(PlannedUpload(at, len(found), _form(generator), mutated, bool(keyed)))
    again = [
        PlannedUpload(
            one.at + float(generator.uniform(0.0, 20.0)), one.number, one.form, False, one.keyed
        )
        for one in found
        if not one.mutated and generator.random() < _REPEATED
    ]
    return tuple(sorted([*found, *again], key=lambda one: (one.at, one.number)))


def _form(generator: Generator) -> str:
    return FORMS[generator.choice(len(FORMS), p=(0.45, 0.15, 0.15, 0.1, 0.05, 0.1))]


def _batched(
    generator: Generator, uploads: tuple[PlannedUpload, ...], minutes: float, rates: Rates
) -> tuple[PlannedUpload, ...]:
    """Return the damaged contents that are not uploaded, numbered on from those that are."""
    first = 1 + max((one.number for one in uploads), default=-1)
    count = round(rates.mutated * minutes) - sum(one.mutated for one in uploads)
    return tuple(
        PlannedUpload(0.0, first + i, _form(generator), mutated=True) for i in range(max(0, count))
    )


def _faults(generator: Generator, minutes: float, rates: Rates) -> tuple[Fault, ...]:
    makers: tuple[tuple[int, Callable[[Generator, float], Fault]], ...] = (
        (rates.kills, _kill),
        (rates.pauses, _pause),
        (rates.full_disks, _full_disk),
        (rates.broker_cuts, _broker_cut),
    )
    found = [
        make(generator, at) for rate, make in makers for at in _times(generator, minutes, rate)
    ]
    return tuple(sorted(found, key=lambda fault: fault.at))


def _kill(generator: Generator, at: float) -> Fault:
    choice = float(generator.random())
    if generator.random() < 0.4:
        part = _FORKING[generator.integers(len(_FORKING))]
        return Fault(at, FaultKind.KILL_CHILD, part, choice=choice)
    part = PARTS[generator.integers(len(PARTS))]
    return Fault(at, FaultKind.KILL, part, whole=bool(generator.random() < 0.5), choice=choice)


def _pause(generator: Generator, at: float) -> Fault:
    part = PARTS[generator.integers(len(PARTS))]
    return Fault(at, FaultKind.PAUSE, part, seconds=float(generator.uniform(1.0, 8.0)))


def _full_disk(generator: Generator, at: float) -> Fault:
    return Fault(at, FaultKind.FULL_DISK, seconds=float(generator.uniform(3.0, 8.0)))


def _broker_cut(generator: Generator, at: float) -> Fault:
    kinds = (FaultKind.BROKER_KILL, FaultKind.BROKER_PAUSE, FaultKind.BROKER_CLIENTS)
    kind = kinds[generator.choice(len(kinds), p=(0.5, 0.25, 0.25))]
    seconds = float(generator.uniform(2.0, 6.0)) if kind is FaultKind.BROKER_PAUSE else 0.0
    return Fault(at, kind, seconds=seconds)
