"""Create, store and check API keys, kept as hashes in one file of the data folder.

A key is `appa_<id>_<secret>` with 256 random bits, so a plain SHA-256 is enough to keep it: it
cannot be guessed, and a slow hash would only let senders of wrong keys use up processor time.
"""

import fcntl
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import InvalidInput
from model.domain.files import write_atomic
from service.errors import Forbidden, NotFound, Unauthenticated
from worker.contract.records import NOBODY, owner_of

REFRESH_SECONDS = 1.0


class Scope(StrEnum):
    """Permissions that a key can be given.

    A key sees, retries and cancels its own uploads and jobs. `all:read` lets it see those of every
    key, `all:write` also lets its other scopes change them. Observations and analyses are shared.
    """

    OBSERVATIONS_WRITE = "observations:write"
    JOBS_WRITE = "jobs:write"
    ANALYSES_READ = "analyses:read"
    ALL_READ = "all:read"
    ALL_WRITE = "all:write"
    METRICS_READ = "metrics:read"
    ADMIN = "admin"


EVERYONES = frozenset({Scope.ALL_READ, Scope.ALL_WRITE})
"""Scopes that reach beyond a key's own uploads and jobs."""


class ApiKey(BaseModel):
    """A key as it is kept: without the secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="Public part of the key; stands in logs and job records.")
    name: str = Field(description="Whose it is or what for.")
    sha256: str = Field(description="Hash of the secret part.")
    scopes: frozenset[Scope] = Field(description="What it may do.")
    created: datetime = Field(description="UTC.")
    expires: datetime | None = Field(default=None, description="UTC; null for never.")
    requests_per_minute: int | None = Field(
        default=None, ge=0, description="Null for the gateway's rate."
    )
    queued_jobs: int | None = Field(default=None, ge=0, description="Null for the gateway's quota.")
    bytes_per_day: int | None = Field(
        default=None, ge=0, description="Bytes of uploads a day; null for the gateway's quota."
    )
    rows_per_day: int | None = Field(
        default=None, ge=0, description="Values decoded a day; null for the gateway's quota."
    )
    jobs_per_day: int | None = Field(
        default=None, ge=0, description="Jobs a day; null for the gateway's quota."
    )
    replaced_sha256: str = Field(default="", description="Hash of the secret before this one.")
    replaced_until: datetime | None = Field(
        default=None, description="Until when the secret before this one is taken (UTC)."
    )

    def has_secret(self, digest: str, now: datetime) -> bool:
        """Return whether `digest` is that of its secret, or of the previous one while it is valid."""
        # Both are always compared, so that timing reveals nothing.
        same = hmac.compare_digest(digest, self.sha256 or _digest(""))
        before = hmac.compare_digest(digest, self.replaced_sha256 or _digest(""))
        taken = self.replaced_until is not None and now < self.replaced_until
        return same or (before and taken and bool(self.replaced_sha256))

    def allows(self, *scopes: Scope) -> bool:
        """Return whether one of `scopes` is granted; `admin` grants all."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(scopes)

    @property
    def sees_all(self) -> bool:
        """Return whether it sees the uploads and jobs of every key."""
        return self.allows(*EVERYONES)

    @property
    def owners(self) -> frozenset[str] | None:
        """Return the owners whose uploads and jobs are listed for this key; None for all owners.

        What the installation sent itself (jobs of cycles, uploads of its sources) has no owner and
        is visible to keys that may read observations and analyses.
        """
        if self.sees_all:
            return None
        return frozenset({self.id, NOBODY} if self.allows(Scope.ANALYSES_READ) else {self.id})

    def sees(self, api_key: str) -> bool:
        """Return whether it sees an upload or job that `api_key` sent."""
        return self.owners is None or owner_of(api_key) in self.owners

    def may_change(self, api_key: str) -> bool:
        """Return whether it may retry or cancel what `api_key` sent, as far as its scopes go."""
        return api_key == self.id or self.allows(Scope.ALL_WRITE)

    def require(self, *scopes: Scope) -> Self:
        """Return this key after a check of its scopes.

        Raises:
            Forbidden: If none of `scopes` is granted.
        """
        if not self.allows(*scopes):
            raise Forbidden(
                f"Expected a key with the scope {' or '.join(scopes)}; key '{self.id}' has "
                f"{', '.join(sorted(self.scopes)) or 'none'}.",
                key=self.id,
                scopes=sorted(scopes),
            )
        return self


LIMITS = ("requests_per_minute", "queued_jobs", "bytes_per_day", "rows_per_day", "jobs_per_day")
"""Fields of a key that bound what it uses; 0 for no limit."""

OPEN = ApiKey(
    id="",
    name="no key needed",
    sha256="",
    scopes=frozenset(Scope),
    created=datetime(1970, 1, 1, tzinfo=UTC),
    **dict.fromkeys(LIMITS, 0),
)
"""Key of every caller on a gateway that only this machine can reach and that requires no keys."""


def _limits(given: Mapping[str, int | None]) -> dict[str, Any]:
    if unknown := sorted(set(given) - set(LIMITS)):
        raise InvalidInput(f"Expected limits of {', '.join(LIMITS)}; got {', '.join(unknown)}.")
    return dict(given)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _known(keys: Mapping[str, ApiKey], key_id: str) -> ApiKey:
    if key_id not in keys:
        known = ", ".join(keys) or "none"
        raise NotFound(f"Expected the id of a key; got '{key_id}'. Known: {known}.")
    return keys[key_id]


