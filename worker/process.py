"""Run a worker process: settings, Celery application, model, registration, work, deregistration.

Messages contain only an id and a version. They are acknowledged late, one at a time, and may be
delivered twice: the record in Redis says whether there is anything to do. What Celery does for us, and
what the records do instead, is listed in `docs/decisions/0001-why-leases.md`.

Two commands are added to Celery's remote control: `drain` (take no more messages, finish what
runs, and say so in the registration) and `resume`. Jobs run in a thread or in child processes, so
the main process answers while they do.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from celery import Celery, signals
from celery.concurrency.thread import TaskPool
from celery.worker import state
from celery.worker.control import control_command

from model.domain.errors import AppaError, UnknownName
from worker.contract.loading import loading
from worker.contract.logs import configure_logs
from worker.contract.queues import (
    GPU_QUEUE,
    INGEST_BATCH,
    INGEST_LARGE_QUEUE,
    INGEST_QUEUE,
    PRODUCTS_QUEUE,
    celery_settings,
)
from worker.contract.redis_server import redis_health
from worker.contract.trace_export import export_traces, finish_traces
from worker.fork_server import end_shared_server
from worker.idle_memory import keep_freed_memory, share_heap
from worker.protections import protections
from worker.runtime import Runtime, open_runtime
from worker.sandbox import sweep_scratch, warm_up
from worker.settings import WorkerSettings

__all__ = [
    "TASK_MODULES",
    "create_app",
    "message_sender",
    "run_worker",
    "send_command",
    "wait_until_idle",
    "worker_arguments",
]

log = structlog.get_logger()

TASK_MODULES = {
    INGEST_QUEUE: "worker.tasks.ingest",
    INGEST_LARGE_QUEUE: "worker.tasks.ingest",
    PRODUCTS_QUEUE: "worker.tasks.products",
    GPU_QUEUE: "worker.tasks.assimilation",
}
"""Module with the tasks of each queue: an ingest worker never imports torch."""


HARD_LIMIT_GRACE = 30
"""Seconds from Celery's soft time limit, which a task can catch, to the hard one that kills it."""

_NICE = 5
"""Niceness of workers of large files, so that those of small bulletins take precedence."""

SOFT_SHUTDOWN_SECONDS = 5.0
"""Time in which a worker can still requeue its job after SIGQUIT (Celery's soft shutdown)."""


def message_sender(settings: WorkerSettings) -> Celery:
    """Return an application that only sends messages and remote-control commands."""
    app = Celery("appa", set_as_current=False)
    app.conf.update(
        celery_settings(settings.redis_url, settings.redis_prefix, settings.visibility_timeout)
    )
    return app


def create_app(settings: WorkerSettings, queues: Sequence[str]) -> Celery:
    """Return the application of a worker of `queues`.

    A GPU worker runs its jobs in one thread, so that the device is used by one process that never
    forks; the others fork, so that a crash while decoding costs only one child, and Celery can end a
    child that exceeds its time limit.

    Raises:
        UnknownName: If a queue is not known.
    """
    unknown = [queue for queue in queues if queue not in TASK_MODULES]
    if unknown or not queues:
        raise UnknownName(
            f"Expected queues of {', '.join(TASK_MODULES)}; got {', '.join(unknown) or 'none'}."
        )
    on_device = GPU_QUEUE in queues
    app = Celery("appa", include=sorted({TASK_MODULES[queue] for queue in queues}))
    app.conf.update(
        celery_settings(settings.redis_url, settings.redis_prefix, settings.visibility_timeout),
        broker_connection_max_retries=None,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_annotations={
            INGEST_BATCH: {
                "soft_time_limit": settings.ingest_limit_seconds,
                "time_limit": settings.ingest_limit_seconds + HARD_LIMIT_GRACE,
            }
        },
        task_store_errors_even_if_ignored=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_concurrency=1 if on_device else settings.ingest_processes,
        worker_disable_prefetch=True,
        worker_disable_rate_limits=True,
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_pool="worker.process:JobThread" if on_device else "prefork",
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
        worker_send_task_events=True,
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_SECONDS,
    )
    return app


