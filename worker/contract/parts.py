"""Distribute the members of a running job over workers: state and progress of its parts in Redis.

The worker that holds a job divides its members into parts and announces them; it and every idle
worker take parts until none is left. Each part has a lease: a part whose worker died is taken again,
the others are kept. The state of the job itself depends only on its record and fencing token. Parts
are deterministic, so a part that two workers compute has the same result twice.
"""

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from worker.contract.redis_server import Keyspace

__all__ = ["PartBoard", "PartStore"]

_KEPT = timedelta(days=1)
"""Expiry of a board that was not withdrawn because its worker died."""
_TELL = (
    "if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then "
    "redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end"
)
"""Set a field only while the attempt is current: a worker of an ended attempt must neither mark parts
of the next one nor recreate a board."""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


@dataclass(frozen=True)
class PartBoard:
    """The parts of one attempt at a job.

    Attributes:
        redis: The server.
        key: Redis key of the board.
        token: Fencing token of the attempt.
        parts: Member numbers of each part.
        worker: Name of this process, which holds the parts it takes.
        lifetime: Lease of a part, renewed by heartbeats.
    """

    redis: Redis
    key: str
    token: int
    parts: tuple[range, ...]
    worker: str
    lifetime: timedelta

    def take(self, made: Collection[int] = ()) -> int | None:
        """Take a free part; None if all are taken or done.

        Arguments:
            made: Parts whose results exist, whatever the board says: it may have been lost.
        """
        done = {*self.done(), *made}
        for number in range(len(self.parts)):
            if number not in done and self.redis.set(
                self._lease(number), self.worker, nx=True, px=self._milliseconds
            ):
                return number
        return None

    @contextmanager
    def held(self, number: int) -> Iterator[None]:
        """Hold the lease of a part during a block; then mark it done or, after an error, free."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_on, args=(number, stop), daemon=True)
        thread.start()
        try:
            yield
            self._tell(f"done:{number}", self.worker)
        finally:
            stop.set()
            thread.join(timeout=5)
            self.redis.eval(_RELEASE, 1, self._lease(number), self.worker)

    def done(self) -> dict[int, str]:
        """Return the parts that are done and by whom."""
        return {int(k[5:]): v for k, v in self._fields().items() if k.startswith("done:")}

    def report(self, number: int, step: int, steps: int) -> tuple[int, int]:
        """Report the progress of a part; return that of all parts."""
        self._tell(f"step:{number}", f"{step}/{steps}")
        return self.progress()

    def progress(self) -> tuple[int, int]:
        """Return steps done and total steps; parts not begun count as the longest one."""
        fields = self._fields()
        told = [v.split("/") for name, v in fields.items() if name.startswith("step:")]
        longest = max((int(steps) for _, steps in told), default=0)
        return sum(int(step) for step, _ in told), longest * len(self.parts)

    def withdraw(self) -> None:
        """Remove the board, so that no more parts are taken."""
        leases = [self._lease(number) for number in range(len(self.parts))]
        self.redis.delete(self.key, *leases)

    @property
    def _milliseconds(self) -> int:
        return int(1000 * self.lifetime.total_seconds())

    def _tell(self, field: str, value: str) -> None:
        self.redis.eval(_TELL, 1, self.key, self.token, field, value)

    def _fields(self) -> dict[str, str]:
        found: Any = self.redis.hgetall(self.key)
        return dict(found)

    def _lease(self, number: int) -> str:
        return f"{self.key}:{self.token}:{number}"

    def _beat_on(self, number: int, stop: threading.Event) -> None:
        while not stop.wait(self.lifetime.total_seconds() / 4):
            try:
                self.redis.eval(_RENEW, 1, self._lease(number), self.worker, self._milliseconds)
            except RedisError:  # a restart; taking the part twice is harmless
                continue


class PartStore:
    """Store of the boards on which running jobs announce their parts, in Redis."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    def announce(
        self, job_id: str, token: int, parts: Sequence[range], worker: str, lifetime: timedelta
    ) -> PartBoard:
        """Announce the parts of an attempt, replacing those of an earlier one."""
        key = self.keys.parts(job_id)
        text = json.dumps([[part.start, part.stop] for part in parts])
        pipe = self.redis.pipeline()
        pipe.delete(key)
        pipe.hset(key, mapping={"token": token, "parts": text})
        pipe.expire(key, _KEPT)
        pipe.execute()
        return PartBoard(self.redis, key, token, tuple(parts), worker, lifetime)

    def find(self, job_id: str, worker: str, lifetime: timedelta) -> PartBoard | None:
        """Return the board of a job; None if it has none."""
        key = self.keys.parts(job_id)
        token, text = self._read(key)
        if token is None or text is None:
            return None
        parts = tuple(range(start, stop) for start, stop in json.loads(text))
        return PartBoard(self.redis, key, int(token), parts, worker, lifetime)

    def _read(self, key: str) -> tuple[str | None, str | None]:
        found: Any = self.redis.hmget(key, ["token", "parts"])
        return found[0], found[1]
