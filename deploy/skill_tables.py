"""The skill of a checkpoint as tables for people."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from model.osse.skill_report import SkillReport
from model.osse.start_skill import Method

__all__ = ["print_report"]

SHADES = " ▁▂▃▄▅▆▇█"


def print_report(report: SkillReport, console: Console) -> None:
    """Prints every table."""
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
    """All methods, the best first."""
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
    """Filtering by group of channels."""
    methods = [m for m in Method if all(m in r.errors for r in report.groups)]
    columns = ("channels", *methods, "spread / error")
    table = _table("Analyses by group of channels", ("group",), columns)
    for row in report.groups:
        errors = (f"{row.errors[m]:.3f}" for m in methods)
        table.add_row(row.group, str(row.channels), *errors, f"{row.spread_ratio:.2f}")
    return table


def forecast_tables(report: SkillReport) -> Iterator[Table]:
    """A table for each season with a start, and one for all where there are several."""
    seasons = list(dict.fromkeys(r.season for r in report.forecasts))
    # Of a single season, all seasons would be the same table again.
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
    """Of reconstructed states."""
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
    """Rank histograms: shares of the bins in units of what is expected."""
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
    """What was aimed at, found, and whether that is met."""
    table = _table("Goals", ("what", "goal", "found", ""), ())
    for goal in report.goals:
        verdict = {True: "met", False: "[bold]MISSED[/bold]", None: "not judged"}[goal.met]
        table.add_row(goal.what, goal.goal, goal.found, verdict)
    return table
