"""Answer programs: the option `--json`, and one JSON document on standard output.

Everything else that a command has to say goes to standard error then. Nothing is imported here that
the answer does not need: `appa probe` is asked every minute of every worker.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from pydantic import BaseModel

__all__ = ["AsJson", "print_json", "progress_aside"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(value: BaseModel | list[Any] | dict[str, Any]) -> None:
    """Write one JSON document to standard output."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    typer.echo(json.dumps(plain, default=_plain))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


@contextmanager
def progress_aside(as_json: bool) -> Iterator[None]:
    """Send what is printed meanwhile to standard error, if standard output is for JSON."""
    if as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
