"""`appa demo`, `appa rehearse`, `appa chaos`: one analysis, a simulated day, a day of injected faults."""

import os
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.console import AsJson, counted, print_json

if TYPE_CHECKING:
    from deploy.local import LocalStack
    from lab.demo.run import DemoResult

__all__ = ["chaos_app", "demo_app", "rehearse_app"]

demo_app = typer.Typer(
    help="Observations to analyses against a simulated truth.", add_completion=False
)


@demo_app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where files and pictures go.")] = Path(
        "demo-output"
    ),
    model: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = "appa-t31",
    truth: Annotated[
        str | None, typer.Option(help="A store of states instead of the case that ships.")
    ] = None,
    members: Annotated[int, typer.Option(min=2)] = 6,
    cycles: Annotated[int, typer.Option(min=1, help="Hourly analyses after the first.")] = 3,
    lead: Annotated[int, typer.Option(min=6, help="Hours of forecast.")] = 24,
    stay: Annotated[
        bool, typer.Option("--stay", help="Leave the system running until Ctrl-C, to look around.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Keep the system's data here; with --stay OUTPUT/data otherwise."),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the gateway; 0 takes a free one.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Observe a simulated truth, send BUFR over HTTP, assimilate, forecast, compare.

    Ends with 0 only if every analysis has less than half the error of climatology and all of them keep
    up with a forecast for their hours, and every forecast is better than persistence.
    """
    # The commands that need torch import it, not `appa --help`.
    from lab.demo.picture import draw_demo
    from lab.demo.run import DemoOptions, run_demo
    from lab.demo.world import World

    console = Console(stderr=as_json, highlight=False, width=100)
    began = time.monotonic()
    kept = data or (output / "data" if stay else None)
    options = DemoOptions(model, truth, output, members, cycles, lead, data=kept, port=port)

    def tell(result: "DemoResult", stack: "LocalStack") -> None:
        picture = draw_demo(result, World(model, truth), output / "demo.png")
        if as_json:
            print_json(_as_json(result))
        else:
            _print(console, result)
        _real_soundings(model, console)
        console.print(
            f"{counted(len(result.files), 'file')} in {output / 'files'}, picture {picture}"
        )
        console.print(f"took {time.monotonic() - began:.0f} s")
        if stay:
            console.print(f"look around at {stack.url}/web/map.html; Ctrl-C stops the system")
            stack.run()
        if kept is not None:
            console.print(f"look at it again with: appa up --data {kept} --model {model}")

    result = run_demo(options, console, tell)
    for line in result.shortcomings:
        console.print(line, style="red")
    if result.shortcomings:
        raise typer.Exit(1)


def _real_soundings(model: str, console: Console) -> None:
    """Run the same model on real radiosonde reports, if the project folder holds any."""
    from lab.demo.world import real_soundings
    from lab.skill.experiments import verify_withheld, withheld_table
    from model.checkpoints.bundle import load_checkpoint

    beside = Path(__file__).resolve().parents[3] / "shared"
    path = real_soundings(Path(os.environ.get("APPA_SHARED", beside)) / "realdata")
    if path is None:
        console.print("no real soundings beside the project (APPA_SHARED): skipped")
        return
    console.print(withheld_table(verify_withheld(load_checkpoint(model), [path], members=4)))


def _as_json(result: "DemoResult") -> dict[str, object]:
    return {
        "analyses": [
            {"valid_time": t.isoformat(), **{k: asdict(v) for k, v in e.items()}}
            for t, e in result.analyses
        ],
        "forecasts": [
            {"lead_hours": h, **{k: asdict(v) for k, v in e.items()}} for h, e in result.forecasts
        ],
        "files": [str(f) for f in result.files],
    }


def _print(console: Console, result: "DemoResult") -> None:
    from lab.demo.world import SHOWN

    rows = [(f"{t:%d %b %H UTC}", e) for t, e in result.analyses]
    leads = [(f"+{h} h", e) for h, e in result.forecasts]
    for title, part in (
        ("Analyses against the simulated truth", rows),
        ("Forecast from the first analysis against the simulated truth", leads),
    ):
        table = Table(title=title)
        table.add_column("time")
        table.add_column("method")
        table.add_column("all channels (std)", justify="right")
        for column, _, unit, _ in SHOWN:
            table.add_column(f"{column} ({unit})", justify="right")
        for label, methods in part:
            for name, errors in methods.items():
                shown = [f"{errors.shown[c]:.2f}" for c, *_ in SHOWN]
                table.add_row(label, name, f"{errors.standardised:.3f}", *shown)
                label = ""
            table.add_section()
        console.print(table)


rehearse_app = typer.Typer(
    help="A simulated day of cycles on the real stack, and an audit of it.", add_completion=False
)


@rehearse_app.command()
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
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the data folder, to look at with `appa up`.")
    ] = False,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Send a day of simulated reports, early, late and twice, through an outage; cycle; audit.

    Ends with 0 only if every analysis is made of exactly what it should be and errors do not rise.
    """
    # The commands that need torch import it, not `appa --help`.
    from lab.rehearsal.day import run_day
    from lab.rehearsal.driver import RehearsalPace
    from lab.rehearsal.scenario import day_scenario
    from lab.rehearsal.source import first_cycle, world_of
    from lab.rehearsal.verdict import (
        cost_table,
        cycle_table,
        draw_day,
        findings_table,
        judge,
        summary_table,
        verdict_json,
    )

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
    pace = RehearsalPace(speed or scenario.speed_for(job_seconds), start_seconds=30.0, limit=limit)
    output.mkdir(parents=True, exist_ok=True)
    console.print(f"the operational clock runs {pace.speed:.0f} times as fast as the real one")
    folder = Path(tempfile.mkdtemp(dir=output, prefix="data-"))
    try:
        day = run_day(scenario, folder, pace, lambda line: console.print(line))
    finally:
        if not keep:
            shutil.rmtree(folder)
    verdict = judge(day)
    picture = draw_day(day, verdict, output / "rehearsal.png")
    if as_json:
        print_json(verdict_json(day, verdict))
    else:
        for table in (cycle_table(day), summary_table(day, verdict), cost_table(day, verdict)):
            if table is not None:
                console.print(table)
    console.print(f"picture: {picture}")
    if keep:
        console.print(f"data: {day.data}")
    if not verdict.sound:
        console.print(findings_table(verdict))
        raise typer.Exit(1)
    console.print("every analysis is made of what it should be made of")


chaos_app = typer.Typer(
    help="Uploads, jobs and cycles under kills, full disks and cuts, and an audit.",
    add_completion=False,
)


@chaos_app.command()
def chaos(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long things go wrong.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    uploads: Annotated[int, typer.Option(min=0, help="Valid uploads a minute.")] = 110,
    mutated: Annotated[int, typer.Option(min=0, help="Damaged inputs a minute.")] = 1000,
    jobs: Annotated[int, typer.Option(min=0, help="Jobs a minute.")] = 6,
    hours: Annotated[
        int, typer.Option(min=0, help="Hours a minute that are cycled, each early and finally.")
    ] = 3,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint of the jobs, instead of a tiny one.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=1.0, help="Minutes in which all must end once all is healed.")
    ] = 10.0,
    output: Annotated[Path, typer.Option(help="Where the log goes.")] = Path("chaos-output"),
    as_json: AsJson = False,
) -> None:
    """Kill, pause, cut and fill a fresh system by a seed while it takes in uploads and cycles; audit it.

    Ends with 0 only if all that was accepted or fell due ended once and right, and every answer was
    in order.
    """
    from lab.chaos.plan import Rates
    from lab.chaos.run import chaos_table, run_chaos

    console = Console(stderr=as_json, highlight=False, width=130)
    output.mkdir(parents=True, exist_ok=True)
    log = output / f"chaos-{seed}.log"
    with tempfile.TemporaryDirectory(prefix="appa-chaos-") as folder:
        try:
            found = run_chaos(
                minutes,
                seed,
                Path(folder),
                lambda line: console.print(line, markup=False),
                model=model,
                rates=Rates(uploads=uploads, mutated=mutated, jobs=jobs, hours=hours),
                quiet_seconds=60.0 * patience,
            )
        finally:
            written = Path(folder) / "up.log"
            if written.exists():
                shutil.copyfile(written, log)
    if as_json:
        print_json(found.as_json())
    else:
        console.print(chaos_table(found))
    for finding in found.findings:
        console.print(finding, style="red", markup=False)
    console.print(f"log of the system: {log}")
    if not found.passed:
        raise typer.Exit(1)
    console.print("all that was accepted or fell due ended once and right")
