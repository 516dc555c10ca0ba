"""`appa upload FILE…`: sends observations to a running system."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from deploy.gateway_access import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    out,
    print_json,
)
from service.client import AppaClient
from worker.jobs.batch import BatchRecord, BatchState

app = typer.Typer(help=__doc__, add_completion=False)


def _object(text: str | None, option: str) -> dict[str, Any] | None:
    """JSON given in the command line or, after `@`, in a file."""
    if text is None:
        return None
    try:
        value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"Expected JSON or @FILE; {error}.", param_hint=option) from error
    if not isinstance(value, dict):
        raise typer.BadParameter("Expected a JSON object.", param_hint=option)
    return value


@app.command()
def upload(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Files to send.")
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
    report_type: Annotated[
        str | None, typer.Option(help="Network of all reports, for forms that name none.")
    ] = None,
    errors: Annotated[
        str | None, typer.Option(help="Observation errors of this upload: JSON or @FILE.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="Options of the decoder: JSON or @FILE.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the observations are stored.")] = True,
    as_json: AsJson = False,
) -> None:
    """Send observations: BUFR, GRIB, Parquet, CSV, GeoJSON, IODA NetCDF or ODB-2."""
    options = {
        "report_type": report_type,
        "errors": _object(errors, "--errors"),
        "decoder": _object(decoder, "--decoder"),
    }
    with gateway_client(url, key) as client:
        batches = _send(client, files, options, quiet=as_json)
        if wait:
            batches = [client.wait_batch(b.id) for b in batches]
    if as_json:
        print_json(batches)
    else:
        out.print(_table(files, batches))
    if any(b.state in (BatchState.REJECTED, BatchState.FAILED) for b in batches):
        raise typer.Exit(1)


def _send(
    client: AppaClient, files: list[Path], options: dict[str, Any], *, quiet: bool
) -> list[BatchRecord]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=err, disable=quiet) as progress:
        total = sum(f.stat().st_size for f in files)
        task = progress.add_task("uploading", total=total)
        batches = []
        for file in files:
            before = progress.tasks[task].completed
            batches.append(
                client.upload(
                    file,
                    on_bytes=lambda _, done, __, b=before: progress.update(
                        task, completed=b + done
                    ),
                    **options,
                )
            )
    return batches


def _table(files: list[Path], batches: list[BatchRecord]) -> Table:
    table = Table()
    for name in ("file", "batch", "format", "state", "stored", "used", "why not"):
        table.add_column(name, overflow="fold")
    for file, batch in zip(files, batches, strict=True):
        summary = batch.summary
        rejected = summary.by_rejection if summary else {}
        why = ", ".join(f"{name} {count}" for name, count in rejected.items())
        table.add_row(
            file.name,
            batch.id,
            batch.container,
            batch.state.value,
            str(summary.observations) if summary else "",
            str(summary.used) if summary else "",
            batch.error.message if batch.error else why,
        )
    return table
