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
    "PRIORITIES",
    "PRODUCTS_QUEUE",
    "QUEUES",
    "RUN_ASSIMILATION",
    "TaskSender",
    "celery_settings",
    "queue_keys",
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


PRIORITIES = (0, 3, 6, 9)
"""Within a queue a worker takes all messages of one number before those of the next. 0 is the
first: an hourly analysis does not wait for the windows of a reanalysis (`SpecBase.priority`)."""

_SEPARATOR = "\x06\x16"


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
            "priority_steps": list(PRIORITIES),
            "sep": _SEPARATOR,
        },
        "broker_connection_retry_on_startup": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_default_queue": INGEST_QUEUE,
        "enable_utc": True,
    }


def queue_keys(prefix: str, queue: str) -> list[str]:
    """Redis lists that hold the messages of a queue, by priority."""
    names = [f"{queue}{_SEPARATOR}{number}" if number else queue for number in PRIORITIES]
    return [f"{prefix}:broker:{name}" for name in names]


def submit(sender: TaskSender, task: str, record_id: str, priority: int = 0) -> None:
    """Sends `task` for the record `record_id` to the queue of that task.

    Arguments:
        sender: A Celery application.
        task: Its name.
        record_id: What it is about.
        priority: One of `PRIORITIES`; lower ones are taken first.
    """
    queue = _QUEUE_OF_TASK[task]
    sender.send_task(task, (record_id, MESSAGE_VERSION), queue=queue, priority=priority)