class JobThread(TaskPool):
    """Celery's thread pool, extended so that a running job can be ended."""

    def terminate_job(self, pid: int, signal: str | None = None) -> None:
        """End the running job at its next step, and then this worker, because threads cannot be killed.

        Celery calls this in a cold shutdown (SIGQUIT), and for `revoke --terminate`.
        """
        self.app.life.on_stopping()
        state.should_stop = 0


def worker_arguments(queues: Sequence[str], name: str) -> list[str]:
    """Return the arguments of `Celery.worker_main`.

    Gossip and mingle are off: workers need no knowledge of each other, because the state is in records.
    Only monitors of events such as Flower read the heartbeats; one every two seconds, the default, is
    half of what an idle worker does.
    """
    return [
        "--quiet",
        "worker",
        "--queues",
        ",".join(queues),
        "--hostname",
        name,
        "--loglevel",
        "WARNING",
        "--without-gossip",
        "--without-mingle",
        "--heartbeat-interval",
        "10",
    ]


def run_worker(queues: Sequence[str], settings: WorkerSettings | None = None) -> None:
    """Work on `queues` until the process is asked to stop."""
    settings = settings or WorkerSettings()
    configure_logs(settings)
    name = f"{'-'.join(queues)}.{os.getpid()}@{socket.gethostname()}"
    app = create_app(settings, queues)
    life = WorkerLife(app, settings, queues, name)
    life.prepare()
    life.connect()
    app.worker_main(worker_arguments(queues, name))


class WorkerLife:
    """Prepare, register and deregister a worker, on Celery's lifecycle signals.

    In a process that forks, the parent registers and the children work; the parent opens no connection
    that a child would inherit.
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
        """Connect to Celery's signals, and to the commands of its remote control."""
        self.app.life = self
        if GPU_QUEUE in self.queues:  # else children forked later do the work
            export_traces(self._part)
        logging.getLogger("celery.app.trace").setLevel(logging.ERROR)  # retries are logged by us
        signals.worker_process_init.connect(self.on_child, weak=False)
        signals.worker_ready.connect(self.on_ready, weak=False)
        signals.worker_shutting_down.connect(self.on_stopping, weak=False)
        signals.worker_shutdown.connect(self.on_stopped, weak=False)

    def prepare(self) -> None:
        """Register this worker and load its model, before the first message.

        Not a receiver of a signal, because Celery would log an error and continue without a model.

        Raises:
            AppaError: If there is no model or it cannot be used.
        """
        if GPU_QUEUE in self.queues:
            share_heap()
        self.runtime = runtime = open_runtime(self.settings, self.queues, self.name, self.app)
        for warning in redis_health(runtime.stores.redis).warnings:
            log.warning("redis", advice=warning)
        if removed := sweep_scratch():
            log.warning("leftover folders removed", count=removed)
        if set(self.queues) == {INGEST_LARGE_QUEUE}:
            os.nice(_NICE)
        runtime.start_reporting()
        with loading():
            self._load(runtime)

    def _load(self, runtime: Runtime) -> None:
        """Load the model of a GPU worker, and what the other workers need."""
        if GPU_QUEUE in self.queues:
            # torch is imported in the one process that uses it, never in a parent that forks
            from worker.loaded_models import open_models
            from worker.tasks.assimilation import describe_models

            if self.settings.ranks > 1:
                from worker.ranks import RankGroup, device_of

                device = device_of(0, self.settings.ranks, self.settings.device)
                runtime.ranks = RankGroup(self.settings, self.settings.ranks)
                self.settings = self.settings.model_copy(update={"device": device})
                runtime.report.ranks = self.settings.ranks
            with runtime.memory.in_use():
                runtime.models = open_models(self.settings)
                keep_freed_memory(runtime.models.window_bytes)
                describe_models(runtime.models, runtime.report)
            runtime.memory.add(runtime.models.rest, runtime.models.wake)
            self.app.runtime = runtime
        else:
            from worker.tasks.ingest import describe_ingest

            describe_ingest(runtime.report)

    def on_child(self, **_: Any) -> None:
        """Open separate connections in a forked child (Celery also calls this without a fork)."""
        if self.runtime is not None and self.runtime.report.pid == os.getpid():
            return
        configure_logs(self.settings)
        export_traces(self._part)
        runtime = open_runtime(self.settings, self.queues, self.name, self.app)
        self.app.runtime = runtime
        runtime.start_measuring()
        signals.worker_process_shutdown.connect(
            lambda **_: runtime.end_measuring(), weak=False, dispatch_uid="measures"
        )
        signals.worker_process_shutdown.connect(
            lambda **_: finish_traces(), weak=False, dispatch_uid="traces"
        )
        # Only for small bulletins: a large upload takes longer than the start of the fork server.
        if INGEST_QUEUE in self.queues:
            warm_up()
            threading.Thread(target=_tell_protections, name="protections", daemon=True).start()
        else:
            runtime.memory.add(end_shared_server)

    def on_ready(self, **_: Any) -> None:
        """Register as ready: messages are consumed from now on."""
        if self.runtime is not None:
            self.runtime.report.ready = True
            self.runtime.register()
        log.info("ready", worker=self.name, queues=self.queues)

    def on_stopping(self, **_: Any) -> None:
        """End running work at its next step after a request to stop.

        Celery signals this for SIGTERM and SIGINT, not for the remote command `shutdown`, after
        which the running job is finished.
        """
        if self.runtime is not None:
            self.runtime.stopping.set()

    def on_stopped(self, **_: Any) -> None:
        """Remove the registration, as the last action of a worker."""
        if self.runtime is not None:
            self.runtime.leave()
        finish_traces()
        sweep_scratch()  # left by killed children

    @property
    def _part(self) -> str:
        return "-".join(self.queues)

    def take_work(self, takes: bool) -> None:
        """Show in the registration whether this worker takes messages from its queues."""
        if self.runtime is not None:
            self.runtime.report.ready = takes
            self.runtime.report.draining = not takes
            self.runtime.register()


