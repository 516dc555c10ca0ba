"""The day as a picture: errors above, arrivals below, the outage shaded."""

from datetime import timedelta
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure

from deploy.rehearsal.day import Day
from deploy.rehearsal.scenario import HOUR
from deploy.rehearsal.verdict import Verdict
from worker.jobs.cycle import Flavour

__all__ = ["draw"]

_NETWORKS = ("synop", "ship", "aircraft", "temp", "scatterometer", "satellite")
_COLOURS = {Flavour.EARLY: "tab:orange", Flavour.FINAL: "tab:blue"}


def draw(day: Day, verdict: Verdict, path: Path) -> Path:
    """Writes a PNG."""
    mpl.use("Agg")
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _errors(above, day, verdict)
    _arrivals(below, day)
    for axes in (above, below):
        if stop := day.evidence.standstill:
            axes.axvspan(stop.killed, stop.ready, color="0.85", zorder=0, label="nothing runs")
        if silent := day.scenario.hour(day.scenario.silent_hour):
            axes.axvspan(silent - HOUR, silent, color="tab:red", alpha=0.12, zorder=0)
        axes.grid(alpha=0.3)
    above.legend(ncols=2)
    below.xaxis.set_major_formatter(DateFormatter("%H"))
    below.set_xlabel(f"hour of {day.scenario.start:%d %b %Y} and the day after, UTC")
    figure.suptitle(
        "A simulated day of hourly cycles: simulated atmosphere, not for real decisions"
    )
    figure.savefig(path, dpi=110)
    return path


def _errors(axes: Axes, day: Day, verdict: Verdict) -> None:
    for flavour, colour in _COLOURS.items():
        points = [
            (a.valid_time, a.error)
            for a in day.evidence.analyses
            if a.flavour == flavour and a.error is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{flavour} analysis")
    if climate := sorted(day.evidence.climatology.items()):
        axes.plot(*zip(*climate, strict=True), "-", color="0.5", label="climatology")
    if skill := verdict.skill:
        axes.axhline(skill.cold, color="tab:red", linestyle=":", label="first analysis, cold")
    axes.set(
        ylabel="mean standardised RMSE",
        ylim=(0, None),
        title="errors against the truth by valid time",
    )


def _arrivals(axes: Axes, day: Day) -> None:
    """Hour of the observations against arrival, with both cut-offs."""
    deliveries = {d.name: d for d in day.plan}
    for network in _NETWORKS:
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
