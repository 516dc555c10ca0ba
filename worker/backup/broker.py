"""Dump a snapshot of the Redis keys of one installation, and restore it.

A key is copied by DUMP with its expiry time. All keys are read atomically by one script. If they are
too many, so that the script would block the server, they are read in parts while others write, and
the copy records that it is not one snapshot: the records are then reconciled as after a crash (lost
messages are sent again, abandoned work is taken over).

Keys of running processes are left out: leases, registrations of workers, quotas. So is the marker
that tells a scheduler that Redis holds all records, so that the first scheduler after a restore
compares Redis with the archive.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from model.domain.errors import ConfigurationError, StorageError
from model.domain.files import open_atomic
from worker.contract.redis_server import Keyspace

__all__ = ["BrokerCopy", "clear_keys", "count_keys", "dump_keys", "restore_keys"]

T = TypeVar("T")

_AT_ONCE_KEYS = 20_000
_AT_ONCE_BYTES = 256 * 2**20
"""Above either limit, one script would block the server for more than about a second."""

_PART = 500

_READ_ALL = """
local seen, found, cursor = {}, {}, '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    if not seen[key] then
      seen[key] = true
      found[#found + 1] = {key, redis.call('DUMP', key), redis.call('PEXPIRETIME', key)}
    end
  end
until cursor == '0'
return found
"""
"""Lua script that returns each key of a pattern with its content and expiry, as one snapshot."""


@dataclass(frozen=True)
class BrokerCopy:
    """Description of a copy of Redis keys.

    Attributes:
        prefix: Prefix of the installation's keys.
        server: Name and version of the server, such as `valkey 8.1.1`.
        keys: Number of keys.
        one_moment: Whether the copy is one consistent snapshot.
    """

    prefix: str
    server: str
    keys: int
    one_moment: bool


def dump_keys(
    url: str,
    prefix: str,
    path: Path,
    *,
    at_once_keys: int = _AT_ONCE_KEYS,
    at_once_bytes: int = _AT_ONCE_BYTES,
) -> BrokerCopy:
    """Write the keys under `prefix` to a file, one JSON object a line.

    Arguments:
        url: The server.
        prefix: Prefix of the installation.
        path: The file, written atomically.
        at_once_keys: Number of keys on the server above which they are read in parts.
        at_once_bytes: Memory in use above which they are read in parts.

    Raises:
        StorageError: If the server does not answer.
    """
    with _client(url) as redis:
        info: dict[str, Any] = dict(redis.info())
        at_once = redis.dbsize() <= at_once_keys and info["used_memory"] <= at_once_bytes
        found = _at_once(redis, prefix) if at_once else _in_parts(redis, prefix)
        kept = (entry for entry in found if not _of_processes(entry[0].decode(), prefix))
        count = 0
        with open_atomic(path, mode=0o600) as stream:
            for key, content, expires in kept:
                line: dict[str, Any] = {"key": key.decode()}
                line |= {"expires_ms": expires} if expires > 0 else {}
                line["dump"] = base64.b64encode(content).decode()
                stream.write(json.dumps(line).encode() + b"\n")
                count += 1
    return BrokerCopy(prefix, _server(info), count, at_once)


def count_keys(url: str, prefix: str) -> int:
    """Return the number of keys under `prefix`.

    Raises:
        StorageError: If the server does not answer.
    """
    with _client(url) as redis:
        return sum(1 for _ in redis.scan_iter(_pattern(prefix), count=1000))


def clear_keys(url: str, prefix: str) -> int:
    """Delete the keys under `prefix`; return how many there were.

    Raises:
        StorageError: If the server does not answer.
    """
    with _client(url) as redis:
        removed = 0
        for part in _parts(redis.scan_iter(_pattern(prefix), count=1000)):
            removed += int(redis.unlink(*part))
        return removed


def restore_keys(url: str, path: Path) -> int:
    """Put the keys of a file back; those that have expired since are left out. Return how many.

    Raises:
        StorageError: If the server does not answer.
        ConfigurationError: If a key is taken, or the server is older than the one that was copied.
    """
    with _client(url) as redis, path.open("rb") as lines:
        return sum(_restore_part(redis, part) for part in _parts(map(json.loads, lines)))


def _restore_part(redis: "Redis", entries: list[dict[str, Any]]) -> int:
    seconds, microseconds = redis.time()
    now = 1000 * seconds + microseconds // 1000
    due = [entry for entry in entries if entry.get("expires_ms", now + 1) > now]
    pipe = redis.pipeline(transaction=False)
    for entry in due:
        expires = entry.get("expires_ms", 0)
        pipe.restore(entry["key"], expires, base64.b64decode(entry["dump"]), absttl=bool(expires))
    for entry, answer in zip(due, pipe.execute(raise_on_error=False), strict=True):
        if isinstance(answer, ResponseError):
            raise ConfigurationError(
                f"Expected a server that takes the key '{entry['key']}'; it says: {answer}. Use a "
                "server that is not older than the one of the backup, and whose keys are not taken.",
                key=entry["key"],
            )
        if isinstance(answer, Exception):
            raise answer
    return len(due)


def _at_once(redis: "Redis", prefix: str) -> Iterator[tuple[bytes, bytes, int]]:
    found: Any = redis.eval(_READ_ALL, 0, _pattern(prefix))
    yield from ((key, content, int(expires)) for key, content, expires in found)


def _in_parts(redis: "Redis", prefix: str) -> Iterator[tuple[bytes, bytes, int]]:
    seen: set[bytes] = set()  # SCAN may name a key twice
    for part in _parts(redis.scan_iter(_pattern(prefix), count=1000)):
        new = [key for key in dict.fromkeys(part) if key not in seen]
        seen.update(new)
        pipe = redis.pipeline(transaction=False)
        for key in new:
            pipe.dump(key)
            pipe.pexpiretime(key)
        answers = pipe.execute()
        for key, content, expires in zip(new, answers[::2], answers[1::2], strict=True):
            if content is not None:  # not deleted meanwhile
                yield key, content, int(expires)


def _of_processes(key: str, prefix: str) -> bool:
    """Return whether a key belongs to running processes, or is the marker of the archive."""
    keys = Keyspace(prefix)
    if key in (keys.workers, keys.worker_reports, keys.once("archive-mark")):
        return True
    return key.startswith(f"{prefix}:quota:") or key.endswith(":lease")


def _pattern(prefix: str) -> str:
    return re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + ":*"


def _server(info: dict[str, Any]) -> str:
    if "valkey_version" in info:
        return f"valkey {info['valkey_version']}"
    return f"redis {info.get('redis_version', 'unknown')}"


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while part := list(islice(source, _PART)):
        yield part


@contextmanager
def _client(url: str) -> Iterator["Redis"]:
    """Open a connection whose replies are bytes; errors of the server become `AppaError`s."""
    redis = Redis.from_url(url, socket_timeout=120, socket_connect_timeout=5)
    try:
        yield redis
    except RedisError as error:
        where = re.sub("//[^@/]*@", "//", url)  # without a password
        raise StorageError(
            f"Expected Redis at {where} to answer; {error}. Start it, or set APPA_REDIS_URL."
        ) from error
    finally:
        redis.close()
