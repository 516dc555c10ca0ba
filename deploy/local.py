"""Run the one-machine stack: embedded broker, gateway, workers and scheduler under one supervisor."""

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx
from redis.exceptions import RedisError
from rich.console import Console

from deploy.supervisor import (
    PROCESSES,
    Process,
    StackLog,
    Supervisor,
    broker_command,
    python_command,
)
from model.domain.errors import ConfigurationError
from worker.contract.layout import Layout
from worker.contract.queues import QUEUES
from worker.contract.store import Stores, open_stores
from worker.scheduler import SCHEDULER

__all__ = ["LocalStack", "StackOptions", "free_port"]

_SOCKET_PATH_LIMIT = 100  # bytes; the kernel allows 107


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of `host` on which nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class StackOptions:
    """Options of `appa up`.

    Attributes:
        data: Folder of everything the system keeps.
        host: Address of the gateway.
        port: Port of the gateway; 0 takes a free one.
        models: Checkpoints to load; the first is the default; empty for the worker's own choice.
        redis_url: An existing server; None starts the embedded one.
        quiet: Log to the file alone.
        copies: How many processes of a part run, by its name; one of those that are not named.
        environment: Variables for all processes, besides those of this one.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    models: tuple[str, ...] = ()
    redis_url: str | None = None
    quiet: bool = False
    copies: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


class LocalStack:
    """Run all processes of one installation on this machine.

    Use it as a context manager: entering starts them, leaving stops them.

    Arguments:
        options: What to run.
        console: Where lines go besides the log file.
    """

    def __init__(self, options: StackOptions, console: Console | None = None) -> None:
        self.options = options
        self.layout = Layout(options.data.resolve()).create()
        self.port = options.port or free_port(options.host)
        self.url = f"http://{options.host}:{self.port}"
        self._socket_folder: Path | None = None
        self.redis_url = options.redis_url or f"unix://{self._socket()}"
        self.log = StackLog(self.layout.logs / "appa.log", None if options.quiet else console)
        self.supervisor = Supervisor(self._parts(), self._environment(), self.log.write)
        self.stopping = threading.Event()

    # -- what is run

    def _socket(self) -> Path:
        path = self.layout.broker / "broker.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="appa-"))
            path = self._socket_folder / "broker.sock"
        return path

    def _parts(self) -> list[Process]:
        own = [
            Process(name if i == 0 else f"{name}-{i + 1}", python_command(command))
            for name, command in PROCESSES.items()
            for i in range(self.options.copies.get(name, 1))
        ]
        if self.options.redis_url:
            return own
        path = Path(self.redis_url.removeprefix("unix://"))
        return [Process("broker", broker_command(self.layout.broker, path)), *own]

    def _environment(self) -> dict[str, str]:
        models = {"APPA_MODELS": ",".join(self.options.models)} if self.options.models else {}
        return {
            "PYTHONUNBUFFERED": "1",
            "TYPER_STANDARD_TRACEBACK": "1",  # a frame of boxes makes a log unreadable
            **os.environ,
            **self.options.environment,
            "APPA_REDIS_URL": self.redis_url,
            "APPA_DATA_DIR": str(self.layout.root),
            "APPA_HOST": self.options.host,
            "APPA_PORT": str(self.port),
            **models,
        }

    # -- life

    def __enter__(self) -> "LocalStack":
        self._lock_data()
        if not self.options.redis_url:
            self.supervisor.start("broker")
        self.stores = open_stores(self.redis_url, os.environ.get("APPA_REDIS_PREFIX", "appa"))
        self.supervisor.start_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.log.write("appa", "stopping")
        self.supervisor.stop()
        self.stores.redis.close()
        self.log.write("appa", "stopped")
        self.log.close()
        self._lock.close()
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def run(self, ready_seconds: float = 300.0) -> None:
        """Wait until all is ready, log it, and restart what ends until asked to stop."""
        with _signals(self.stopping):
            started = time.monotonic()
            if self.wait_ready(ready_seconds):
                took = time.monotonic() - started
                self.log.write("appa", f"ready in {took:.1f} s: {self.url}  (API: {self.url}/docs)")
            while not self.stopping.wait(0.2):
                self.supervisor.tend()

    def wait_ready(self, seconds: float) -> bool:
        """Wait for the gateway and a ready worker of each queue; return False when time ran out."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stopping.wait(0.1):
            self.supervisor.tend()
            if self._gateway_answers() and _workers_ready(self.stores):
                return True
        if not self.stopping.is_set():
            self.log.write("appa", f"not ready after {seconds:.0f} s; see the lines above")
        return False

    def _gateway_answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/live", timeout=2).is_success
        except httpx.TransportError:
            return False

    def _lock_data(self) -> None:
        self._lock = (self.layout.root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"Expected a data folder that no other `appa up` uses; '{self.layout.root}' is in "
                "use. Stop that one or give another --data."
            ) from None


def _workers_ready(stores: Stores) -> bool:
    try:
        return all(stores.workers.ready(queue) for queue in (*QUEUES, SCHEDULER))
    except (RedisError, OSError):
        return False


@contextmanager
def _signals(stopping: threading.Event) -> Iterator[None]:
    """Set `stopping` on Ctrl-C and SIGTERM; outside the main thread nothing is changed."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    before = {}
    with suppress(ValueError):
        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
