"""`appa verify`: skill against a simulated truth, against withheld observations, and by cycle."""

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.gateway_access import DEFAULT_URL, AsJson, Key, Url, gateway_client, out, print_json
from deploy.times import utc_time
from deploy.verification_display import STATISTICS, draw, summarise, summary_table
from worker.jobs.cycle import Flavour

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.callback()
def _group() -> None:
    """Skill against a simulated truth, against withheld observations, and by cycle."""


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
        typer.Option("--quick", help="One start, four members; no windowed OI, no warm cycle."),
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep finished starts here (JSON) and go on from them.")
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Report what --keep holds; compute nothing.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the skill into this file.")] = None,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Observe a simulated truth, assimilate, forecast, and score everything against it."""
    # Torch is imported by the commands that need it, not by `appa --help`.
    from deploy.skill_picture import draw_skill
    from deploy.skill_tables import print_report
    from deploy.verify_osse import Experiment, verify_osse
    from model.osse.skill import SkillSettings
    from model.osse.skill_report import as_json as as_values

    if quick:
        starts, members, states = 1, 4, min(states, 4)
    if precision not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"Expected float32 or bfloat16; got '{precision}'.")
    report, model, fields = verify_osse(
        Experiment(
            checkpoint,
            truth,
            utc_time(first) if first else None,
            utc_time(last) if last else None,
            starts,
            states,
            precision,
            keep,
            finished,
        ),
        SkillSettings(
            window=window,
            members=members,
            lead=lead,
            seed=seed,
            withhold=withhold,
            warm=not quick,
            windowed=not quick,
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
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Assimilate real reports with a share of the stations withheld, and score against those."""
    from deploy.verify_soundings import verify_withheld, withheld_table
    from model.checkpoints.load import load_checkpoint

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
        draw(rows, png)
    if as_json:
        print_json({"summary": asdict(found), "rows": [r.model_dump(mode="json") for r in rows]})
        return
    out.print(summary_table(found))
    if png is not None:
        out.print(f"series drawn in {png}")
