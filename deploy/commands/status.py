"""Show the state of a running system on one screen: `appa status`.

It covers running and queued jobs, what is late, the last analysis and the disk. The exit status is 1
if something is wrong or late, for scripts and monitors.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.markup import escape

from appa_client import (
    Analysis,
    AppaClient,
    Cycle,
    CycleState,
    Job,
    JobState,
    Readiness,
    SourceStatus,
)
from deploy.commands.records import job_table
from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    duration,
    gateway_client,
    key_table,
    out,
    print_json,
    short_time,
)
from worker.contract.queues import SCHEDULER

__all__ = ["Status", "read_status", "show_status", "status_app"]

_NEWEST = 200
"""Maximum number of jobs and cycles read."""

status_app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Status:
    """The state of an installation at one time.

    Attributes:
        version: Version of the gateway.
        readiness: Checks of the gateway.
        workers: Reports of the worker processes, as in the capabilities.
        running: Running jobs.
        queued: Queued jobs, newest first.
        last: Analysis of the latest valid time; None before the first.
        sources: Feeds.
        wrong: What is wrong, a sentence each.
        late: What is late, a sentence each.
    """

    version: str
    readiness: Readiness
    workers: list[dict[str, Any]]
    running: list[Job]
    queued: list[Job]
    last: Analysis | None
    sources: list[SourceStatus]
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Return whether nothing is wrong and nothing late."""
        return not self.wrong and not self.late

    def as_json(self) -> dict[str, Any]:
        """Return the state for `--json`, with jobs and the analysis as in the API."""
        return {
            "ok": self.fine,
            "version": self.version,
            "ready": self.readiness.ready,
            "wrong": self.wrong,
            "late": self.late,
            "checks": {k: check.model_dump() for k, check in self.readiness.checks.items()},
            "workers": self.workers,
            "running": self.running,
            "queued": self.queued,
            "last_analysis": self.last,
            "sources": self.sources,
        }


@status_app.command()
def status(
    url: Url = DEFAULT_URL,
    key: Key = None,
    late_minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="An analysis is late so long after its cut-off, a job so long after submission.",
        ),
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show what runs, what is late, the last analysis and the disk. Status 1 if anything is amiss."""
    with gateway_client(url, key) as client:
        found = read_status(client, timedelta(minutes=late_minutes), datetime.now(UTC))
    if as_json:
        print_json(found.as_json())
    else:
        show_status(found)
    if not found.fine:
        raise typer.Exit(1)


def read_status(client: AppaClient, patience: timedelta, now: datetime) -> Status:
    """Ask a gateway for its state.

    Arguments:
        client: Client of the gateway.
        patience: Age from which unfinished work counts as late.
        now: The present (UTC).

    Raises:
        GatewayError: If the gateway refuses or cannot be reached.
    """
    readiness = client.readiness()  # first, because it is not retried
    capabilities = client.capabilities()
    sources = client.sources()
    running = client.jobs(state=JobState.RUNNING, limit=_NEWEST)
    queued = client.jobs(state=JobState.QUEUED, limit=_NEWEST)
    latest = client.analyses(latest=True, limit=1)
    cycles = client.cycles(limit=_NEWEST)
    found = Status(
        version=capabilities["version"],
        readiness=readiness,
        workers=capabilities["workers"],
        running=running,
        queued=queued,
        last=latest[0] if latest else None,
        sources=sources,
    )
    found.wrong.extend((*_failed_checks(readiness), *_failed_cycles(cycles, now)))
    if not any(SCHEDULER in worker["queues"] for worker in found.workers):
        found.wrong.append("no scheduler reports: cycles are not submitted, lost jobs not found")
    found.wrong.extend(
        f"source {one.name} is not connected: {one.detail or 'no reason given'}"
        for one in sources
        if not one.connected
    )
    found.late.extend((*_late_cycles(cycles, patience, now), *_late_jobs(queued, patience, now)))
    return found


def _failed_checks(readiness: Readiness) -> list[str]:
    failed = [f"{name}: {c.detail}" for name, c in readiness.checks.items() if not c.ok]
    return [*failed, *(text for text in readiness.warnings if text not in "".join(failed))]


def _failed_cycles(cycles: list[Cycle], now: datetime) -> list[str]:
    """Return the cycles of the last day that ended without an analysis."""
    since = now - timedelta(days=1)
    return [
        f"cycle {one.id} has failed: {one.message or 'see: appa cycles explain'}"
        for one in cycles
        if one.state is CycleState.FAILED and one.cut_off >= since
    ]


def _late_cycles(cycles: list[Cycle], patience: timedelta, now: datetime) -> list[str]:
    return [
        f"cycle {one.id} is {one.state.value} {_since(one.cut_off, now)} after its cut-off"
        for one in cycles
        if not one.done and one.cut_off + patience < now
    ]


def _late_jobs(queued: list[Job], patience: timedelta, now: datetime) -> list[str]:
    return [
        f"{one.id} has been queued for {_since(one.created, now)}"
        for one in queued
        # A reanalysis waits for all others by design.
        if one.created + patience < now and one.spec.kind != "reanalysis"
    ]


def _since(then: datetime, now: datetime) -> str:
    return duration((now - then).total_seconds())


def show_status(found: Status) -> None:
    """Print the status of an installation for people: what is wrong, what is late, then its parts."""
    state = "[green]ready[/]" if found.readiness.ready else "[red]not ready[/]"
    out.print(f"Appa Service {found.version}: {state}", highlight=False)
    for text in found.wrong:
        out.print(f"[red]wrong[/] {escape(text)}", highlight=False, overflow="fold")
    for text in found.late:
        out.print(f"[yellow]late[/]  {escape(text)}", highlight=False, overflow="fold")
    if found.fine:
        out.print("nothing is wrong, nothing is late")
    _show_workers(found.workers)
    if found.running:
        out.print(job_table(found.running))
    models = ", ".join(found.readiness.models) or "none"
    out.print(f"jobs    {len(found.running)} running, {len(found.queued)} queued")
    out.print(f"models  {models}", markup=False, highlight=False)
    for source in found.sources:
        seen = short_time(source.last_accepted) or "never"
        text = f"source  {source.name}: {source.backlog} waiting, newest data {seen}"
        out.print(text, markup=False, highlight=False)
    out.print(f"last    {_last(found.last)}", markup=False, highlight=False, overflow="fold")
    disk = found.readiness.checks.get("disk")
    out.print(f"disk    {disk.detail if disk else 'unknown'}", markup=False, highlight=False)


def _last(analysis: Analysis | None) -> str:
    if analysis is None:
        return "no analysis is published yet"
    age = _since(analysis.created, datetime.now(UTC))
    valid = short_time(analysis.valid_time, "%Y-%m-%d %H:%M")
    return f"{analysis.id}\n        valid {valid} UTC, computed {age} ago"


def _show_workers(workers: list[dict[str, Any]]) -> None:
    if not workers:
        return
    table = key_table("worker", "state", "busy with", keys=("worker", "busy with"))
    for worker in workers:
        draining = "draining" if worker.get("draining") else "starting"
        state = "ready" if worker["ready"] else draining
        table.add_row(worker["name"], state, worker.get("busy_with") or "")
    out.print(table)
