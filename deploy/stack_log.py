"""Keep the log of the one-machine stack: the lines of all its processes in one file.

The log lies in the data folder, so a full disk affects it like everything else.
"""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
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
    """Write the lines of all processes to one file, each after the name of its process.

    A line that cannot be written, for example because the disk is full, is dropped and counted;
    the next line that can be written follows one with the count. Nothing is raised: a failing log
    must not stop the stack.

    Arguments:
        path: The file; one older generation is kept once it has grown large.
        console: The terminal; None writes to the file alone.
    """

    def __init__(self, path: Path, console: Console | None) -> None:
        self.path = path
        self.dropped = 0
        self._reason = ""
        self._console = console
        self._lock = threading.Lock()
        self._closed = False
        self._file: FileIO | None = None
        self._torn = False

    def write(self, name: str, line: str) -> None:
        """Add one line of the process called `name`, or count it as dropped."""
        with self._lock:
            if not self._closed:
                self._keep(name, line)
            if self._console is not None:
                text = Text(f"{name:<9} ", style=_COLOURS.get(name, "")) + Text.from_ansi(line)
                # a closed or full standard output; rich exits on a broken pipe
                with suppress(OSError, ValueError, SystemExit):
                    self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Close the log file; later lines go to the terminal alone."""
        with self._lock:
            self._closed = True
            self._release()

    def _keep(self, name: str, line: str) -> None:
        try:
            if self.dropped:
                told = f"{self.dropped} log lines were dropped: {self._reason}"
                self._append("appa", told)
                self.dropped = 0
            self._append(name, line)
        except OSError as error:
            self.dropped += 1
            self._reason = str(error)
            self._release()  # reopen with the next line: the file may have been replaced

    def _append(self, name: str, line: str) -> None:
        file = self._opened()
        now = datetime.now(UTC)
        text = f"{now:%Y-%m-%dT%H:%M:%SZ} {name:<9} {line}\n"
        data = memoryview((("\n" if self._torn else "") + text).encode(errors="replace"))
        while data:  # a nearly full disk may write only a part
            data = data[file.write(data) :]
            self._torn = bool(data)

    def _opened(self) -> FileIO:
        if self._file is not None and self._file.tell() > _KEPT_BYTES:
            self._release()
        if self._file is None:
            if self.path.is_file() and self.path.stat().st_size > _KEPT_BYTES:
                self.path.replace(self.path.with_suffix(".1.log"))
            self._file = FileIO(self.path, "a")
        return self._file

    def _release(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
