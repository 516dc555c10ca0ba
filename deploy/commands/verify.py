"""`appa verify`: skill against a simulated truth, against withheld observations, and by cycle."""

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from deploy.gateway_access import DEFAULT_URL, AsJson, Key, Url, gateway_client, out, print_json
from deploy.times import utc_time
from deploy.verification_display import STATISTICS, draw, summarise, summary_table
from worker.jobs.cycle import Flavour

if TYPE_CHECKING:
    from model.osse.skill import StartSkill

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
    starts: Annotated[int, typer.Option(min=1, help="Analysis times.")] = 12,
    members: Annotated[int, typer.Option(min=2)] = 8,
    window: Annotated[int, typer.Option(min=2, help="Hours of observations.")] = 24,
    lead: Annotated[int, typer.Option(min=0, help="Hours of forecast.")] = 24,
    first: Annotated[datetime | None, typer.Option(help="Earliest time of the truth used.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One start, four members.")] = False,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Observe a simulated truth, assimilate, forecast, and score everything against it."""
    # Torch is imported by the commands that need it, not by `appa --help`.
    from model.checkpoints.load import load_checkpoint
    from model.osse.skill import SkillSettings, score_start
    from model.osse.truth import analysis_times, open_truth

    if quick:
        starts, members = 1, 4
    model = load_checkpoint(checkpoint, precision=precision)
    source = open_truth(model, checkpoint, truth)
    if first is not None:
        source.store.dataset = source.store.dataset.sel(time=slice(first, None))
        source.store.times = source.store.dataset["time"].values
    times = analysis_times(source, window, lead, starts)
    settings = SkillSettings(window=window, members=members, lead=lead, seed=seed)
    found = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), transient=True) as bar:
        all_starts = bar.add_task("starts", total=len(times))
        steps = bar.add_task("diffusion steps")
        for end in times:
            bar.reset(steps)

            def on_step(done: int, total: int) -> None:
                bar.update(steps, completed=done, total=total)

            found.append(score_start(model, source, end, settings, on_step))
            bar.advance(all_starts)
    if as_json:
        print(json.dumps(_as_json(model.card.name, model.card.channels, found), indent=1))
    else:
        _print(model.card.name, model.card.simulated, found)


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


def _means(found: "list[StartSkill]") -> dict[str, float]:
    names = [n for n in found[0].errors if all(n in f.errors for f in found)]
    return {n: sum(float(f.errors[n].mean()) for f in found) / len(found) for n in names}


def _as_json(name: str, channels: tuple[str, ...], found: "list[StartSkill]") -> dict[str, Any]:
    starts = []
    for f in found:
        values = asdict(f)
        values["end"] = f.end.isoformat()
        values["errors"] = {k: v.tolist() for k, v in f.errors.items()}
        values["spread_ratio"] = f.spread_ratio.tolist()
        starts.append(values)
    return {"checkpoint": name, "channels": channels, "mean": _means(found), "starts": starts}


def _print(name: str, simulated: bool, found: "list[StartSkill]") -> None:
    console = Console()
    truth = "simulated truth" if simulated else "truth"
    table = Table(title=f"{name}: standardised RMSE against {truth}, {len(found)} starts")
    table.add_column("method")
    table.add_column("mean", justify="right")
    table.add_column("worst start", justify="right")
    table.add_column("seconds", justify="right")
    for method, mean in sorted(_means(found).items(), key=lambda item: item[1]):
        worst = max(float(f.errors[method].mean()) for f in found)
        seconds = [f.seconds[method] for f in found if method in f.seconds]
        cost = f"{sorted(seconds)[len(seconds) // 2]:.1f}" if seconds else ""
        table.add_row(method, f"{mean:.3f}", f"{worst:.3f}", cost)
    console.print(table)
    ratio = sum(float(f.spread_ratio.nanmean()) for f in found) / len(found)
    console.print(f"spread over error of the filtering ensemble: {ratio:.2f}")
    levels = ", ".join(f"{sigma:.3g}: {chi:.2f}" for sigma, chi in found[-1].chi)
    console.print(f"post-fit innovation over observation error by noise level: {levels}")
