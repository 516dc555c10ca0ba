"""Start processes in order, keep them running, and write their lines to one log.

The log lies in the data folder, so a full disk affects it like everything else.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import FileIO
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from deploy.preloaded import Fork, Preloaded
from worker.confinement import die_with_parent

__all__ = ["Process", "StackLog", "Supervisor"]

_FIRST_PAUSE, _MAX_PAUSE, _STEADY = 0.5, 30.0, 60.0
_UMASK = 0o077  # files of all processes are readable by this user only
_COLOURS = {
    "appa": "bold",
    "broker": "magenta",
    "gateway": "cyan",
    "ingest": "green",
    "model": "yellow",
    "scheduler": "blue",
}
_KEPT_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Process:
    """One process of the stack.

    Attributes:
        name: Shown before its log lines.
        command: Program and arguments.
        stop_seconds: Grace period from SIGTERM to SIGKILL.
        folder: Folder that it needs; created before each start if it is missing.
        forked: Whether it may be forked from the supervisor's `Preloaded`, if its command is Python's.
        modules: Modules to import there before it is forked, besides those imported at its start.
    """

    name: str
    command: tuple[str, ...]
    stop_seconds: float = 10.0
    folder: Path | None = None
    forked: bool = False
    modules: tuple[str, ...] = ()


@dataclass
class Child:
    """A supervised process.

    Attributes:
        pause: Seconds before the next restart.
        restart_at: When it is restarted; None while it runs.
    """

    part: Process
    process: subprocess.Popen[bytes] | Fork
    started: float = field(default_factory=time.monotonic)
    pause: float = _FIRST_PAUSE
    restart_at: float | None = None


class Supervisor:
    """Start processes (parts) in order, keep them running, and stop the first one, the broker, last.

    Arguments:
        parts: Processes in order of start.
        environment: Environment of all of them.
        write: Called with (part name, line) for every line of their logs and our own.
        preloaded: Modules loaded before forking; if empty, each part starts its own interpreter.
    """

    def __init__(
        self,
        parts: Sequence[Process],
        environment: Mapping[str, str],
        write: Callable[[str, str], None],
        preloaded: Sequence[str] = (),
    ) -> None:
        self.parts = tuple(parts)
        self.environment = dict(environment)
        self.write = write
        self.preloaded = tuple(preloaded)
        self.children: dict[str, Child] = {}
        self._forks: Preloaded | None = None

    def start(self, name: str) -> None:
        """Start the process called `name` and supervise it."""
        part = next(part for part in self.parts if part.name == name)
        self.children[name] = Child(part, self._spawn(part))

    def start_all(self, but: Collection[str] = ()) -> None:
        """Start the parts that do not run yet, in order, except those named in `but`.

        Forked parts start last: the preloaded process imports its modules while the others start.
        """
        self.load()
        for part in sorted(self.parts, key=lambda part: part.forked):
            if part.name not in self.children and part.name not in but:
                self.start(part.name)

    def load(self) -> None:
        """Start the process that parts are forked from (Linux only); return while it imports modules."""
        if self.preloaded and self._forks is None and sys.platform == "linux":
            with self._logged("appa") as output:
                self._forks = Preloaded(self.preloaded, self.environment, output=output)

    @property
    def preloaded_pid(self) -> int | None:
        """Return the id of the process that parts are forked from; None if there is none."""
        return None if self._forks is None else self._forks.pid

    def pid(self, name: str) -> int:
        """Return the process id of the part called `name`."""
        return self.children[name].process.pid

    def tend(self) -> None:
        """Restart children that have ended, without limit, after a back-off of up to half a minute.

        Call it a few times a second.
        """
        now = time.monotonic()
        if self._forks is not None and self._forks.ended:
            self.write(
                "appa", "the process that parts are forked from ended; each starts by itself"
            )
            self._forks.close()
            self._forks = None
        for name, child in self.children.items():
            if child.restart_at is None and child.process.poll() is not None:
                if now - child.started > _STEADY:
                    child.pause = _FIRST_PAUSE
                child.restart_at = now + child.pause
                code = child.process.returncode
                self.write("appa", f"{name} ended with {code}; restart in {child.pause:.1f} s")
                child.pause = min(2 * child.pause, _MAX_PAUSE)
            elif child.restart_at is not None and now >= child.restart_at:
                self._restart(child, now)

    def _restart(self, child: Child, now: float) -> None:
        try:
            child.process = self._spawn(child.part)
            child.started, child.restart_at = now, None
        except OSError as error:  # out of memory or process ids: retry
            child.restart_at = now + child.pause
            told = f"{child.part.name} cannot be started ({error}); again in {child.pause:.1f} s"
            self.write("appa", told)
            child.pause = min(2 * child.pause, _MAX_PAUSE)

    def stop(self) -> None:
        """Ask our own parts to stop, all at once, then the broker; kill what does not stop in time."""
        first, *others = self.parts
        self._stop([part.name for part in others])
        if self._forks is not None:
            self._forks.close()
            self._forks = None
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
            with suppress(ProcessLookupError):  # the whole process group
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()

    def _spawn(self, part: Process) -> subprocess.Popen[bytes] | Fork:
        if part.folder is not None:
            part.folder.mkdir(mode=0o700, exist_ok=True)
        with self._logged(part.name) as output:
            if part.forked and self._forks is not None:
                with suppress(ChildProcessError):  # fall back to a new interpreter, which is slower
                    return self._forks.start(
                        part.command[2:],
                        self.environment,
                        output,
                        modules=part.modules,
                        session=True,
                        umask=_UMASK,
                    )
            return subprocess.Popen(
                part.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                umask=_UMASK,
                start_new_session=True,  # so that Ctrl-C reaches only the supervisor
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    @contextmanager
    def _logged(self, name: str) -> Iterator[int]:
        """Yield a descriptor whose lines are written under `name` as long as a process holds it."""
        ours, theirs = os.pipe()
        threading.Thread(
            target=self._copy, args=(name, open(ours, "rb")), name=f"log-{name}", daemon=True
        ).start()
        try:
            yield theirs
        finally:
            os.close(theirs)

    def _copy(self, name: str, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.write(name, line.decode(errors="replace").rstrip())


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
