"""List, show and cancel jobs, list uploads and results: `appa jobs`, `appa uploads`, `appa analyses`."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from appa_client import Analysis, AppaClient, Batch, BatchState, Job, JobState, NotFoundError
from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    duration,
    gateway_client,
    key_table,
    mebibytes,
    out,
    print_json,
    short_time,
    utc_time,
)

__all__ = ["analyses_app", "analysis_table", "job_progress", "job_table", "jobs_app", "uploads_app"]

_COLOURS: dict[JobState | BatchState, str] = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.RUNNING: "cyan",
    JobState.CANCELLED: "yellow",
    JobState.CANCELLING: "yellow",
    BatchState.INGESTED: "green",
    BatchState.INGESTING: "cyan",
    BatchState.REJECTED: "yellow",
    BatchState.FAILED: "red",
}
_FULL = "%Y-%m-%d %H:%M"

Limit = Annotated[int, typer.Option(min=1, max=500, help="Most rows shown.")]


def _details(rows: Iterable[tuple[str, Any]]) -> Table:
    """Return names and values below one another; those without a value are left out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in (None, "", [], {}):
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return table


def _state(record: Job | Batch) -> str:
    return f"[{_COLOURS.get(record.state, 'default')}]{record.state.value}[/]"


# -- jobs

jobs_app = typer.Typer(
    help="List, show and cancel jobs.", no_args_is_help=True, add_completion=False
)


def job_progress(job: Job) -> str:
    """Return where a job stands in a few words: its place, its step, how long it took, its error."""
    progress = job.progress
    if job.state is JobState.QUEUED:
        if job.retry_at is not None:
            return f"again at {short_time(job.retry_at, '%H:%M:%S')}"
        ahead = progress.queue_position
        return "" if ahead is None else f"{ahead} ahead"
    if not job.done:
        left = f", {duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
        return f"{progress.step}/{progress.steps}{left}" if progress.steps else progress.phase
    if job.error is not None:
        return job.error.code
    if job.started is None or job.finished is None:
        return ""
    return f"took {duration((job.finished - job.started).total_seconds())}"


def job_table(jobs: Iterable[Job]) -> Table:
    """Return a table with one row for each job."""
    table = key_table("job", "kind", "state", "submitted", "progress", keys=("job", "state"))
    for job in jobs:
        submitted = short_time(job.created)
        table.add_row(job.id, job.kind, _state(job), submitted, job_progress(job))
    return table


