"""Start processes as forks of one that has their modules loaded.

Imports take most of the processor time of a start, and modules most of the memory of an idle process.
`Preloaded` runs a single-threaded fork server (`python -m deploy.preloaded`) that imports the modules
common to several processes, as `worker.fork_server` does for decoding. Each process it starts is a fork
with its own environment, arguments and output, which runs its module as `__main__` and shares the
memory of the imported modules copy-on-write. In `ps` they look like any `python -m …`. What only later
processes need is imported when they are started, while the first ones already do their own imports.

The server ends when its owner closes it or dies; it then sends its forks the signal `ending`.
"""

import ctypes
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from worker.confinement import die_with_parent
from worker.contract.loading import loading

__all__ = ["Fork", "MODULES", "Preloaded", "WORKER_MODULES"]

WORKER_MODULES = (
    "deploy.commands.stack",
    "worker.process",
    "worker.settings",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.fixups.django",
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.backends.base",
    "celery.events.receiver",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "kombu.transport.redis",
)
"""What every worker process imports, whatever its queue."""

_PREFORK_MODULES = (
    "celery.concurrency.prefork",
    "billiard.popen_fork",
    "billiard.sharedctypes",
    "billiard.synchronize",
    "cffi.cparser",
)
"""What Celery imports when its workers fork, and billiard in each of their children."""

MODULES: dict[str, tuple[str, ...]] = {
    "gateway": (
        "service.app",
        "service.settings",
        "uvicorn.loops.uvloop",
        "uvicorn.lifespan.on",
        "anyio._backends._asyncio",
    ),
    "ingest": (*WORKER_MODULES, "worker.tasks.ingest", *_PREFORK_MODULES),
    "model": (*WORKER_MODULES, "worker.tasks.assimilation"),
    "scheduler": (*WORKER_MODULES, "worker.scheduler"),
    "sources": ("deploy.commands.stack", "worker.feeds.process"),
}
"""What our processes import before they begin to work, by name as in `deploy.local.PROCESSES`.

What a fork imports by itself it does not share, and in doing so it writes to pages it shared.
"""

_MESSAGE = 131_072  # maximum size of a request in bytes; most of it is the environment
_LOADING = 240.0  # seconds to import modules: on a busy machine parts that start alone take longer
_PATIENCE = 60.0  # seconds to end


class Fork:
    """A forked process, with the part of the interface of `subprocess.Popen` that we use.

    Attributes:
        pid: Process id; it stays a zombie, so the id is not reused, until the exit code is read.
        returncode: As in `subprocess.Popen`; None while the process is not known to have ended.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._channel = channel
        self._process = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: After `timeout` seconds.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        """Return the exit code once the server has reported it; the process is a zombie until then."""
        if self.returncode is not None:
            return self.returncode
        self._channel.settimeout(seconds)
        try:
            said = self._channel.recv(64)
        except (BlockingIOError, TimeoutError):
            return None
        except ConnectionResetError:
            said = b""
        if said:
            self.returncode = int(said.removeprefix(b"code "))
        elif self._has_ended(seconds):
            # The server had gone: it sent this process SIGTERM, and its exit code is lost.
            self.returncode = -signal.SIGTERM
        else:
            return None
        self._channel.close()
        os.close(self._process)
        return self.returncode

    def _has_ended(self, seconds: float | None) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """A running fork server. It imports its modules while the caller continues.

    Arguments:
        modules: Modules to import.
        environment: Its whole environment; libraries of linear algebra are limited to one thread,
            because threads started at import do not survive a fork.
        ending: Signal to the forks when the server ends.
        output: File descriptor for its own stdout and stderr; None shares the caller's stderr.
    """

    def __init__(
        self,
        modules: Sequence[str],
        environment: Mapping[str, str],
        *,
        ending: signal.Signals = signal.SIGTERM,
        output: IO[Any] | int | None = None,
    ) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._control.setsockopt(socket.SOL_SOCKET, name, 2 * _MESSAGE)
        options = [str(theirs.fileno()), str(int(ending)), *modules]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deploy.preloaded", *options],
                env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if output is None else output,
                stderr=None if output is None else subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the process id of the server."""
        return self._process.pid

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: IO[Any] | int,
        *,
        modules: Sequence[str] = (),
        session: bool = False,
        umask: int | None = None,
    ) -> Fork:
        """Run `python -m MODULE …` or `python FILE …` as a fork, once the server has loaded.

        Arguments:
            arguments: The module or the file, then what follows.
            environment: The whole environment of the process.
            output: File descriptor for its stdout and stderr.
            modules: Modules that the server imports before it forks, if it has not yet.
            session: Whether it starts a new session (setsid).
            umask: Its umask; None for the server's.

        Raises:
            ChildProcessError: If the server has ended, or cannot fork.
        """
        request: dict[str, Any] = {"arguments": [*arguments], "environment": {**environment}}
        request |= {"modules": [*modules], "session": session, "umask": umask}
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = output if isinstance(output, int) else output.fileno()
        channel.settimeout(_LOADING)
        try:
            with theirs:
                message = json.dumps(request).encode()
                socket.send_fds(self._control, [message], [number, theirs.fileno()])
            return Fork(int(channel.recv(64).decode().removeprefix("pid ")), channel)
        except (OSError, ValueError) as error:  # it ended, hangs, or cannot take the request
            channel.close()
            raise ChildProcessError("The process that forks others does not answer.") from error

    @property
    def ended(self) -> bool:
        """Whether the server has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the server, and with it its forks."""
        self._control.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# -- the server's side


