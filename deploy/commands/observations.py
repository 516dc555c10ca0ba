"""`appa observations`: inspect files of observations, and ingest, query and compact the store."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from deploy.console import (
    DEFAULT_DATA,
    DEFAULT_URL,
    AsJson,
    DataFolder,
    Key,
    Url,
    gateway_client,
    installed_layout,
    json_object,
    key_table,
    out,
    print_json,
    retry_each,
    utc_time,
)
from model.domain.errors import AppaError, ConfigurationError
from worker.contract.layout import Layout
from worker.contract.records import new_id
from worker.contract.uploads import send_uploads
from worker.observations.decoders.base import REASONS, DecodeContext, DecodeReport
from worker.observations.decoders.decode import decode_many_limited
from worker.observations.export import ALL_TEMPLATES, ROW_FORMATS
from worker.observations.store.compaction import compact as compact_hours
from worker.observations.store.query import MAX_PAGE, ObservationQuery, query_observations
from worker.observations.store.store import ObservationStore, send_store
from worker.pipeline.ingest import IngestOptions, ingest
from worker.sandbox import Limits

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Inspect files of observations and work with the store."
)


def _store(data: Path) -> ObservationStore:
    return ObservationStore.of(installed_layout(data))


@app.command("ingest")
def ingest_files(
    paths: Annotated[list[Path], typer.Argument(help="Files.", exists=True, dir_okay=False)],
    data: DataFolder = DEFAULT_DATA,
    report_type: Annotated[str | None, typer.Option(help="Network of rows that name none.")] = None,
    format: Annotated[str | None, typer.Option(help="Format; recognised when absent.")] = None,
    errors: Annotated[
        Path | None, typer.Option(help="YAML file with other observation errors.", exists=True)
    ] = None,
    checks: Annotated[
        Path | None, typer.Option(help="YAML file with other check parameters.", exists=True)
    ] = None,
    decoder: Annotated[str | None, typer.Option(help="Options of the decoder, JSON.")] = None,
    received: Annotated[
        str | None, typer.Option(help="Arrival (UTC); the present when absent.")
    ] = None,
    wall_seconds: Annotated[float, typer.Option(help="Time allowed for one file.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Take files into the observation store of a data folder, without a running system."""
    options = IngestOptions(
        format=format,
        report_type=report_type,
        decoder=json_object(decoder, "--decoder"),
        errors=(Layout(data).errors_file, errors),
        checks=(Layout(data).checks_file, checks),
        limits=Limits(wall_seconds=wall_seconds, cpu_seconds=int(wall_seconds)),
    )
    arrival = utc_time(received) if received else datetime.now(UTC)
    done: list[dict[str, Any]] = []
    for path in paths:
        batch = new_id("batch")
        entry: dict[str, Any] = {"file": str(path), "batch_id": batch}
        try:
            report = ingest(batch, path, store=_store(data), received_time=arrival, options=options)
            entry.update(report.summary.model_dump(mode="json", exclude={"decode_report"}))
        except AppaError as error:
            entry["error"] = {"code": error.code, "message": error.message}
        done.append(entry)
    print_json(done) if as_json else _print_ingest(done)
    if any("error" in entry for entry in done):
        raise typer.Exit(1)


def _print_ingest(done: list[dict[str, Any]]) -> None:
    columns = ("file", "batch", "values", "used", "by variable", "rejected by")
    table = key_table(*columns, keys={"batch"})
    for entry in done:
        name = escape(Path(entry["file"]).name)
        if "error" in entry:
            table.add_row(name, "-", "0", "0", "-", escape(entry["error"]["message"]))
            continue
        counts = [
            "\n".join(f"{key} {count}" for key, count in entry[column].items()) or "-"
            for column in ("by_variable", "by_rejection")
        ]
        table.add_row(
            name, entry["batch_id"], str(entry["observations"]), str(entry["used"]), *counts
        )
    out.print(table)


