"""The skill of a checkpoint as one picture: errors by start, maps of one case, ranks."""

from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.domain.grids import Grid
from model.domain.variables import VARIABLES, parse_channel
from model.osse.seasons import SEASONS
from model.osse.skill_report import SkillReport
from model.osse.start_skill import CaseFields, Method
from worker.outputs.coastlines import coastlines

__all__ = ["draw_skill"]

Array = NDArray[np.float32]

CURVES = {
    Method.CLIMATOLOGY: ("0.6", "o"),
    Method.OPTIMAL_INTERPOLATION: ("#edae49", "o"),
    Method.WINDOWED: ("#8d6cab", "o"),
    Method.PERSISTENCE: ("#d1495b", "s"),
    Method.FORECAST: ("#2a9d5c", "s"),
    Method.FILTERING: ("#1f77b4", "o"),
    Method.REANALYSIS: ("#79b8e0", "o"),
}


def draw_skill(report: SkillReport, grid: Grid, fields: CaseFields | None, path: Path) -> None:
    """Writes a PNG."""
    maps = 0 if fields is None else len(fields.channels)
    figure = Figure(figsize=(17, 4.6 + 2.7 * maps), layout="constrained")
    FigureCanvasAgg(figure)
    layout = figure.add_gridspec(1 + maps, 12, height_ratios=[1.5] + [1] * maps)
    _by_start(figure.add_subplot(layout[0, :6]), report)
    _by_season(figure.add_subplot(layout[0, 6:9]), report)
    _ranks(figure.add_subplot(layout[0, 9:]), report)
    if fields is not None:
        for row in range(maps):
            axes = [figure.add_subplot(layout[1 + row, 3 * i : 3 * i + 3]) for i in range(4)]
            _case(axes, grid, fields, row)
    warning = "; simulated atmosphere, not for real decisions" if report.simulated else ""
    figure.suptitle(f"Skill of {report.checkpoint}{warning}")
    figure.savefig(path, dpi=110)


def _by_start(axes: Axes, report: SkillReport) -> None:
    times = [s.end for s in report.starts]
    for method, (colour, marker) in CURVES.items():
        if all(method in s.errors for s in report.starts):
            errors = [float(np.mean(s.errors[method])) for s in report.starts]
            lead = f", +{report.settings.lead} h" if marker == "s" else ""
            axes.plot(times, errors, f"{marker}-", color=colour, label=method + lead, markersize=4)
    axes.axhline(0.25, color="#1f77b4", linestyle=":", linewidth=1, label="goal of filtering")
    axes.set(title="errors by start", ylabel="mean standardised RMSE", ylim=(0, None))
    # A single start leaves nothing to choose an axis by.
    axes.set_xlim(min(times) - timedelta(days=1), max(times) + timedelta(days=1))
    locator = AutoDateLocator(maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)


def _by_season(axes: Axes, report: SkillReport) -> None:
    rows = [r for r in report.forecasts if r.group == "all" and r.season in SEASONS]
    place = np.arange(len(rows))
    for shift, name, colour in (
        (-0.27, "forecast", "#2a9d5c"),
        (0.0, "persistence", "#d1495b"),
        (0.27, "climatology", "0.6"),
    ):
        axes.bar(place + shift, [getattr(r, name) for r in rows], 0.25, color=colour, label=name)
    axes.set_xticks(place, [f"{r.season} ({r.starts})" for r in rows])
    axes.set(title=f"forecast, +{report.settings.lead} h, by season (starts)")
    if rows:
        axes.legend(fontsize=7, loc="lower right")


def _ranks(axes: Axes, report: SkillReport) -> None:
    shown = [r for r in report.ranks if r.name != "all" and " " not in r.name]
    for number, shape in enumerate(shown):
        width = 0.8 / len(shown)
        place = np.arange(len(shape.bins)) + 1 + width * (number - (len(shown) - 1) / 2)
        error = "" if shape.uncertainty is None else f" ± {shape.uncertainty:.2f}"
        label = f"{shape.name}: outer-bin excess {shape.excess:+.2f}{error}"
        axes.bar(place, np.array(shape.bins) * len(shape.bins), width, label=label)
    axes.axhline(1.0, color="0.3", linewidth=0.8)
    axes.set(title="ranks of withheld observations (flat: 1)", xlabel="bin", ylim=(0, None))
    if shown:
        axes.legend(fontsize=7, loc="lower center")


def _case(axes: list[Axes], grid: Grid, fields: CaseFields, row: int) -> None:
    """Truth, analysis, error and spread of one channel."""
    name = fields.channels[row]
    units = VARIABLES[parse_channel(name).variable].units
    truth, analysis, spread = (f[row] for f in (fields.truth, fields.analysis, fields.spread))
    both = np.stack((truth, analysis))
    low, high = (float(np.nanpercentile(both, q)) for q in (1, 99))
    error = analysis - truth
    limit = float(np.nanpercentile(np.abs(error), 99))
    for axis, values, title, colours, bounds in (
        (axes[0], truth, f"truth, {fields.end:%Y-%m-%d %H} UTC: {name}", "turbo", (low, high)),
        (axes[1], analysis, "analysis", "turbo", (low, high)),
        (axes[2], error, "analysis minus truth", "RdBu_r", (-limit, limit)),
        (axes[3], spread, "spread", "viridis", (0.0, limit)),
    ):
        _map(axis, grid, values, f"{title} ({units})", colours, bounds)


def _map(
    axes: Axes, grid: Grid, values: Array, title: str, colours: str, bounds: tuple[float, float]
) -> None:
    lon = np.append(grid.longitude, 360.0)
    wrapped = np.concatenate((values, values[:, :1]), axis=1)
    drawn = axes.pcolormesh(
        lon, grid.latitude, wrapped, cmap=colours, vmin=bounds[0], vmax=bounds[1], shading="nearest"
    )
    lines = [line + (shift, 0.0) for line in coastlines() for shift in (0.0, 360.0)]
    axes.add_collection(LineCollection(lines, colors="0.2", linewidths=0.5))
    axes.set(xlim=(0, 360), ylim=(-88, 88), xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)
    axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
