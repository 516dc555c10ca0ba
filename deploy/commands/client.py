"""Use a running system: `appa upload`, `appa submit`, `appa watch`, `appa fetch`.

A job on the terminal shows its place in the queue, then a bar of diffusion steps, then its end.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from appa_client import AppaClient, Batch, BatchState, Job, JobEvent, JobState, NotFoundError
from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    json_object,
    out,
    print_json,
    step_progress,
    transfer_progress,
)
from model.domain.files import RepeatedName, distinct_names

__all__ = ["follow_on_terminal"]


class JobBar:
    """Show the progress of one job as a bar."""

    def __init__(self, progress: Progress, job_id: str) -> None:
        self.progress = progress
        self.task: TaskID = progress.add_task(job_id, total=None, text="")

    def show(self, event: JobEvent) -> None:
        """Move the bar to the state that `event` reports."""
        progress = event.progress
        text = str(event.data.get("state", ""))
        if event.type == "queue":
            text = f"queued, {event.data['queue_position']} ahead"
        elif progress is not None:
            eta = f", {progress.eta_seconds:.0f} s left" if progress.eta_seconds is not None else ""
            text = f"{progress.phase}{eta}" if event.type == "progress" else text
            total = progress.steps or None
            self.progress.update(self.task, completed=progress.step, total=total)
        self.progress.update(self.task, text=text)


def follow_on_terminal(client: AppaClient, job_id: str, *, as_json: bool) -> Job:
    """Show a job until it is done; exit with status 1 if it did not succeed."""
    if as_json:
        for event in client.watch(job_id):
            print_json({"event": event.type, "id": event.id, "data": event.data})
    else:
        with step_progress() as bars:
            bar = JobBar(bars, job_id)
            for event in client.watch(job_id):
                bar.show(event)
    job = client.job(job_id)
    if not as_json:
        color = "green" if job.state is JobState.SUCCEEDED else "red"
        text = f"[{color}]{job.state.value}[/] {job.id} → analysis {job.analysis_id}"
        out.print(text, soft_wrap=True)
    if job.state is not JobState.SUCCEEDED:
        if job.error and not as_json:
            err.print(f"{job.error.code}: {job.error.message}", markup=False)
        raise typer.Exit(1)
    return job


upload_app = typer.Typer(add_completion=False)


@upload_app.command()
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
        "errors": json_object(errors, "--errors") or None,
        "decoder": json_object(decoder, "--decoder") or None,
    }
    with gateway_client(url, key) as client:
        batches = _send(client, files, options, quiet=as_json)
        if wait:
            batches = [client.wait_batch(b.id) for b in batches]
    if as_json:
        print_json(batches)
    else:
        out.print(_batch_table(files, batches))
    if any(b.state in (BatchState.REJECTED, BatchState.FAILED) for b in batches):
        raise typer.Exit(1)


def _send(
    client: AppaClient, files: list[Path], options: dict[str, Any], *, quiet: bool
) -> list[Batch]:
    with transfer_progress(quiet=quiet) as progress:
        total = sum(f.stat().st_size for f in files)
        task = progress.add_task("uploading", total=total)
        batches = []
        for file in files:
            before = progress.tasks[task].completed

            def show(_: str, done: int, __: int, before: float = before) -> None:
                progress.update(task, completed=before + done)

            batches.append(client.upload(file, on_bytes=show, **options))
    return batches


def _batch_table(files: list[Path], batches: list[Batch]) -> Table:
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


submit_app = typer.Typer(add_completion=False)


def _assignments(pairs: list[str]) -> dict[str, Any]:
    """Parse `seed=3` and `observations.networks=["synop"]` to nested values; bare words are text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found:
            raise typer.BadParameter(f"Expected FIELD=VALUE; got '{pair}'.", param_hint="--set")
        try:
            value = json.loads(text, object_pairs_hook=distinct_names)
        except RepeatedName as error:
            raise typer.BadParameter(f"{name}: {error}.", param_hint="--set") from None
        except ValueError:
            value = text
        *path, last = name.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return values


def _specification(
    file: Path | None,
    kind: str,
    given: dict[str, Any],
    selection: dict[str, Any],
    assignments: list[str],
) -> dict[str, Any]:
    """Return the body of the request: a file, then options, then `--set`; later ones take precedence."""
    body = json_object(f"@{file}", "--spec") if file else {}
    body |= {"kind": kind, **{k: v for k, v in given.items() if v is not None}}
    extra = _assignments(assignments)
    chosen = {k: v for k, v in selection.items() if v is not None}
    chosen |= extra.pop("observations", {})
    if chosen:
        body["observations"] = {**body.get("observations", {}), **chosen}
    return body | extra


