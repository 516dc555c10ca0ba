"""Show the skill of a checkpoint: tables for the terminal, and a picture of errors, maps and ranks."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lab.osse.scores import CaseFields, Method
from lab.osse.skill_report import SkillReport
from lab.osse.summary import SEASONS
from lab.pictures import (
    curve,
    date_axis,
    heading,
    limits,
    new_figure,
    save,
    symmetric_limit,
    world_field,
)
from model.domain.grids import Grid
from model.domain.variables import VARIABLES, parse_channel

__all__ = ["draw_skill", "print_report"]

SHADES = " ▁▂▃▄▅▆▇█"


def print_report(report: SkillReport, console: Console) -> None:
    """Print every table of the report."""
    console.print(_heading(report))
    for table in (
        methods_table(report),
        groups_table(report),
        *forecast_tables(report),
        spectra_table(report),
        ranks_table(report),
    ):
        if table.row_count:
            console.print(table)
    for line in _remarks(report):
        console.print(line)
    console.print(goals_table(report))


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _heading(report: SkillReport) -> str:
    s, starts = report.settings, report.starts
    truth = "a simulated truth" if report.simulated else "the truth"
    unseen = {
        True: "inside the test period, never trained on",
        False: "NOT inside the checkpoint's test period",
        None: "the checkpoint names no test period",
    }[report.unseen]
    return (
        f"{report.checkpoint} against {truth}: {_starts(len(starts))}, {starts[0].end:%Y-%m-%d} to "
        f"{starts[-1].end:%Y-%m-%d} ({unseen}); {s.members} members, {s.window}-hour windows of "
        f"{min(x.observations for x in starts)} to {max(x.observations for x in starts)} "
        f"observations, {s.withhold:.0%} of the stations withheld. Standardised RMSE."
    )


def _starts(count: int) -> str:
    return "1 start" if count == 1 else f"{count} starts"


def methods_table(report: SkillReport) -> Table:
    """Return a table of all methods, best first."""
    table = _table(
        "Errors, mean over channels and starts",
        ("method",),
        ("mean", "worst start", "when", "seconds", "processor"),
    )
    for row in sorted(report.methods, key=lambda r: r.mean):
        costs = ("" if s is None else f"{s:.1f}" for s in (row.seconds, row.processor))
        when = f"{row.worst_start:%Y-%m-%d %H}"
        table.add_row(row.method, f"{row.mean:.3f}", f"{row.worst:.3f}", when, *costs)
    return table


def groups_table(report: SkillReport) -> Table:
    """Return a table of filtering errors by group of channels."""
    methods = [m for m in Method if all(m in r.errors for r in report.groups)]
    columns = ("channels", *methods, "spread / error")
    table = _table("Analyses by group of channels", ("group",), columns)
    for row in report.groups:
        errors = (f"{row.errors[m]:.3f}" for m in methods)
        table.add_row(row.group, str(row.channels), *errors, f"{row.spread_ratio:.2f}")
    return table


def forecast_tables(report: SkillReport) -> Iterator[Table]:
    """Yield a table for each season with a start, and one for all where there are several."""
    seasons = list(dict.fromkeys(r.season for r in report.forecasts))
    # With a single season, the table of all seasons would be the same.
    for season in seasons[:1] if len(seasons) == 2 else seasons:
        rows = [r for r in report.forecasts if r.season == season]
        name = "all seasons" if season == "all" else season
        table = _table(
            f"Forecast, +{report.settings.lead} h, {name} ({_starts(rows[0].starts)})",
            ("group",),
            ("forecast", "persistence", "climatology", "beats persistence", "beats climatology"),
        )
        for row in rows:
            table.add_row(
                row.group,
                *(f"{x:.3f}" for x in (row.forecast, row.persistence, row.climatology)),
                _better(row.forecast < row.persistence, row.above_persistence, row.channels),
                _better(row.forecast < row.climatology, row.above_climatology, row.channels),
            )
        yield table


def _better(better: bool, count: int, channels: int) -> str:
    return f"{'yes' if better else 'NO'}, {count} of {channels}"


def spectra_table(report: SkillReport) -> Table:
    """Return a table of the spectra of reconstructed states."""
    skill = report.autoencoder
    table = _table(
        f"Autoencoder: {skill.mean:.3f} over {len(skill.times)} states; power spectra up to total "
        f"wavenumber {skill.largest_wavenumber}",
        ("variable",),
        ("largest deviation", "level (hPa)", "wavenumber", "within 10 %"),
    )
    for row in skill.spectra:
        level = "surface" if row.level is None else str(row.level)
        place = f"{row.deviation:+.1%}", level, str(row.wavenumber)
        table.add_row(row.variable, *place, f"{row.within:.0%}")
    return table


def ranks_table(report: SkillReport) -> Table:
    """Return a table of rank histograms: shares of the bins over the expected share."""
    table = _table(
        "Ranks of withheld observations among members with observation errors (flat: 1.00 each)",
        ("observations", "shape"),
        ("values", "station starts", "bins", "outer-bin excess"),
    )
    for row in report.ranks:
        relative = [share * len(row.bins) for share in row.bins]
        tallest = max(relative)
        bars = "".join(SHADES[round(8 * x / tallest)] for x in relative)
        bins = " ".join(f"{x:.2f}" for x in relative)
        error = "" if row.uncertainty is None else f" ± {row.uncertainty:.2f}"
        counts = str(row.values), str(row.stations)
        table.add_row(row.name, bars, *counts, bins, f"{row.excess:+.2f}{error}")
    return table


def _remarks(report: SkillReport) -> Iterator[str]:
    yield f"spread over error of the filtering ensemble: {report.spread_ratio:.2f}"
    levels = ", ".join(f"{sigma:.3g}: {chi:.2f}" for sigma, chi in report.starts[-1].chi)
    if levels:
        yield f"post-fit innovation over observation error by noise level: {levels}"
    if report.ranks:
        yield (
            "outer-bin excess: the outermost two bins against what is expected; positive is U-shaped "
            "(too narrow, or biased), negative a dome; ± one standard error, with stations as "
            "independent. Of members in pairs of opposite noise, one of each pair is ranked at a time."
        )
    if Method.WINDOWED not in {r.method for r in report.methods}:
        yield "windowed OI was left out"


def goals_table(report: SkillReport) -> Table:
    """Return a table of the goals, the figures found, and whether each goal is met."""
    table = _table("Goals", ("what", "goal", "found", ""), ())
    for goal in report.goals:
        verdict = {True: "met", False: "[bold]MISSED[/bold]", None: "not judged"}[goal.met]
        table.add_row(goal.what, goal.goal, goal.found, verdict)
    return table


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
    """Draw errors by start and season, ranks, and maps of one case; write a PNG."""
    maps = 0 if fields is None else len(fields.channels)
    figure = new_figure(17, 4.6 + 2.7 * maps)
    layout = figure.add_gridspec(1 + maps, 12, height_ratios=[1.5] + [1] * maps)
    _by_start(figure.add_subplot(layout[0, :6]), report)
    _by_season(figure.add_subplot(layout[0, 6:9]), report)
    _ranks(figure.add_subplot(layout[0, 9:]), report)
    if fields is not None:
        for row in range(maps):
            axes = [figure.add_subplot(layout[1 + row, 3 * i : 3 * i + 3]) for i in range(4)]
            _case(axes, grid, fields, row)
    times = [start.end for start in report.starts]
    made = heading("Skill", times, report.checkpoint, simulated=report.simulated)
    figure.suptitle(made)
    save(figure, path)


def _by_start(axes: Axes, report: SkillReport) -> None:
    times = [s.end for s in report.starts]
    for method, (colour, marker) in CURVES.items():
        if all(method in s.errors for s in report.starts):
            errors = [float(np.mean(s.errors[method])) for s in report.starts]
            lead = f", +{report.settings.lead} h" if marker == "s" else ""
            curve(axes, zip(times, errors, strict=True), f"{marker}-", colour, method + lead)
    axes.axhline(0.25, color="#1f77b4", linestyle=":", linewidth=1, label="goal of filtering")
    axes.set(title="errors by start", ylabel="mean standardised RMSE", ylim=(0, None))
    # A single start leaves nothing to choose an axis by.
    day = timedelta(days=1)
    axes.set(xlim=(min(times) - day, max(times) + day))
    date_axis(axes)
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
    """Draw truth, analysis, error and spread of one channel."""
    name = fields.channels[row]
    units = VARIABLES[parse_channel(name).variable].units
    truth, analysis, spread = (f[row] for f in (fields.truth, fields.analysis, fields.spread))
    common = limits(truth, analysis)
    error = analysis - truth
    limit = symmetric_limit(error)
    for axis, values, title, colours, bounds in (
        (axes[0], truth, f"truth, {fields.end:%Y-%m-%d %H} UTC: {name}", "turbo", common),
        (axes[1], analysis, "analysis", "turbo", common),
        (axes[2], error, "analysis minus truth", "RdBu_r", (-limit, limit)),
        (axes[3], spread, "spread", "viridis", (0.0, limit)),
    ):
        world_field(axis, grid, values, title, units, colours=colours, bounds=bounds)
