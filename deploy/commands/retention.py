"""`appa retention`: what is kept for how long, pins, and what would go."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import typer
from redis.exceptions import RedisError
from rich.table import Table

from deploy.gateway_access import AsJson, err, out, print_json
from model.domain.errors import AppaError
from worker.jobs.disk import disk_state
from worker.jobs.layout import Layout
from worker.jobs.pins import Pin, pin, pins, unpin
from worker.jobs.store import open_stores
from worker.retention.needed import Needed, needed
from worker.retention.plan import Item, make_plan
from worker.retention.policy import read_policy
from worker.retention.remove import remove_all
from worker.settings import WorkerSettings

__all__ = ["app"]

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Data = Annotated[Path, typer.Option("--data", envvar="APPA_DATA_DIR", help="Data folder.")]
Stopped = Annotated[
    bool,
    typer.Option(help="The system is stopped: do not ask Redis what unfinished jobs need."),
]
DATA = Path("appa-data")


def _needed(layout: Layout, stopped: bool) -> Needed:
    """What unfinished work needs; without an answer nothing may go."""
    if stopped:
        return Needed()
    settings = WorkerSettings()
    embedded = layout.broker / "broker.sock"
    use_embedded = "redis_url" not in settings.model_fields_set and embedded.exists()
    url = f"unix://{embedded}" if use_embedded else settings.redis_url
    try:
        return needed(open_stores(url, settings.redis_prefix))
    except RedisError as error:
        raise AppaError(
            f"Expected the job store at {url} to say what unfinished jobs need; {error}. Set "
            "APPA_REDIS_URL, or give --stopped if the whole system is stopped."
        ) from error


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _show(items: list[Item], title: str) -> None:
    table = Table("what", "name", "age (days)", "size", "reason", title=title)
    for item in items:
        table.add_row(item.what, item.name, f"{item.age_days:.1f}", _size(item.size), item.reason)
    out.print(table)
    out.print(f"{len(items)} in all, {_size(sum(i.size for i in items))}", highlight=False)


@app.callback()
def _warnings_beside_the_answer() -> None:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))


@app.command("plan")
def plan_command(data: Data = DATA, stopped: Stopped = False, as_json: AsJson = False) -> None:
    """Say what would go and why, and how many old things stay; nothing is removed."""
    layout, settings = _layout(data), WorkerSettings()
    state = disk_state(layout, settings)
    policy = read_policy(layout.retention_file)
    found = make_plan(layout, policy, _needed(layout, stopped), low=state.low)
    if as_json:
        print_json(
            {
                "policy": policy.model_dump(mode="json"),
                "disk": {"low": state.low, **state.context},
                "bytes": found.size,
                "items": [asdict(item) for item in found.items],
                "kept": found.kept,
            }
        )
        return
    _show(list(found.items), "would be removed")
    for reason, count in found.kept.items():
        out.print(f"{count} older than their rule stay: {reason}", highlight=False)
    out.print(f"disk: {state.message}", highlight=False)


@app.command("run")
def run_command(data: Data = DATA, stopped: Stopped = False, as_json: AsJson = False) -> None:
    """Remove what the plan says, now; a running scheduler does so by itself."""
    layout, settings = _layout(data), WorkerSettings()
    low = disk_state(layout, settings).low
    policy = read_policy(layout.retention_file)
    found = make_plan(layout, policy, _needed(layout, stopped), low=low)
    gone = remove_all(layout, found)
    if as_json:
        freed = sum(item.size for item in gone)
        print_json({"bytes": freed, "items": [asdict(item) for item in gone]})
    else:
        _show(gone, "removed")


@app.command("pin")
def pin_command(
    analysis: Annotated[str, typer.Argument(help="Id of an analysis.")],
    data: Data = DATA,
    note: Annotated[str, typer.Option(help="What it is kept for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep an analysis whatever its age."""
    made = pin(_layout(data), Pin(analysis_id=analysis, by="", note=note))
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        out.print(f"pinned {made.analysis_id}", highlight=False)


@app.command("unpin")
def unpin_command(
    analysis: Annotated[str, typer.Argument(help="Id of a pinned analysis.")],
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Take the pin out."""
    was_pinned = unpin(_layout(data), analysis)
    if as_json:
        print_json({"analysis_id": analysis, "was_pinned": was_pinned})
    elif was_pinned:
        out.print(f"unpinned {analysis}", highlight=False)
    if not was_pinned:
        err.print(f"'{analysis}' has no pin", markup=False)
        raise typer.Exit(1)


@app.command("pins")
def pins_command(data: Data = DATA, as_json: AsJson = False) -> None:
    """List the pins."""
    found = pins(_layout(data))
    if as_json:
        print_json([p.model_dump(mode="json") for p in found])
        return
    table = Table("analysis", "pinned", "by", "note")
    for p in found:
        table.add_row(p.analysis_id, f"{p.created:%Y-%m-%d %H:%M}", p.by, p.note)
    out.print(table)


def _layout(data: Path) -> Layout:
    if not data.is_dir():
        raise AppaError(f"Expected the data folder of an installation; '{data}' is none.")
    return Layout(data.resolve()).create()
