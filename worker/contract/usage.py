"""Count the usage of each API key: requests by a token bucket; bytes, rows and jobs per day.

All counters are in Redis, shared by any number of gateways, and expire: an unused key leaves nothing
behind. Times are those of the server, one clock for all.

Daily usage is charged in the same atomic step as the change itself (`worker.contract.scripts`): bytes
and jobs when an upload or job is created, rows when the ingest of an upload ends. Nothing is counted
twice or left out if a process dies. Work that ends by an error of the service is refunded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from redis import Redis

from model.domain.errors import AppaError
from worker.contract import scripts
from worker.contract.redis_server import Keyspace

__all__ = [
    "DAY_SECONDS",
    "Allowance",
    "Charge",
    "QuotaExceeded",
    "TokenBuckets",
    "Usage",
    "UsageCounters",
    "Use",
]

DAY_SECONDS = 86_400

Use = Literal["bytes", "rows", "jobs"]
"""What is counted: bytes of uploads accepted, values decoded from them, jobs submitted."""


@dataclass(frozen=True)
class Allowance:
    """Whether one request is within the rate of its API key.

    Attributes:
        allowed: Whether it may go ahead.
        retry_after: Whole seconds until the next one may.
    """

    allowed: bool
    retry_after: int = 0


class TokenBuckets:
    """One token bucket for each API key: a full one holds the requests of a minute.

    Stored as the time at which the bucket will be full again (the generic cell rate algorithm, ITU-T
    I.371), when the key expires in Redis.
    """

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def take(self, key_id: str, limit: int, *, window_seconds: float = 60.0) -> Allowance:
        """Take one request of `key_id` out of its bucket.

        Arguments:
            key_id: API key.
            limit: Requests that a full bucket holds.
            window_seconds: Time in which an empty bucket fills.
        """
        run = self.redis.register_script(scripts.BUCKET)
        answer: Any = run(keys=[self.keys.rate(key_id)], args=[limit, 1000 * window_seconds])
        wait = int(answer)
        return Allowance(wait == 0, -(-wait // 1000))


@dataclass(frozen=True)
class Charge:
    """What an upload or job adds to the daily usage of its API key.

    Attributes:
        what: What is counted.
        amount: How much it adds.
        limit: Maximum per day; 0 for no limit.
    """

    what: Use
    amount: int
    limit: int = 0


@dataclass(frozen=True)
class Usage:
    """Usage of a key since the last reset, by what is counted.

    Attributes:
        used: By what is counted.
        reset: When the counters are reset (UTC).
        retry_after: Whole seconds until then.
    """

    used: Mapping[Use, int]
    reset: datetime
    retry_after: int

    def require(self, charge: Charge) -> None:
        """Refuse a charge that exceeds the quota; one of amount 0 if the quota is used up.

        Raises:
            QuotaExceeded: With the limit, the usage, and the time of the reset.
        """
        used = self.used[charge.what]
        if charge.limit and used + max(1, charge.amount) > charge.limit:
            raise QuotaExceeded(charge, used, self.reset, self.retry_after)


class QuotaExceeded(AppaError):
    """A key that has used up its daily quota of bytes, rows or jobs."""

    code = "quota_exceeded"

    def __init__(self, charge: Charge, used: int, reset: datetime, retry_after: int) -> None:
        more = f" and this would add {charge.amount}" if charge.amount > 1 else ""
        super().__init__(
            f"Expected at most {charge.limit} {charge.what} a day with this key; {used} are "
            f"used{more}. Try again after {reset.isoformat()}, or ask the operator for more "
            f"(`appa keys change ID --{charge.what}-per-day N`).",
            quota=charge.what,
            limit=charge.limit,
            used=used,
            reset=reset.isoformat(),
        )
        self.retry_after = retry_after


class UsageCounters:
    """Usage of keys per day (UTC); a day expires in Redis two days after its end."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def read(self, key_id: str) -> Usage:
        """Return what a key has used today."""
        seconds, _ = self._call(self.redis.time())
        day = int(seconds) // DAY_SECONDS
        found = self._call(self.redis.hgetall(self.keys.usage(key_id, day)))
        end = (day + 1) * DAY_SECONDS
        used: dict[Use, int] = {
            "bytes": int(found.get("bytes", 0)),
            "rows": int(found.get("rows", 0)),
            "jobs": int(found.get("jobs", 0)),
        }
        return Usage(used, datetime.fromtimestamp(end, UTC), end - int(seconds))

    @staticmethod
    def text(charge: Charge | None) -> str:
        """Return a charge as the scripts take it; empty for none."""
        if charge is None:
            return ""
        return json.dumps([charge.what, charge.amount, charge.limit])

    @staticmethod
    def _call(result: Any) -> Any:
        return result
