"""List, drain, resume and stop the worker processes of an installation: `appa workers`.

`drain` and `stop` are for maintenance: a worker takes no more work and finishes what runs. To have
a running job handed back to the queue at its next step instead, send the process SIGTERM.
"""

import socket
from collections.abc import Sequence
from typing import Annotated

import psutil
import typer
from redis.exceptions import RedisError
from rich.table import Table

from deploy.console import AsJson, err, key_table, out, print_json
from worker.contract.queues import QUEUES, WorkerReport
from worker.contract.store import open_stores
from worker.process import message_sender, send_command, wait_until_idle
from worker.settings import WorkerSettings

__all__ = ["app", "worker_table"]

app = typer.Typer(
    help="See and steer the worker processes of an installation.",
    no_args_is_help=True,
    add_completion=False,
)

Names = Annotated[list[str] | None, typer.Argument(help="Workers, by name as in `list`.")]
Queue = Annotated[str | None, typer.Option(help=f"All workers of a queue: {', '.join(QUEUES)}.")]
Pid = Annotated[
    int | None,
    typer.Option(help="The worker that is this process of this machine, or was started by it."),
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait until nothing runs on them.")]


def _settings() -> WorkerSettings:
    """Return the settings of the environment, with the broker of a running `appa up`."""
    return WorkerSettings().with_local_broker()


def _reports(settings: WorkerSettings) -> list[WorkerReport]:
    stores = open_stores(settings.redis_url, settings.redis_prefix)
    try:
        return stores.workers.alive()
    except RedisError as error:
        err.print(f"Expected Redis at {settings.redis_url}; {error}", markup=False)
        raise typer.Exit(1) from error
    finally:
        stores.redis.close()


def _chosen(
    settings: WorkerSettings, names: list[str] | None, queue: str | None, pid: int | None
) -> list[str]:
    """Return the names of the selected Celery workers; exit if there are none."""
    known = {r.name: r for r in _reports(settings) if set(r.queues) & set(QUEUES)}
    own = {(socket.gethostname(), number) for number in _family(pid)}
    chosen = [
        name
        for name, report in known.items()
        if name in (names or ())
        or (queue and queue in report.queues)
        or (report.host, report.pid) in own
    ]
    missing = [name for name in names or () if name not in known]
    if missing or not chosen:
        asked = [f"queue '{queue}'"] * bool(queue) + [f"process {pid} of this machine"] * bool(pid)
        wanted = ", ".join(missing or asked) or "none"
        err.print(
            f"Expected workers of {', '.join(known) or '(none runs)'}; got {wanted}.", markup=False
        )
        raise typer.Exit(1)
    return chosen


def _family(pid: int | None) -> set[int]:
    """Return the pids of a process and its descendants: a wrapper's pid is not its worker's."""
    if pid is None:
        return set()
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except (psutil.Error, ValueError):
        return {pid}


def _steer(
    command: str,
    names: list[str] | None,
    queue: str | None,
    pid: int | None = None,
    *,
    as_json: bool,
    wait: float = 0.0,
    end: bool = False,
) -> None:
    """Send `command`, print the workers' replies, and exit with 1 unless all have done it.

    Arguments:
        command: `drain` or `resume`.
        names: Names of workers.
        queue: Queue whose workers are addressed, too.
        pid: Process whose workers are addressed, too.
        as_json: Print JSON.
        wait: Seconds to wait until their running tasks have ended; 0 not to wait.
        end: Whether to end their processes then.
    """
    settings = _settings()
    workers = _chosen(settings, names, queue, pid)
    with message_sender(settings) as sender:
        answers = send_command(sender, command, workers)
        all_answered = len(answers) == len(workers)
        if not as_json:
            for name in workers:
                said = answers.get(name, "no answer")
                out.print(f"{name}: {said}", markup=False, highlight=False)
        idle = wait_until_idle(sender, workers, wait) if all_answered and wait else None
        done = all_answered and idle is not False
        if done and end:
            sender.control.shutdown(destination=workers)
    if as_json:
        lines = [{"name": name, "answer": answers.get(name)} for name in workers]
        print_json({"command": command, "workers": lines, "idle": idle, "ended": done and end})
    if idle is False:
        err.print(f"Still at work after {wait:g} s; see `appa workers list`.", markup=False)
    if not done:
        raise typer.Exit(1)


def _state(report: WorkerReport) -> str:
    if report.ready:
        return "ready"
    return "draining" if report.draining else "starting"


@app.command("list")
def list_workers(as_json: AsJson = False) -> None:
    """List the worker processes: queues, state, device, what they work on."""
    reports = _reports(_settings())
    if as_json:
        print_json([report.model_dump(mode="json") for report in reports])
        return
    out.print(worker_table(reports))


def worker_table(reports: Sequence[WorkerReport]) -> Table:
    """Return a table with two lines for each worker: its name, and its queues and device below."""
    table = key_table("worker", "state", "busy with, since", keys=("worker", "busy with, since"))
    for r in reports:
        about = f"{', '.join(r.queues)} on {r.device or 'unknown'}"
        about += f", {r.ranks} ranks" if r.ranks > 1 else ""
        since = f"since {r.started:%Y-%m-%d %H:%M}, version {r.version or 'unknown'}"
        table.add_row(f"{r.name}\n  {about}", _state(r), f"{r.busy_with or 'nothing'}\n{since}")
    return table


@app.command()
def drain(
    names: Names = None,
    queue: Queue = None,
    pid: Pid = None,
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Let workers take no more work; what runs is finished, the process stays."""
    _steer("drain", names, queue, pid, as_json=as_json, wait=wait)


@app.command()
def resume(names: Names = None, queue: Queue = None, as_json: AsJson = False) -> None:
    """Let drained workers take work again."""
    _steer("resume", names, queue, as_json=as_json)


@app.command()
def stop(
    names: Names = None,
    queue: Queue = None,
    pid: Pid = None,
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Drain workers, then end their processes; each finishes what it runs before it ends.

    A supervisor starts a process that ended again: `appa up` does, compose and systemd as set up.
    """
    _steer("drain", names, queue, pid, as_json=as_json, wait=wait, end=True)


@app.command("celery", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def celery_command(context: typer.Context) -> None:
    """Run a command of Celery on this installation: for example `inspect active`, `events` or `flower`."""
    with message_sender(_settings()) as sender:
        sender.start(argv=context.args)
