"""`appa gateway`: the gateway alone."""

from typing import Annotated

import typer

from model.domain.errors import AppaError
from service.server import serve
from service.settings import GatewaySettings

__all__ = ["app"]

app = typer.Typer(help="Run the gateway alone.")


@app.command()
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
