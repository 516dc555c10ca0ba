"""Run a fork server with the decoders imported, which forks a limited child for each request.

A new interpreter needs a second to import the decoders; a fork of one that has done so needs
milliseconds. The server (`python -m worker.fork_server`) is started by its owner, the process that needs
children, at the first request, and ends with it. It has one thread, no connection but the socket to
its owner, an environment without secrets, and never opens untrusted files: each request is executed by
a separate child (for its limits see `worker.sandbox`), preferably a spare one that was forked in advance
and has been warmed up. The server enforces wall-clock limits, and kills all processes of a child's
session when the child has ended.

Each request comes with a socket for the reply. If that socket is closed the request is abandoned and
its child killed; a server that dies takes its children with it and is restarted on demand.
"""

import atexit
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from worker.confinement import close_network, die_with_parent
from worker.contract.loading import loading

__all__ = ["Ended", "ForkServer", "ServerDied", "end_shared_server", "shared_server"]

_PRELOADED = ("pyarrow.compute", "worker.sandbox", "worker.observations.decoders.decode")
_WARMED = "worker.observations.decoders.bufr.warm"
_MESSAGE = 65_536  # maximum size of a request or reply in bytes
CANNOT_START = 75  # EX_TEMPFAIL


class ServerDied(Exception):
    """The server ended before the child did.

    Attributes:
        started: Whether it had started to serve; if not, its imports failed.
    """

    def __init__(self, started: bool) -> None:
        super().__init__("the process that forks the decoding processes ended")
        self.started = started


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: Exit code, or minus the signal that ended it.
        late: Whether it exceeded its wall-clock limit.
        cpu_seconds: Processor time used.
        peak_bytes: Peak resident memory, including memory shared with the server.
    """

    code: int
    late: bool
    cpu_seconds: float
    peak_bytes: int


# -- the owner's side


class ForkServer:
    """A running fork server, to run requests in children; safe to use from several threads.

    Arguments:
        environment: The whole environment of the server.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.owner = os.getpid()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        spawned = threading.Event()
        # `die_with_parent` binds it to the thread that starts it: one that only waits.
        keeper = threading.Thread(
            target=self._keep, args=(theirs, spawned), name="fork-server", daemon=True
        )
        keeper.start()
        spawned.wait()
        if self._error is not None:
            self._control.close()
            raise self._error

    def _keep(self, theirs: socket.socket, spawned: threading.Event) -> None:
        options = [str(theirs.fileno()), str(os.getpid())]
        command = [sys.executable, "-m", "worker.fork_server", *options]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=self.environment,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except OSError as error:
            self._error = error
            return
        finally:
            spawned.set()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Return the process id of the server."""
        return 0 if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Return whether the server runs and belongs to this process."""
        running = self._process is not None and self._process.returncode is None
        return self.owner == os.getpid() and running

    def run(self, folder: Path, wall_seconds: float) -> Ended:
        """Execute the request in `folder` in a child; return how it ended.

        Raises:
            ServerDied: If the server ended first.
            OSError: If no process can be created.
        """
        request = json.dumps({"folder": str(folder), "wall_seconds": wall_seconds}).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            try:
                with theirs:
                    socket.send_fds(self._control, [request], [theirs.fileno()])
                answer = ours.recv(_MESSAGE)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
        if not answer:
            code = 1 if self._process is None else self._process.wait()
            raise ServerDied(started=code != 1)
        found = json.loads(answer)
        if "errno" in found:
            raise OSError(found["errno"], os.strerror(found["errno"]))
        return Ended(**found)

    def close(self) -> None:
        """End the server and its children."""
        self._control.close()


_lock = threading.Lock()
_shared: ForkServer | None = None


def shared_server(environment: Mapping[str, str]) -> ForkServer:
    """Return the server of this process; start it if there is none with this environment."""
    global _shared
    with _lock:
        if _shared is None or not _shared.alive() or _shared.environment != environment:
            if _shared is not None:
                _shared.close()
            _shared = ForkServer(environment)
        return _shared


def end_shared_server() -> None:
    """End the server of this process, if it has one; the next request starts another.

    No request may be running.
    """
    global _shared
    with _lock:
        if _shared is not None:
            _shared.close()
            _shared = None


def _forget() -> None:
    """Drop the inherited server in a newly forked process; it belongs to the parent."""
    global _shared, _lock
    if _shared is not None:
        _shared.close()
    _shared, _lock = None, threading.Lock()


def _close() -> None:
    if _shared is not None and _shared.owner == os.getpid():
        _shared.close()


os.register_at_fork(after_in_child=_forget)
atexit.register(_close)

# -- the server's side


@dataclass
class _Child:
    """A running child.

    Attributes:
        pid: Its process id, and its session id after setsid.
        reply: Socket for the reply when it ends.
        due: When its time is over (monotonic seconds).
        late: Whether it was killed because its time was over.
    """

    pid: int
    reply: socket.socket
    due: float
    late: bool = False

    def kill(self) -> None:
        """Kill it and every process it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)
        self.kill_session()

    def kill_session(self) -> None:
        """Kill every process of its session; it must not have been reaped yet."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class _Spare:
    """A spare child: its process, and the socket on which it receives the folder of its request."""

    pid: int
    channel: socket.socket


def _close_all_but(kept: int) -> None:
    """Close all descriptors but the standard ones and `kept`."""
    end = max((int(name) for name in os.listdir("/dev/fd")), default=1_023) + 1
    if kept >= 3:
        os.closerange(3, kept)
    os.closerange(max(kept + 1, 3), end)


