"""Connect to Redis, check that the server is configured to lose no data, and name the keys.

All keys are under one prefix.
"""

from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

__all__ = ["Keyspace", "RedisHealth", "connect", "redis_health"]


@dataclass(frozen=True)
class Keyspace:
    """Keys of one installation; `noun` is `job` or `batch`."""

    prefix: str = "appa"

    def record(self, noun: str, record_id: str) -> str:
        """Hash with the fields of a record."""
        return f"{self.prefix}:{noun}:{record_id}"

    def lease(self, noun: str, record_id: str) -> str:
        """Token of the worker that holds the record; expires without heartbeats."""
        return f"{self.record(noun, record_id)}:lease"

    def events(self, noun: str, record_id: str) -> str:
        """Capped stream of what happened to a record."""
        return f"{self.record(noun, record_id)}:events"

    def held(self, noun: str, record_id: str) -> str:
        """Set of the unique keys that name a record."""
        return f"{self.record(noun, record_id)}:keys"

    def parts(self, job_id: str) -> str:
        """Hash of the parts in which the members of a running job are drawn."""
        return f"{self.record('job', job_id)}:parts"

    def index(self, noun: str) -> str:
        """Stem of the sets of ids: `<stem>:all`, `:state:<state>`, `:kind:<kind>` and so on.

        Records that ended are in `:ended` by the time of that, those that the archive has to copy
        in `:fresh`.
        """
        return f"{self.prefix}:index:{noun}"

    def unique(self, noun: str, key: str) -> str:
        """Id of the record that was first created under an idempotency key or content hash."""
        return f"{self.prefix}:unique:{noun}:{key}"

    @property
    def channel(self) -> str:
        """Pub/sub channel on which every event is announced."""
        return f"{self.prefix}:events"

    @property
    def workers(self) -> str:
        """Sorted set of worker names by the time their registration ends."""
        return f"{self.prefix}:workers"

    @property
    def worker_reports(self) -> str:
        """Hash of the last report of each worker."""
        return f"{self.prefix}:workers:reports"

    def rate(self, name: str) -> str:
        """Time at which the token bucket of an API key is full again."""
        return f"{self.prefix}:quota:{name}"

    def usage(self, key_id: str, day: int) -> str:
        """Hash of what an API key used on one day, counted from 1970."""
        return f"{self.prefix}:quota:{key_id}:day:{day}"

    def emitted(self, event_id: str) -> str:
        """Marker of an emitted event; its name dates from the first release."""
        return f"{self.prefix}:told:{event_id}"

    @property
    def retention(self) -> str:
        """Hash that counts what retention removed."""
        return f"{self.prefix}:retention"

    def measures(self, digest: str) -> str:
        """Hash of counters aggregated over all processes, by metric and labels."""
        return f"{self.prefix}:measures:{digest}"

    @property
    def arrivals(self) -> str:
        """Hash of the times at which values of each network were last stored."""
        return f"{self.prefix}:arrivals"

    @property
    def sources(self) -> str:
        """Hash of the states of the sources of observations by name."""
        return f"{self.prefix}:sources"

    def once(self, task: str) -> str:
        """Lock that lets one scheduler at a time run a maintenance task, and limits how often."""
        return f"{self.prefix}:once:{task}"

    @property
    def webhooks(self) -> str:
        """Hash of the webhook subscriptions by id."""
        return f"{self.prefix}:webhooks"

    @property
    def webhooks_due(self) -> str:
        """Sorted set of `<webhook>|<event>` by the time of the next attempt."""
        return f"{self.prefix}:webhooks:due"

    @property
    def webhook_cursor(self) -> str:
        """Position in the stream of events up to which messages were queued."""
        return f"{self.prefix}:webhooks:cursor"

    def deliveries(self, webhook_id: str) -> str:
        """Hash of the messages of a webhook by event."""
        return f"{self.prefix}:webhook:{webhook_id}:deliveries"

    def delivery_order(self, webhook_id: str) -> str:
        """Sorted set of the same events by the time they were queued."""
        return f"{self.prefix}:webhook:{webhook_id}:order"


def connect(url: str, *, retries: int = 5) -> Redis:
    """Return a client with text answers that retries during a short restart of the server."""
    return Redis.from_url(
        url,
        decode_responses=True,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
        retry_on_error=[BusyLoadingError, RedisConnectionError, RedisTimeoutError],
        socket_timeout=30,
        socket_connect_timeout=5,
        health_check_interval=30,
    )


@dataclass(frozen=True)
class RedisHealth:
    """Reachability, risky settings and memory of the server.

    Attributes:
        reachable: Whether it answers.
        warnings: Settings that may lose data, and what to set instead.
        used_memory: Bytes in use.
        max_memory: Bytes, 0 for no limit.
    """

    reachable: bool
    warnings: tuple[str, ...] = ()
    used_memory: int = 0
    max_memory: int = 0


def redis_health(redis: Redis) -> RedisHealth:
    """Check that the server evicts nothing and persists everything.

    Servers that forbid CONFIG (managed ones) are checked by INFO only.
    """
    try:
        memory: dict[str, Any] = dict(redis.info("memory"))
        persistence: dict[str, Any] = dict(redis.info("persistence"))
    except RedisError as error:
        return RedisHealth(False, (f"Redis does not answer: {error}",))
    warnings = []
    policy = memory.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        warnings.append(
            f"maxmemory-policy is '{policy}': jobs and messages may be evicted. "
            "Set: CONFIG SET maxmemory-policy noeviction"
        )
    if not int(persistence.get("aof_enabled", 0)):
        warnings.append(
            "The append-only file is off: jobs are lost when the server restarts. "
            "Set: CONFIG SET appendonly yes"
        )
    elif _config(redis, "appendfsync") == "no":
        warnings.append(
            "appendfsync is 'no': seconds of jobs may be lost. Set: CONFIG SET appendfsync everysec"
        )
    used, limit = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
    if limit and used > 0.8 * limit:
        warnings.append(
            f"Redis uses {used} of {limit} bytes: new jobs will soon be refused. Raise maxmemory."
        )
    return RedisHealth(True, tuple(warnings), used, limit)


def _config(redis: Redis, name: str) -> str:
    try:
        answer: Any = redis.config_get(name)
    except ResponseError:
        return ""
    return str(answer.get(name, ""))
