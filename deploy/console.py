"""Share what commands have in common: options, times, sizes, errors, progress bars.

Times are read as people type them: `2003-10-01T06`, `20031001T06`, with or without a zone; UTC.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich import box
from rich.console import Console, ConsoleDimensions
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from appa_client import AppaClient, AppaClientError, GatewayError
from deploy.json_answer import AsJson, print_json, progress_aside
from model.domain.errors import AppaError
from model.domain.files import distinct_names
from model.domain.times import read_time
from worker.contract.layout import Layout
from worker.contract.settings import InstallationSettings

__all__ = [
    "AsJson",
    "DEFAULT_DATA",
    "DEFAULT_URL",
    "DataFolder",
    "Key",
    "Url",
    "counted",
    "err",
    "gateway_client",
    "duration",
    "installed_layout",
    "json_object",
    "key_table",
    "mebibytes",
    "out",
    "print_json",
    "progress_aside",
    "retry_each",
    "short_time",
    "step_progress",
    "transfer_progress",
    "utc_time",
]

_PIPED_WIDTH = 200
"""Width of tables in characters when the output is a file or a pipe."""


class _Console(Console):
    """Console as wide as the terminal, else as the current COLUMNS, else `_PIPED_WIDTH`."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr)
        self._width = None  # rich would keep the COLUMNS of the time of import

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        if self.is_terminal or os.environ.get("COLUMNS", "").isdigit():
            return found
        return ConsoleDimensions(_PIPED_WIDTH, found.height)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new


out = _Console()
err = _Console(stderr=True)

Url = Annotated[str, typer.Option("--url", envvar="APPA_URL", help="Address of the gateway.")]
Key = Annotated[
    str | None, typer.Option("--key", envvar="APPA_API_KEY", help="API key, if one is needed.")
]
DataFolder = Annotated[
    Path,
    typer.Option("--data", "--data-dir", envvar="APPA_DATA_DIR", help="Data folder of the system."),
]
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DATA = Path("appa-data")


def installed_layout(data: Path) -> Layout:
    """Return the paths of a data folder, and where APPA_RESULTS_URL says its results are."""
    return InstallationSettings(data_dir=data).layout


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


def retry_each(
    names: Iterable[str], act: Callable[[str], str], *, field: str, as_json: bool
) -> None:
    """Call `act` with each name, and print the state that it returns or why it was refused.

    Arguments:
        names: Ids of records.
        act: Asks the gateway to try one again.
        field: What names are called in JSON.
        as_json: Whether to print JSON.

    Raises:
        Exit: With status 1, after all of them, if one was refused.
    """
    done: list[dict[str, str]] = []
    for name in names:
        try:
            done.append({field: name, "state": act(name)})
        except GatewayError as error:
            done.append({field: name, "error": str(error)})
    if as_json:
        print_json(done)
    else:
        for entry in done:
            typer.echo(f"{entry[field]}: {entry.get('state') or entry['error']}")
        if not done:
            typer.echo("nothing to try again")
    if any("error" in entry for entry in done):
        raise typer.Exit(1)


def utc_time(text: str) -> datetime:
    """Return the time in UTC; one without a zone is read as UTC.

    Raises:
        BadParameter: If it is not a time.
    """
    try:
        return read_time(text)
    except ValueError:
        raise typer.BadParameter(f"Expected a time such as 2003-10-01T06; got '{text}'.") from None


def short_time(time: datetime | None, form: str = "%m-%d %H:%M") -> str:
    """Return a time in UTC for a table; nothing for None."""
    return f"{time.astimezone(UTC):{form}}" if time else ""


def duration(seconds: float | None) -> str:
    """Return a length of time as `45 s`, `12 min`, `5.5 h` or `3.0 days`; nothing for None."""
    if seconds is None:
        return ""
    for unit, length, limit, form in (("s", 1, 120, ".0f"), ("min", 60, 120, ".0f")):
        if abs(seconds) < limit * length:
            return f"{seconds / length:{form}} {unit}"
    if abs(seconds) < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def key_table(*columns: str, keys: Collection[str], title: str | None = None) -> Table:
    """Return an empty table that a terminal of 80 columns can show without cutting a key.

    Arguments:
        columns: Headings.
        keys: Columns of ids and names, which users copy into other commands. They keep their
            width, the others are folded.
        title: Shown above.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=title)
    for name in columns:
        table.add_column(name, no_wrap=name in keys, overflow="fold")
    return table


def mebibytes(count: int) -> str:
    """Return a number of bytes as `1.5 MiB`."""
    return f"{count / 2**20:.1f} MiB"


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, as `1 file` or `2 files`; nouns that take an `s` alone."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def json_object(text: str | None, option: str) -> dict[str, Any]:
    """Return the JSON object given to `option`, as text or after `@` the name of a file.

    Raises:
        BadParameter: If it is not a JSON object.
    """
    if not text:
        return {}
    try:
        text = Path(text[1:]).read_text() if text.startswith("@") else text
        value = json.loads(text, object_pairs_hook=distinct_names)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"Expected JSON or @FILE; {error}.", param_hint=option) from error
    if not isinstance(value, dict):
        raise typer.BadParameter("Expected a JSON object.", param_hint=option)
    return value


def step_progress(*, quiet: bool = False) -> Progress:
    """Return bars that count steps; each task has a field `text` for its state."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        console=err,
        disable=quiet,
    )


def transfer_progress(*, quiet: bool = False) -> Progress:
    """Return bars that count bytes of uploads or downloads."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        disable=quiet,
    )
