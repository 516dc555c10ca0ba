"""Run a function in a fresh child process with limits.

Files from outside are parsed nowhere else. The child is a new interpreter
(`python -m worker.sandbox`), not a fork: the parent may hold threads and a GPU. It has its own
session, bounds on memory, processor and wall time, no core dump, an environment without the
parent's secrets and a private folder that is removed afterwards. Results come back as Arrow and
JSON, never as pickles: what the child writes is not trusted.
"""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.domain.errors import AppaError, DecodeError

__all__ = ["Limits", "per_file_limits", "run_limited"]

_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ")
_LEAN_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Arrow's own pools reserve address space far beyond what they use.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
}
_MEMORY_WORDS = ("MemoryError", "bad_alloc", "Cannot allocate", "out of memory", "malloc")
_KEPT_LOG = 4_096


@dataclass(frozen=True)
class Limits:
    """Bounds of a child process.

    Attributes:
        address_space: Bytes of virtual memory, libraries included (0.7 GB of them).
        cpu_seconds: Processor time.
        wall_seconds: Time on the clock.
        file_bytes: Size of any file it writes.
        temp_dir: Where its private folder is made; None takes the system's.
    """

    address_space: int = 3_000_000_000
    cpu_seconds: int = 120
    wall_seconds: float = 300.0
    file_bytes: int = 8_000_000_000
    temp_dir: str | None = None


def run_limited(function: Callable[..., Any], *args: Any, limits: Limits | None = None) -> Any:
    """Return `function(*args)`, computed in a limited child process.

    Arguments:
        function: A function at the top level of a module.
        args: Picklable.
        limits: Bounds.

    Returns:
        What the function returns: a JSON value, an Arrow table, or a tuple (table, JSON value).

    Raises:
        DecodeError: With `reason` `timeout`, `out_of_memory` or `crashed` in its context, or with
            the child's own reason if it raised a `DecodeError`.
        AppaError: Any other error the function raised.
    """
    limits = limits or Limits()
    folder = Path(tempfile.mkdtemp(prefix="appa-limited-", dir=limits.temp_dir))
    try:
        request = (function.__module__, function.__qualname__, args, asdict(limits))
        (folder / "request").write_bytes(pickle.dumps(request))
        code = _wait(folder, limits)
        return _result(folder, code, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT or k[:8] == "ECCODES_"}
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    private = {"PYTHONPATH": paths, "TMPDIR": str(folder), "HOME": str(folder)}
    return {**kept, **_LEAN_ENVIRONMENT, **private}


def _wait(folder: Path, limits: Limits) -> int | None:
    """Run the child to its end; return its exit code, or None if it ran out of time."""
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.sandbox", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(folder),
            start_new_session=True,
        )
        try:
            return child.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill_group(child)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End the child and every process it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _result(folder: Path, code: int | None, limits: Limits) -> Any:
    answer = folder / "result.json"
    if code is not None and answer.exists():
        found = json.loads(answer.read_text())
        if error := found.get("error"):
            kind = DecodeError if error["context"].get("reason") else AppaError
            raise kind(error["message"], **error["context"])
        if not found["table"]:
            return found["value"]
        with pa.memory_map(str(folder / "table.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
        return (table, found["value"]) if found["pair"] else table
    raise _failure(code, _tail(folder / "log"), limits)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _KEPT_LOG))
        return file.read().decode(errors="replace")


def _failure(code: int | None, log: str, limits: Limits) -> DecodeError:
    if code is None or code in (-signal.SIGXCPU, -signal.SIGALRM):
        allowed = f"{limits.cpu_seconds} s of processor and {limits.wall_seconds:g} s of time"
        return DecodeError(f"Expected an end within {allowed}; stopped.", reason="timeout")
    if code == -signal.SIGKILL or any(word in log for word in _MEMORY_WORDS):
        allowed = f"{limits.address_space / 1e9:.1f} GB"
        return DecodeError(f"Expected to need less memory than {allowed}.", reason="out_of_memory")
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = log.strip().splitlines()[-1][:200] if log.strip() else "no message"
    return DecodeError(f"The decoding process died ({name}): {last}.", reason="crashed")


def per_file_limits(limits: Limits) -> None:
    """Restart the clocks of a child that works through several files for the next file."""
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


def _child(folder: Path) -> None:
    """Read the request, restrict this process, run the function and write the answer."""
    module, name, args, limits = pickle.loads((folder / "request").read_bytes())  # noqa: S301 (our own)
    function = getattr(import_module(module), name)
    _restrict(limits)
    os.chdir(folder)
    answer: dict[str, Any] = {"table": False, "pair": False}
    try:
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
        answer["error"] = _described(_failure(-signal.SIGKILL, "", Limits(**limits)))
    except AppaError as error:
        answer["error"] = _described(error)
    part = folder / "result.part"
    part.write_text(json.dumps(answer))
    part.rename(folder / "result.json")


def _described(error: AppaError) -> dict[str, Any]:
    return {"message": error.message, "context": json.loads(json.dumps(error.context, default=str))}


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
