"""`appa worker`: one worker process of a larger system."""

from typing import Annotated

import typer

from model.domain.errors import AppaError
from worker.process import run_worker
from worker.scheduler import SCHEDULER, run_scheduler

__all__ = ["app"]

app = typer.Typer(help="Run one worker process of a larger system.")


@app.command()
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
