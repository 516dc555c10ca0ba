"""Name the queues and tasks, send messages, and list the workers that take them.

Any `celery.Celery` object is a `TaskSender`; the gateway builds its own from `celery_settings`, so
that both ends agree on the broker without one importing the other. The records of jobs and batches
are the source of truth about what is queued; kombu's message lists are only read to measure the one
queue that has no records (`worker.contract.store`). Workers register with their capabilities; a
registration expires without heartbeats.
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
    "DRAW_MEMBERS",
    "GPU_QUEUE",
    "INGEST_BATCH",
    "INGEST_LARGE_QUEUE",
    "INGEST_QUEUE",
    "MESSAGE_VERSION",
    "ModelInfo",
    "PRIORITIES",
    "ProcessFigures",
    "PRODUCTS_QUEUE",
    "QUEUES",
    "RUN_ASSIMILATION",
    "SCHEDULER",
    "SENT_HEADER",
    "TASK_ROUTES",
    "TaskSender",
    "WorkerDirectory",
    "WorkerReport",
    "celery_settings",
    "merge",
    "submit",
    "submit_batch",
]

INGEST_QUEUE = "ingest"
INGEST_LARGE_QUEUE = "ingest-large"
GPU_QUEUE = "gpu"
PRODUCTS_QUEUE = "products"
QUEUES = (INGEST_QUEUE, INGEST_LARGE_QUEUE, GPU_QUEUE, PRODUCTS_QUEUE)
SCHEDULER = "scheduler"
"""Name of the scheduler, among the queues in a worker's registration."""

INGEST_BATCH = "appa.ingest_batch"
RUN_ASSIMILATION = "appa.run_assimilation"
DRAW_MEMBERS = "appa.draw_members"
ANNOUNCE_RESULT = "appa.announce_result"
TASK_ROUTES = {
    INGEST_BATCH: {"queue": INGEST_QUEUE},
    RUN_ASSIMILATION: {"queue": GPU_QUEUE},
    DRAW_MEMBERS: {"queue": GPU_QUEUE},
    ANNOUNCE_RESULT: {"queue": PRODUCTS_QUEUE},
}
"""Celery's `task_routes`: which queue a task is sent to, whoever sends it."""

SENT_HEADER = "appa_sent"
"""Header of a message: when it was sent (UTC, ISO 8601)."""

MESSAGE_VERSION = 1
"""Second argument of every task; a worker refuses versions it does not know."""

PRIORITIES = (0, 3, 6, 9)
"""Message priorities, 0 the highest. A worker takes all messages of one priority before the next, so
that an hourly analysis does not wait for the windows of a reanalysis (`SpecBase.priority`)."""


class TaskSender(Protocol):
    """What `submit` needs of a Celery application."""

    def send_task(self, name: str, args: tuple[Any, ...], **options: Any) -> Any:
        """Send a task by its name."""
        ...


def celery_settings(url: str, prefix: str, visibility_timeout: int) -> dict[str, Any]:
    """Return the configuration that the sender and the worker of a message must share.

    Arguments:
        url: Redis URL of the broker (`redis://` or `unix://`).
        prefix: Put before every broker key.
        visibility_timeout: Seconds after which an unacknowledged message is delivered again;
            must exceed the longest job and the longest pause before a retry, because a message
            stays unacknowledged meanwhile.
    """
    if url.startswith("unix://"):  # kombu's spelling of redis-py's scheme
        url = "redis+socket://" + url.removeprefix("unix://")
    return {
        "broker_url": url,
        "broker_transport_options": {
            "visibility_timeout": visibility_timeout,
            "global_keyprefix": f"{prefix}:broker:",
            "socket_keepalive": True,
            # Longest wait of a worker for a message, in seconds: it wakes up that often while idle, and
            # a signal to stop waits for it. Messages themselves end the wait.
            "polling_interval": 2,
            "priority_steps": list(PRIORITIES),
        },
        "broker_connection_retry_on_startup": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_queues": {
            queue: {"exchange": queue, "exchange_type": "direct", "routing_key": queue}
            for queue in QUEUES
        },
        "task_create_missing_queues": False,
        "task_default_queue": INGEST_QUEUE,
        "task_routes": TASK_ROUTES,
        "task_send_sent_event": True,
        "enable_utc": True,
    }


def submit(sender: TaskSender, task: str, record_id: str, priority: int = 0) -> None:
    """Send `task` for the record `record_id`; `TASK_ROUTES` says to which queue.

    Arguments:
        sender: A Celery application.
        task: Name of the task.
        record_id: Job, batch or result that the message names.
        priority: One of `PRIORITIES`; lower numbers are taken first.
    """
    headers = {SENT_HEADER: utc_now().isoformat()}
    sender.send_task(task, (record_id, MESSAGE_VERSION), priority=priority, headers=headers)


def submit_batch(
    sender: TaskSender, workers: "WorkerDirectory", record_id: str, *, large: bool
) -> None:
    """Send the message of an upload to the queue of its size.

    Arguments:
        sender: A Celery application.
        workers: Running workers: while none takes large uploads, the others do.
        record_id: The upload.
        large: Whether it must not hold up small ones.
    """
    elsewhere = large and workers.ready(INGEST_LARGE_QUEUE)
    options = {"queue": INGEST_LARGE_QUEUE} if elsewhere else {}
    sender.send_task(INGEST_BATCH, (record_id, MESSAGE_VERSION), priority=0, **options)


