"""Run a function in a limited child process, and determine why one ended early.

Untrusted files are parsed only here. The child is forked by a fork server (`worker.fork_server`), not by
this process, which may hold threads, secrets and a GPU. It has its own session, limits on memory,
processor and wall-clock time, no core dump, an environment without the parent's secrets and a private
folder that is removed afterwards. It can open the program's files, its inputs and that folder, and has
no network (`worker.confinement`). Results are returned as Arrow and JSON, never as pickles, because the
output of the child is not trusted.

A child may end early because of the file or because of the machine. Its own limits cause a failed
allocation, SIGXCPU, SIGALRM or a crash, never SIGKILL: that signal comes from outside (the kernel's
OOM killer, a person). A child that exceeded its wall-clock time but used little processor time was
delayed by the machine. Full disks and failing devices also count as faults of the machine.
"""

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from model.domain.errors import AppaError, DecodeError, StorageError
from worker.confinement import confine
from worker.contract.disk import disk_errors
from worker.fork_server import CANNOT_START, Ended, ServerDied, shared_server

__all__ = [
    "Interrupted",
    "Limits",
    "is_our_fault",
    "memory_share",
    "per_file_limits",
    "carry_out",
    "run_limited",
    "scratch_prefix",
    "sweep_scratch",
    "unicode_json",
    "warm_up",
]

_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ")
_LEAN_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Arrow's own memory pools reserve far more address space than they use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    # A process with a second thread, even one of the allocator, is not safe to fork.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_MEMORY_WORDS = ("MemoryError", "bad_alloc", "Cannot allocate", "out of memory", "malloc")
_KEPT_LOG = 4_096
_FROM_OUTSIDE = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
)
_OURS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE,
        errno.ENFILE, errno.EAGAIN,
    }
)  # fmt: skip
_MODULES = (".py", ".pyc", ".so")
_OUR_FAULT = CANNOT_START
"""Exit code of a child that met an error of `_OURS`."""
_BUSY = 0.5
"""Least ratio of processor to wall-clock time of a child that was not delayed by the machine."""
_LARGE = 0.5
"""Share of its memory limit above which the file may have caused the death of a child."""


_SCRATCH = re.compile(r"appa-[a-z]+-(?P<process>[0-9]+)-\w+")


def scratch_prefix(what: str) -> str:
    """Return the beginning of the name of a temporary folder that belongs to this process."""
    return f"appa-{what}-{os.getpid()}-"


def sweep_scratch(folder: str | None = None) -> int:
    """Remove temporary folders of our dead processes; return their number.

    Arguments:
        folder: Where they are; None for the system's folder of temporary files.
    """
    removed = 0
    for path in Path(folder or tempfile.gettempdir()).glob("appa-*"):
        found = _SCRATCH.fullmatch(path.name)
        with contextlib.suppress(OSError):  # removed by another sweep
            if found and path.stat().st_uid == os.geteuid() and not _lives(int(found["process"])):
                shutil.rmtree(path)
                removed += 1
    return removed


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Interrupted(DecodeError):
    """A child was killed from outside, or delayed, because of this machine and not of the file.

    The context holds `large`, whether it used so much memory that the kernel may have killed it because
    of the file, and `again`, whether an immediate retry may succeed.
    """

    code = "decoding_interrupted"
    retryable = True


@dataclass(frozen=True)
class Limits:
    """Bounds of a child process.

    Attributes:
        address_space: Bytes of virtual memory, including 0.7 GB for libraries.
        cpu_seconds: Processor time.
        wall_seconds: Wall-clock time.
        file_bytes: Maximum size of any file it writes.
        temp_dir: Parent of its private folder; None for the system's temporary folder.
    """

    address_space: int = 3_000_000_000
    cpu_seconds: int = 120
    wall_seconds: float = 300.0
    file_bytes: int = 8_000_000_000
    temp_dir: str | None = None