class KeyFile:
    """The keys of one data folder. All gateways see a change within a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, ApiKey] = {}
        self._stamp: tuple[int, int] | None = None
        self._read_at = -REFRESH_SECONDS

    def all(self) -> dict[str, ApiKey]:
        """Return the keys by id, read again at most once a second."""
        now = time.monotonic()
        if now - self._read_at >= REFRESH_SECONDS:
            self._read_at = now
            self._read()
        return self._keys

    def check(self, presented: str) -> ApiKey:
        """Return the record of a presented key.

        Raises:
            Unauthenticated: If it is malformed, unknown, revoked or expired; the message does not
                say which.
        """
        prefix, _, rest = presented.partition("_")
        key_id, _, secret = rest.partition("_")
        key = self.all().get(key_id)
        if key is None:  # perhaps created since the last read
            self._read()
            key = self._keys.get(key_id)
        now = datetime.now(UTC)
        same = (key or OPEN).has_secret(_digest(secret), now)  # constant time, for unknown ids too
        expired = key is not None and key.expires is not None and key.expires <= now
        if prefix != "appa" or key is None or not same or expired:
            raise Unauthenticated(
                "Expected a valid API key in 'Authorization: Bearer …' or 'X-API-Key'; this one is "
                "not known, revoked or expired. Ask the operator for another "
                "(`appa keys create NAME --scope SCOPE`)."
            )
        return key

    def create(
        self,
        name: str,
        scopes: list[Scope],
        *,
        expires: datetime | None = None,
        **limits: int | None,
    ) -> tuple[str, ApiKey]:
        """Create a key; return it, shown once and never stored, and its record.

        Arguments:
            name: Whose it is, or what for.
            scopes: What it may do.
            expires: When it ends (UTC); None for never.
            limits: Limits by name, from `LIMITS`; None for the gateway's own.
        """
        if not scopes:
            raise InvalidInput(f"Expected at least one scope of {', '.join(Scope)}; got none.")
        secret = secrets.token_hex(32)
        key = ApiKey(
            id=secrets.token_hex(4),
            name=name,
            sha256=_digest(secret),
            scopes=frozenset(scopes),
            created=datetime.now(UTC).replace(microsecond=0),
            expires=expires,
            **_limits(limits),
        )
        with self._changing() as keys:
            keys[key.id] = key
        return f"appa_{key.id}_{secret}", key

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[str, ApiKey]:
        """Give a key a new secret; the previous one stays valid for a while.

        Arguments:
            key_id: The key, which keeps its id, scopes and limits.
            overlap: How long both secrets are valid.

        Returns:
            The key with its new secret, shown once, and its record.

        Raises:
            NotFound: If there is none of that id.
        """
        secret = secrets.token_hex(32)
        with self._changing() as keys:
            old = _known(keys, key_id)
            until = datetime.now(UTC).replace(microsecond=0) + overlap
            update = {
                "sha256": _digest(secret),
                "replaced_sha256": old.sha256,
                "replaced_until": until,
            }
            if not overlap:
                update |= {"replaced_sha256": "", "replaced_until": None}
            keys[key_id] = key = old.model_copy(update=update)
        return f"appa_{key.id}_{secret}", key

    def change(
        self,
        key_id: str,
        *,
        add: Collection[Scope] = (),
        drop: Collection[Scope] = (),
        **limits: int | None,
    ) -> ApiKey:
        """Add scopes to a key, take others away, set limits; at least one scope must be left.

        Arguments:
            key_id: The key.
            add: Scopes to add.
            drop: Scopes to remove.
            limits: Limits by name, from `LIMITS`; those that are None stay as they are.

        Raises:
            NotFound: If there is none of that id.
            InvalidInput: If none would be left, or one is to be added and dropped.
        """
        if both := sorted(set(add) & set(drop)):
            raise InvalidInput(
                f"Expected a scope to add or to drop; got both for {', '.join(both)}."
            )
        with self._changing() as keys:
            old = _known(keys, key_id)
            scopes = (old.scopes | set(add)) - set(drop)
            if not scopes:
                raise InvalidInput(
                    f"Expected a scope to be left to key '{key_id}'; none would. Revoke it instead."
                )
            given = {name: value for name, value in _limits(limits).items() if value is not None}
            keys[key_id] = key = old.model_copy(update={"scopes": frozenset(scopes), **given})
        return key

    def revoke(self, key_id: str) -> ApiKey:
        """Remove a key.

        Raises:
            NotFound: If there is none of that id.
        """
        with self._changing() as keys:
            _known(keys, key_id)
            return keys.pop(key_id)

    def _read(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
            return
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            entries = json.loads(self.path.read_text())["keys"]
            self._keys = {e["id"]: ApiKey.model_validate(e) for e in entries}
            self._stamp = stamp

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ApiKey]]:
        """Yield the keys under a lock, and write them back atomically at the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            keys = dict(self._keys)
            yield keys
            entries = [k.model_dump(mode="json") for k in keys.values()]
            write_atomic(self.path, json.dumps({"keys": entries}, indent=1), mode=0o600)
            self._read()