class ModelInfo(Record):
    """A checkpoint that a worker has loaded, with its grid, levels and limits."""

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
    samplers: list[str] = Field(default=[], description="Samplers that a job may choose.")
    default_sampler: str = Field(default="", description="Unless a job says otherwise.")
    guidance: list[str] = Field(default=[], description="Guidance that a job may choose.")
    default_guidance: str = Field(default="", description="Unless a job says otherwise.")
    precisions: list[str] = Field(default=[], description="Precisions that a job may choose.")
    default_precision: str = Field(default="", description="Unless a job says otherwise.")
    max_members: int | None = Field(
        default=None, description="Most members of a job; null for no limit."
    )

    def shared_with(self, other: "ModelInfo") -> "ModelInfo":
        """Return the model with those choices of a job that another worker offers as well."""
        choices = ("samplers", "guidance", "precisions")
        common = {
            name: [choice for choice in getattr(self, name) if choice in getattr(other, name)]
            for name in choices
        }
        return self.model_copy(update=common)


class Capabilities(Record):
    """What can be asked for; the union over the workers that run."""

    models: list[ModelInfo] = Field(default=[], description="Checkpoints, the default one first.")
    formats: dict[str, str] = Field(default={}, description="Output formats and what they are.")
    decoders: dict[str, str] = Field(default={}, description="Input formats and what they are.")
    networks: list[str] = Field(default=[], description="Report types.")


class ProcessFigures(Record):
    """How a worker process is: what it uses, and whether it goes round."""

    resident_bytes: int = Field(default=0, description="Memory of the process and its children.")
    device_used_bytes: int | None = Field(
        default=None, description="Memory of its device in use, by anybody; null without one."
    )
    device_total_bytes: int | None = Field(
        default=None, description="Memory of its device; null without one."
    )
    device_utilisation: float | None = Field(
        default=None, description="Share of time in which its device computed; null if not known."
    )
    turned: datetime | None = Field(
        default=None,
        description="When the loop of the scheduler or of the feeds last went round (UTC).",
    )
    announcements: int | None = Field(
        default=None, description="Results whose announcement the WIS2 broker has not confirmed."
    )
    announcement_age: float | None = Field(
        default=None, description="Seconds for which the oldest of these has waited."
    )


class WorkerReport(Record):
    """What one worker process reports about itself."""

    name: str = Field(description="Unique: host, queue, process.")
    queues: list[str] = Field(description="Queues it takes work from.")
    ready: bool = Field(
        default=False, description="Whether it takes work: model loaded, not drained."
    )
    draining: bool = Field(default=False, description="Whether it was asked to take no more work.")
    device: str = Field(default="", description="`cpu`, `cuda:0` and its name.")
    ranks: int = Field(default=1, description="Processes, each with its device, of this worker.")
    pid: int = Field(default=0, description="Process.")
    host: str = Field(default="", description="Machine.")
    version: str = Field(default="", description="Code version.")
    started: datetime = Field(default_factory=utc_now, description="Since when (UTC).")
    busy_with: str | None = Field(default=None, description="Record it works on.")
    figures: ProcessFigures = Field(
        default_factory=lambda: ProcessFigures(), description="How it is, at its last report."
    )
    capabilities: Capabilities = Field(
        default_factory=lambda: Capabilities(), description="What it can do."
    )


def merge(reports: Sequence[WorkerReport]) -> Capabilities:
    """Return the union of what the workers in `reports` can do.

    For a model that several workers have, only the choices that all of them offer are listed, because
    any of them may take the job.
    """
    models: dict[str, ModelInfo] = {}
    formats: dict[str, str] = {}
    decoders: dict[str, str] = {}
    networks: dict[str, None] = {}
    for report in reports:
        for info in report.capabilities.models:
            known = models.get(info.name)
            models[info.name] = info if known is None else known.shared_with(info)
        formats.update(report.capabilities.formats)
        decoders.update(report.capabilities.decoders)
        networks.update(dict.fromkeys(report.capabilities.networks))
    return Capabilities(
        models=list(models.values()), formats=formats, decoders=decoders, networks=list(networks)
    )


class WorkerDirectory:
    """Registrations of worker processes, each with a time at which it expires."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def register(self, report: WorkerReport, lifetime: timedelta) -> None:
        """Store what a worker reports; it expires after `lifetime` unless renewed."""
        end = (utc_now() + lifetime).timestamp()
        pipe = self.redis.pipeline()
        pipe.hset(self.keys.worker_reports, report.name, report.model_dump_json())
        pipe.zadd(self.keys.workers, {report.name: end})
        pipe.execute()

    def leave(self, name: str) -> None:
        """Remove the registration of a worker that shuts down."""
        pipe = self.redis.pipeline()
        pipe.hdel(self.keys.worker_reports, name)
        pipe.zrem(self.keys.workers, name)
        pipe.execute()

    def alive(self) -> list[WorkerReport]:
        """Return the workers whose registration has not expired, by name; remove the others."""
        now = utc_now().timestamp()
        gone: Any = self.redis.zrangebyscore(self.keys.workers, "-inf", now)
        for name in gone:
            self.leave(str(name))
        names: Any = self.redis.zrange(self.keys.workers, 0, -1)
        raw: Any = self.redis.hmget(self.keys.worker_reports, names) if names else []
        reports = [WorkerReport.model_validate_json(text) for text in raw if text]
        return sorted(reports, key=lambda report: report.name)

    def ready(self, queue: str) -> list[WorkerReport]:
        """Return the workers that take work from `queue` now."""
        return [report for report in self.alive() if report.ready and queue in report.queues]

    def capabilities(self) -> Capabilities:
        """Return the union of what the ready workers can do."""
        return merge([report for report in self.alive() if report.ready])