def run_limited(
    function: Callable[..., Any],
    *args: Any,
    limits: Limits | None = None,
    reads: Sequence[str | Path] = (),
    writes: Sequence[str | Path] = (),
) -> Any:
    """Return `function(*args)`, computed in a limited child process.

    Arguments:
        function: A function at the top level of a module.
        args: Picklable.
        limits: Bounds.
        reads: Files, and folders with their content, that the function may read, in addition to the
            files of the program.
        writes: Files and folders that it may also change.

    Returns:
        The result of the function: a JSON value, an Arrow table, or a tuple (table, JSON value).

    Raises:
        DecodeError: With `reason` `timeout`, `out_of_memory` or `crashed` in its context, or with
            the child's own reason if it raised a `DecodeError`.
        Interrupted: If the child was killed from outside, or delayed by a busy machine.
        StorageError: If the child met a full disk or a failing device.
        OSError: If it cannot be started, for example because the disk is full.
        AppaError: Any other error the function raised.
    """
    limits = limits or Limits()
    folder = Path(tempfile.mkdtemp(prefix=scratch_prefix("limited"), dir=limits.temp_dir))
    try:
        paths = [path or os.getcwd() for path in sys.path]
        allowed = [[os.path.abspath(path) for path in some] for some in (reads, writes)]
        called = (function.__module__, function.__qualname__, args)
        request = (*called, asdict(limits), paths, *allowed)
        (folder / "request").write_bytes(pickle.dumps(request))
        return _result(folder, _wait(folder, limits), limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT or k[:8] == "ECCODES_"}
    return {**kept, **_LEAN_ENVIRONMENT, "PYTHONPATH": _program_path()}


def _program_path() -> str:
    """Return the module search path of this program, fixed at the first call."""
    global _known_path
    _known_path = _known_path or os.pathsep.join(p or os.getcwd() for p in sys.path)
    return _known_path


_known_path = ""


def _wait(folder: Path, limits: Limits) -> Ended:
    """Run the child until it ends or its time is over."""
    try:
        return shared_server(_environment()).run(folder, limits.wall_seconds)
    except ServerDied as died:
        if not died.started:
            raise StorageError(
                "Expected the process that forks decoding processes to start; it ended at once. "
                "The program was replaced or is incomplete: restart the worker."
            ) from died
        raise Interrupted(
            "Expected decoding to run to its end; the process that forks decoding processes was "
            "ended from outside. It can be tried again.",
            reason="crashed",
            large=False,
            again=True,
        ) from died


def warm_up() -> None:
    """Start the fork server, so that the first request need not wait for it."""
    shared_server(_environment())


def _result(folder: Path, end: Ended, limits: Limits) -> Any:
    answer = folder / "result.json"
    if not end.late and answer.exists():
        found = unicode_json(answer.read_text())
        if error := found.get("error"):
            kind = DecodeError if error["context"].get("reason") else AppaError
            raise kind(error["message"], **error["context"])
        if not found["table"]:
            return found["value"]
        with pa.memory_map(str(folder / "table.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
        return (table, found["value"]) if found["pair"] else table
    log = _tail(folder / "log")
    raise _interruption(end, log, limits) or _failure(end, log, limits)


def unicode_json(text: str | bytes) -> Any:
    """Return the JSON value that a child wrote, with ? for halves of surrogate pairs.

    Texts of untrusted files may hold them. They cannot be encoded, so that one in a record would
    make every answer with that record fail.
    """
    value = json.dumps(json.loads(text), ensure_ascii=False)
    return json.loads(value.encode(errors="replace"))


def _tail(log: Path) -> str:
    if not log.exists():  # the disk was full
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _KEPT_LOG))
        return file.read().decode(errors="replace")


def _interruption(end: Ended, log: str, limits: Limits) -> AppaError | None:
    """Return the error of a child that was ended by the machine, None for others."""
    large = end.peak_bytes >= _LARGE * min(limits.address_space, _machine_memory())
    used = f"{end.cpu_seconds:.1f} s of processor and {end.peak_bytes / 1e6:.0f} MB"
    if end.late:
        if end.cpu_seconds >= _BUSY * limits.wall_seconds:
            return None
        happened = f"kept waiting for {limits.wall_seconds:g} s by a busy machine"
        return Interrupted(
            f"Expected decoding to run; it was {happened} (used {used}). It can be tried again.",
            reason="timeout",
            large=False,
            again=False,
        )
    if end.code == _OUR_FAULT:
        return StorageError(
            "Expected the decoding process to start and have room; the disk is full, a device fails "
            f"or the program was replaced: {_last_line(log)}."
        )
    if -end.code not in _FROM_OUTSIDE:
        return None
    happened = f"ended from outside ({signal.Signals(-end.code).name})"
    return Interrupted(
        f"Expected decoding to run to its end; it was {happened} (used {used}). It can be tried "
        "again.",
        reason="out_of_memory" if large else "crashed",
        large=large,
        again=True,
    )


