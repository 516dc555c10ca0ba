"""`appa observations`: what is in a file of observations, and the work on the store."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.commands.observations_store import add_to
from worker.decoders.base import DecodeContext
from worker.decoders.limited import decode_many_limited
from worker.decoders.report import REASONS, DecodeReport
from worker.sandbox import Limits

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.callback()
def _group() -> None:
    """Inspect files of observations and work with the observation store."""


add_to(app)


@app.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.", exists=True)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="List the messages set aside one by one.")
    ] = False,
    wall_seconds: Annotated[float, typer.Option(help="Time allowed for one file.")] = 120.0,
) -> None:
    """Decode files and show what came of every message; nothing is stored."""
    limits = Limits(wall_seconds=wall_seconds, cpu_seconds=int(wall_seconds))
    found = decode_many_limited(_files(paths), DecodeContext(batch_id="inspect"), limits)
    reports = {str(path): decoded.report for path, decoded in found}
    if as_json:
        typer.echo(json.dumps(_document(reports), indent=2))
    else:
        _print(reports, explain)


def _files(paths: list[Path]) -> list[Path]:
    """The files named, and all files in the folders named."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def _total(reports: dict[str, DecodeReport]) -> DecodeReport:
    total = DecodeReport()
    for report in reports.values():
        total.merge(report)
    return total


def _document(reports: dict[str, DecodeReport]) -> dict[str, Any]:
    files = [{"file": name, **report.to_dict()} for name, report in reports.items()]
    total = _total(reports).to_dict()
    total.pop("quarantined")
    reasons = {code: REASONS[code] for code in total["rejected"]}
    return {"files": files, "total": total, "reasons": reasons}


def _counts(counter: dict[str, int]) -> str:
    return "\n".join(f"{name} {count}" for name, count in sorted(counter.items())) or "-"


def _print(reports: dict[str, DecodeReport], explain: bool) -> None:
    console = Console()
    table = Table(title="Observations by file", show_lines=True)
    for column in ("file", "format", "messages", "decoded", "rows", "rows by variable", "rejected"):
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    total = _total(reports)
    shown = {Path(name).name: report for name, report in reports.items()}
    if len(shown) < len(reports):
        shown = dict(reports)
    for name, report in {**shown, "total": total}.items():
        numbers = (report.messages, report.decoded, report.rows)
        table.add_row(
            name,
            report.format or "?",
            *(f"{number}" for number in numbers),
            _counts(report.rows_by_variable),
            _counts(report.rejected),
        )
    console.print(table)
    for code in sorted(total.rejected):
        console.print(f"{code}: {REASONS[code]}", highlight=False)
    if explain:
        _explain(console, reports)


_NUMBERS = ("messages", "decoded", "rows")


def _explain(console: Console, reports: dict[str, DecodeReport]) -> None:
    for name, report in reports.items():
        for item in report.quarantined:
            where = f"byte {item.offset}" + (
                f", report {item.report}" if item.report is not None else ""
            )
            console.print(
                f"{Path(name).name}: {where}: {item.reason}: {item.detail}",
                highlight=False,
                markup=False,
            )
