"""Run a fresh `appa up` on a small file system of its own, and inject faults from outside.

The data folder and the folder of temporary files lie on a tmpfs that only the stack sees, where a
file system can be mounted (as root, or in a user namespace). Elsewhere they lie in a plain folder,
whose disk is not filled.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from redis import Redis
from redis.exceptions import RedisError

from deploy.local import PROCESSES
from lab.chaos.plan import BROKER_CUTS, KILLS, PARTS, Fault, FaultKind
from model.domain.errors import AppaError
from worker.confinement import die_with_parent
from worker.contract.clock import CLOCK_VARIABLE, Clock, clock_text
from worker.contract.layout import Layout

__all__ = ["ChaosStack", "FaultCounts", "mounting_command"]

DISK_BYTES = 768 * 2**20
_WATERMARK_BYTES = 16 * 2**20
ENVIRONMENT = {
    "APPA_LEASE_SECONDS": "5",
    "APPA_SWEEP_SECONDS": "0.5",
    "APPA_RESEND_SECONDS": "4",
    "APPA_REPORT_SECONDS": "1",
    "APPA_RECONCILE_SECONDS": "3",
    "APPA_ENDED_SECONDS": "10",
    "APPA_RETRY_BACKOFF_SECONDS": "1",
    "APPA_RETRY_BACKOFF_MAX_SECONDS": "4",
    "APPA_ATTEMPTS": "500",
    "APPA_LOST_WORKERS": "100",
    "APPA_MIN_FREE_BYTES": "0",
    "APPA_REQUESTS_PER_MINUTE": "0",
    "APPA_QUEUED_JOBS_PER_KEY": "0",
    "OMP_NUM_THREADS": "1",
}
"""Intervals of minutes become seconds, and injected faults do not use up the retries."""

_BROKER = "valkey-server"
_READY = re.compile(r"ready in [^:]*: (\S+)")


def mounting_command(folder: Path, size: int = DISK_BYTES) -> tuple[str, ...] | None:
    """Return a prefix that runs a command with a file system of its own mounted at `folder`.

    Returns:
        Program and arguments; None where no file system can be mounted.
    """
    mount = f'mount -t tmpfs -o size={size},mode=700 none "{folder}"'
    for unshare in (("unshare", "-m"), ("unshare", "-m", "-r")):
        with suppress(FileNotFoundError):
            tried = subprocess.run([*unshare, "sh", "-c", mount], capture_output=True, check=False)
            if tried.returncode == 0:
                return (*unshare, "sh", "-c", f'{mount} && exec "$@"', "-")
    return None


@dataclass
class FaultCounts:
    """Numbers of faults that were injected, by kind."""

    counts: dict[FaultKind, int] = field(default_factory=dict)

    def add(self, kind: FaultKind) -> None:
        """Count one more fault of this kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    @property
    def kills(self) -> int:
        """Return how many processes were killed, except the broker's."""
        return sum(self.counts.get(kind, 0) for kind in KILLS)

    @property
    def broker_cuts(self) -> int:
        """Return how often the broker was killed, stopped or cut off."""
        return sum(self.counts.get(kind, 0) for kind in BROKER_CUTS)


