"""Start our processes as forks of one that has their modules loaded.

Tests start hundreds of gateways and workers, and nearly all the processor time of a start goes into
imports. So the first start of each kind starts a server (`python -m tests.warm_start`) that imports
what this kind imports and has one thread (as `worker.zygote` does for decoding); it and all later
ones are forks of it, which take environment, arguments and log of their own and run the same
`__main__`. `appa up` and the commands that tests run start as they do for a user.
"""

import atexit
import gc
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
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO

__all__ = ["Started", "start_warm"]

REPOSITORY = Path(__file__).resolve().parents[1]
_CELERY = ("worker.process", "celery.apps.worker", "celery.bin.celery", "kombu.transport.redis")
_WORKER = ("deploy.commands.stack", "worker.settings", *_CELERY)
KINDS: dict[str, tuple[str, ...]] = {
    "gateway": ("service.app", "service.settings"),
    "stub": (*_CELERY, "worker.results.publication", "worker.tasks.attempt"),
    "scheduler": (*_WORKER, "worker.scheduler"),
    "sources": ("deploy.commands.stack", "worker.feeds.process"),
    "ingest": (*_WORKER, "worker.tasks.ingest", "celery.concurrency.prefork"),
    "gpu": (*_WORKER, "worker.tasks.assimilation"),
    "workers": (*_CELERY, "deploy.commands.workers"),
}
"""What processes of each kind import before they begin to work."""

_MESSAGE = 131_072  # bytes of a request at most; the environment is most of it


class Started:
    """A forked process, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._channel = channel

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        """Return the exit code, once it is told; the process stays a zombie until then."""
        if self.returncode is None:
            self._channel.settimeout(seconds)
            try:
                said = self._channel.recv(64)
            except (BlockingIOError, TimeoutError):
                return None
            self._channel.close()
            # Without an answer the server is gone, and its forks with it.
            self.returncode = int(said.removeprefix(b"code ") or -signal.SIGKILL)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Owner:
    """A running server of one kind."""

    def __init__(self, kind: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._control.setsockopt(socket.SOL_SOCKET, name, 2 * _MESSAGE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_start", str(theirs.fileno()), kind],
                # Libraries of linear algebra start threads when they are loaded, but for this.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._end)

    def start(self, request: dict[str, object], log: IO[bytes] | IO[str]) -> Started:
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            message = json.dumps(request).encode()
            socket.send_fds(self._control, [message], [log.fileno(), theirs.fileno()])
        said = channel.recv(64).decode()
        if not said.startswith("pid "):
            channel.close()
            raise RuntimeError("the process that forks others, or the fork, ended: see above")
        return Started(int(said.removeprefix("pid ")), channel)

    def _end(self) -> None:
        self._control.close()
        self._process.wait()


_owner = cache(_Owner)


def start_warm(
    kind: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes] | IO[str],
    *,
    session: bool = False,
) -> Started:
    """Run `python -m MODULE …` or `python FILE …` as a fork.

    Arguments:
        kind: One of `KINDS`.
        arguments: The module or the file, then what follows.
        environment: All of it.
        log: Takes what the process writes.
        session: Whether it gets a session of its own.
    """
    request = {"arguments": [*arguments], "environment": {**environment}, "session": session}
    return _owner(kind).start(request, log)


# -- the server


class _Fork(Exception):
    """Raised in a new child, up to where nothing of the server is left."""

    def __init__(self, asked: dict, log: int, reply: int) -> None:
        self.asked, self.log, self.reply = asked, log, reply


def _serve(control: socket.socket) -> None:
    """Fork until the owner closes `control`, then kill all children; raise `_Fork` in each."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    living: set[int] = set()
    while True:
        for key, _ in selector.select():
            if key.fileobj is control:
                message, given, _, _ = socket.recv_fds(control, _MESSAGE, 2)
                if not message:
                    for pid in living:
                        os.kill(pid, signal.SIGKILL)
                    return
                log, reply = given
                if not (pid := os.fork()):
                    raise _Fork(json.loads(message), log, reply)
                os.close(log)
                channel = socket.socket(fileno=reply)
                living.add(pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, channel))
            elif isinstance(key.fileobj, int):  # a child has ended: tell its code
                pid, channel = key.data
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert found is not None
                killed = found.si_code != os.CLD_EXITED
                with suppress(OSError):  # nobody waits for it
                    channel.send(f"code {-found.si_status if killed else found.si_status}".encode())
                selector.register(channel, selectors.EVENT_READ, pid)
            else:  # the owner knows, or has gone: nobody asks for this number any more
                selector.unregister(key.fileobj)
                key.fileobj.close()
                os.waitpid(key.data, 0)
                living.discard(key.data)


def _become(asked: dict, log: int, reply: int) -> None:
    """Turn this child into the process asked for."""
    if asked["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.write(reply, f"pid {os.getpid()}".encode())  # it has its session: it may be killed
    os.closerange(3, max(int(name) for name in os.listdir("/dev/fd")) + 1)
    os.environ.clear()
    os.environ.update(asked["environment"])
    name, *rest = asked["arguments"]
    sys.argv = [name, *rest]
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _threads() -> int:
    """Count the threads of this process, but not jemalloc's own, which it starts again in a fork."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return len(names) - names.count("jemalloc_bg_thd")


def _main(descriptor: int, kind: str) -> None:
    # Ctrl-C, or SIGTERM to the whole group: the owner ends, which closes `control`, and forks are killed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for name in KINDS[kind]:
        import_module(name)
    if (threads := _threads()) != 1:
        raise RuntimeError(
            f"a module of {KINDS[kind]} starts {threads - 1} threads: forks have none"
        )
    gc.collect()
    gc.freeze()
    try:
        _serve(socket.socket(fileno=descriptor))
    except _Fork as fork:
        found = fork.asked, fork.log, fork.reply
    else:
        return
    _become(*found)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
