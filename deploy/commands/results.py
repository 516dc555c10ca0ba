"""Manage published results: `appa catalogue`, `appa retention` (rules, pins) and `appa replay`.

A replay recomputes a published result and reports whether it is identical.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from redis.exceptions import RedisError
from rich.markup import escape
from rich.table import Table

from deploy.console import (
    DEFAULT_DATA,
    AsJson,
    DataFolder,
    counted,
    err,
    installed_layout,
    key_table,
    mebibytes,
    out,
    print_json,
)
from model.domain.errors import AppaError, ConfigurationError
from worker.contract.disk import disk_state
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.results.catalogue import Catalogue
from worker.results.entries import Entry, ResultFilter
from worker.results.manifest import Pin, pin, pins, unpin
from worker.results.retention.plan import InUse, RetentionItem, find_in_use, make_plan, read_policy
from worker.results.retention.run import remove_all
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.replay.comparison import ArrayComparison, InputComparison, ReplayVerdict

__all__ = ["catalogue_app", "replay_app", "retention_app"]

retention_app = typer.Typer(
    help="What is kept for how long; pins.", no_args_is_help=True, add_completion=False
)

Stopped = Annotated[
    bool,
    typer.Option(help="The system is stopped: do not ask Redis what unfinished jobs need."),
]


def _in_use(layout: Layout, stopped: bool) -> InUse:
    """Return what unfinished work needs. Raise if Redis cannot be reached: nothing may be removed."""
    if stopped:
        return InUse()
    settings = WorkerSettings(data_dir=layout.root).with_local_broker()
    url = settings.redis_url
    try:
        return find_in_use(open_stores(url, settings.redis_prefix))
    except RedisError as error:
        raise AppaError(
            f"Expected the job store at {url} to say what unfinished jobs need; {error}. Set "
            "APPA_REDIS_URL, or give --stopped if the whole system is stopped."
        ) from error


def _item_table(items: list[RetentionItem], title: str) -> Table:
    table = key_table("what", "name", "days", "size", "reason", keys=("name", "size"), title=title)
    for item in items:
        name, reason = escape(item.name), escape(item.reason)
        table.add_row(item.what, name, f"{item.age_days:.1f}", mebibytes(item.size), reason)
    return table


def _show_items(items: list[RetentionItem], title: str) -> None:
    out.print(_item_table(items, title))
    out.print(f"{len(items)} in all, {mebibytes(sum(i.size for i in items))}", highlight=False)


@retention_app.callback()
def _warnings_beside_the_answer() -> None:
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))


@retention_app.command("plan")
def plan_command(
    data: DataFolder = DEFAULT_DATA, stopped: Stopped = False, as_json: AsJson = False
) -> None:
    """Say what would go and why, and how many old things stay; nothing is removed."""
    layout, settings = _layout(data), WorkerSettings()
    state = disk_state(layout, settings)
    policy = read_policy(layout.retention_file)
    found = make_plan(layout, policy, _in_use(layout, stopped), low=state.low)
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
    _show_items(list(found.items), "would be removed")
    for reason, count in found.kept.items():
        out.print(f"{count} older than their rule stay: {reason}", highlight=False)
    out.print(f"disk: {state.message}", highlight=False)


@retention_app.command("run")
def run_command(
    data: DataFolder = DEFAULT_DATA, stopped: Stopped = False, as_json: AsJson = False
) -> None:
    """Remove what the plan says, now; a running scheduler does so by itself."""
    layout, settings = _layout(data), WorkerSettings()
    low = disk_state(layout, settings).low
    policy = read_policy(layout.retention_file)
    found = make_plan(layout, policy, _in_use(layout, stopped), low=low)
    gone = remove_all(layout, found)
    if as_json:
        freed = sum(item.size for item in gone)
        print_json({"bytes": freed, "items": [asdict(item) for item in gone]})
    else:
        _show_items(gone, "removed")


@retention_app.command("pin")
def pin_command(
    analysis: Annotated[str, typer.Argument(help="Id of an analysis.")],
    data: DataFolder = DEFAULT_DATA,
    note: Annotated[str, typer.Option(help="What it is kept for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep an analysis whatever its age."""
    made = pin(_layout(data), Pin(analysis_id=analysis, by="", note=note))
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        out.print(f"pinned {made.analysis_id}", highlight=False)