class ChaosStack:
    """`appa up` in a process of its own; a context manager that starts and stops it.

    Arguments:
        folder: An empty folder.
        checkpoint: Name or folder of what the model worker loads.
        watermark: Whether work is refused before the disk is full.
        clock: The operational clock of the system.
    """

    def __init__(self, folder: Path, checkpoint: str, *, watermark: bool, clock: Clock) -> None:
        self.folder = folder.resolve()
        self.checkpoint = checkpoint
        self.watermark = watermark
        self.clock = clock
        self.log = self.folder / "up.log"
        self.injected = FaultCounts()
        self.url = ""
        self._disk = self.folder / "disk"
        self._disk.mkdir()
        self._mount = mounting_command(self._disk)
        self._undo: list[tuple[float, Callable[[], None]]] = []

    @property
    def can_fill(self) -> bool:
        """Return whether the disk can be filled."""
        return self._mount is not None

    def __enter__(self) -> Self:
        if self.can_fill:
            scratch = f'mkdir -p "{self._disk}/scratch" && exec "$@"'
            within = (*(self._mount or ()), "sh", "-c", scratch, "-")
        else:
            within = ()
        (self._disk / "scratch").mkdir()
        low = _WATERMARK_BYTES if self.watermark and self.can_fill else 0
        command = (sys.executable, "-m", "deploy.cli", "up", "--port", "0")
        options = ("--data", str(self._disk / "data"), "--model", self.checkpoint)
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*within, *command, *options],
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("APPA_")},
                    **ENVIRONMENT,
                    "APPA_DISK_LOW_BYTES": str(low),
                    CLOCK_VARIABLE: clock_text(
                        self.clock.epoch, self.clock.anchor, self.clock.speed
                    ),
                    "TMPDIR": str(self._disk / "scratch"),
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.recover()
        children = self._descendants()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def wait_ready(self, seconds: float) -> None:
        """Wait until all parts are ready.

        Raises:
            AppaError: If they are not in time.
        """
        end = time.monotonic() + seconds
        while not (found := _READY.search(self.log.read_text(errors="replace"))):
            if time.monotonic() > end or self.process.poll() is not None:
                log = self.log.read_text(errors="replace")[-2000:]
                raise AppaError(f"Expected the system to be ready within {seconds:.0f} s.\n{log}")
            time.sleep(0.1)
        self.url = found[1]

    @property
    def layout(self) -> Layout:
        """Return the data folder as the stack sees it."""
        return Layout(self._seen(self._disk) / "data")

    def _seen(self, path: Path) -> Path:
        root = Path(f"/proc/{self.process.pid}/root") if self.can_fill else Path("/")
        return root / path.relative_to("/")

    def redis(self) -> Redis:
        """Return a client of the broker."""
        path = self.layout.broker / "broker.sock"
        if not path.exists():  # its path would have been too long
            found = re.search(r"(\S+broker\.sock)", " ".join(self._part("broker")[0].cmdline()))
            path = self._seen(Path(found[1])) if found else path
        return Redis(unix_socket_path=str(path), decode_responses=True, socket_timeout=10)

    # -- faults
    def inject(self, fault: Fault) -> bool:
        """Inject a fault if its target runs; return whether it was injected."""
        with suppress(psutil.NoSuchProcess, RedisError, OSError):
            if self._inject(fault):
                self.injected.add(fault.kind)
                return True
        return False

    def _inject(self, fault: Fault) -> bool:
        match fault.kind:
            case FaultKind.KILL:
                return self._kill(fault)
            case FaultKind.KILL_CHILD:
                return self._kill_child(fault)
            case FaultKind.PAUSE | FaultKind.BROKER_PAUSE:
                return self._pause(fault.part or "broker", fault.seconds)
            case FaultKind.FULL_DISK:
                return self._fill(fault.seconds)
            case FaultKind.BROKER_KILL:
                found = self._part("broker")
                for process in found[:1]:
                    process.kill()
                return bool(found)
            case FaultKind.BROKER_CLIENTS:
                with self.redis() as client:
                    client.client_kill_filter(_type="normal", skipme=True)
                    client.client_kill_filter(_type="pubsub", skipme=True)
                return True

    def _kill(self, fault: Fault) -> bool:
        found = self._running(fault.part)
        for process in found if fault.whole else found[:1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return bool(found)

    def _kill_child(self, fault: Fault) -> bool:
        children = self._running(fault.part, 2)[1:]
        if children:
            children[int(fault.choice * len(children))].kill()
        return bool(children)

    def _pause(self, part: str, seconds: float) -> bool:
        found = self._part(part)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

        def resume() -> None:
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

        self._later(seconds, resume)
        return bool(found)

    def _fill(self, seconds: float) -> bool:
        if not self.can_fill:
            return False
        ballast = self._seen(self._disk) / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 512)
        self._later(seconds, lambda: ballast.unlink(missing_ok=True))
        return True

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + seconds, undo))

    def tend(self) -> None:
        """End faults whose duration has passed; call it a few times a second."""
        now = time.monotonic()
        for entry in [entry for entry in self._undo if entry[0] <= now]:
            self._undo.remove(entry)
            entry[1]()

    def recover(self) -> None:
        """Undo all lasting faults, the newest first."""
        while self._undo:
            self._undo.pop()[1]()

    # -- processes

    def _part(self, name: str) -> list[psutil.Process]:
        """Return the process of a part and those that it has started; none if it does not run."""
        words = set(PROCESSES.get(name, ())[1:])
        for process in psutil.Process(self.process.pid).children():
            wanted = words <= set(process.cmdline()) if words else process.name() == _BROKER
            if wanted and process.status() != psutil.STATUS_ZOMBIE:
                return [process, *process.children(recursive=True)]
        return []

    def _running(self, name: str, least: int = 1) -> list[psutil.Process]:
        """Return the processes of a part, or of the next running part if it is down."""
        first = PARTS.index(name)
        for part in (*PARTS[first:], *PARTS[:first]):
            if len(found := self._part(part)) >= least:
                return found
        return []

    def _descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
        return found
