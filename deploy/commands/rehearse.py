"""`appa rehearse`: a simulated day of hourly cycles on the real stack, and an audit of it."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.domain.errors import AppaError

__all__ = ["app"]

app = typer.Typer(help="A simulated day of cycles on the real stack, and an audit of it.")


@app.command()
def rehearse(
    hours: Annotated[int, typer.Option(min=6, help="Cycles, one an hour.")] = 24,
    model: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = "appa-t31",
    members: Annotated[int, typer.Option(min=2)] = 4,
    window: Annotated[int, typer.Option(min=1, help="Hours of observations.")] = 24,
    job_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="What one analysis costs here: the clock runs as fast as that."),
    ] = 22.0,
    speed: Annotated[
        float | None, typer.Option(min=1.0, help="Operational seconds in a real one instead.")
    ] = None,
    limit_minutes: Annotated[
        float | None, typer.Option(min=1.0, help="Judge the day as it is after so long.")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="A store of states instead of the case that ships.")
    ] = None,
    outage: Annotated[bool, typer.Option(help="Kill everything for two hours.")] = True,
    doubled: Annotated[
        bool, typer.Option("--doubled", help="Two schedulers, two model workers, one killed twice.")
    ] = False,
    warm_start: Annotated[
        bool, typer.Option(help="Start the diffusion from the earlier analysis.")
    ] = True,
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("rehearsal"),
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Send a day of simulated reports, early, late and twice, through an outage; cycle; audit.

    Ends with 0 only if every analysis is made of exactly what it should be and errors do not rise.
    """
    # The commands that need torch import it, not `appa --help`.
    from deploy.rehearsal.content import first_cycle, world_of
    from deploy.rehearsal.day import run_day
    from deploy.rehearsal.driver import Pace
    from deploy.rehearsal.picture import draw
    from deploy.rehearsal.scenario import day_scenario
    from deploy.rehearsal.table import cost_table, cycle_table, findings_table, summary_table
    from deploy.rehearsal.verdict import judge, verdict_json

    console = Console(stderr=as_json, highlight=False, width=130)
    world = world_of(model, truth)
    scenario = day_scenario(
        hours,
        start=first_cycle(world, truth),
        checkpoint=model,
        world=world,
        truth=truth,
        members=members,
        window_hours=window,
        seed=seed,
        warm_start=warm_start,
        outage=outage,
        doubled=doubled,
    )
    limit = None if limit_minutes is None else 60.0 * limit_minutes
    pace = Pace(speed or scenario.speed_for(job_seconds), start_seconds=30.0, limit=limit)
    output.mkdir(parents=True, exist_ok=True)
    console.print(f"the operational clock runs {pace.speed:.0f} times as fast as the real one")
    try:
        with tempfile.TemporaryDirectory(dir=output, prefix="data-") as folder:
            day = run_day(scenario, Path(folder), pace, lambda line: console.print(line))
    except AppaError as error:
        console.print(f"error: {error.message}", style="red", markup=False)
        raise typer.Exit(2) from error
    verdict = judge(day)
    picture = draw(day, verdict, output / "rehearsal.png")
    if as_json:
        print(json.dumps(verdict_json(day, verdict), indent=1, default=str))
    else:
        for table in (cycle_table(day), summary_table(day, verdict), cost_table(day, verdict)):
            if table is not None:
                console.print(table)
    console.print(f"picture: {picture}")
    if not verdict.sound:
        console.print(findings_table(verdict))
        raise typer.Exit(1)
    console.print("every analysis is made of what it should be made of")