class _Server:
    """Fork a child for each request that comes over `control`, until that is closed."""

    def __init__(
        self,
        control: socket.socket,
        carry_out: Callable[[Path], None],
        rehearse: Callable[[], object],
    ) -> None:
        self.control = control
        self.carry_out = carry_out
        self.rehearse = rehearse
        self.spare: _Spare | None = None
        self.children: dict[int, _Child] = {}
        self.selector = selectors.DefaultSelector()
        self.woken, waker = os.pipe()
        for end in (self.woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(control, selectors.EVENT_READ, self._request)
        self.selector.register(self.woken, selectors.EVENT_READ, self._wake)
        self.open = True
        self.pid = os.getpid()

    def serve(self) -> None:
        """Serve until the owner closes the socket or is gone; then kill all children."""
        while self.open:
            self._keep_spare()
            for key, _ in self.selector.select(self._pause()):
                key.data()
            self._reap()
            self._expire()
        for child in self.children.values():
            child.kill()

    def _pause(self) -> float | None:
        due = [child.due for child in self.children.values() if not child.late]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 4_096)

    def _request(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self.control, _MESSAGE, 1)
        if not data:
            self.open = False
            return
        reply = socket.socket(fileno=descriptors[0])
        asked = json.loads(data)
        try:
            pid = self._use_spare(asked["folder"]) or self._fork(asked["folder"])
        except OSError as error:
            self._answer(reply, {"errno": error.errno})
            return
        child = _Child(pid, reply, time.monotonic() + asked["wall_seconds"])
        self.children[pid] = child
        self.selector.register(reply, selectors.EVENT_READ, child.kill)

    def _fork(self, folder: str) -> int:
        pid = os.fork()
        if pid == 0:
            self._be_child(lambda: folder)
        return pid

    def _keep_spare(self) -> None:
        """Fork a spare child while nothing else runs."""
        if self.spare is not None or self.children:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError:  # retried at the next request
                ours.close()
                return
            if pid == 0:
                self._be_child(lambda: self._told_folder(theirs), kept=theirs.fileno())
        self.spare = _Spare(pid, ours)

    def _told_folder(self, channel: socket.socket) -> str:
        """Warm up, so that memory pages written by decoding are copied already; then wait."""
        self.rehearse()
        return channel.recv(_MESSAGE).decode()

    def _use_spare(self, folder: str) -> int | None:
        """Pass the request to the spare child and return its pid; None if there is none."""
        spare, self.spare = self.spare, None
        if spare is None:
            return None
        with spare.channel:
            try:
                spare.channel.send(folder.encode())
            except (BrokenPipeError, ConnectionResetError):  # it was killed
                os.waitpid(spare.pid, 0)
                return None
        return spare.pid

    def _be_child(self, folder_of: Callable[[], str], kept: int = -1) -> None:
        """Run as a child without the server's sockets and handlers; never return."""
        code = 1
        try:
            die_with_parent(self.pid, signal.SIGKILL)
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _close_all_but(kept)
            folder = folder_of()
            if not folder:  # the server has ended
                os._exit(0)
            if kept >= 0:
                os.close(kept)
            self._own_streams(Path(folder))
            self.carry_out(Path(folder))
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # log it as the interpreter would, then exit
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def _own_streams(folder: Path) -> None:
        try:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:  # disk full, or the request was abandoned
            os._exit(CANNOT_START)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def _reap(self) -> None:
        if self.spare is not None and os.waitpid(self.spare.pid, os.WNOHANG)[0]:
            self.spare.channel.close()  # it was killed
            self.spare = None
        for child in list(self.children.values()):
            ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            child.kill_session()  # before its pid can be reused
            _, status, usage = os.wait4(child.pid, 0)
            del self.children[child.pid]
            self.selector.unregister(child.reply)
            self._answer(
                child.reply,
                {
                    "code": os.waitstatus_to_exitcode(status),
                    "late": child.late,
                    "cpu_seconds": usage.ru_utime + usage.ru_stime,
                    "peak_bytes": 1024 * usage.ru_maxrss,
                },
            )

    def _expire(self) -> None:
        now = time.monotonic()
        for child in self.children.values():
            if not child.late and now >= child.due:
                child.late = True
                child.kill()

    @staticmethod
    def _answer(reply: socket.socket, answer: dict[str, Any]) -> None:
        with reply, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            reply.send(json.dumps(answer).encode())


@contextlib.contextmanager
def _without_pandas() -> Iterator[None]:
    """Present a pandas that is too old to pyarrow, so that it never imports pandas.

    pyarrow imports pandas only to check for its types, which would add a quarter to the memory mapped
    by each fork. Decoders that use pandas import it themselves and pass arrays to pyarrow.
    """
    old = ModuleType("pandas")
    old.__version__ = "0"  # type: ignore[attr-defined]
    sys.modules["pandas"] = old
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pa.array(np.zeros(1))
            yield
    finally:
        del sys.modules["pandas"]


def _tell_faults(prepare: Callable[[], object]) -> None:
    """Call `prepare` and ignore errors, for example of an extension; children report them when needed."""
    try:
        prepare()
    except Exception:
        sys.excepthook(*sys.exc_info())


def _main(descriptor: int, parent: int) -> None:
    close_network()  # children inherit it
    die_with_parent(parent, signal.SIGKILL)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    with loading(), _without_pandas():
        for name in _PRELOADED:
            import_module(name)
        warm = import_module(_WARMED)
        _tell_faults(warm.warm_up)
    carry_out = import_module("worker.sandbox").carry_out
    _Server(control, carry_out, partial(_tell_faults, warm.rehearse)).serve()


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
