"""Names of queues and tasks, and how a message is sent without importing the worker.

Any `celery.Celery` object is a `TaskSender`; the gateway builds its own from `celery_settings`,
so that both ends agree on the broker without one importing the other.
"""

from typing import Any, Protocol

__all__ = [
    "ANNOUNCE_RESULT",
    "GPU_QUEUE",
    "INGEST_BATCH",
    "INGEST_QUEUE",
    "MESSAGE_VERSION",
    "PRODUCTS_QUEUE",
    "QUEUES",
    "RUN_ASSIMILATION",
    "TaskSender",
    "celery_settings",
    "submit",
]

INGEST_QUEUE = "ingest"
GPU_QUEUE = "gpu"
PRODUCTS_QUEUE = "products"
QUEUES = (INGEST_QUEUE, GPU_QUEUE, PRODUCTS_QUEUE)

INGEST_BATCH = "appa.ingest_batch"
RUN_ASSIMILATION = "appa.run_assimilation"
ANNOUNCE_RESULT = "appa.announce_result"
_QUEUE_OF_TASK = {
    INGEST_BATCH: INGEST_QUEUE,
    RUN_ASSIMILATION: GPU_QUEUE,
    ANNOUNCE_RESULT: PRODUCTS_QUEUE,
}

MESSAGE_VERSION = 1
"""Second argument of every task; a worker refuses versions it does not know."""


class TaskSender(Protocol):
    """What `submit` needs of a Celery application."""

    def send_task(self, name: str, args: tuple[Any, ...], **options: Any) -> Any:
        """Sends a task by its name."""
        ...


def celery_settings(url: str, prefix: str, visibility_timeout: int) -> dict[str, Any]:
    """Configuration that the sender and the worker of a message must share.

    Arguments:
        url: Redis URL of the broker (`redis://` or `unix://`).
        prefix: Put before every broker key.
        visibility_timeout: Seconds after which an unacknowledged message is delivered again;
            must be above the longest job.
    """
    if url.startswith("unix://"):  # kombu's spelling of redis-py's scheme
        url = "redis+socket://" + url.removeprefix("unix://")
    return {
        "broker_url": url,
        "broker_transport_options": {
            "visibility_timeout": visibility_timeout,
            "global_keyprefix": f"{prefix}:broker:",
            "socket_keepalive": True,
        },
        "broker_connection_retry_on_startup": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_default_queue": INGEST_QUEUE,
        "enable_utc": True,
    }


def submit(sender: TaskSender, task: str, record_id: str) -> None:
    """Sends `task` for the record `record_id` to the queue of that task."""
    sender.send_task(task, (record_id, MESSAGE_VERSION), queue=_QUEUE_OF_TASK[task])
