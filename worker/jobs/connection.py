"""Connections to Redis, and whether the server is set up to keep what it is given."""

from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

__all__ = ["RedisHealth", "connect", "redis_health"]


def connect(url: str, *, retries: int = 5) -> Redis:
    """A client with text answers that outlives a short restart of the server."""
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
    """What was found out about the server.

    Attributes:
        reachable: Whether it answers.
        warnings: What is set dangerously, and what to set instead.
        used_memory: Bytes.
        max_memory: Bytes, 0 for no limit.
    """

    reachable: bool
    warnings: tuple[str, ...] = ()
    used_memory: int = 0
    max_memory: int = 0


def redis_health(redis: Redis) -> RedisHealth:
    """Checks that nothing is evicted and everything is on disk.

    Servers that forbid CONFIG (managed ones) are judged by INFO alone.
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
