"""Draw the verification of cycles: departures and errors at withheld stations, with control limits.

The limits of a statistic are those that held for each analysis (`chi2_limit_low` and so on in the
series); they are shaded as on the page of verification: to the edge of the panel where only one side
is watched, and with a gap where an analysis had none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from appa_client import Analysis, SeriesRow
from lab.pictures import curve, date_axis, heading, new_figure, save
from model.domain.variables import VARIABLES
from worker.results.verification.series import ALL, LIMIT_SUFFIXES

__all__ = ["about_series", "control_limits", "draw_series", "series_figure"]

Times = Sequence[datetime]
Style = tuple[str, str, str]
"""Label, colour and dash of a line."""

_DEPARTURES: Mapping[str, Style] = {
    "rms_background": ("O−B", "#8d99ae", "-"),
    "rms_analysis": ("O−A", "#1f77b4", "-"),
    "withheld_rmse_background": ("withheld O−B", "#edae49", "--"),
    "withheld_rmse_analysis": ("withheld O−A", "#d1495b", "--"),
}
_OUTSIDE = "#d1495b"
_SHADE = 0.16
_ALONE = timedelta(minutes=20)
"""Half width of the band of limits of a single analysis."""


def about_series(rows: Sequence[SeriesRow], newest: Analysis | None) -> str:
    """Return the heading of a picture: flavour and number; below, time, checkpoint and "simulated".

    Arguments:
        rows: At least one, all of one flavour.
        newest: The newest analysis of the series that still exists.
    """
    count = len({row.analysis_id for row in rows})
    what = f"{count} {rows[0].flavour or 'job'} {'analysis' if count == 1 else 'analyses'}"
    return heading(
        f"Verification: {what}",
        (row.valid_time for row in rows),
        "" if newest is None else str(newest.provenance.get("checkpoint", "")),
        simulated=newest is not None and "simulated" in newest.flags,
    )


def draw_series(rows: Sequence[SeriesRow], title: str, path: Path) -> None:
    """Write the figure as PNG; see `series_figure`."""
    save(series_figure(rows, title), path)


def series_figure(rows: Sequence[SeriesRow], title: str, panels: int = 8) -> Figure:
    """Draw departures and errors at withheld stations, a panel for each network and variable.

    Arguments:
        rows: At least one.
        title: Above all panels.
        panels: The networks and variables with most values get one.
    """
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.statistic == "rms_background":
            key = row.network, row.variable
            counts[key] = counts.get(key, 0) + row.count
    chosen = sorted(sorted(counts, key=lambda key: -counts[key])[:panels])
    height = 1 + (len(chosen) + 1) // 2
    figure = new_figure(12, 0.6 + 2.2 * height)
    axes = figure.subplots(height, 2, sharex=True, squeeze=False).ravel()
    _overview(axes[0], axes[1], rows)
    for axis, key in zip(axes[2:], chosen, strict=False):
        _panel(axis, rows, key, _DEPARTURES)
    for axis in axes[2 + len(chosen) :]:
        axis.set_visible(False)
    date_axis(axes[0])
    figure.suptitle(title, fontsize=11)
    if any(axis.collections for axis in axes):
        shade = Patch(
            color="0.5", alpha=2 * _SHADE, label="shaded: within the control limits of its line"
        )
        figure.legend(handles=[shade], loc="outside lower left", fontsize=7, frameon=False)
    return figure


def control_limits(
    rows: Iterable[SeriesRow], key: tuple[str, str], statistic: str
) -> dict[datetime, tuple[float | None, float | None]]:
    """Return the lower and upper limit by valid time; None on a side that is not watched.

    Arguments:
        rows: Of the series.
        key: Network and variable.
        statistic: Whose limits.
    """
    low, high = (
        {
            row.valid_time: row.value
            for row in rows
            if (row.network, row.variable) == key and row.statistic == statistic + suffix
        }
        for suffix in LIMIT_SUFFIXES
    )
    return {time: (low.get(time), high.get(time)) for time in sorted({*low, *high})}


def _overview(left: Axes, right: Axes, rows: Sequence[SeriesRow]) -> None:
    """Plot for all networks together chi-square, and how many statistics were outside their limits."""
    _panel(left, rows, (ALL, ALL), {"chi2": ("chi-square of innovations", "#6a4c93", "-")})
    left.axhline(1.0, color="0.7", linewidth=0.8, zorder=0)
    for row in rows:
        if row.statistic == "outside_limits" and row.value > 0:
            left.axvline(row.valid_time, color=_OUTSIDE, linewidth=0.8, alpha=0.6)  # type: ignore[arg-type]
    style = {"outside_limits": ("statistics outside their limits", _OUTSIDE, "-")}
    _panel(right, rows, (ALL, ALL), style)


def _panel(
    axis: Axes, rows: Sequence[SeriesRow], key: tuple[str, str], styles: Mapping[str, Style]
) -> None:
    own = [row for row in rows if (row.network, row.variable) == key]
    highest = 0.0
    bands = {}
    for statistic, (label, colour, dash) in styles.items():
        points = [(row.valid_time, row.value) for row in own if row.statistic == statistic]
        bands[statistic] = control_limits(own, key, statistic)
        ends = [end for pair in bands[statistic].values() for end in pair if end is not None]
        highest = max([highest, *ends, *(value for _, value in points)])
        curve(axis, points, dash, colour, label)
    axis.set_ylim(0, 1.1 * highest or 1.0)
    for statistic, limits in bands.items():
        times = sorted(row.valid_time for row in own if row.statistic == statistic)
        _shade(axis, times, limits, styles[statistic][1])
    units = VARIABLES[key[1]].units if key[1] in VARIABLES else ""
    name = "all networks" if key[0] == ALL else f"{key[0]}: {key[1].replace('_', ' ')}"
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_ylabel(units, fontsize=8)
    axis.tick_params(labelsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="lower left", ncols=4, frameon=False)


def _shade(
    axis: Axes,
    times: Times,
    limits: Mapping[datetime, tuple[float | None, float | None]],
    colour: str,
) -> None:
    """Shade between the limits, to the edge of the panel on a side without one."""
    floor, top = axis.get_ylim()
    for run in _runs(times, limits):
        lows, highs = zip(*(limits[time] for time in run), strict=True)
        low = [floor if value is None else value for value in lows]
        high = [top if value is None else value for value in highs]
        if len(run) == 1:
            run, low, high = [run[0] - _ALONE, run[0] + _ALONE], 2 * low, 2 * high
        axis.fill_between(run, low, high, color=colour, alpha=_SHADE, linewidth=0)  # type: ignore[arg-type]


def _runs(times: Times, limits: Mapping[datetime, object]) -> Iterator[list[datetime]]:
    """Yield runs of consecutive analyses that all have limits."""
    run: list[datetime] = []
    for time in times:
        if time in limits:
            run.append(time)
        elif run:
            yield run
            run = []
    if run:
        yield run
