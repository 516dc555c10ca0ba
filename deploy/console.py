"""Share what commands have in common: address and key of a gateway, times, errors, JSON output.

Times are read as people type them: `2003-10-01T06`, `20031001T06`, with or without a zone; UTC.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer
from pydantic import BaseModel
from rich.console import Console

from appa_client import AppaClient, AppaClientError, GatewayError
from model.domain.errors import AppaError

__all__ = ["AsJson", "Key", "Url", "err", "gateway_client", "out", "print_json", "utc_time"]

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
    """Open a client; errors end the command with a sentence instead of a traceback."""
    try:
        with AppaClient(url, key) as client:
            yield client
    except GatewayError as error:
        asked = f" (request {error.request_id})" if error.request_id else ""
        err.print(f"[bold red]{error.code}[/]: ", end="")
        err.print(f"{error.message}{asked}", markup=False, highlight=False)
        raise typer.Exit(1) from error
    except (AppaError, AppaClientError, httpx.HTTPError, OSError) as error:
        err.print("[bold red]error[/]: ", end="")
        err.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error


def print_json(value: BaseModel | list[Any] | dict[str, Any]) -> None:
    """One JSON document on standard output."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    typer.echo(json.dumps(plain, default=_plain))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def utc_time(text: str) -> datetime:
    """The time, in UTC; one without a zone is read as UTC.

    Raises:
        BadParameter: If it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"Expected a time such as 2003-10-01T06; got '{text}'.") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
