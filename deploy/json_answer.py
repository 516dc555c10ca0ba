"""Define the option `--json`: one JSON document on standard output.

All other output of the command then goes to standard error. Imports are kept to a minimum, because
`appa probe` runs every minute for every worker.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from pydantic import BaseModel

__all__ = ["AsJson", "print_json", "progress_aside"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(value: BaseModel | list[Any] | dict[str, Any]) -> None:
    """Write one JSON document to standard output; NaN and infinity become null."""
    typer.echo(json.dumps(_plain(value), allow_nan=False))


def _plain(value: Any) -> Any:
    """Return a value as JSON types; values of other types as text."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


@contextmanager
def progress_aside(as_json: bool) -> Iterator[None]:
    """Redirect printed progress to standard error if standard output is for JSON."""
    if as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield
