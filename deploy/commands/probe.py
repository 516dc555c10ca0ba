"""`appa probe`: is a worker of this machine well? For health checks of containers and of Kubernetes.

It imports only what the check needs, because it runs every minute for every worker.
"""

import os
import socket
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Annotated

import typer
from redis.exceptions import RedisError

from deploy.json_answer import AsJson, print_json
from worker.contract.queues import WorkerDirectory, WorkerReport
from worker.contract.records import utc_now
from worker.contract.redis_server import Keyspace, connect

__all__ = ["probe_app"]

probe_app = typer.Typer(add_completion=False)


@probe_app.command()
def probe(
    queues: Annotated[list[str], typer.Argument(help="The arguments of `appa worker`.")],
    stalled: Annotated[
        float,
        typer.Option(min=1, help="Seconds after which the loop of scheduler or feeds hangs."),
    ] = 600.0,
    host: Annotated[str, typer.Option(help="Where it runs; default: here.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say whether a worker of these queues reports from this machine, and whether its loop goes round.

    A worker that hangs no longer reports, and its report expires. One that was drained is well.
    Exit status 1 if none reports. While Redis cannot be reached nothing can be said against the
    worker, which waits for it: exit status 0.
    """
    url = os.environ.get("APPA_REDIS_URL", "redis://127.0.0.1:6379/0")
    keys = Keyspace(os.environ.get("APPA_REDIS_PREFIX", "appa"))
    try:
        with closing(connect(url, retries=1)) as redis:
            reports = WorkerDirectory(redis, keys).alive()
    except (RedisError, OSError) as error:
        found = QueueHealth(True, f"Redis does not answer: {error}", redis=False)
    else:
        found = _examined(reports, queues, host or socket.gethostname(), stalled)
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(found.message, err=not found.well)
    if not found.well:
        raise typer.Exit(1)


@dataclass(frozen=True)
class QueueHealth:
    """Health of the workers of some queues on one machine.

    Attributes:
        well: Whether one of them is healthy, as far as is known.
        message: A sentence.
        workers: Names of those that report.
        hanging: Names of those of them whose main loop has stalled.
        redis: Whether Redis could be reached.
    """

    well: bool
    message: str
    workers: tuple[str, ...] = ()
    hanging: tuple[str, ...] = ()
    redis: bool = True


def _examined(
    reports: Iterable[WorkerReport], queues: list[str], host: str, stalled: float
) -> QueueHealth:
    own = [r for r in reports if r.host == host and set(r.queues) == set(queues)]
    names = tuple(r.name for r in own)
    hanging = tuple(r.name for r in own if _hangs(r, timedelta(seconds=stalled)))
    if not own:
        return QueueHealth(False, f"no worker of {', '.join(queues)} reports from {host}")
    if len(hanging) == len(own):
        message = f"{', '.join(hanging)}: its loop does not go round"
        return QueueHealth(False, message, names, hanging)
    well = ", ".join(name for name in names if name not in hanging)
    return QueueHealth(True, f"{well} reports", names, hanging)


def _hangs(report: WorkerReport, stalled: timedelta) -> bool:
    turned = report.figures.turned
    return turned is not None and utc_now() - turned > stalled