@jobs_app.command("list")
def list_jobs(
    url: Url = DEFAULT_URL,
    key: Key = None,
    state: Annotated[JobState | None, typer.Option(help="Only in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    limit: Limit = 30,
    as_json: AsJson = False,
) -> None:
    """List jobs of the installation, newest first."""
    with gateway_client(url, key) as client:
        found = client.jobs(state=state, kind=kind, limit=limit)
    if as_json:
        print_json(list(found))
    else:
        out.print(job_table(found) if found else "no jobs")


@jobs_app.command("show")
def show_job(
    job_id: Annotated[str, typer.Argument(help="Id of the job.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show a job: what was requested, where it stands, why it failed. Status 1 if it did."""
    with gateway_client(url, key) as client:
        job = client.job(job_id)
    if as_json:
        print_json(job)
    else:
        out.print(_job_details(job))
    if job.state is JobState.FAILED:
        raise typer.Exit(1)


def _job_details(job: Job) -> Table:
    requested = job.spec.model_dump(mode="json", exclude_none=True)
    observations = {k: v for k, v in requested.pop("observations", {}).items() if v}
    return _details(
        (
            ("job", job.id),
            ("state", Text.from_markup(_state(job))),
            ("progress", job_progress(job)),
            ("submitted", short_time(job.created, f"{_FULL}:%S UTC")),
            ("started", short_time(job.started, f"{_FULL}:%S UTC")),
            ("finished", short_time(job.finished, f"{_FULL}:%S UTC")),
            ("attempts", job.attempts),
            ("error", job.error and f"{job.error.code}: {job.error.message}"),
            ("analysis", job.analysis_id),
            ("cycle", job.flavour and f"{job.flavour}, revision {job.revision}"),
            ("request", job.request_id),
            *requested.items(),
            ("observations", observations),
        )
    )


@jobs_app.command("cancel")
def cancel_jobs(
    job_ids: Annotated[list[str], typer.Argument(help="Ids of jobs.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs; one that runs stops at its next step. Jobs that ended stay as they are."""
    with gateway_client(url, key) as client:
        jobs = [client.cancel(job_id) for job_id in job_ids]
    if as_json:
        print_json(list(jobs))
        return
    for job in jobs:
        out.print(f"{_state(job)} {job.id}", soft_wrap=True)


# -- uploads

uploads_app = typer.Typer(help="List uploads.", no_args_is_help=True, add_completion=False)


@uploads_app.callback()
def _uploads() -> None:
    """Keep `list` a subcommand."""


def _result(batch: Batch) -> str:
    """Return what came of an upload in a few words: its values, its error, or why it waits."""
    if batch.summary is not None and batch.state is BatchState.INGESTED:
        found = batch.summary
        return f"{found.used} of {found.observations} used"
    return batch.error.code if batch.error is not None else ""


@uploads_app.command("list")
def list_uploads(
    url: Url = DEFAULT_URL,
    key: Key = None,
    state: Annotated[BatchState | None, typer.Option(help="Only in this state.")] = None,
    sender: Annotated[
        str | None,
        typer.Option(help="Only of this API key, by its id; `-`: without a key, or of sources."),
    ] = None,
    start: Annotated[str | None, typer.Option(help="Earliest arrival (UTC).")] = None,
    end: Annotated[str | None, typer.Option(help="Latest arrival (UTC).")] = None,
    limit: Limit = 30,
    as_json: AsJson = False,
) -> None:
    """List uploads of observations, newest first."""
    first, last = (utc_time(text) if text else None for text in (start, end))
    with gateway_client(url, key) as client:
        found = client.batches(
            state=state, sender=sender, arrived_from=first, arrived_to=last, limit=limit
        )
    if as_json:
        print_json(list(found))
        return
    table = key_table("upload", "state", "sender", "format", "result", keys=("upload", "state"))
    for batch in found:  # the id has the time of arrival
        about = (escape(batch.api_key), batch.container)
        table.add_row(batch.id, _state(batch), *about, _result(batch))
    out.print(table if found else "no uploads")


# -- analyses

analyses_app = typer.Typer(
    help="List and show published analyses.", no_args_is_help=True, add_completion=False
)

Kind = Annotated[str | None, typer.Option(help="Only of this kind: filtering, forecast …")]


class ResultFlavour(StrEnum):
    """Flavours of results of the cycles."""

    EARLY = "early"
    FINAL = "final"
    CHALLENGER = "challenger"


FlavourOption = Annotated[ResultFlavour | None, typer.Option(help="Only these.")]


def _version(analysis: Analysis) -> str:
    return f"{analysis.flavour} v{analysis.revision}".strip()


def analysis_table(analyses: Iterable[Analysis]) -> Table:
    """Return a table with one row for each analysis."""
    columns = ("analysis", "kind", "valid (UTC)", "version", "used", "flags")
    table = key_table(*columns, keys=("analysis", "valid (UTC)"))
    for one in analyses:
        used = str(one.observations.get("used", ""))
        valid = short_time(one.valid_time, "%Y-%m-%d %H")
        table.add_row(one.id, one.kind, valid, _version(one), used, ", ".join(one.flags))
    return table


@analyses_app.command("list")
def list_analyses(
    url: Url = DEFAULT_URL,
    key: Key = None,
    kind: Kind = None,
    flavour: FlavourOption = None,
    limit: Limit = 30,
    as_json: AsJson = False,
) -> None:
    """List published analyses, latest valid time first."""
    with gateway_client(url, key) as client:
        found = client.analyses(kind=kind, flavour=flavour, limit=limit)
    if as_json:
        print_json(list(found))
    else:
        out.print(analysis_table(found) if found else "no analyses")


@analyses_app.command("show")
def show_analysis(
    analysis_id: Annotated[str, typer.Argument(help="Id of an analysis, or of its job.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show an analysis: its window, observations, background and files."""
    with gateway_client(url, key) as client:
        of_job = analysis_id.startswith("job-")
        found = client.analysis(client.job(analysis_id).analysis_id if of_job else analysis_id)
    _show(found, as_json=as_json)


@analyses_app.command("latest")
def latest_analysis(
    url: Url = DEFAULT_URL,
    key: Key = None,
    kind: Kind = None,
    flavour: FlavourOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the analysis of the latest valid time, in its newest revision; status 1 if none is there."""
    with gateway_client(url, key) as client:
        found = _latest(client, kind, flavour)
    _show(found, as_json=as_json)


def _latest(client: AppaClient, kind: str | None, flavour: ResultFlavour | None) -> Analysis:
    found = client.analyses(kind=kind, flavour=flavour, latest=True, limit=1)
    if not found:
        raise NotFoundError("Expected a published analysis; there is none yet.")
    return client.analysis(found[0].id)


def _show(analysis: Analysis, *, as_json: bool) -> None:
    if as_json:
        print_json(analysis)
        return
    out.print(_analysis_details(analysis))
    files = key_table("file", "role", "size", keys=("file",))
    for file in analysis.files:
        files.add_row(file.name, file.role, mebibytes(file.size))
    out.print(files)


def _analysis_details(one: Analysis) -> Table:
    window = f"({short_time(one.window_start, _FULL)}, {short_time(one.window_end, _FULL)}]"
    background = (f"{k} {v}" for k, v in one.background.items() if v not in ("", None))
    return _details(
        (
            ("analysis", one.id),
            ("job", one.job_id),
            ("kind", one.kind),
            ("valid", short_time(one.valid_time, f"{_FULL} UTC")),
            ("states", len(one.times)),
            ("version", _version(one)),
            ("computed", short_time(one.created, f"{_FULL} UTC")),
            ("members", one.members),
            ("window", window if one.window_end else ""),
            ("cut-off", short_time(one.cut_off, f"{_FULL} UTC")),
            ("observations", ", ".join(f"{k} {n}" for k, n in one.observations.items())),
            ("background", ", ".join(background)),
            ("flags", ", ".join(one.flags)),
        )
    )