def _machine_memory() -> int:
    """Return the memory available to processes in bytes: that of the machine or container."""
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2 and 1
        with contextlib.suppress(OSError, ValueError):
            held = min(held, int((Path("/sys/fs/cgroup") / name).read_text()))
    return held


_SHARE = 0.5
_MIN_MEMORY = 1_000_000_000


def memory_share() -> int:
    """Return the maximum memory of one child in bytes: half of the machine's, at least 1 GB.

    The rest is for other processes: a second child, the model, the broker.
    """
    return max(_MIN_MEMORY, int(_SHARE * _machine_memory()))


def _failure(end: Ended, log: str, limits: Limits) -> DecodeError:
    """Return the error of a child that the file crashed."""
    if end.late or end.code in (-signal.SIGXCPU, -signal.SIGALRM):
        allowed = f"{limits.cpu_seconds} s of processor and {limits.wall_seconds:g} s of time"
        return DecodeError(f"Expected an end within {allowed}; stopped.", reason="timeout")
    if any(word in log for word in _MEMORY_WORDS):
        return _too_much_memory(limits)
    name = signal.Signals(-end.code).name if end.code < 0 else f"exit code {end.code}"
    message = f"The decoding process died ({name}): {_last_line(log)}."
    return DecodeError(message, reason="crashed")


def _last_line(log: str) -> str:
    return log.strip().splitlines()[-1][:200] if log.strip() else "no message"


def _too_much_memory(limits: Limits) -> DecodeError:
    allowed = f"{limits.address_space / 1e9:.1f} GB"
    return DecodeError(f"Expected to need less memory than {allowed}.", reason="out_of_memory")


def per_file_limits(limits: Limits) -> None:
    """Reset the time limits of a child that decodes several files, for the next file."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + limits.cpu_seconds, resource.RLIM_INFINITY))
    # The default action of SIGALRM ends the process even inside a library call.
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds)


def _restrict(limits: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits["address_space"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], resource.RLIM_INFINITY))


def carry_out(folder: Path) -> None:
    """Execute the request in `folder` in this process, a newly forked child."""
    try:
        _child(folder)
    except Exception as error:
        if not is_our_fault(error):
            raise
        _end_by_our_fault(error)


def is_our_fault(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, comes from our disk, machine or program.

    Modules are imported while a worker runs: one that is missing, unreadable, or inconsistent with the
    others was replaced or is not installed.
    """
    while error is not None:
        if isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno in _OURS):
            return True
        if isinstance(error, PermissionError) and str(error.filename).endswith(_MODULES):
            return True
        error = error.__cause__
    return False


def _end_by_our_fault(error: Exception) -> NoReturn:
    """End this child with the exit code of a fault that is not the file's; logs may not be writable."""
    cause: BaseException = error
    while cause.__cause__ is not None:  # decoders wrap any error as one of the file
        cause = cause.__cause__
    with contextlib.suppress(OSError):
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr, flush=True)
    sys.exit(_OUR_FAULT)


def _child(folder: Path) -> None:
    """Read the request, restrict this process, run the function and write the result."""
    try:
        request = pickle.loads((folder / "request").read_bytes())  # noqa: S301 (our own)
        module, name, args, limits, paths, reads, writes = request
        sys.path[:] = paths
        os.environ.update(TMPDIR=str(folder), HOME=str(folder))
        function = getattr(import_module(module), name)
        confine(reads, (folder, *writes))
    except Exception as error:  # e.g. modules replaced during an upgrade; no file was read yet
        _end_by_our_fault(error)
    _restrict(limits)
    os.chdir(folder)
    answer: dict[str, Any] = {"table": False, "pair": False}
    try:
        with disk_errors(folder):  # libraries report a full disk as a generic error
            value = function(*args)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], pa.Table):
            answer["pair"], table, value = True, *value
        else:
            table = value if isinstance(value, pa.Table) else None
        if table is not None:
            answer["table"] = True
            _write(folder / "table.arrow", table)
            value = value if answer["pair"] else None
        answer["value"] = value
    except MemoryError:
        answer["error"] = _described(_too_much_memory(Limits(**limits)))
    except AppaError as error:
        if is_our_fault(error):
            raise
        answer["error"] = _described(error)
    part = folder / "result.part"
    part.write_text(json.dumps(answer))
    part.rename(folder / "result.json")


def _described(error: AppaError) -> dict[str, Any]:
    return {"message": error.message, "context": json.loads(json.dumps(error.context, default=str))}


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
