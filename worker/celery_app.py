"""The Celery application of a worker process, and how it is run.

Messages carry an id and a version only. They are acknowledged late, one at a time, and may come
twice: the record in Redis says whether there is anything to do.
"""

from collections.abc import Sequence

import structlog
from celery import Celery

from model.domain.errors import UnknownName
from worker.jobs.queues import GPU_QUEUE, INGEST_QUEUE, PRODUCTS_QUEUE, celery_settings
from worker.settings import WorkerSettings

__all__ = ["TASK_MODULES", "create_app", "message_sender", "worker_arguments"]

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
