"""The errors of the day: level or rising, and against starting cold."""

from collections.abc import Iterator
from dataclasses import dataclass

from deploy.rehearsal.case import Finding
from deploy.rehearsal.drift import Trend, trend
from deploy.rehearsal.evidence import Evidence
from deploy.rehearsal.scenario import HOUR, Scenario
from worker.jobs.cycle import Flavour

__all__ = ["DaySkill", "day_skill", "judge_skill"]


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


def judge_skill(skill: DaySkill) -> tuple[Finding, ...]:
    """No drift, and better than a cold start and than climatology."""
    return tuple(Finding("skill", name, message) for name, message in _judge(skill))


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
