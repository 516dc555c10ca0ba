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

from deploy.preloaded import Fork, Preloaded

__all__ = ["KINDS", "Fork", "start_warm"]

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
