"""One readable log for all processes of the stack: on the terminal and in a file."""

import threading
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

__all__ = ["StackLog"]

_COLOURS = {
    "appa": "bold",
    "broker": "magenta",
    "gateway": "cyan",
    "ingest": "green",
    "model": "yellow",
    "scheduler": "blue",
}
_KEPT_BYTES = 50 * 2**20


class StackLog:
    """Lines of all processes, each after the name of its own.

    Arguments:
        path: The file; one older generation is kept once it has grown large.
        console: The terminal; None writes to the file alone.
    """

    def __init__(self, path: Path, console: Console | None) -> None:
        if path.exists() and path.stat().st_size > _KEPT_BYTES:
            path.replace(path.with_suffix(".1.log"))
        self._file = path.open("a", buffering=1)
        self._console = console
        self._lock = threading.Lock()

    def write(self, name: str, line: str) -> None:
        """Adds one line of the process called `name`."""
        with self._lock:
            now = datetime.now(UTC)
            if not self._file.closed:
                self._file.write(f"{now:%Y-%m-%dT%H:%M:%SZ} {name:<9} {line}\n")
            if self._console is not None:
                text = Text(f"{name:<9} ", style=_COLOURS.get(name, "")) + Text.from_ansi(line)
                self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._file.close()
