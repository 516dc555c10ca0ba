"""Provide what every task of a worker process needs: settings, stores, layout, registration."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psutil
import structlog
from celery import Celery
from redis.exceptions import RedisError

from model.domain.errors import AppaError
from model.domain.files import code_version
from worker.contract.layout import Layout
from worker.contract.measures import Measures
from worker.contract.queues import WorkerReport
from worker.contract.store import Stores, open_stores
from worker.idle_memory import IdleMemory
from worker.settings import WorkerSettings

__all__ = ["Runtime", "WorkerStopping", "open_runtime"]

log = structlog.get_logger()


class WorkerStopping(AppaError):
    """The worker was asked to stop; the job goes back to the queue."""

    code = "worker_stopping"
    retryable = True


@dataclass
class Runtime:
    """Settings, stores and this worker's registration.

    Attributes:
        measures: Metrics of this process.
        models: The loaded models of a GPU worker (`worker.loaded_models.LoadedModels`), else None.
        ranks: The other processes of a GPU worker (`worker.ranks.RankGroup`), else None.
        memory: Returns memory that work has freed, while this process is idle.
        stopping: Set after a request to stop; work ends at its next step.
    """

    settings: WorkerSettings
    stores: Stores
    layout: Layout
    sender: Celery
    report: WorkerReport
    measures: Measures
    models: Any = None
    ranks: Any = None
    memory: IdleMemory = field(default_factory=IdleMemory)
    stopping: threading.Event = field(default_factory=threading.Event)
    _left: threading.Event = field(default_factory=threading.Event)
    _registering: threading.Lock = field(default_factory=threading.Lock)

    def check_stopping(self) -> None:
        """Raise `WorkerStopping` after a request to stop the process."""
        if self.stopping.is_set():
            raise WorkerStopping(f"Worker '{self.report.name}' stops; the job is retried.")

    @contextmanager
    def busy_with(self, record_id: str) -> Iterator[None]:
        """Show a record in the registration while this worker works on it."""
        self.report.busy_with = record_id
        try:
            with self.memory.in_use():
                yield
        finally:
            self.report.busy_with = None

    def start_reporting(self) -> None:
        """Register now and renew the registration from a thread."""
        self.register()
        threading.Thread(target=self._report_on, name="worker-report", daemon=True).start()

    def register(self) -> None:
        """Store or renew the registration of this worker; only log a failure."""
        lifetime = timedelta(seconds=3 * self.settings.report_seconds)
        with self._registering:  # an older report must not arrive after a newer one
            self._measure_process()
            try:
                self.stores.workers.register(self.report, lifetime)
            except RedisError as error:
                log.warning("registration failed", error=str(error))

    def _measure_process(self) -> None:
        figures = self.report.figures
        figures.resident_bytes = _resident_bytes()
        if self.models is not None:
            self.models.measure_device(figures)

    def leave(self) -> None:
        """Remove the registration at the end of the process."""
        self._left.set()
        self.measures.push(self._part)
        try:
            self.stores.workers.leave(self.report.name)
        except RedisError as error:
            log.warning("deregistration failed", error=str(error))

    @property
    def _part(self) -> str:
        return "-".join(self.report.queues)

    def _report_on(self) -> None:
        while not self._left.wait(self.settings.report_seconds):
            self.memory.tend()
            self.register()
            self.measures.push(self._part)

    def start_measuring(self) -> None:
        """Start a thread that pushes metrics, in a child that does not register itself."""
        threading.Thread(target=self._measure_on, name="measures", daemon=True).start()

    def _measure_on(self) -> None:
        while not self._left.wait(self.settings.report_seconds):
            self.memory.tend()
            self.measures.push(self._part)

    def end_measuring(self) -> None:
        """Push the remaining metrics at the end of such a child."""
        self._left.set()
        self.measures.push(self._part)


def _resident_bytes() -> int:
    """Return the resident memory of this process and its children; shared pages count repeatedly."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended meanwhile
            total += process.memory_info().rss
    return total


def open_runtime(
    settings: WorkerSettings, queues: Sequence[str], name: str, sender: Celery
) -> Runtime:
    """Return the runtime of this process, which connects at first use.

    Arguments:
        settings: The settings of this process.
        queues: Names of the queues it takes work from.
        name: Name of the worker, shared by its child processes.
        sender: The Celery application that sends task messages.
    """
    host = socket.gethostname()
    report = WorkerReport(
        name=name, queues=list(queues), pid=os.getpid(), host=host, version=code_version()
    )
    layout = settings.layout.create()
    stores = open_stores(settings.redis_url, settings.redis_prefix, layout)
    measures = Measures(stores.redis, stores.keys)
    return Runtime(settings, stores, layout, sender, report, measures)
