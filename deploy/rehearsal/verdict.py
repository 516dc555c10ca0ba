"""What is said of a day in the end: findings of the audit, skill, and the figures behind them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from deploy.rehearsal.audit import audit
from deploy.rehearsal.case import Case, Finding
from deploy.rehearsal.day import Day
from deploy.rehearsal.drift import Trend
from deploy.rehearsal.expectation import slipped
from deploy.rehearsal.skill import DaySkill, day_skill, judge_skill
from deploy.rehearsal.timing import Medians, medians

__all__ = ["Verdict", "judge", "verdict_json"]


@dataclass(frozen=True)
class Verdict:
    """The judgement of one day.

    Attributes:
        findings: Of the audit and of skill; none if all is as it should be.
        skill: Where there is a truth to compare with.
        timing: Of the undisturbed warm cycles.
        slipped: Files that came in on the other side of a cut-off than planned.
    """

    findings: tuple[Finding, ...]
    skill: DaySkill | None
    timing: Medians | None
    slipped: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether there is nothing to find fault with."""
        return not self.findings


def judge(day: Day) -> Verdict:
    """Audits a day and looks at its errors."""
    found = audit(Case(day.scenario, day.plan, day.contents, day.evidence))
    skill = day_skill(day.scenario, day.evidence)
    warm = [a.key for a in day.evidence.analyses if "warm_start" in a.flags]
    return Verdict(
        findings=(*found, *(judge_skill(skill) if skill else ())),
        skill=skill,
        timing=medians(day.timings, warm),
        slipped=slipped(day.scenario, day.plan, day.evidence.sendings),
    )


def verdict_json(day: Day, verdict: Verdict) -> dict[str, Any]:
    """All of it for machines."""
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
        "longest_lag_hours": day.longest_lag / timedelta(hours=1),
        "kills": [t.isoformat() for t in day.evidence.kills],
        "slipped": list(verdict.slipped),
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
