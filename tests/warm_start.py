"""Start our processes as forks of one that has their modules loaded (`deploy.preloaded`).

Tests start hundreds of gateways and workers. The first start of each kind starts a server, unless one
with the same modules runs; what is started then and later are its forks. What users start by hand, tests
start as they do.
"""

import atexit
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from deploy.preloaded import MODULES, WORKER_MODULES, Fork, Preloaded

__all__ = ["KINDS", "REPOSITORY", "Fork", "run_warm", "start_warm"]

REPOSITORY = Path(__file__).resolve().parents[1]

# One server for all that import little beside this: each further server imports it all again.
_WITHOUT_DATA = (
    *WORKER_MODULES,
    "worker.scheduler",
    "worker.results.publication",
    "worker.tasks.attempt",
    "deploy.commands.workers",
)

KINDS: dict[str, tuple[str, ...]] = {
    **MODULES,
    # What most commands import; the module of each command is for its own process to import.
    "command": ("deploy.console", "worker.contract.store", "pyarrow.parquet", "yaml"),
    "scheduler": _WITHOUT_DATA,
    "stub": _WITHOUT_DATA,
    "workers": _WITHOUT_DATA,
}
"""What processes of each kind import before they begin to work: ours, and those of tests alone."""


@cache
def _server(modules: tuple[str, ...]) -> Preloaded:
    server = Preloaded(modules, os.environ, ending=signal.SIGKILL)
    atexit.register(server.close)
    return server


def start_warm(
    kind: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes] | IO[str],
    *,
    session: bool = False,
) -> Fork:
    """Start a process of one of `KINDS`; further arguments are those of `Preloaded.start`."""
    return _server(KINDS[kind]).start(arguments, environment, log, session=session)


def run_warm(
    kind: str,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    folder: Path = REPOSITORY,
    umask: int | None = None,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module …` to its end as a fork, and return what `subprocess.run` would.

    Arguments:
        kind: One of `KINDS`, which has loaded most of what the module imports.
        module: The module, as after `python -m`.
        arguments: What follows it.
        environment: The whole environment of the process.
        folder: The working directory.
        umask: Its umask; None for that of these tests.
        timeout: Seconds after which it is killed.

    Raises:
        subprocess.TimeoutExpired: If it was killed.
    """
    with tempfile.TemporaryDirectory() as held:
        said, errors = Path(held, "said"), Path(held, "errors")
        command = [str(REPOSITORY / "tests" / "in_folder.py"), str(folder), str(errors), module]
        with said.open("wb") as log:
            process = _server(KINDS[kind]).start(
                [*command, *arguments], environment, log, umask=umask
            )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        command = [module, *arguments]
        return subprocess.CompletedProcess(command, code, said.read_text(), errors.read_text())
