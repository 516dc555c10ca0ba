"""Describe the gateway's requests as values, shared by the asynchronous and the synchronous client.

A `Call` holds method, path, parameters, headers and body. Every call may be sent again, because
every write carries its own Idempotency-Key. The rules that need no connection are here too: how
long to pause before a retry, and when a batch or a job has ended.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import httpx
from pydantic import BaseModel

from appa_client.errors import JobFailedError, UnavailableError
from worker.contract.batches import ALLOWED_BATCH_MOVES, BatchRecord
from worker.contract.cycles import Flavour, cycle_key
from worker.contract.events import EventType
from worker.contract.jobs import JobRecord, JobState

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


TIMEOUT = 30.0
ATTEMPTS = 8
EVENT_TIMEOUT = httpx.Timeout(10.0, read=60.0)
"""The gateway sends something at least every 15 seconds."""


def client_options(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    """Arguments of both httpx clients."""
    headers = {"User-Agent": "appa-client"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout}


def lost(error: Exception | None) -> UnavailableError:
    """The gateway did not answer."""
    why = f"{type(error).__name__}: {error}" if error else "the connection ended early"
    problem = UnavailableError(
        f"Expected an answer of the gateway; {why}. Is it running (`appa up`), and is the address "
        "right?",
        code="unreachable",
    )
    problem.__cause__ = error  # a refused connection is not a lost answer
    return problem


def ended_batch(batch: BatchRecord) -> bool:
    """Whether the state of `batch` can no longer change."""
    return not ALLOWED_BATCH_MOVES[batch.state]


def ended_job(job: JobRecord) -> JobRecord:
    """The job.

    Raises:
        JobFailedError: If it did not succeed.
    """
    if job.state is JobState.SUCCEEDED:
        return job
    reason = f" {job.error.code}: {job.error.message}" if job.error else ""
    raise JobFailedError(
        f"Job '{job.id}' ended as {job.state}.{reason}",
        code=job.error.code if job.error else f"job_{job.state}",
    )


def cycle_path(cycle: str | datetime, flavour: str, verb: str = "") -> str:
    key = cycle_key(cycle, flavour) if isinstance(cycle, datetime) else cycle
    return f"/v1/cycles/{key}{verb}"


def rerun_cycle(
    cycle: str | datetime, cut_off: datetime | str | None, idempotency_key: str | None
) -> Call:
    """Without a key of the caller's own a random one makes repeats safe."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    body = {"cut_off": cut_off.isoformat() if isinstance(cut_off, datetime) else cut_off}
    return Call("POST", cycle_path(cycle, Flavour.FINAL, "/rerun"), headers=headers, json=body)


WEBHOOKS_PATH = "/v1/webhooks"
DEFAULT_EVENTS = (EventType.ANALYSIS_PUBLISHED,)


def create_webhook(
    url: str, events: Sequence[str], description: str, idempotency_key: str | None
) -> Call:
    """Without a key of the caller's own a random one makes repeats safe."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    body = {"url": url, "events": [str(e) for e in events], "description": description}
    return Call("POST", WEBHOOKS_PATH, headers=headers, json=body)


def list_deliveries(webhook_id: str, limit: int) -> Call:
    return Call("GET", f"{WEBHOOKS_PATH}/{webhook_id}/deliveries", {"limit": str(limit)})


EVENTS_PATH = "/v1/events"
