"""Tasks of the queue `products`: what follows from a published result, off the model worker."""

from typing import Any

import structlog
from celery import Task, shared_task
from redis.exceptions import RedisError

from model.domain.errors import StorageError
from worker.jobs.manifest import read_manifest
from worker.jobs.queues import ANNOUNCE_RESULT, MESSAGE_VERSION
from worker.notifications.events import announce
from worker.runtime import Runtime

__all__ = ["announce_result_task"]

log = structlog.get_logger()


@shared_task(name=ANNOUNCE_RESULT, bind=True)
def announce_result_task(self: "Task[Any, Any]", analysis_id: str, version: int) -> None:
    """Tells the world outside about a new result; safe to run twice."""
    runtime: Runtime = self.app.runtime
    if version != MESSAGE_VERSION:
        log.error("message refused", id=analysis_id, version=version)
        return
    try:
        manifest = read_manifest(runtime.layout, analysis_id)
        announce(runtime.layout, runtime.stores.events, manifest)
    except (OSError, StorageError, RedisError) as error:  # the scheduler finds what was missed
        log.warning("not announced", id=analysis_id, reason=str(error))
