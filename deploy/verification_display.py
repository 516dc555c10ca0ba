"""The series of verification as a table and as a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from model.domain.variables import VARIABLES
from worker.jobs.verification_pages import SeriesRow
from worker.jobs.verification_series import ALL

__all__ = ["STATISTICS", "Line", "Summary", "draw", "summarise", "summary_table"]

_ROOT_MEAN_SQUARES = (
    "rms_background",
    "rms_analysis",
    "withheld_rmse_background",
    "withheld_rmse_analysis",
)
_MEANS = ("bias_background", "error_ratio", "spread_skill", "withheld_crps_analysis")
_WHOLE = ("chi2", "outside_limits")
STATISTICS = (*_ROOT_MEAN_SQUARES, *_MEANS, *_WHOLE)
"""What the table and the picture are made of."""

_COLUMNS = {
    "rms_background": "O−B",
    "rms_analysis": "O−A",
    "bias_background": "bias O−B",
    "spread_skill": "spread/skill",
    "error_ratio": "est./assumed R",
    "withheld_rmse_background": "withheld: background",
    "withheld_rmse_analysis": "analysis",
    "withheld_crps_analysis": "CRPS",
}


_STYLES = {
    "rms_background": ("O−B", "#8d99ae", "-"),
    "rms_analysis": ("O−A", "#1f77b4", "-"),
    "withheld_rmse_background": ("withheld O−B", "#edae49", "--"),
    "withheld_rmse_analysis": ("withheld O−A", "#d1495b", "--"),
}


@dataclass
class Line:
    """One network and variable over all cycles: root mean squares and means, SI units."""

    network: str
    variable: str
    cycles: int = 0
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """What a window of the series says.

    Attributes:
        first: Earliest valid time.
        last: Latest valid time.
        analyses: How many.
        outside: How many of them were outside their control limits.
        chi2: Mean chi-square of all innovations.
        lines: By network and variable.
    """

    first: datetime
    last: datetime
    analyses: int
    outside: int
    chi2: float | None
    lines: list[Line]


def summarise(rows: Sequence[SeriesRow]) -> Summary | None:
    """Means over the cycles, weighted with the number of values; None without rows."""
    if not rows:
        return None
    groups: dict[tuple[str, str], dict[str, list[SeriesRow]]] = {}
    for row in rows:
        groups.setdefault((row.network, row.variable), {}).setdefault(row.statistic, []).append(row)
    whole = groups.pop((ALL, ALL), {})
    lines = []
    for (network, variable), found in sorted(groups.items()):
        cycles = len({row.analysis_id for some in found.values() for row in some})
        means = {name: _mean(some, name in _ROOT_MEAN_SQUARES) for name, some in found.items()}
        lines.append(Line(network, variable, cycles, means))
    return Summary(
        min(row.valid_time for row in rows),
        max(row.valid_time for row in rows),
        len({row.analysis_id for row in rows}),
        sum(row.value > 0 for row in whole.get("outside_limits", ())),
        _mean(whole["chi2"], False) if "chi2" in whole else None,
        lines,
    )


def _mean(rows: Iterable[SeriesRow], squares: bool) -> float:
    values, weights = zip(*((row.value, max(row.count, 1)) for row in rows), strict=True)
    if squares:
        return float(np.sqrt(np.average(np.square(values), weights=weights)))
    return float(np.average(values, weights=weights))


def summary_table(found: Summary) -> Table:
    """Root mean squares in SI units, by network and variable."""
    chi2 = "" if found.chi2 is None else f", chi-square {found.chi2:.2f}"
    table = Table(
        title=f"{found.analyses} analyses, {found.first:%Y-%m-%d %H} to "
        f"{found.last:%Y-%m-%d %H} UTC{chi2}, {found.outside} outside their limits"
    )
    table.add_column("network")
    table.add_column("variable")
    for name in ("cycles", *_COLUMNS.values()):
        table.add_column(name, justify="right")
    for line in found.lines:
        units = VARIABLES[line.variable].units if line.variable in VARIABLES else ""
        label = f"{line.variable} ({units})" if units else line.variable
        cells = [f"{line.values[n]:.3g}" if n in line.values else "" for n in _COLUMNS]
        table.add_row(line.network, label, str(line.cycles), *cells)
    return table


def draw(rows: Sequence[SeriesRow], path: Path, panels: int = 8) -> None:
    """Departures and errors at withheld stations over the cycles, a panel for each variable.

    Arguments:
        rows: At least one.
        path: A PNG file.
        panels: The networks and variables with most values get one.
    """
    # Slow to import, and only this function needs them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.statistic == "rms_background":
            key = row.network, row.variable
            counts[key] = counts.get(key, 0) + row.count
    chosen = sorted(sorted(counts, key=lambda key: -counts[key])[:panels])
    height = 1 + (len(chosen) + 1) // 2
    figure = Figure(figsize=(12, 2.2 * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, 2, sharex=True, squeeze=False).ravel()
    _overview(axes[0], axes[1], rows)
    for axis, key in zip(axes[2:], chosen, strict=False):
        _panel(axis, rows, key, _STYLES)
    for axis in axes[2 + len(chosen) :]:
        axis.set_visible(False)
    locator = AutoDateLocator(maxticks=8)
    axes[0].xaxis.set_major_locator(locator)
    axes[0].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    figure.savefig(path, dpi=110)


def _overview(left: Any, right: Any, rows: Sequence[SeriesRow]) -> None:
    """All networks together: chi-square, and how many statistics were outside their limits."""
    _panel(left, rows, (ALL, ALL), {"chi2": ("chi-square of innovations", "#6a4c93", "-")})
    left.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
    for row in rows:
        if row.statistic == "outside_limits" and row.value > 0:
            left.axvline(row.valid_time, color="#d1495b", linewidth=0.8, alpha=0.6)
    style = {"outside_limits": ("statistics outside their limits", "#d1495b", "-")}
    _panel(right, rows, (ALL, ALL), style)


def _panel(
    axis: Any,
    rows: Sequence[SeriesRow],
    key: tuple[str, str],
    styles: dict[str, tuple[str, str, str]],
) -> None:
    for statistic, (label, colour, dash) in styles.items():
        points = [
            (row.valid_time, row.value)
            for row in rows
            if (row.network, row.variable) == key and row.statistic == statistic
        ]
        if points:
            axis.plot(*zip(*points, strict=True), dash, color=colour, label=label, linewidth=1.2)
    units = VARIABLES[key[1]].units if key[1] in VARIABLES else ""
    title = "all networks" if key[0] == ALL else f"{key[0]}: {key[1]} ({units})"
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="lower left", ncols=4, frameon=False)
