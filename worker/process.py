"""A worker process from start to end: settings, model, registration, work, signing off."""

import os
import socket
from collections.abc import Sequence
from typing import Any

import structlog
from celery import Celery, signals

from worker.celery_app import create_app, worker_arguments
from worker.jobs.connection import redis_health
from worker.jobs.queues import GPU_QUEUE
from worker.logs import configure_logs
from worker.runtime import Runtime, open_runtime
from worker.settings import WorkerSettings

__all__ = ["run_worker"]

log = structlog.get_logger()


def run_worker(queues: Sequence[str], settings: WorkerSettings | None = None) -> None:
    """Works on `queues` until the process is asked to stop."""
    settings = settings or WorkerSettings()
    configure_logs(settings)
    name = f"{'-'.join(queues)}.{os.getpid()}@{socket.gethostname()}"
    app = create_app(settings, queues)
    life = WorkerLife(app, settings, queues, name)
    life.prepare()
    life.connect()
    app.worker_main(worker_arguments(settings, queues, name))


class WorkerLife:
    """What happens at the turns of a worker's life, as Celery signals them.

    In a process that forks, the parent registers and the children work; nothing is opened or
    loaded before the fork that a child would share.
    """

    def __init__(
        self, app: Celery, settings: WorkerSettings, queues: Sequence[str], name: str
    ) -> None:
        self.app = app
        self.settings = settings
        self.queues = list(queues)
        self.name = name
        self.runtime: Runtime | None = None

    def connect(self) -> None:
        """Listens to Celery's signals."""
        signals.worker_process_init.connect(self.on_child, weak=False)
        signals.worker_ready.connect(self.on_ready, weak=False)
        signals.worker_shutting_down.connect(self.on_stopping, weak=False)
        signals.worker_shutdown.connect(self.on_stopped, weak=False)

    def prepare(self) -> None:
        """Before the first message: say that we are coming, load the model.

        Not a signal's receiver: Celery would log an error and go on without a model.

        Raises:
            AppaError: If there is no model or it cannot be used.
        """
        self.runtime = runtime = open_runtime(self.settings, self.queues, self.name, self.app)
        for warning in redis_health(runtime.stores.redis).warnings:
            log.warning("redis", advice=warning)
        runtime.start_reporting()
        if GPU_QUEUE in self.queues:
            # torch is imported in the one process that uses it, never in a parent that forks
            from worker.capabilities_model import describe_models
            from worker.warm_model import load_models

            runtime.models = load_models(self.settings.models, self.settings.device)
            describe_models(runtime.models, runtime.report)
            self.app.runtime = runtime
        else:
            from worker.capabilities import describe_ingest

            describe_ingest(runtime.report)

    def on_child(self, **_: Any) -> None:
        """In a forked child: connections of its own (Celery calls this without a fork, too)."""
        if self.runtime is not None and self.runtime.report.pid == os.getpid():
            return
        configure_logs(self.settings)
        self.app.runtime = open_runtime(self.settings, self.queues, self.name, self.app)

    def on_ready(self, **_: Any) -> None:
        """Messages are coming in from now on."""
        if self.runtime is not None:
            self.runtime.report.ready = True
            self.runtime.tell()
        log.info("ready", worker=self.name, queues=self.queues)

    def on_stopping(self, **_: Any) -> None:
        """The process was asked to stop: running work ends at its next step."""
        if self.runtime is not None:
            self.runtime.stopping.set()

    def on_stopped(self, **_: Any) -> None:
        """The last thing."""
        if self.runtime is not None:
            self.runtime.leave()
