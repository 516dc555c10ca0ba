"""Show the state of the sources of observations: what the feeds report, for the API and metrics.

The feed process writes the state of each source every few seconds; a stale report means that the
process has stopped.
"""

from datetime import datetime, timedelta
from typing import Any

from pydantic import Field
from redis import Redis

from worker.contract.records import Record, utc_now
from worker.contract.redis_server import Keyspace

__all__ = ["FEEDS", "SourceStatus", "StatusBoard"]

FEEDS = "sources"
"""Name of the process of the feeds, among the queues in a worker's registration."""

_STALE = timedelta(seconds=30)


class SourceStatus(Record):
    """What a source is doing and has done."""

    name: str = Field(description="Name of the source.")
    broker: str = Field(default="", description="Address of the broker, without password.")
    topics: list[str] = Field(default=[], description="Topic filters.")
    connected: bool = Field(default=False, description="Whether the broker delivers now.")
    detail: str = Field(default="", description="Why it is not connected, or why it waits.")
    since: datetime | None = Field(default=None, description="Connected or offline since (UTC).")
    backlog: int = Field(default=0, ge=0, description="Announced data that wait to be fetched.")
    lag_seconds: float = Field(
        default=0.0, ge=0, description="How long the oldest of these has waited."
    )
    latency_seconds: float | None = Field(
        default=None,
        description="From publication to acceptance here, of the newest data accepted.",
    )
    received: int = Field(default=0, ge=0, description="Notifications received so far.")
    duplicates: int = Field(
        default=0, ge=0, description="Of these, announcements of data that were known."
    )
    accepted: int = Field(default=0, ge=0, description="Data handed over to ingest.")
    known: int = Field(
        default=0, ge=0, description="Data whose bytes had been received before, from anybody."
    )
    failures: int = Field(default=0, ge=0, description="Fetches that failed and were tried again.")
    refused: dict[str, int] = Field(default={}, description="Given up, by reason.")
    size: int = Field(default=0, ge=0, description="Bytes accepted.")
    last_received: datetime | None = Field(default=None, description="Newest notification (UTC).")
    last_accepted: datetime | None = Field(default=None, description="Newest data accepted (UTC).")
    reported: datetime = Field(
        default_factory=utc_now, description="When the process of the feeds last reported (UTC)."
    )


class StatusBoard:
    """The newest reports of all sources."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def write(self, statuses: list[SourceStatus]) -> None:
        """Replace the reports with those of the present sources."""
        pipe = self.redis.pipeline(transaction=True)
        pipe.delete(self.keys.sources)
        if statuses:
            pipe.hset(self.keys.sources, mapping={s.name: s.model_dump_json() for s in statuses})
        pipe.execute()

    def read(self) -> list[SourceStatus]:
        """Return the reports by name; a source without a recent one counts as not connected."""
        texts: Any = self.redis.hvals(self.keys.sources)
        found = [SourceStatus.model_validate_json(text) for text in texts]
        return [_judged(status) for status in sorted(found, key=lambda status: status.name)]


def _judged(status: SourceStatus) -> SourceStatus:
    if utc_now() - status.reported <= _STALE:
        return status
    detail = "no report: is `appa worker sources` running?"
    return status.model_copy(update={"connected": False, "detail": detail})
