"""Start our processes as forks of one that has their modules loaded (`deploy.preloaded`).

Tests start hundreds of gateways and workers. The first start of each kind starts a server, whose forks
it and all later ones are. What users start by hand, tests start as they do.
"""

import atexit
import os
import signal
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO

from deploy.preloaded import MODULES, WORKER_MODULES, Fork, Preloaded

__all__ = ["KINDS", "Fork", "start_warm"]

KINDS: dict[str, tuple[str, ...]] = {
    **MODULES,
    # What most commands import; the module of each command is for its own process to import.
    "command": ("deploy.console", "worker.contract.store", "pyarrow.parquet", "yaml"),
    "stub": (*WORKER_MODULES, "worker.results.publication", "worker.tasks.attempt"),
    "workers": (*WORKER_MODULES, "deploy.commands.workers"),
}
"""What processes of each kind import before they begin to work: ours, and those of tests alone."""


@cache
def _server(kind: str) -> Preloaded:
    server = Preloaded(KINDS[kind], os.environ, ending=signal.SIGKILL)
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
    return _server(kind).start(arguments, environment, log, session=session)
