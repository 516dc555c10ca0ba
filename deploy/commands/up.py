"""`appa up`: the whole system on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.local import LocalStack, StackOptions
from model.domain.errors import AppaError

__all__ = ["app"]

app = typer.Typer(help="Run the whole system on this machine.")


@app.command()
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