def _tell_protections() -> None:
    """Log the protections of decoding that this kernel does not provide."""
    try:
        missing = [one.name for one in protections() if not one.active]
    except (AppaError, OSError) as error:
        log.warning("sandbox", error=str(error))
        return
    if missing:
        log.warning("sandbox", not_held_back=missing, advice="see: appa doctor")


@control_command()
def drain(panel: Any, **_: Any) -> dict[str, str]:
    """Stop consuming messages; running tasks are finished."""
    life: WorkerLife = panel.app.life
    for queue in life.queues:
        panel.consumer.cancel_task_queue(queue)
    life.take_work(False)
    log.info("draining", worker=life.name)
    return {"ok": f"takes no more from {', '.join(life.queues)}"}


@control_command()
def resume(panel: Any, **_: Any) -> dict[str, str]:
    """Consume the queues of this worker again after `drain`."""
    life: WorkerLife = panel.app.life
    for queue in life.queues:
        panel.consumer.add_task_queue(queue)
    life.take_work(True)
    log.info("resumed", worker=life.name)
    return {"ok": f"takes work from {', '.join(life.queues)}"}


def send_command(
    app: Celery, command: str, workers: Sequence[str], seconds: float = 5.0
) -> dict[str, str]:
    """Send a remote-control command to `workers` and return their replies by name.

    Arguments:
        app: Any application of the installation.
        command: `drain`, `resume`, or one of Celery's own.
        workers: Registered names; workers without a reply are missing from the result.
        seconds: Timeout for replies.
    """
    answers = app.control.broadcast(
        command, destination=list(workers), reply=True, timeout=seconds, limit=len(workers)
    )
    found: dict[str, str] = {}
    for answer in answers:
        for name, value in answer.items():
            found[name] = value.get("ok") or value.get("error", "")
    return found


def wait_until_idle(app: Celery, workers: Sequence[str], seconds: float) -> bool:
    """Wait up to `seconds` until `workers` have finished all tasks; return whether they have."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        active: Mapping[str, list[Any]] = app.control.inspect(list(workers)).active() or {}
        if len(active) == len(workers) and not any(active.values()):
            return True
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return False
