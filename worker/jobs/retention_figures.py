"""What retention has removed so far and when it last ran: counted in Redis, shown on `/metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis

from worker.jobs.keyspace import Keyspace

__all__ = ["RetentionFigures", "Removed"]

_LAST = "last_run"


@dataclass(frozen=True)
class Removed:
    """Sums over all runs.

    Attributes:
        items: Things removed, by what they were.
        size: Bytes freed, by what they were.
        last_run: Seconds since 1970; None before the first run.
    """

    items: Mapping[str, int]
    size: Mapping[str, int]
    last_run: float | None


@dataclass(frozen=True)
class RetentionFigures:
    """One hash: `items:<what>`, `bytes:<what>` and the time of the last run."""

    redis: Redis
    keys: Keyspace

    def add(self, what: str, size: int) -> None:
        """Counts one thing that was removed."""
        pipe = self.redis.pipeline()
        pipe.hincrby(self.keys.retention, f"items:{what}", 1)
        pipe.hincrby(self.keys.retention, f"bytes:{what}", size)
        pipe.execute()

    def ran(self, when: float) -> None:
        """Remembers a run."""
        self.redis.hset(self.keys.retention, _LAST, str(when))

    def read(self) -> Removed:
        """The sums."""
        found: Any = self.redis.hgetall(self.keys.retention)
        last = found.pop(_LAST, None)
        parts = {"items": {}, "bytes": {}}  # type: dict[str, dict[str, int]]
        for name, value in found.items():
            sort, _, what = str(name).partition(":")
            parts[sort][what] = int(value)
        return Removed(parts["items"], parts["bytes"], None if last is None else float(last))
