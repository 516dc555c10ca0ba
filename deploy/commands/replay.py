"""`appa replay ANALYSIS`: makes a published result again and says whether it is identical."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from rich.markup import escape
from rich.table import Table

from deploy.gateway_access import AsJson, err, out, print_json
from model.domain.errors import AppaError
from worker.jobs.layout import Layout

if TYPE_CHECKING:
    from worker.replay.verdict import ArrayComparison, Finding, Verdict

__all__ = ["app"]

app = typer.Typer(help=__doc__, add_completion=False)

_WORDS = {True: "[green]same[/]", False: "[red]different[/]", None: "not recorded"}
_SHOWN = 24
"""Longest value in the table; the rest is in the JSON."""


@app.command()
def replay(
    analysis: Annotated[str, typer.Argument(help="Id of a published analysis.")],
    data_dir: Annotated[
        Path, typer.Option(envvar="APPA_DATA_DIR", help="Data folder that holds it.")
    ] = Path("appa-data"),
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

    if not data_dir.is_dir():
        err.print(f"Expected a data folder; '{data_dir}' is none. Give --data-dir.", markup=False)
        raise typer.Exit(2)
    try:
        checkpoints = model or WorkerSettings().models
        layout = Layout(data_dir.resolve())
        with _logs_apart():
            verdict = run(layout, analysis, checkpoints=checkpoints, device=device, keep=keep)
    except AppaError as error:
        err.print(error.message, markup=False)
        raise typer.Exit(2) from error
    if as_json:
        print_json(verdict.to_dict())
    else:
        _show(verdict)
    raise typer.Exit(verdict.exit_code)


@contextmanager
def _logs_apart() -> Iterator[None]:
    """Standard output is for the answer: log lines go to standard error."""
    before = structlog.get_config()
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    try:
        yield
    finally:
        structlog.configure(**before)


def _show(verdict: "Verdict") -> None:
    if verdict.findings:
        out.print(_findings(verdict.findings))
    if verdict.arrays:
        out.print(_arrays(verdict.arrays))
    for sentence in verdict.missing:
        out.print(f"missing: {sentence}", markup=False)
    took = f" ({verdict.seconds:.1f} s)" if verdict.seconds else ""
    out.print(f"{verdict.analysis_id}: [bold]{escape(verdict.outcome)}[/]{took}")


def _findings(findings: "tuple[Finding, ...]") -> Table:
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
    """Every array that differs; one line for those of a file that do not."""
    table = Table("file", "array", "values", "differing", "largest difference")
    for file in dict.fromkeys(a.file for a in arrays):
        same = [a for a in arrays if a.file == file and a.same]
        if same:
            count = f"{len(same)} arrays"
            table.add_row(escape(file), count, str(sum(a.size for a in same)), "0", "0")
        for a in arrays:
            if a.file == file and not a.same:
                largest = "" if a.max_difference is None else f"{a.max_difference:.3g}"
                table.add_row(escape(file), a.name, str(a.size), str(a.differing), largest)
    return table
