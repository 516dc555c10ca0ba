"""`appa verify`: skill against a simulated truth, against withheld observations, and by cycle."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from appa_client import Flavour, SeriesRow
from deploy.console import DEFAULT_URL, AsJson, Key, Url, gateway_client, out, print_json, utc_time
from model.domain.variables import VARIABLES
from worker.results.verification.series import ALL

__all__ = ["Line", "STATISTICS", "Summary", "app", "draw_series", "summarise", "summary_table"]

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


class Precision(StrEnum):
    """Number formats in which a checkpoint's networks run."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


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


def draw_series(rows: Sequence[SeriesRow], path: Path, panels: int = 8) -> None:
    """Departures and errors at withheld stations over the cycles, a panel for each variable.

    Arguments:
        rows: At least one.
        path: A PNG file.
        panels: The networks and variables with most values get one.
    """
    # Slow to import, and only this function needs them.
    from lab.pictures import date_axis, new_figure, save

    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.statistic == "rms_background":
            key = row.network, row.variable
            counts[key] = counts.get(key, 0) + row.count
    chosen = sorted(sorted(counts, key=lambda key: -counts[key])[:panels])
    height = 1 + (len(chosen) + 1) // 2
    figure = new_figure(12, 2.2 * height)
    axes = figure.subplots(height, 2, sharex=True, squeeze=False).ravel()
    _overview(axes[0], axes[1], rows)
    for axis, key in zip(axes[2:], chosen, strict=False):
        _panel(axis, rows, key, _STYLES)
    for axis in axes[2 + len(chosen) :]:
        axis.set_visible(False)
    date_axis(axes[0])
    save(figure, path)


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


app = typer.Typer(no_args_is_help=True, help="Skill against truth and observations.")


@app.command("osse")
def osse(
    checkpoint: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = "appa-t31",
    truth: Annotated[
        str | None, typer.Option(help="A store of states; by default the case that ships.")
    ] = None,
    starts: Annotated[
        int, typer.Option(min=1, help="Analysis times; fewer where windows would overlap.")
    ] = 12,
    members: Annotated[int, typer.Option(min=2)] = 8,
    window: Annotated[int, typer.Option(min=2, help="Hours of observations.")] = 24,
    lead: Annotated[int, typer.Option(min=0, help="Hours of forecast; 0 for none.")] = 24,
    first: Annotated[
        str | None, typer.Option(help="Earliest time of the truth used (UTC).")
    ] = None,
    last: Annotated[str | None, typer.Option(help="Latest time of the truth used (UTC).")] = None,
    withhold: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of stations kept for ranks.")
    ] = 0.1,
    states: Annotated[int, typer.Option(min=1, help="Test states of the autoencoder.")] = 24,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Two starts, two days of cycles, four members: 15 minutes."),
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep finished starts here (JSON) and go on from them.")
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Report what --keep holds; compute nothing.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the skill into this file.")] = None,
    cycles: Annotated[
        float, typer.Option(min=0.0, help="Days of hourly cycles, scored on the last; 0 for none.")
    ] = 0.0,
    seed: int = 0,
    precision: Annotated[Precision, typer.Option(help="Of the networks.")] = Precision.BFLOAT16,
    as_json: AsJson = False,
) -> None:
    """Observe a simulated truth, assimilate, forecast, and score everything against it."""
    # Torch is imported by the commands that need it, not by `appa --help`.
    from lab.osse.skill import SkillSettings
    from lab.osse.skill_report import as_json as as_values
    from lab.skill.display import draw_skill, print_report
    from lab.skill.experiments import Experiment, verify_osse

    if quick:
        starts, members, states, cycles = 2, 4, min(states, 4), cycles or 2.0
    report, model, fields = verify_osse(
        Experiment(
            checkpoint,
            truth,
            utc_time(first) if first else None,
            utc_time(last) if last else None,
            starts,
            states,
            precision.value,
            keep,
            finished,
            cycles,
            shorten=quick,
        ),
        SkillSettings(
            window=window,
            members=members,
            lead=lead,
            seed=seed,
            withhold=withhold,
            warm=not quick,
        ),
    )
    if picture is not None:
        draw_skill(report, model.grid, fields, picture)
    if as_json:
        print(json.dumps(as_values(report), indent=1))
    else:
        # Tables do not fit the 80 columns that a file or a pipe is taken to have.
        print_report(report, Console(width=None if out.is_terminal else 150))


@app.command("soundings")
def soundings(
    paths: Annotated[list[Path], typer.Argument(help="Files of real reports (BUFR, ...).")],
    checkpoint: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = "appa-t31",
    share: Annotated[float, typer.Option(min=0.01, max=0.5, help="Share withheld.")] = 0.2,
    members: Annotated[int, typer.Option(min=2)] = 8,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Assimilate real reports with a share of the stations withheld, and score against those."""
    from lab.skill.experiments import verify_withheld, withheld_table
    from model.checkpoints.bundle import load_checkpoint

    model = load_checkpoint(checkpoint)
    skill = verify_withheld(model, paths, share=share, members=members, seed=seed)
    if as_json:
        rows = skill.rows.assign(layer=skill.rows["layer"].astype(str)).to_dict("records")
        values = {"time": skill.time.isoformat(), "used": skill.used, "withheld": skill.withheld}
        print(json.dumps(values | {"outcomes": skill.outcomes, "rows": rows}, indent=1))
        return
    Console().print(withheld_table(skill))


@app.command("cycles")
def cycles(
    url: Url = DEFAULT_URL,
    key: Key = None,
    start: Annotated[
        str | None, typer.Option(help="First valid time (UTC); else --hours before the last.")
    ] = None,
    end: Annotated[
        str | None, typer.Option(help="Last valid time (UTC); else the newest analysis.")
    ] = None,
    hours: Annotated[int, typer.Option(min=1, help="Hours looked back on.")] = 72,
    flavour: Annotated[Flavour, typer.Option(help="Which analysis of each hour.")] = Flavour.FINAL,
    network: Annotated[list[str] | None, typer.Option(help="Only these networks.")] = None,
    variable: Annotated[list[str] | None, typer.Option(help="Only these variables.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the series into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """How the cycles of the last days fared: departures, withheld stations, chi-square."""
    with gateway_client(url, key) as client:
        if end is None:
            newest = client.analyses(kind="filtering", flavour=flavour.value, latest=True)
            if not newest:
                out.print(f"no {flavour.value} analyses yet")
                raise typer.Exit(1)
            last = newest[0].valid_time
        else:
            last = utc_time(end)
        rows = client.verification(
            statistic=STATISTICS,
            layer="all",
            flavour=flavour.value,
            valid_from=utc_time(start) if start else last - timedelta(hours=hours),
            valid_to=last,
            network=["all", *network] if network else None,
            variable=["all", *variable] if variable else None,
        )
    found = summarise(rows)
    if found is None:
        out.print("no verification in this period")
        raise typer.Exit(1)
    if png is not None:
        draw_series(rows, png)
    if as_json:
        print_json({"summary": asdict(found), "rows": [r.model_dump(mode="json") for r in rows]})
        return
    out.print(summary_table(found))
    if png is not None:
        out.print(f"series drawn in {png}")