@retention_app.command("unpin")
def unpin_command(
    analysis: Annotated[str, typer.Argument(help="Id of a pinned analysis.")],
    data: DataFolder = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Remove the pin; retention decides about the analysis again."""
    was_pinned = unpin(_layout(data), analysis)
    if as_json:
        print_json({"analysis_id": analysis, "was_pinned": was_pinned})
    elif was_pinned:
        out.print(f"unpinned {analysis}", highlight=False)
    if not was_pinned:
        err.print(f"'{analysis}' has no pin", markup=False)
        raise typer.Exit(1)


@retention_app.command("pins")
def pins_command(data: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """List pinned analyses, who pinned them and why."""
    found = pins(_layout(data))
    if as_json:
        print_json([p.model_dump(mode="json") for p in found])
        return
    out.print(_pin_table(found))


def _pin_table(found: list[Pin]) -> Table:
    table = key_table("analysis", "pinned", "by", "note", keys=("analysis",))
    for p in found:
        by, note = escape(p.by), escape(p.note)
        table.add_row(p.analysis_id, f"{p.created:%Y-%m-%d %H:%M}", by, note)
    return table


def _layout(data: Path) -> Layout:
    if not data.is_dir():
        raise AppaError(f"Expected the data folder of an installation; '{data}' is none.")
    return installed_layout(data).create()


catalogue_app = typer.Typer(
    help="Show and rebuild the catalogue of published results.",
    no_args_is_help=True,
    add_completion=False,
)
catalogue_app.callback()(_warnings_beside_the_answer)


@catalogue_app.command("show")
def show_command(
    data: DataFolder = DEFAULT_DATA,
    kind: Annotated[str | None, typer.Option(help="Only `filtering`, `forecast` …")] = None,
    flavour: Annotated[str | None, typer.Option(help="Only `early` or `final`.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many of the newest.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the published results, newest first, and the folders that hold none."""
    with Catalogue(_layout(data)) as catalogue:
        entries = catalogue.entries(ResultFilter(kind, flavour))
        unreadable = catalogue.unreadable()
    if as_json:
        items = [asdict(entry) for entry in entries[:limit]]
        print_json({"total": len(entries), "items": items, "unreadable": unreadable})
        return
    _show_entries(entries[:limit])
    out.print(f"{len(entries)} in all", highlight=False)
    _show_unreadable(unreadable)


@catalogue_app.command("rebuild")
def rebuild_command(data: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Fill the catalogue anew from the manifests; a running system may go on."""
    with Catalogue(_layout(data)) as catalogue:
        count = catalogue.rebuild()
        unreadable = catalogue.unreadable()
    if as_json:
        print_json({"total": count, "unreadable": unreadable})
        return
    out.print(counted(count, "result"), highlight=False)
    _show_unreadable(unreadable)


@catalogue_app.command("send")
def send_command(data: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Send the results of the data folder to the bucket of APPA_RESULTS_URL; safe to run twice.

    Exit status 1 if some were not sent; they stay where they are.
    """
    from worker.results.publication import send_folders

    layout = _layout(data)
    if not layout.results_url:
        raise ConfigurationError("Expected APPA_RESULTS_URL, the bucket to send results to.")
    sent, left = send_folders(layout)
    if as_json:
        print_json({"sent": sent, "to": layout.results_url, "not_sent": left})
    else:
        out.print(f"{counted(sent, 'result')} sent to {layout.results_url}", highlight=False)
    for name, reason in left.items():
        err.print(f"not sent '{name}': {reason}", markup=False)
    if left:
        raise typer.Exit(1)


def _show_entries(entries: list[Entry]) -> None:
    columns = ("result", "kind", "flavour", "valid", "revision", "finished")
    table = key_table(*columns, keys=("result",))
    for entry in entries:
        valid, created = (f"{t:%Y-%m-%d %H:%M}" for t in (entry.valid_time, entry.created))
        table.add_row(entry.id, entry.kind, entry.flavour, valid, str(entry.revision), created)
    out.print(table)


def _show_unreadable(unreadable: dict[str, str]) -> None:
    for name, reason in unreadable.items():
        err.print(f"no result in '{name}': {reason}", markup=False)


replay_app = typer.Typer(add_completion=False)

_WORDS = {True: "[green]same[/]", False: "[red]different[/]", None: "not recorded"}
_SHOWN = 24
"""Longest value in the table; the rest is in the JSON."""


@replay_app.command()
def replay(
    analysis: Annotated[str, typer.Argument(help="Id of a published analysis.")],
    data: DataFolder = DEFAULT_DATA,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoints to look for its weights in; default APPA_MODELS, bundled."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Run there instead of on the device of the first run.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the files of the second run here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run an analysis again from its manifest and compare bit by bit.

    Needs the data folder and the checkpoint, no running system. Exit status: 0 identical,
    1 different, 2 cannot be replayed.
    """
    from worker.replay.replay import replay as run  # torch takes seconds to import
    from worker.settings import WorkerSettings

    if not data.is_dir():
        err.print(f"Expected a data folder; '{data}' is none. Give --data.", markup=False)
        raise typer.Exit(2)
    try:
        checkpoints = model or WorkerSettings().models
        layout = installed_layout(data)
        with _logs_apart():
            verdict = run(layout, analysis, checkpoints=checkpoints, device=device, keep=keep)
    except AppaError as error:
        err.print(error.message, markup=False)
        raise typer.Exit(2) from error
    if as_json:
        print_json(verdict.to_dict())
    else:
        _show_verdict(verdict)
    raise typer.Exit(verdict.exit_code)


@contextmanager
def _logs_apart() -> Iterator[None]:
    """Send log lines to standard error, because standard output is for the answer."""
    before = structlog.get_config()
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    try:
        yield
    finally:
        structlog.configure(**before)


def _show_verdict(verdict: "ReplayVerdict") -> None:
    if verdict.findings:
        out.print(_findings(verdict.findings))
    if verdict.arrays:
        out.print(_arrays(verdict.arrays))
    for sentence in verdict.missing:
        out.print(f"missing: {sentence}", markup=False)
    took = f" ({verdict.seconds:.1f} s)" if verdict.seconds else ""
    out.print(f"{verdict.analysis_id}: [bold]{escape(verdict.outcome)}[/]{took}")


def _findings(findings: "tuple[InputComparison, ...]") -> Table:
    table = Table("what went in", "", "recorded", "now")
    for f in findings:
        values = (f.recorded, f.found) if f.same is False else (f.recorded, "")
        table.add_row(f.name, _WORDS[f.same], *(escape(_short(v)) for v in values))
        if f.note:
            table.add_row("", "", escape(f.note), "")
    return table


def _short(value: Any) -> str:
    text = "" if isinstance(value, dict | list) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _arrays(arrays: "tuple[ArrayComparison, ...]") -> Table:
    """Return a table with each array that differs, and one line for the equal ones of a file."""
    table = Table("file", "array", "values", "differing", "largest difference")
    for file in dict.fromkeys(a.file for a in arrays):
        same = [a for a in arrays if a.file == file and a.same]
        if same:
            count = counted(len(same), "array")
            table.add_row(escape(file), count, str(sum(a.size for a in same)), "0", "0")
        for a in arrays:
            if a.file == file and not a.same:
                largest = "" if a.max_difference is None else f"{a.max_difference:.3g}"
                table.add_row(escape(file), a.name, str(a.size), str(a.differing), largest)
    return table