@app.command("query")
def query(
    start: Annotated[str, typer.Argument(help="Observed after this time (UTC).")],
    end: Annotated[str, typer.Argument(help="Observed up to this time (UTC).")],
    data: DataFolder = DEFAULT_DATA,
    box: Annotated[str | None, typer.Option(help="west,south,east,north in degrees.")] = None,
    variable: Annotated[list[str] | None, typer.Option(help="Variable id; repeatable.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Report type; repeatable.")] = None,
    station: Annotated[list[str] | None, typer.Option(help="Station id; repeatable.")] = None,
    outcome: Annotated[str, typer.Option(help="all, used or rejected.")] = "all",
    cut_off: Annotated[str | None, typer.Option(help="Only what had arrived by then.")] = None,
    limit: Annotated[int, typer.Option(help="Most rows.", min=1, max=MAX_PAGE)] = 10_000,
    offset: Annotated[int, typer.Option(help="Rows to skip.", min=0)] = 0,
    format: Annotated[str, typer.Option(help="csv, geojson or parquet.")] = "csv",
    output: Annotated[Path | None, typer.Option(help="File; standard output if absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write stored observations; `--json` prints counts by network, variable and outcome instead."""
    try:
        question = ObservationQuery.model_validate(
            {
                "start": utc_time(start),
                "end": utc_time(end),
                "box": None if box is None else tuple(box.split(",")),
                "variables": tuple(variable or ()),
                "report_types": tuple(network or ()),
                "stations": tuple(station or ()),
                "outcome": outcome,
                "cut_off": None if cut_off is None else utc_time(cut_off),
                "limit": limit,
                "offset": offset,
            }
        )
        form = ROW_FORMATS[format]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    page = query_observations(_store(data).files, question)
    if as_json:
        groups = page.table.group_by(["report_type", "variable", "rejected_by"]).aggregate(
            [([], "count_all")]
        )
        document = {"rows": page.table.num_rows, "next_offset": page.next_offset}
        print_json({**document, "counts": groups.to_pylist()})
        return
    content = form.encode(page.table)
    if output is not None:
        output.write_bytes(content)
    else:
        sys.stdout.buffer.write(content)
    if page.next_offset is not None:
        typer.echo(f"More rows: --offset {page.next_offset}", err=True)


@app.command("compact")
def compact(
    start: Annotated[str, typer.Argument(help="First hour (UTC).")],
    end: Annotated[str, typer.Argument(help="Last hour (UTC).")],
    data: DataFolder = DEFAULT_DATA,
    least_files: Annotated[int, typer.Option(help="Leave hours with fewer files.", min=2)] = 4,
    grace_minutes: Annotated[
        float, typer.Option(help="Age at which replaced files are removed.", min=0.0)
    ] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Merge the many small files of each hour into one; readers may go on."""
    report = compact_hours(
        _store(data).files,
        utc_time(start),
        utc_time(end),
        min_files=least_files,
        grace=timedelta(minutes=grace_minutes),
    )
    if as_json:
        print_json(vars(report))
        return
    table = key_table("hours", "files before", "files removed", "rows", keys=())
    table.add_row(*(str(value) for value in vars(report).values()))
    out.print(table)


@app.command("send")
def send(data: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Send what the data folder holds to the buckets of APPA_UPLOADS_URL and APPA_OBSERVATIONS_URL.

    For a stopped system; safe to run twice. Exit status 1 if some uploads were not sent; they stay
    where they are.
    """
    layout, left = installed_layout(data), dict[str, str]()
    done: dict[str, dict[str, Any]] = {}
    if not (layout.uploads_url or layout.observations_url):
        raise ConfigurationError("Expected APPA_UPLOADS_URL, APPA_OBSERVATIONS_URL or both.")
    if layout.observations_url:
        done["files of observations"] = {"sent": send_store(layout), "to": layout.observations_url}
    if layout.uploads_url:
        sent, left = send_uploads(layout)
        done["uploads"] = {"sent": sent, "to": layout.uploads_url}
    if as_json:
        print_json({name.replace(" ", "_"): one for name, one in done.items()} | {"not_sent": left})
    else:
        for name, one in done.items():
            typer.echo(f"{one['sent']} {name} sent to {one['to']}")
    for name, reason in left.items():
        typer.echo(f"not sent '{name}': {reason}", err=True)
    if left:
        raise typer.Exit(1)


@app.command("template")
def template(
    format: Annotated[str, typer.Argument(help=f"One of: {', '.join(ALL_TEMPLATES)}.")],
    output: Annotated[
        Path | None, typer.Option(help="File or `-`; the template's own name if absent.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an example file to start from; `--json` tells its name, and is not for `-`."""
    try:
        chosen = ALL_TEMPLATES[format]
    except AppaError as error:
        raise typer.BadParameter(error.message) from error
    if str(output) == "-":
        if as_json:
            raise typer.BadParameter("standard output is for the file", param_hint="--json")
        sys.stdout.buffer.write(chosen.write())
        return
    path = output or Path(chosen.file_name)
    if path.exists() and not force:
        raise typer.BadParameter(
            f"{path} is there; name another, or --force", param_hint="--output"
        )
    path.write_bytes(chosen.write())
    if as_json:
        print_json({"file": str(path), "format": format, "description": chosen.description})
    else:
        typer.echo(f"{path}: {chosen.description}")


@app.command()
def retry(
    batches: Annotated[
        list[str] | None, typer.Argument(help="Ids of uploads; all that failed when absent.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Have a running system ingest uploads anew that failed, were rejected, or wait after a fault."""
    with gateway_client(url, key) as client:
        retry_each(
            batches or [batch.id for batch in client.batches(state="failed")],
            lambda name: client.retry_batch(name).state,
            field="batch_id",
            as_json=as_json,
        )


@app.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.", exists=True)],
    as_json: AsJson = False,
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
        print_json(_document(reports))
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
    files = [{"file": name, **report.model_dump(mode="json")} for name, report in reports.items()]
    total = _total(reports).model_dump(mode="json")
    total.pop("quarantined")
    reasons = {code: REASONS[code] for code in total["rejected"]}
    return {"files": files, "total": total, "reasons": reasons}


def _counts(counter: dict[str, int]) -> str:
    return "\n".join(f"{name} {count}" for name, count in sorted(counter.items())) or "-"


def _print(reports: dict[str, DecodeReport], explain: bool) -> None:
    columns = ("file", "format", "decoded", "rows", "rows by variable", "rejected")
    table = key_table(*columns, keys={"rows by variable"}, title="Observations by file")
    total = _total(reports)
    shown = {Path(name).name: report for name, report in reports.items()}
    if len(shown) < len(reports):
        shown = dict(reports)
    if len(shown) > 1:
        shown["total"] = total
    for name, report in shown.items():
        table.add_row(
            escape(name),
            report.format or "?",
            f"{report.decoded} of {report.messages}",
            str(report.rows),
            _counts(report.rows_by_variable),
            _counts(report.rejected),
            end_section=True,
        )
    out.print(table)
    for code in sorted(total.rejected):
        out.print(f"{code}: {REASONS[code]}", highlight=False)
    if explain:
        _explain(reports)


def _explain(reports: dict[str, DecodeReport]) -> None:
    for name, report in reports.items():
        for item in report.quarantined:
            where = f"byte {item.offset}" + (
                f", report {item.report}" if item.report is not None else ""
            )
            out.print(
                f"{Path(name).name}: {where}: {item.reason}: {item.detail}",
                highlight=False,
                markup=False,
            )
        for title, counts in (
            ("rows of a file inside", report.members),
            ("notes", report.notes),
            ("values set aside", report.values_set_aside),
            ("elements not used", report.not_used),
        ):
            for item_name, count in sorted(counts.items()):
                line = f"{Path(name).name}: {title}: {item_name}: {count}"
                out.print(line, highlight=False, markup=False)
