"""Judge a day: findings of the audit, whether errors rise or are level, and the figures behind them.

Whether a series of errors rises is decided by a straight line and the confidence of its slope.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from lab.rehearsal.audit import AuditFinding, Case, audit, late_cut_offs
from lab.rehearsal.day import Day, Medians, medians
from lab.rehearsal.evidence import Evidence
from lab.rehearsal.scenario import Scenario
from model.domain.windows import HOUR
from worker.contract.cycles import Flavour

__all__ = [
    "DaySkill",
    "Trend",
    "DayVerdict",
    "day_skill",
    "judge",
    "judge_skill",
    "trend",
    "verdict_json",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trend:
    """A straight line through a series.

    Attributes:
        mean: Of the values.
        slope: Per unit of the abscissa.
        error: Standard error of the slope.
        margin: The slope's one-sided 95 % margin.
    """

    mean: float
    slope: float
    error: float
    margin: float

    @property
    def rises(self) -> bool:
        """Whether chance alone would hardly give such a slope."""
        return self.slope > self.margin


def trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """The line through values (n,) at times (n,), in order of time; n of at least 4.

    Raises:
        ValueError: If there are fewer.
    """
    x, y = np.asarray(times, float), np.asarray(values, float)
    if len(x) < 4:
        raise ValueError(f"Expected at least 4 values for a trend; got {len(x)}.")
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    residual = y - y.mean() - slope * centred
    spread = float(residual @ residual)
    neighbours = float(residual[1:] @ residual[:-1]) / spread if spread > 0 else 0.0
    r1 = min(max(neighbours, 0.0), 0.99)
    freedom = max(len(x) * (1.0 - r1) / (1.0 + r1) - 2.0, 1.0)
    error = float(np.sqrt(spread / freedom / (centred @ centred)))
    return Trend(float(y.mean()), slope, error, error * float(student.ppf(CONFIDENCE, freedom)))


@dataclass(frozen=True)
class DaySkill:
    """Standardised RMSE over the day.

    Attributes:
        cold: Of the first analysis, which knows one hour of observations and no earlier analysis.
        climatology: Mean over the day.
        early, final: Lines through the analyses after the window has filled; slope an hour.
    """

    cold: float
    climatology: float
    early: Trend
    final: Trend


def _series(
    evidence: Evidence, scenario: Scenario, flavour: str
) -> tuple[list[float], list[float]]:
    settled = scenario.start + scenario.settle_hours * HOUR
    points = [
        ((a.valid_time - scenario.start) / HOUR, a.error)
        for a in sorted(evidence.analyses, key=lambda a: a.valid_time)
        if a.flavour == flavour and a.valid_time >= settled and a.error is not None
    ]
    return [x for x, _ in points], [y for _, y in points]


def day_skill(scenario: Scenario, evidence: Evidence) -> DaySkill | None:
    """The skill of a day; None where it is too short or there is no truth to compare with."""
    early, final = (_series(evidence, scenario, f) for f in Flavour)
    first = [
        a.error
        for a in evidence.analyses
        if a.valid_time == scenario.start and a.flavour == Flavour.EARLY and a.error is not None
    ]
    if not first or min(len(early[0]), len(final[0])) < 4 or not evidence.climatology:
        return None
    climate = sum(evidence.climatology.values()) / len(evidence.climatology)
    return DaySkill(first[0], climate, trend(*early), trend(*final))


def judge_skill(skill: DaySkill) -> tuple[AuditFinding, ...]:
    """No drift, and better than a cold start and than climatology."""
    return tuple(AuditFinding("skill", name, message) for name, message in _judge(skill))


def _judge(skill: DaySkill) -> Iterator[tuple[str, str]]:
    for name, line in (("early", skill.early), ("final", skill.final)):
        if line.rises:
            yield (
                name,
                f"errors rise by {24 * line.slope:.3f} a day, more than chance "
                f"({24 * line.margin:.3f}) explains",
            )
        for other, error in (("cold start", skill.cold), ("climatology", skill.climatology)):
            if line.mean >= error:
                yield name, f"mean error {line.mean:.3f} is not below the {other}'s {error:.3f}"


@dataclass(frozen=True)
class DayVerdict:
    """The judgement of one day.

    Attributes:
        findings: Of the audit and of skill; none if all is as it should be.
        skill: Where there is a truth to compare with.
        timing: Of the undisturbed warm cycles.
        late_cut_offs: Files that came in on the other side of a cut-off than planned.
    """

    findings: tuple[AuditFinding, ...]
    skill: DaySkill | None
    timing: Medians | None
    late_cut_offs: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether there is nothing to find fault with."""
        return not self.findings


def judge(day: Day) -> DayVerdict:
    """Audits a day and looks at its errors."""
    found = audit(Case(day.scenario, day.plan, day.contents, day.evidence))
    skill = day_skill(day.scenario, day.evidence)
    warm = [a.key for a in day.evidence.analyses if "warm_start" in a.flags]
    return DayVerdict(
        findings=(*found, *(judge_skill(skill) if skill else ())),
        skill=skill,
        timing=medians(day.timings, warm),
        late_cut_offs=late_cut_offs(day.scenario, day.plan, day.evidence.sendings),
    )


def verdict_json(day: Day, verdict: DayVerdict) -> dict[str, Any]:
    """Return the verdict and its figures as a JSON document."""
    skill, timing = verdict.skill, verdict.timing
    return {
        "sound": verdict.sound,
        "findings": [vars(f) for f in verdict.findings],
        "cycles": [
            {
                "key": a.key,
                "revision": a.revision,
                "analysis_id": a.analysis_id,
                "uploads": len(a.batches),
                "used": a.used,
                "flags": list(a.flags),
                "background": dict(a.background),
                "caught_up": bool(a.cycle.get("caught_up")),
                "standardised_rmse": a.error,
                "climatology": day.evidence.climatology.get(a.valid_time),
            }
            for a in day.evidence.analyses
        ],
        "skill": None
        if skill is None
        else {
            "cold_start": skill.cold,
            "climatology": skill.climatology,
            "early": _line(skill.early),
            "final": _line(skill.final),
        },
        "warm_cycle_seconds": None if timing is None else vars(timing),
        "speed": day.clock.speed,
        "longest_lag_hours": day.longest_lag / HOUR,
        "kills": [t.isoformat() for t in day.evidence.kills],
        "slipped": list(verdict.late_cut_offs),
        "seconds": day.seconds,
    }


def _line(line: Trend) -> dict[str, float | bool]:
    return {
        "mean": line.mean,
        "slope_a_day": 24 * line.slope,
        "error_a_day": 24 * line.error,
        "margin_a_day": 24 * line.margin,
        "rises": line.rises,
    }
