"""`appa verify`: skill against a simulated truth, against withheld observations, and by cycle."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from appa_client import Flavour, SeriesRow
from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    out,
    print_json,
    utc_time,
)
from model.domain.variables import VARIABLES
from worker.results.verification.series import ALL, LIMIT_SUFFIXES

__all__ = ["Line", "STATISTICS", "Summary", "app", "summarise", "summary_table"]

_ROOT_MEAN_SQUARES = (
    "rms_background",
    "rms_analysis",
    "withheld_rmse_background",
    "withheld_rmse_analysis",
)
_MEANS = ("bias_background", "error_ratio", "spread_skill", "withheld_crps_analysis")
_WHOLE = ("chi2", "outside_limits")
STATISTICS = (*_ROOT_MEAN_SQUARES, *_MEANS, *_WHOLE)
"""Statistics that the table and the picture show."""

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
    """Summary of a period of the verification series.

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
    """Return means over the cycles, weighted by the number of values; None without rows."""
    rows = [row for row in rows if not row.statistic.endswith(LIMIT_SUFFIXES)]
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
    """Return a table of root mean squares in SI units, by network and variable."""
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


app = typer.Typer(
    no_args_is_help=True, help="Skill against truth and observations.", add_completion=False
)


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
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the networks; without it bfloat16 where the device has units for it."
        ),
    ] = None,
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
            precision.value if precision else None,
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
        print_json(as_values(report))
    else:
        # Tables do not fit into 80 columns, rich's default width for files and pipes.
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
        print_json(values | {"outcomes": skill.outcomes, "rows": rows})
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
        until = utc_time(end) if end else None
        newest = client.analyses(kind="filtering", flavour=flavour.value, valid_to=until, limit=1)
        if until is None and not newest:
            err.print(f"no {flavour.value} analyses yet")
            raise typer.Exit(1)
        last = until or newest[0].valid_time
        rows = client.verification(
            statistic=[*STATISTICS, *(name + end for name in STATISTICS for end in LIMIT_SUFFIXES)],
            layer="all",
            flavour=flavour.value,
            valid_from=utc_time(start) if start else last - timedelta(hours=hours),
            valid_to=last,
            network=["all", *network] if network else None,
            variable=["all", *variable] if variable else None,
        )
    found = summarise(rows)
    if found is None:
        err.print("no verification in this period")
        raise typer.Exit(1)
    if png is not None:
        # Matplotlib is slow to import, and only the picture needs it.
        from lab.skill.cycle_series import about_series, draw_series

        draw_series(rows, about_series(rows, next(iter(newest), None)), png)
    if as_json:
        print_json({"summary": asdict(found), "rows": [r.model_dump(mode="json") for r in rows]})
        return
    out.print(summary_table(found))
    if png is not None:
        out.print(f"series drawn in {png}")
