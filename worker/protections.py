"""Test which protections of decoding are active on this machine, by attempting what they prevent.

A real decoding child attempts what an exploited library would: to open a key file beside its input,
to write there, to reach a server over TCP and over a unix socket, to start a program, to inspect and
signal the process that owns it. The report is based on the kernel's responses, not on its version.
"""

import os
import resource
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.sandbox import Limits, run_limited, scratch_prefix

__all__ = ["Protection", "attempts", "protections"]


@dataclass(frozen=True)
class Protection:
    """A protection of the machine against the files it decodes.

    Attributes:
        name: What is protected.
        active: Whether the child's attempt was denied.
        means: Kernel mechanism that provides it, to be enabled if inactive.
    """

    name: str
    active: bool
    means: str


_LANDLOCK = "Landlock (CONFIG_SECURITY_LANDLOCK, and `landlock` in the boot option lsm=)"
_SECCOMP = "seccomp filters (CONFIG_SECCOMP_FILTER; x86_64 or aarch64)"
_MEANS = {
    "memory, time and size limits": "resource limits of the kernel",
    "reading other files": _LANDLOCK,
    "writing other files": _LANDLOCK,
    "unix sockets": _SECCOMP,
    "network": f"{_SECCOMP}, or network namespaces (user.max_user_namespaces > 0)",
    "starting programs": _SECCOMP,
    "other processes": f"{_LANDLOCK} and {_SECCOMP}",
}


def protections() -> list[Protection]:
    """Return each protection and whether it is active, as a decoding child finds it.

    Raises:
        AppaError: If no child can be started.
    """
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("probe")) as folder:
        secret = Path(folder) / "keys.json"
        secret.write_text("{}")
        with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
            unix.bind(f"{folder}/broker.sock")
            tcp.bind(("127.0.0.1", 0))
            unix.listen()
            tcp.listen()
            where = (str(secret), f"{folder}/broker.sock", tcp.getsockname()[1], os.getpid())
            done = run_limited(attempts, *where, limits=Limits(wall_seconds=60.0))
    return [Protection(name, not done[name], means) for name, means in _MEANS.items()]


def attempts(secret: str, unix_socket: str, port: int, process: int) -> dict[str, bool]:
    """Attempt, in a decoding child, what it must not be able to do; return which attempts succeeded.

    Arguments:
        secret: A file that is not among the child's inputs.
        unix_socket: Address of a server on this machine.
        port: Port of a server at 127.0.0.1.
        process: Id of a process of the same user outside the sandbox.
    """
    return {
        "memory, time and size limits": resource.RLIM_INFINITY
        in (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU)),
        "reading other files": _done(lambda: Path(secret).read_bytes()),
        "writing other files": _done(lambda: Path(secret).with_name("new").touch())
        or _done(lambda: Path(secret).open("r+b").close())
        or _done(lambda: Path(secret).unlink()),
        "unix sockets": _done(lambda: _connect(socket.AF_UNIX, unix_socket)),
        "network": _done(lambda: _connect(socket.AF_INET, ("127.0.0.1", port))),
        "starting programs": _done(_start_program),
        "other processes": _done(lambda: Path(f"/proc/{process}/environ").read_bytes())
        or _done(lambda: os.kill(process, 0))
        or _done(lambda: os.kill(process, signal.SIGCONT))
        or _done(lambda: resource.prlimit(process, resource.RLIMIT_NOFILE)),
    }


def _done(attempt: Callable[[], object]) -> bool:
    with suppress(OSError):
        attempt()
        return True
    return False


def _connect(family: int, address: str | tuple[str, int]) -> None:
    with socket.socket(family) as client:
        client.settimeout(5.0)
        client.connect(address)


def _start_program() -> None:
    """Fork and execute a program that exists on every machine.

    Raises:
        PermissionError: If that was refused.
    """
    if not (child := os.fork()):
        with suppress(OSError):
            os.execv("/bin/sh", ["sh", "-c", "exit 0"])  # noqa: S606 (must be denied)
        os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise PermissionError
