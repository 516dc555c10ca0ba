"""Who works: registrations that end without heartbeats, and what running workers can do."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field
from redis import Redis

from worker.jobs.job import Record, utc_now
from worker.jobs.keyspace import Keyspace

__all__ = ["Capabilities", "ModelInfo", "WorkerDirectory", "WorkerReport", "merge"]


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