class _InChild(Exception):
    """Raised in a new child to unwind the stack of the server before the child runs its module."""

    def __init__(self, asked: dict[str, Any], output: int, reply: int) -> None:
        self.asked, self.output, self.reply = asked, output, reply


class _Server:
    """Fork for each request that comes over `control`, until that is closed."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: set[int] = set()
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)

    def serve(self, ending: int) -> None:
        """Serve until the owner is gone; send `ending` to all children then.

        Raises:
            _InChild: In each child.
        """
        with self.selector:  # closed in a child, too, before its descriptor is reused
            while self._serve_once():
                pass
            for pid in self.children:
                os.kill(pid, ending)

    def _serve_once(self) -> bool:
        """Handle what has happened; return False once the owner is gone."""
        for key, _ in self.selector.select():
            if key.fileobj is self.control:
                if not self._request():
                    return False
            elif isinstance(key.fileobj, int):
                self._send_exit_code(key.fileobj, *key.data)
            else:  # the owner has read the exit code or is gone: reap the zombie
                self.selector.unregister(key.fileobj)
                cast(socket.socket, key.fileobj).close()
                os.waitpid(key.data, 0)
                self.children.discard(key.data)
        return True

    def _request(self) -> bool:
        message, given, _, _ = socket.recv_fds(self.control, _MESSAGE, 2)
        if not message:
            return False
        output, reply = given
        channel = socket.socket(fileno=reply)
        asked = json.loads(message)
        _load(asked["modules"])
        try:
            pid = os.fork()
        except OSError:  # no memory or process table for it now
            pid = -1
        if pid == 0:
            raise _InChild(asked, output, channel.detach())
        os.close(output)
        if pid < 0:
            channel.close()
            return True
        self.children.add(pid)
        self.selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, channel))
        return True

    def _send_exit_code(self, descriptor: int, pid: int, channel: socket.socket) -> None:
        """Send the exit code of a child to the owner; it stays a zombie until the owner has read it."""
        self.selector.unregister(descriptor)
        os.close(descriptor)
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if found is not None:  # always: only WNOHANG returns None
            killed = found.si_code != os.CLD_EXITED
            with suppress(OSError):  # the owner does not wait for it any more
                channel.send(f"code {-found.si_status if killed else found.si_status}".encode())
        self.selector.register(channel, selectors.EVENT_READ, pid)


def _become(asked: dict[str, Any], output: int, reply: int, server: int, ending: int) -> None:
    """Turn this child into the requested process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(server, ending)
    if asked["session"]:
        os.setsid()
    if asked["umask"] is not None:
        os.umask(asked["umask"])
    for stream in (1, 2):
        os.dup2(output, stream)
    os.write(reply, f"pid {os.getpid()}".encode())  # after setsid: it may be killed
    os.closerange(3, max(int(name) for name in os.listdir("/dev/fd")) + 1)
    os.environ.clear()
    os.environ.update(asked["environment"])
    name, *rest = sys.argv = list(asked["arguments"])
    if name.endswith(".py"):
        _show_command([sys.executable, name, *rest])
        runpy.run_path(name, run_name="__main__")
    else:
        _show_command([sys.executable, "-m", name, *rest])
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _show_command(command: Sequence[str]) -> None:
    """Have `ps` show this command, truncated to the length of the server's own.

    The kernel reads arguments where they lay at the start of the program: fields 48 and 49 of proc(5).
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"".join(os.fsencode(word) + b"\0" for word in command)[: end - start]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _threads() -> int:
    """Count the threads of this process, without that of jemalloc, which restarts it after a fork."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return len(names) - names.count("jemalloc_bg_thd")


def _load(modules: Sequence[str]) -> None:
    """Import modules; garbage collection would copy the pages they share with forks."""
    new = [name for name in modules if name not in sys.modules]
    if not new:
        return
    with loading():
        for name in new:
            import_module(name)
    if (threads := _threads()) != 1:
        raise RuntimeError(f"a module of {new} starts {threads - 1} threads: forks have none")


def _main(descriptor: int, ending: int, modules: Sequence[str]) -> None:
    # Ctrl-C, or SIGTERM to the whole group: the owner ends, which closes `control`.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _load(modules)
    own = os.getpid()
    try:
        _Server(socket.socket(fileno=descriptor)).serve(ending)
    except _InChild as child:
        # Keep only these: the exception refers to the server's sockets, which must not be closed later,
        # when their descriptors have been reused.
        found = child.asked, child.output, child.reply
    else:
        return
    _become(*found, own, ending)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
