"""What the commands that talk to a running gateway share: its address, a key, errors, JSON."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer
from pydantic import BaseModel
from rich.console import Console

from model.domain.errors import AppaError
from service.client import AppaClient, GatewayError

__all__ = ["AsJson", "Key", "Url", "err", "gateway_client", "out", "print_json"]

out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option("--url", envvar="APPA_URL", help="Address of the gateway.")]
Key = Annotated[
    str | None, typer.Option("--key", envvar="APPA_API_KEY", help="API key, if one is needed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def gateway_client(url: str, key: str | None) -> Iterator[AppaClient]:
    """A client; errors end the command with a sentence instead of a trace."""
    try:
        with AppaClient(url, key) as client:
            yield client
    except GatewayError as error:
        asked = f" (request {error.request_id})" if error.request_id else ""
        err.print(f"[bold red]{error.code}[/]: ", end="")
        err.print(f"{error.message}{asked}", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except (AppaError, httpx.HTTPError, OSError) as error:
        err.print("[bold red]error[/]: ", end="")
        err.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error


def print_json(value: BaseModel | list[Any] | dict[str, Any]) -> None:
    """One JSON document on standard output."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    typer.echo(json.dumps(plain, default=_plain))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
