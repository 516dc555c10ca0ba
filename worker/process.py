"""Run a worker process: settings, Celery application, model, registration, work, sign-off.

Messages carry an id and a version only. They are acknowledged late, one at a time, and may arrive
twice: the record in Redis says whether there is anything to do.
"""

import os
import socket
from collections.abc import Sequence
from typing import Any

import structlog
from celery import Celery, signals

from model.domain.errors import UnknownName
from worker.contract.logs import configure_logs
from worker.contract.queues import GPU_QUEUE, INGEST_QUEUE, PRODUCTS_QUEUE, celery_settings
from worker.contract.redis_server import redis_health
from worker.runtime import Runtime, open_runtime
from worker.settings import WorkerSettings

__all__ = ["TASK_MODULES", "create_app", "message_sender", "run_worker", "worker_arguments"]

log = structlog.get_logger()

TASK_MODULES = {
    INGEST_QUEUE: "worker.tasks.ingest",
    PRODUCTS_QUEUE: "worker.tasks.products",
    GPU_QUEUE: "worker.tasks.assimilation",
}
"""Module with the tasks of each queue: an ingest worker never imports torch."""


def message_sender(settings: WorkerSettings) -> Celery:
    """An application that only sends."""
    app = Celery("appa", set_as_current=False)
    app.conf.update(
        celery_settings(settings.redis_url, settings.redis_prefix, settings.visibility_timeout)
    )
    return app


def create_app(settings: WorkerSettings, queues: Sequence[str]) -> Celery:
    """The application of a worker that takes work from `queues`.

    Raises:
        UnknownName: If a queue is not known.
    """
    unknown = [queue for queue in queues if queue not in TASK_MODULES]
    if unknown or not queues:
        raise UnknownName(
            f"Expected queues of {', '.join(TASK_MODULES)}; got {', '.join(unknown) or 'none'}."
        )
    app = Celery("appa", include=[TASK_MODULES[queue] for queue in queues])
    app.conf.update(
        celery_settings(settings.redis_url, settings.redis_prefix, settings.visibility_timeout),
        broker_connection_max_retries=None,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_store_errors_even_if_ignored=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_disable_rate_limits=True,
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
    )
    return app


def worker_arguments(settings: WorkerSettings, queues: Sequence[str], name: str) -> list[str]:
    """Arguments of `Celery.worker_main`.

    A GPU worker is one process that never forks, so that the device is touched once; the others
    fork, so that a crash while decoding costs one child.
    """
    solo = GPU_QUEUE in queues
    pool = ["--pool", "solo"] if solo else ["--pool", "prefork"]
    count = 1 if solo else settings.ingest_processes
    return [
        "--quiet",
        "worker",
        *pool,
        "--concurrency",
        str(count),
        "--queues",
        ",".join(queues),
        "--hostname",
        name,
        "--loglevel",
        "WARNING",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ]


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
            from worker.loaded_models import load_models
            from worker.tasks.assimilation import describe_models

            runtime.models = load_models(self.settings.models, self.settings.device)
            describe_models(runtime.models, runtime.report)
            self.app.runtime = runtime
        else:
            from worker.tasks.ingest import describe_ingest

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
