"""`appa probe`: is a worker of this machine well? For health checks of containers and of Kubernetes.

Imports nothing that the answer does not need, for it is asked every minute of every worker.
"""

import os
import socket
from contextlib import closing
from datetime import timedelta
from typing import Annotated

import typer
from redis.exceptions import RedisError

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
) -> None:
    """Say whether a worker of these queues reports from this machine, and whether its loop goes round.

    A worker that hangs no longer reports, and its report expires. One that was drained is well.
    Exit status 1 if none reports. While Redis cannot be reached nothing can be said against the
    worker, which waits for it: exit status 0.
    """
    url = os.environ.get("APPA_REDIS_URL", "redis://127.0.0.1:6379/0")
    keys = Keyspace(os.environ.get("APPA_REDIS_PREFIX", "appa"))
    host = host or socket.gethostname()
    try:
        with closing(connect(url, retries=1)) as redis:
            reports = WorkerDirectory(redis, keys).alive()
    except (RedisError, OSError) as error:
        typer.echo(f"Redis does not answer: {error}")
        return
    own = [r for r in reports if r.host == host and set(r.queues) == set(queues)]
    if not own:
        typer.echo(f"no worker of {', '.join(queues)} reports from {host}", err=True)
        raise typer.Exit(1)
    hanging = [r.name for r in own if _hangs(r, timedelta(seconds=stalled))]
    if len(hanging) == len(own):
        typer.echo(f"{', '.join(hanging)}: its loop does not go round", err=True)
        raise typer.Exit(1)
    typer.echo(f"{', '.join(r.name for r in own if r.name not in hanging)} reports")


def _hangs(report: WorkerReport, stalled: timedelta) -> bool:
    turned = report.figures.turned
    return turned is not None and utc_now() - turned > stalled
