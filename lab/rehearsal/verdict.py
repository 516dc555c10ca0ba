"""Judge a rehearsed day and report it: findings of the audit, skill, drift; table and picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.table import Table
from scipy.stats import t as student

from lab.pictures import curve, date_axis, heading, new_figure, save
from lab.rehearsal.audit import AuditFinding, Case, audit, late_cut_offs
from lab.rehearsal.day import Day, Medians, medians
from lab.rehearsal.evidence import AnalysisEvidence, Evidence
from lab.rehearsal.scenario import DELAYS, Scenario
from model.domain.windows import HOUR
from worker.contract.cycles import Flavour, cycle_key

__all__ = [
    "DaySkill",
    "DayVerdict",
    "Trend",
    "cost_table",
    "cycle_table",
    "day_skill",
    "draw_day",
    "findings_table",
    "judge",
    "judge_skill",
    "summary_table",
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
        """Whether the slope is significantly above zero."""
        return self.slope > self.margin


def trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit a line to values (n,) at times (n,), in order of time; n of at least 4.

    The error of the slope allows for correlation of neighbouring residuals.

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
        cold: Of the first analysis, which uses one hour of observations and no earlier analysis.
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
    """Return the skill of a day; None if it is too short or there is no truth."""
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
    """Check that errors do not drift, and are below those of a cold start and of climatology."""
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
        findings: Of the audit and of skill; none if the day passed.
        skill: None without a truth.
        timing: Of the undisturbed warm cycles.
        late_cut_offs: Files that came in on the other side of a cut-off than planned.
    """

    findings: tuple[AuditFinding, ...]
    skill: DaySkill | None
    timing: Medians | None
    late_cut_offs: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether there are no findings."""
        return not self.findings


def _goes_on(analysis: AnalysisEvidence) -> bool:
    """Return whether an analysis continued an earlier one: by warm start, or with it as the prior."""
    return not {"warm_start", "continued"}.isdisjoint(analysis.flags)


def judge(day: Day) -> DayVerdict:
    """Audit a day and check its errors."""
    found = audit(Case(day.scenario, day.plan, day.contents, day.evidence))
    skill = day_skill(day.scenario, day.evidence)
    warm = [a.key for a in day.evidence.analyses if _goes_on(a)]
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


def cycle_table(day: Day) -> Table:
    """Return a table with a row for each valid time: inputs and error of each analysis."""
    table = Table(title="Cycles: uploads and values used, standardised RMSE against the truth")
    table.add_column("valid time")
    for name in ("early", "final"):
        for column in ("uploads", "used", "RMSE"):
            table.add_column(f"{name} {column}", justify="right")
    table.add_column("climatology", justify="right")
    table.add_column("remarks")
    for time in day.scenario.cycles:
        cells = [cell for flavour in Flavour for cell in _cells(_find(day, time, flavour))]
        climate = _figure(day.evidence.climatology.get(time))
        table.add_row(f"{time:%d %b %H UTC}", *cells, climate, ", ".join(_remarks(day, time)))
    return table


def _find(day: Day, time: datetime, flavour: str) -> AnalysisEvidence | None:
    found = (a for a in day.evidence.analyses if a.valid_time == time and a.flavour == flavour)
    return next(found, None)


def _cells(analysis: AnalysisEvidence | None) -> tuple[str, str, str]:
    if analysis is None:
        return "", "missing", ""
    taken = sum(use.entered > 0 for use in analysis.batches.values())
    return str(taken), str(analysis.used), _figure(analysis.error)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _remarks(day: Day, time: datetime) -> Iterator[str]:
    if time == day.scenario.hour(day.scenario.silent_hour):
        yield "nobody observed"
    if time == day.scenario.hour(day.scenario.copied_hour):
        yield "two files came twice"
    for flavour in Flavour:
        analysis = _find(day, time, flavour)
        record = day.evidence.cycles.get(cycle_key(time, flavour))
        if record is not None and record.caught_up:
            yield f"{flavour} caught up, {record.behind_seconds / 3600:.1f} h behind"
        for flag in ("cold_start", "zero_observations"):
            if analysis is not None and flag in analysis.flags:
                yield f"{flavour} {flag}"


def summary_table(day: Day, verdict: DayVerdict) -> Table:
    """Return a table of the totals of the day: analyses, files, errors."""
    table = Table("figure", "value", title="The day")
    analyses = day.evidence.analyses
    counts = [sum(a.flavour == flavour for a in analyses) for flavour in Flavour]
    table.add_row(
        "early and final analyses", f"{counts[0]} and {counts[1]} of {day.scenario.hours}"
    )
    sent = len(day.evidence.sendings)
    values = sum(len(day.contents[s.name].seconds) for s in day.evidence.sendings)
    table.add_row("files and values sent", f"{sent} and {values}")
    table.add_row(
        "files on the other side of a cut-off than planned", str(len(verdict.late_cut_offs))
    )
    if stop := day.evidence.outage:
        table.add_row("nothing ran", f"{stop.killed:%H:%M} to {stop.ready:%H:%M} UTC")
    caught = sum(record.caught_up for record in day.evidence.cycles.values())
    table.add_row("cycles caught up", str(caught))
    warm = sum(_goes_on(a) for a in analyses)
    table.add_row("analyses that went on from an earlier one", f"{warm} of {len(analyses)}")
    table.add_row("model workers killed at work", str(len(day.evidence.kills)))
    table.add_row(
        "longest wait of a due cycle", f"{day.longest_lag / timedelta(minutes=1):.0f} min"
    )
    if skill := verdict.skill:
        table.add_row("first analysis, cold", f"{skill.cold:.3f}")
        table.add_row("climatology", f"{skill.climatology:.3f}")
        for name, line in (("early", skill.early), ("final", skill.final)):
            table.add_row(f"mean of the {name} analyses", f"{line.mean:.3f}")
            table.add_row(
                f"change of the {name} error in a day",
                f"{24 * line.slope:+.3f} ± {24 * line.error:.3f}"
                + (" (rises)" if line.rises else " (no rise)"),
            )
    table.add_row("operational seconds in a real one", f"{day.clock.speed:g}")
    table.add_row("took", f"{day.seconds / 60:.1f} min")
    return table


def cost_table(day: Day, verdict: DayVerdict) -> Table | None:
    """Return a table of cost and freshness of hourly warm cycles; None if no cycle started warm."""
    timing = verdict.timing
    if timing is None:
        return None
    s = day.scenario
    table = Table(
        "figure",
        "seconds",
        title=f"Median of {timing.count} warm cycles: {s.checkpoint}, {s.members} members, "
        f"window of {s.window_hours} h",
    )
    table.add_row("cost of an hourly warm cycle", f"{timing.cost:.1f}")
    for phase, seconds in timing.phases.items():
        table.add_row(f"  {phase}", f"{seconds:.2f}")
    table.add_row("freshness: cut-off to published", f"{timing.fresh:.1f}")
    table.add_row("  longest", f"{timing.longest_fresh:.1f}")
    table.add_row("  without waiting for earlier cycles", f"{timing.unqueued:.1f}")
    return table


def findings_table(verdict: DayVerdict) -> Table:
    """Return a table of the findings."""
    table = Table("check", "cycle", "finding", title="Findings of the audit")
    for finding in verdict.findings:
        table.add_row(finding.check, finding.cycle, finding.message)
    return table


_COLOURS = {Flavour.EARLY: "tab:orange", Flavour.FINAL: "tab:blue"}


def draw_day(day: Day, verdict: DayVerdict, path: Path) -> Path:
    """Draw errors by valid time above arrivals; return the path of the PNG."""
    figure = new_figure(11, 7.5)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _errors(above, day, verdict)
    _arrivals(below, day)
    for axes in (above, below):
        if stop := day.evidence.outage:
            axes.axvspan(stop.killed, stop.ready, color="0.85", zorder=0, label="nothing runs")
        if silent := day.scenario.hour(day.scenario.silent_hour):
            axes.axvspan(silent - HOUR, silent, color="tab:red", alpha=0.12, zorder=0)
        axes.grid(alpha=0.3)
    above.legend(ncols=2)
    date_axis(below)
    below.set_xlabel(f"{day.scenario.start:%d %b %Y} and the day after, UTC")
    what = "A simulated day of hourly cycles"
    figure.suptitle(heading(what, day.scenario.cycles, Path(day.scenario.checkpoint).name))
    return save(figure, path)


def _errors(axes: Axes, day: Day, verdict: DayVerdict) -> None:
    for flavour, colour in _COLOURS.items():
        points = [
            (a.valid_time, a.error)
            for a in day.evidence.analyses
            if a.flavour == flavour and a.error is not None
        ]
        curve(axes, points, "o-", colour, f"{flavour} analysis")
    curve(axes, sorted(day.evidence.climatology.items()), "-", "0.5", "climatology")
    if skill := verdict.skill:
        axes.axhline(skill.cold, color="tab:red", linestyle=":", label="first analysis, cold")
    axes.set(
        ylabel="mean standardised RMSE",
        ylim=(0, None),
        title="errors against the truth by valid time",
    )


def _arrivals(axes: Axes, day: Day) -> None:
    """Plot the hour of the observations against arrival, with both cut-offs."""
    deliveries = {d.name: d for d in day.plan}
    for network in DELAYS:
        points = [
            (s.acknowledged, (s.acknowledged - deliveries[s.name].hour) / timedelta(minutes=1))
            for s in day.evidence.sendings
            if deliveries[s.name].network == network
        ]
        if points:
            axes.plot(*zip(*points, strict=True), ".", label=network)
    for flavour, minutes in (
        (Flavour.EARLY, day.scenario.early),
        (Flavour.FINAL, day.scenario.final),
    ):
        axes.axhline(minutes, color=_COLOURS[flavour], linewidth=1)
    axes.set(ylabel="minutes after the hour", title="arrivals; lines: early and final cut-off")
    axes.legend(ncols=6, fontsize=8)
