"""How much an API key may ask for: requests in a window of time."""

import time
from dataclasses import dataclass
from typing import Any

from redis import Redis

from worker.jobs.keyspace import Keyspace

__all__ = ["Allowance", "QuotaCounters"]


@dataclass(frozen=True)
class Allowance:
    """Answer to one request.

    Attributes:
        allowed: Whether it may go ahead.
        remaining: Requests left in this window.
        retry_after: Whole seconds until the next window.
    """

    allowed: bool
    remaining: int
    retry_after: int


class QuotaCounters:
    """Counters per API key; one per window, which Redis forgets by itself."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def take(
        self, key_id: str, limit: int, *, window_seconds: int = 60, now: float | None = None
    ) -> Allowance:
        """Counts one request of `key_id` against `limit` per window.

        Arguments:
            key_id: API key, or the sender's address when there is none.
            limit: Requests allowed in a window.
            window_seconds: Length of the windows, which start at whole multiples.
            now: Seconds since 1970; the present when absent.
        """
        now = time.time() if now is None else now
        window = int(now // window_seconds)
        key = self.keys.quota(key_id, window)
        pipe = self.redis.pipeline()
        pipe.incr(key)
        pipe.expire(key, 2 * window_seconds)
        answers: Any = pipe.execute()
        used = int(answers[0])
        wait = max(1, round((window + 1) * window_seconds - now))
        return Allowance(used <= limit, max(0, limit - used), wait)
