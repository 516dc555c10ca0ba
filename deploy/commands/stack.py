"""Run the whole system on this machine, or one of its processes: `appa up`, `gateway`, `worker`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.local import LocalStack, StackOptions
from model.domain.errors import AppaError
from service.app import serve
from service.settings import GatewaySettings
from worker.process import run_worker
from worker.scheduler import SCHEDULER, run_scheduler

__all__ = ["gateway_app", "up_app", "worker_app"]

up_app = typer.Typer(help="Run the whole system on this machine.")


@up_app.command()
def up(
    data: Annotated[
        Path, typer.Option(envvar="APPA_DATA_DIR", help="Folder of everything that is kept.")
    ] = Path("appa-data"),
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
    """Broker, gateway, workers and scheduler in the foreground; Ctrl-C stops them all.

    An existing Redis or Valkey is used when APPA_REDIS_URL is set.
    """
    options = StackOptions(
        data=data,
        host=host,
        port=port,
        models=tuple(model or ()),
        redis_url=os.environ.get("APPA_REDIS_URL"),
        quiet=quiet,
    )
    console = Console(highlight=False, markup=False)
    try:
        with LocalStack(options, console) as stack:
            stack.run()
    except AppaError as error:
        console.print(f"error: {error.message}", style="red")
        raise typer.Exit(2) from error


gateway_app = typer.Typer(help="Run the gateway alone.")


@gateway_app.command()
def gateway(
    host: Annotated[str | None, typer.Option(help="Address; APPA_HOST otherwise.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; APPA_PORT otherwise.")] = None,
) -> None:
    """Takes settings from APPA_* variables (APPA_REDIS_URL, APPA_DATA_DIR, …)."""
    given = {k: v for k, v in {"host": host, "port": port}.items() if v is not None}
    try:
        settings = GatewaySettings(**given)
        serve(settings)
    except AppaError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(2) from error


worker_app = typer.Typer(help="Run one worker process of a larger system.")


@worker_app.command()
def worker(
    queues: Annotated[
        list[str],
        typer.Argument(
            help="Queues to take work from: `ingest`, `products`, `gpu`; or `scheduler` alone."
        ),
    ],
) -> None:
    """Takes settings from APPA_* variables (APPA_REDIS_URL, APPA_DATA_DIR, APPA_MODELS, …)."""
    try:
        if queues == [SCHEDULER]:
            run_scheduler()
        else:
            run_worker(queues)
    except AppaError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(2) from error
