"""Run the whole system on this machine, or one of its processes: `appa up`, `gateway`, `worker`.

Each command imports what it runs, so that a gateway starts without the libraries of the workers.
"""

import os
from typing import Annotated, Any

import typer
from rich.console import Console

from deploy.console import DEFAULT_DATA, DataFolder

__all__ = ["gateway_app", "up_app", "worker_app"]

up_app = typer.Typer(help="Run the whole system on this machine.", add_completion=False)


@up_app.command()
def up(
    data: DataFolder = DEFAULT_DATA,
    host: Annotated[
        str, typer.Option(envvar="APPA_HOST", help="Address of the gateway.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="APPA_PORT", help="Port of the gateway; 0 takes a free one.")
    ] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Checkpoint to load, by name or folder; repeat for more."),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Log to DATA/logs/appa.log alone.")] = False,
) -> None:
    """Run broker, gateway, workers and scheduler in the foreground; Ctrl-C stops them all.

    An existing Redis or Valkey is used when APPA_REDIS_URL is set.
    """
    from deploy.local import LocalStack, StackOptions

    options = StackOptions(
        data=data,
        host=host,
        port=port,
        models=tuple(model or ()),
        redis_url=os.environ.get("APPA_REDIS_URL"),
        quiet=quiet,
    )
    with LocalStack(options, Console(highlight=False, markup=False)) as stack:
        stack.run()


gateway_app = typer.Typer(help="Run the gateway alone.", add_completion=False)


@gateway_app.command()
def gateway(
    host: Annotated[str | None, typer.Option(help="Address; APPA_HOST otherwise.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; APPA_PORT otherwise.")] = None,
) -> None:
    """Run with settings from APPA_* variables (APPA_REDIS_URL, APPA_DATA_DIR, …)."""
    from service.app import serve
    from service.settings import GatewaySettings

    given: dict[str, Any] = {"host": host, "port": port}
    serve(GatewaySettings(**{name: value for name, value in given.items() if value is not None}))


worker_app = typer.Typer(help="Run one worker process of a larger system.", add_completion=False)


@worker_app.command()
def worker(
    queues: Annotated[
        list[str],
        typer.Argument(
            help="Queues to take work from: `ingest`, `ingest-large`, `products`, `gpu`; or "
            "`scheduler` or `sources` alone."
        ),
    ],
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of a model worker that share long windows."),
    ] = None,
) -> None:
    """Run with settings from APPA_* variables (APPA_REDIS_URL, APPA_DATA_DIR, APPA_MODELS, …)."""
    if queues == ["scheduler"]:
        from worker.scheduler import run_scheduler

        run_scheduler()
    elif queues == ["sources"]:
        from worker.feeds.process import run_feeds

        run_feeds()
    else:
        from worker.process import run_worker
        from worker.settings import WorkerSettings

        run_worker(queues, WorkerSettings() if ranks is None else WorkerSettings(ranks=ranks))
