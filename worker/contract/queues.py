"""Name the queues and tasks, send messages, and list the workers that take them.

Any `celery.Celery` object is a `TaskSender`; the gateway builds its own from `celery_settings`,
so that both ends agree on the broker without one importing the other. Workers register with
their capabilities; a registration expires without heartbeats.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from pydantic import Field
from redis import Redis

from worker.contract.records import Record, utc_now
from worker.contract.redis_server import Keyspace

__all__ = [
    "ANNOUNCE_RESULT",
    "Capabilities",
    "GPU_QUEUE",
    "INGEST_BATCH",
    "INGEST_QUEUE",
    "MESSAGE_VERSION",
    "ModelInfo",
    "PRIORITIES",
    "PRODUCTS_QUEUE",
    "QUEUES",
    "RUN_ASSIMILATION",
    "TaskSender",
    "WorkerDirectory",
    "WorkerReport",
    "celery_settings",
    "merge",
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


class ModelInfo(Record):
    """A checkpoint that a worker has loaded."""

    name: str = Field(description="Name to use in a job.")
    description: str = Field(default="", description="One line.")
    sha256: str = Field(default="", description="Of its bundle.")
    grid: str = Field(default="", description="Name of its grid.")
    shape: tuple[int, int] = Field(default=(0, 0), description="Rows and columns.")
    levels: list[int] = Field(default=[], description="Pressure levels in hPa.")
    channels: list[str] = Field(default=[], description="Channels of a state, in order.")
    blanket: int = Field(default=0, description="States denoised together.")
    default_steps: int = Field(
        default=0, description="Diffusion steps unless a job says otherwise."
    )
    max_members: int | None = Field(
        default=None, description="Most members of a job; null for no limit."
    )


class Capabilities(Record):
    """What can be asked for; the union over the workers that run."""

    models: list[ModelInfo] = Field(default=[], description="Checkpoints, the default one first.")
    formats: dict[str, str] = Field(default={}, description="Output formats and what they are.")
    decoders: dict[str, str] = Field(default={}, description="Input formats and what they are.")
    networks: list[str] = Field(default=[], description="Report types.")


class WorkerReport(Record):
    """What one worker process tells about itself."""

    name: str = Field(description="Unique: host, queue, process.")
    queues: list[str] = Field(description="Queues it takes work from.")
    ready: bool = Field(
        default=False, description="Whether it can take work: model loaded and warm."
    )
    device: str = Field(default="", description="`cpu`, `cuda:0` and its name.")
    pid: int = Field(default=0, description="Process.")
    host: str = Field(default="", description="Machine.")
    version: str = Field(default="", description="Code version.")
    started: datetime = Field(default_factory=utc_now, description="Since when (UTC).")
    busy_with: str | None = Field(default=None, description="Record it works on.")
    capabilities: Capabilities = Field(
        default_factory=lambda: Capabilities(), description="What it can do."
    )


def merge(reports: Sequence[WorkerReport]) -> Capabilities:
    """The union of what the workers in `reports` can do."""
    models: dict[str, ModelInfo] = {}
    formats: dict[str, str] = {}
    decoders: dict[str, str] = {}
    networks: dict[str, None] = {}
    for report in reports:
        for info in report.capabilities.models:
            models.setdefault(info.name, info)
        formats.update(report.capabilities.formats)
        decoders.update(report.capabilities.decoders)
        networks.update(dict.fromkeys(report.capabilities.networks))
    return Capabilities(
        models=list(models.values()), formats=formats, decoders=decoders, networks=list(networks)
    )


class WorkerDirectory:
    """The workers that have been heard of lately."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def register(self, report: WorkerReport, lifetime: timedelta) -> None:
        """Stores what a worker reports; forgotten after `lifetime` unless it reports again."""
        end = (utc_now() + lifetime).timestamp()
        pipe = self.redis.pipeline()
        pipe.hset(self.keys.worker_reports, report.name, report.model_dump_json())
        pipe.zadd(self.keys.workers, {report.name: end})
        pipe.execute()

    def leave(self, name: str) -> None:
        """A worker stops in good order."""
        pipe = self.redis.pipeline()
        pipe.hdel(self.keys.worker_reports, name)
        pipe.zrem(self.keys.workers, name)
        pipe.execute()

    def alive(self) -> list[WorkerReport]:
        """All workers heard of lately, by name; those long gone are swept out."""
        now = utc_now().timestamp()
        gone: Any = self.redis.zrangebyscore(self.keys.workers, "-inf", now)
        for name in gone:
            self.leave(str(name))
        names: Any = self.redis.zrange(self.keys.workers, 0, -1)
        raw: Any = self.redis.hmget(self.keys.worker_reports, names) if names else []
        reports = [WorkerReport.model_validate_json(text) for text in raw if text]
        return sorted(reports, key=lambda report: report.name)

    def ready(self, queue: str) -> list[WorkerReport]:
        """Workers that take work from `queue` now."""
        return [report for report in self.alive() if report.ready and queue in report.queues]

    def capabilities(self) -> Capabilities:
        """What the running workers can do."""
        return merge([report for report in self.alive() if report.ready])