@submit_app.command()
def submit(
    kind: Annotated[
        str,
        typer.Argument(
            help="What to compute: filtering, forecast, reanalysis, or another of the `job_kinds` "
            "in /v1/capabilities."
        ),
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
    valid_time: Annotated[
        str | None, typer.Option(help="Analysis time, or start of a forecast (full hour, UTC).")
    ] = None,
    start: Annotated[str | None, typer.Option(help="First hour of a reanalysis.")] = None,
    end: Annotated[str | None, typer.Option(help="Last hour of a reanalysis.")] = None,
    window_hours: Annotated[int | None, typer.Option(help="States in a filtering window.")] = None,
    lead_hours: Annotated[int | None, typer.Option(help="Length of a forecast.")] = None,
    members: Annotated[int | None, typer.Option(help="Ensemble members.")] = None,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler; see /v1/capabilities.")] = None,
    guidance: Annotated[str | None, typer.Option(help="Guidance; see /v1/capabilities.")] = None,
    precision: Annotated[str | None, typer.Option(help="`float32` or `bfloat16`.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same members.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint; see /v1/capabilities.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Comma-separated formats.")] = None,
    networks: Annotated[str | None, typer.Option(help="Comma-separated networks.")] = None,
    cut_off: Annotated[str | None, typer.Option(help="Last arrival accepted (UTC).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field: FIELD=VALUE (JSON).")
    ] = None,
    spec: Annotated[Path | None, typer.Option(exists=True, help="JSON file to start from.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with it gives the same job.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Follow the job to its end.")] = False,
    fetch: Annotated[Path | None, typer.Option(help="Then download its files here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job of the given kind."""
    given = {
        "valid_time": valid_time,
        "start": start,
        "end": end,
        "window_hours": window_hours,
        "lead_hours": lead_hours,
        "members": members,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
        "precision": precision,
        "seed": seed,
        "model": model,
        "outputs": outputs.split(",") if outputs else None,
    }
    selection = {"networks": networks.split(",") if networks else None, "cut_off": cut_off}
    body = _specification(spec, kind, given, selection, set_ or [])
    with gateway_client(url, key) as client:
        job = client.submit(body, idempotency_key=idempotency_key)
        if watch or fetch:
            job = follow_on_terminal(client, job.id, as_json=as_json)
        elif as_json:
            print_json(job)
        else:
            out.print(f"{job.state.value} {job.id} → analysis {job.analysis_id}", soft_wrap=True)
            out.print(f"follow it with: appa watch {job.id}", soft_wrap=True)
        if fetch:
            for path in client.fetch(job.analysis_id, fetch):
                typer.echo(str(path), err=as_json)


watch_app = typer.Typer(add_completion=False)


@watch_app.command()
def watch(
    job_id: Annotated[str, typer.Argument(help="Id of the job.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end; with --json, one event a line. Status 1 if it does not succeed."""
    with gateway_client(url, key) as client:
        follow_on_terminal(client, job_id, as_json=as_json)


fetch_app = typer.Typer(add_completion=False)


def _resolve(client: AppaClient, name: str, kind: str | None) -> str:
    """Return the id of the analysis named by its id, by its job's id, or by `latest`."""
    if name == "latest":
        found = client.analyses(kind=kind, latest=True)
        if not found:
            raise NotFoundError("Expected a published analysis; there is none yet.")
        return found[0].id
    return client.job(name).analysis_id if name.startswith("job-") else name


@fetch_app.command()
def fetch(
    analysis: Annotated[str, typer.Argument(help="Id of an analysis or job, or `latest`.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    to: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    kind: Annotated[
        str | None, typer.Option(help="Kind of the latest: filtering, forecast, reanalysis …")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only these files.")] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="Only these roles: data, feedback, quicklook.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download an analysis; what was received before an interruption is not fetched again."""
    with gateway_client(url, key) as client, transfer_progress(quiet=as_json) as progress:
        analysis_id = _resolve(client, analysis, kind)
        tasks = {
            f.name: progress.add_task(f.name, total=f.size)
            for f in client.analysis(analysis_id).files
            if (not name or f.name in name) and (not role or f.role in role)
        }

        def show(file: str, done: int, total: int) -> None:
            progress.update(tasks[file], completed=done, total=total)

        paths = client.fetch(analysis_id, to, names=name, roles=role, on_bytes=show)
    if as_json:
        print_json({"analysis_id": analysis_id, "files": [str(p) for p in paths]})
    else:
        for path in paths:
            out.print(str(path), markup=False, highlight=False, soft_wrap=True)
