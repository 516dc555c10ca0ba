"""The gateway's requests as values, shared by the client and its asyncio twin."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import BaseModel

__all__ = [
    "Call",
    "list_analyses",
    "list_cycles",
    "list_jobs",
    "list_verification",
    "query_observations",
    "retry_pause",
    "submit",
    "upload",
]

RETRIED = frozenset({429, 502, 503, 504})
MAX_PAUSE = 30.0
LONGEST_BACKOFF = 10.0


@dataclass(frozen=True)
class Call:
    """One request. All of them may be sent again: writes carry an Idempotency-Key."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None

    def with_headers(self, **headers: str) -> "Call":
        """The same call with more headers."""
        return replace(self, headers={**self.headers, **headers})


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(str(v) for v in value)
    return str(value)


def _given(**values: Any) -> dict[str, str]:
    return {k: _text(v) for k, v in values.items() if v is not None and v != ""}


def upload(
    *,
    file_name: str = "",
    report_type: str | None = None,
    errors: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call:
    """Sends a file of observations; the same content is the same batch, so it may be repeated."""
    params = _given(
        file_name=file_name,
        report_type=report_type,
        errors=json.dumps(errors) if errors else None,
        decoder=json.dumps(decoder) if decoder else None,
    )
    headers = {"Content-Type": "application/octet-stream"}
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    return Call("POST", "/v1/observations", params, headers)


def submit(spec: BaseModel | Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Queues a job; without a key of the caller's own a random one makes repeats safe."""
    plain = isinstance(spec, Mapping)
    body = dict(spec) if plain else spec.model_dump(mode="json")  # type: ignore[union-attr]
    body = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in body.items()}
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/jobs", {}, headers, body)


def list_jobs(state: str | None, kind: str | None, limit: int, cursor: str | None = None) -> Call:
    """A page of jobs."""
    return Call("GET", "/v1/jobs", _given(state=state, kind=kind, limit=limit, cursor=cursor))


def list_analyses(
    kind: str | None = None,
    flavour: str | None = None,
    valid_from: datetime | str | None = None,
    valid_to: datetime | str | None = None,
    latest: bool | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Call:
    """A page of analyses."""
    params = _given(
        kind=kind,
        flavour=flavour,
        valid_from=valid_from,
        valid_to=valid_to,
        latest=latest,
        limit=limit,
        cursor=cursor,
    )
    return Call("GET", "/v1/analyses", params)


def list_cycles(
    state: str | None = None,
    flavour: str | None = None,
    valid_from: datetime | str | None = None,
    valid_to: datetime | str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Call:
    """A page of cycles."""
    params = _given(
        state=state,
        flavour=flavour,
        valid_from=valid_from,
        valid_to=valid_to,
        limit=limit,
        cursor=cursor,
    )
    return Call("GET", "/v1/cycles", params)


def list_verification(limit: int = 20_000, **filters: Any) -> Call:
    """A page of the series of verification."""
    return Call("GET", "/v1/verification", _given(limit=limit, **filters))


def query_observations(format: str, **filters: Any) -> Call:
    """Stored observations in one of the query's formats."""
    return Call("GET", "/v1/observations", _given(format=format, **filters))


def retry_pause(attempt: int, status: int | None, retry_after: float | None) -> float | None:
    """Seconds to wait before sending again; None if it would not help.

    Arguments:
        attempt: Attempts made so far.
        status: Of the answer; None when there was none.
        retry_after: What the gateway asked for.
    """
    if status is not None and status not in RETRIED:
        return None
    if retry_after is not None:
        return retry_after if retry_after <= MAX_PAUSE else None
    return float(min(0.2 * 2**attempt, LONGEST_BACKOFF))
