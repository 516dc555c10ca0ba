"""`appa sources`: subscriptions that deliver observations, and archives to pull them from.

Sources are kept in the data folder; `appa up` and `appa worker sources` take them up at once.
"""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from appa_client import AppaClient, BatchState, GatewayError
from deploy.console import (
    DEFAULT_DATA,
    DEFAULT_URL,
    AsJson,
    DataFolder,
    Key,
    Url,
    counted,
    err,
    gateway_client,
    key_table,
    mebibytes,
    out,
    print_json,
    short_time,
    transfer_progress,
    utc_time,
)
from worker.contract.feeds import SourceStatus
from worker.contract.layout import Layout
from worker.feeds.archives import ARCHIVES, Pull, PullOutcome, RemoteFile
from worker.feeds.backlog import Backlog, feeds_run
from worker.feeds.sources import Source, SourceFile

__all__ = ["app"]

app = typer.Typer(
    help="Sources of observations: WIS2 feeds, and archives.",
    no_args_is_help=True,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(help="Name of the source.")]


def _file(data: Path) -> SourceFile:
    return SourceFile(Layout(data).sources_file)


def _shown(source: Source) -> dict[str, Any]:
    """Return the fields of a source without user and password."""
    return source.model_dump(mode="json") | {"broker": source.address}


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A name for it: lower case, digits, '-', '_'.")],
    broker: Annotated[
        str, typer.Option(help="mqtts://user:password@host:8883; mqtt, ws and wss likewise.")
    ],
    topic: Annotated[
        list[str], typer.Option(help="MQTT topic filter, such as cache/a/wis2/+/data/core/#.")
    ],
    data: DataFolder = DEFAULT_DATA,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Host that data may be fetched from, or *.DOMAIN; default: all public."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="These hosts may lie in private networks.")
    ] = False,
    protocol: Annotated[str, typer.Option(help="Version of MQTT: 5 or 3.1.1.")] = "5",
    ca_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Certificates to trust.")
    ] = None,
    report_type: Annotated[
        str | None, typer.Option(help="Network of reports in forms that name none.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Larger data are refused.")] = None,
    max_backlog: Annotated[
        int | None, typer.Option(help="Notifications waiting here; then the broker keeps them.")
    ] = None,
    fetches: Annotated[int | None, typer.Option(help="Fetches at the same time.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field: FIELD=VALUE.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a source; a running system subscribes within seconds."""
    given: dict[str, Any] = {
        "ca_file": str(ca_file.resolve()) if ca_file else None,
        "report_type": report_type,
        "max_bytes": max_bytes,
        "max_backlog": max_backlog,
        "fetches": fetches,
        **dict(_assignment(text) for text in set_ or []),
    }
    given = {name: value for name, value in given.items() if value is not None}
    source = _file(data).add(
        name=name,
        broker=broker,
        topics=topic,
        hosts=host or [],
        private=private,
        protocol=protocol,
        **given,
    )
    if as_json:
        print_json(_shown(source))
        return
    out.print(f"added {source.name}: {source.address}, {', '.join(source.topics)}", markup=False)
    out.print(f"try it with: appa sources test {source.name}", markup=False)


def _assignment(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"Expected FIELD=VALUE; got '{text}'.", param_hint="--set")
    return name, value


@app.command("list")
def list_sources(
    data: DataFolder = DEFAULT_DATA,
    refusals: Annotated[
        bool, typer.Option("--refusals", help="Also the newest data that were given up, and why.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the sources with backlog, lag, counts and refusals, from the files of this machine."""
    layout = Layout(data)
    sources = list(_file(data).all().values())
    if not sources:
        print_json([]) if as_json else out.print("no sources; see: appa sources add --help")
        return
    backlog = Backlog(layout.backlog_file)
    statuses = [backlog.line(backlog.status(source)) for source in sources]
    if not feeds_run(layout.backlog_file):
        update = {
            "connected": False,
            "detail": "not running: start `appa up`, or `appa worker sources`",
        }
        statuses = [status.model_copy(update=update) for status in statuses]
    given_up = {s.name: backlog.refusals(s.name) for s in sources} if refusals else {}
    backlog.close()
    if as_json:
        print_json([_as_json(s, given_up.get(s.name)) for s in statuses])
        return
    out.print(_table(statuses))
    for name, found in given_up.items():
        for data_id, reason, detail in found:
            out.print(f"{name}: {data_id}: {reason}: {detail}", markup=False, soft_wrap=True)


def _as_json(status: SourceStatus, refusals: list[tuple[str, str, str]] | None) -> dict[str, Any]:
    document = status.model_dump(mode="json", exclude={"reported"})
    if refusals is not None:
        names = ("data_id", "reason", "detail")
        document["newest_refusals"] = [dict(zip(names, one, strict=True)) for one in refusals]
    return document


def _table(statuses: list[SourceStatus]) -> Table:
    columns = ("source", "broker, topics", "state", "backlog", "lag", "data", "newest (UTC)")
    table = key_table(*columns, keys=("source", "data"))
    for s in statuses:
        counts = {"received": s.received, "accepted": s.accepted, "known": s.known, **s.refused}
        table.add_row(
            s.name,
            escape("\n".join([s.broker, *s.topics])),
            escape((s.detail or "connected") if s.connected else f"offline: {s.detail}"),
            str(s.backlog),
            f"{s.lag_seconds:.0f} s",
            "\n".join([*(f"{name} {n}" for name, n in counts.items()), mebibytes(s.size)]),
            short_time(s.last_accepted, "%m-%d %H:%M:%S"),
        )
    return table


@app.command()
def test(
    name: Name,
    data: DataFolder = DEFAULT_DATA,
    seconds: Annotated[float, typer.Option(min=1, help="How long to wait for data.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Connect, subscribe, and fetch the first data announced; nothing is stored.

    A session of its own is used, so that a running feed loses nothing. Exit status 1 if the broker
    refuses, or if data were announced and none could be fetched.
    """
    from worker.feeds.process import try_source

    trial = try_source(_file(data).get(name), seconds)
    if as_json:
        print_json(asdict(trial))
    else:
        for step, found in trial.steps:
            out.print(f"{step}: {found}", markup=False, soft_wrap=True)
    if not trial.good:
        raise typer.Exit(1)


@app.command()
def remove(name: Name, data: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Remove a source; a running system unsubscribes, and what still waited is dropped."""
    source = _file(data).remove(name)
    if as_json:
        print_json(_shown(source))
    else:
        out.print(f"removed {source.name}", markup=False)


class GatewayReceiver:
    """Upload files to a running gateway, and wait for the outcome of each."""

    def __init__(self, client: AppaClient, report_type: str | None) -> None:
        self.client = client
        self.report_type = report_type

    def send(self, path: Path) -> str | None:
        """Upload a file; wait and retry while the gateway asks to (`Retry-After`)."""
        while True:
            try:
                return str(self.client.upload(path, report_type=self.report_type).id)
            except GatewayError as error:
                if error.code == "unsupported_content":
                    return None
                if error.code not in ("rate_limited", "disk_low", "disk_full"):
                    raise
                err.print(f"waiting: {error.message}", markup=False)
                time.sleep(10)

    def outcome(self, batch: str) -> tuple[str, int, str]:
        """Wait until an upload is ingested or rejected."""
        found = self.client.wait_batch(batch)
        rows = found.summary.observations if found.summary else 0
        detail = found.error.message if found.error else ""
        if found.state is BatchState.REJECTED and found.summary is not None:
            reasons = found.summary.decode_report.get("rejected") or {}
            detail = detail or ", ".join(f"{k} {v}" for k, v in dict(reasons).items())
        return str(found.state.value), rows, detail


@app.command()
def pull(
    archive: Annotated[str, typer.Argument(help=f"One of: {', '.join(ARCHIVES)}.")],
    start: Annotated[str, typer.Argument(help="First time, such as 2024-01-01T00 (UTC).")],
    end: Annotated[str, typer.Argument(help="Time after the last one.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    data: DataFolder = DEFAULT_DATA,
    root: Annotated[
        str | None, typer.Option(help="Where the archive lies: s3://, gs://, https:// or a folder.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only files below the root like this: conv/*.")
    ] = None,
    report_type: Annotated[
        str | None, typer.Option(help="Network of reports in forms that name none.")
    ] = None,
    ahead: Annotated[int, typer.Option(min=1, help="Uploads that may wait for ingest.")] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, pull none.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send the observations of a period in an archive to a running system.

    The same command again goes on where it stopped. Files that no decoder reads are named at the
    end; they are tried again in the next pull.
    """
    if archive not in ARCHIVES:
        raise typer.BadParameter(f"Expected one of {', '.join(ARCHIVES)}; got '{archive}'.")
    kind = ARCHIVES[archive]
    pulled = Pull(kind, root or kind.root, Layout(data), tuple(only or ()), ahead)
    files = pulled.files(utc_time(start), utc_time(end))
    left = pulled.left(files)
    if dry_run:
        _print_files(left, len(files), as_json=as_json)
        return
    outcomes = []
    with gateway_client(url, key) as client:
        receiver = GatewayReceiver(client, report_type)
        with transfer_progress(quiet=as_json) as progress:
            task = progress.add_task(archive, total=sum(f.size for f in left))
            before = {f.key: n for f, n in zip(left, _running(left), strict=True)}

            def show(file: RemoteFile, here: int) -> None:
                progress.update(task, completed=before[file.key] + here)

            for outcome in pulled.run(left, receiver, show):
                outcomes.append(outcome)
                if not outcome.ended:
                    progress.console.print(f"{outcome.file}: {outcome.state}: {outcome.detail}")
    _summary(outcomes, len(files) - len(left), kind.note, as_json=as_json)


def _running(files: list[RemoteFile]) -> list[int]:
    """Return for each file the total size of those before it, in bytes."""
    totals, total = [], 0
    for file in files:
        totals.append(total)
        total += file.size
    return totals


def _print_files(files: list[RemoteFile], count: int, *, as_json: bool) -> None:
    if as_json:
        print_json([{"file": f.relative, "size": f.size} for f in files])
        return
    for file in files:
        out.print(f"{file.relative}  {mebibytes(file.size)}", markup=False, soft_wrap=True)
    out.print(f"{len(files)} of {counted(count, 'file')}, {mebibytes(sum(f.size for f in files))}")


def _summary(outcomes: list[PullOutcome], before: int, note: str, *, as_json: bool) -> None:
    unread = [o for o in outcomes if o.state != "ingested"]
    if as_json:
        print_json(
            {
                "done_before": before,
                "states": Counter(o.state for o in outcomes),
                "rows": sum(o.rows for o in outcomes),
                "not_read": [{"file": o.file, "why": o.detail or o.state} for o in unread],
            }
        )
    else:
        states = ", ".join(
            f"{n} {state}" for state, n in Counter(o.state for o in outcomes).items()
        )
        rows = sum(o.rows for o in outcomes)
        out.print(f"{states or 'nothing to do'}; {before} done before; {rows} values stored")
        for o in unread:
            text = f"not read: {o.file}: {o.detail or o.state}"
            out.print(text, markup=False, soft_wrap=True)
        if unread and note:
            out.print(note, markup=False)
    if any(o.state == "failed" for o in outcomes):
        raise typer.Exit(1)
