"""`appa demo`: the main job on this machine in minutes."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from model.domain.errors import AppaError

if TYPE_CHECKING:
    from deploy.demo.run import DemoResult

__all__ = ["app"]

app = typer.Typer(help="Observations to analyses against a simulated truth.")


@app.command()
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
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Observe a simulated truth, send BUFR over HTTP, assimilate, forecast, compare.

    Ends with 0 only if the analyses are closer to the truth than their backgrounds.
    """
    # The commands that need torch import it, not `appa --help`.
    from deploy.demo.picture import draw
    from deploy.demo.run import DemoOptions, run_demo
    from deploy.demo.world import World

    console = Console(stderr=as_json, highlight=False, width=100)
    began = time.monotonic()
    options = DemoOptions(model, truth, output, members, cycles, lead)
    try:
        result = run_demo(options, console)
    except AppaError as error:
        console.print(f"error: {error.message}", style="red", markup=False)
        raise typer.Exit(2) from error
    picture = draw(result, World(model, truth), output / "demo.png")
    if as_json:
        print(json.dumps(_as_json(result), indent=1))
    else:
        _print(console, result)
    _real_soundings(model, console)
    console.print(f"{len(result.files)} files in {output / 'files'}, picture {picture}")
    console.print(f"took {time.monotonic() - began:.0f} s")
    if not result.improved:
        console.print(
            "the analyses are not closer to the truth than their backgrounds", style="red"
        )
        raise typer.Exit(1)


def _real_soundings(model: str, console: Console) -> None:
    """The same model on real radiosonde reports, where a folder of them lies beside the project."""
    from deploy.demo.world import real_soundings
    from deploy.verify_soundings import verify_withheld, withheld_table
    from model.checkpoints.load import load_checkpoint

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
    from deploy.demo.scores import SHOWN

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
