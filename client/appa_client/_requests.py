"""Describe the requests of a gateway as values, and the one rule by which they are retried.

A `Call` holds method, path, parameters, headers and body. Every call may be sent again, because
every write carries its own Idempotency-Key.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
from pydantic import BaseModel

from appa_client.errors import (
    GatewayError,
    JobFailedError,
    UnavailableError,
    raise_for_problem,
)
from appa_client.records import Flavour, Job, JobState, Readiness, cycle_key

__all__ = [
    "ATTEMPTS",
    "Call",
    "EVENT_TIMEOUT",
    "FAILURES",
    "Retry",
    "TIMEOUT",
    "client_options",
    "create_webhook",
    "cycle_path",
    "end_trial",
    "list_analyses",
    "list_cycles",
    "list_deliveries",
    "retry_delivery",
    "list_batches",
    "list_jobs",
    "list_verification",
    "query_observations",
    "query_position",
    "read_feedback",
    "read_field",
    "readiness",
    "require_success",
    "rerun_cycle",
    "submit",
    "unreachable",
    "upload",
]

_log = logging.getLogger("appa_client")

TIMEOUT = 30.0
ATTEMPTS = 8
EVENT_TIMEOUT = httpx.Timeout(10.0, read=60.0)
"""The gateway sends at least a comment every 15 seconds."""


def client_options(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    """Return the arguments common to `httpx.Client` and `httpx.AsyncClient`."""
    headers = {"User-Agent": "appa-client"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {"base_url": url.rstrip("/"), "headers": headers, "timeout": timeout}


# -- retries

FAILURES = (httpx.TransportError, GatewayError)
"""Errors of a request that `Retry.pause` handles."""

_RETRIED = frozenset({429, 502, 503, 504})
_MAX_PAUSE = 30.0
_MAX_BACKOFF = 10.0


class Retry:
    """Decide whether a failed request is sent again, and after how long.

    Lost connections and the statuses 429, 502, 503 and 504 are retried, after the time the gateway
    asks for or else with exponential back-off.

    Arguments:
        attempts: Number of failures in a row after which the last error is raised.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._failures = 0

    def reset(self) -> None:
        """Forget earlier failures, because something has arrived since."""
        self._failures = 0

    def pause(self, failure: httpx.TransportError | GatewayError | None) -> float:
        """Count a failure and return the seconds to wait before the next attempt.

        The first failure of a series is logged as a warning, because waiting takes up to half a minute.

        Arguments:
            failure: What went wrong; None if a stream ended early.

        Raises:
            GatewayError: `failure` itself, or `UnavailableError` for a lost connection, if another
                attempt would not help.
        """
        self._failures += 1
        error = failure if isinstance(failure, GatewayError) else unreachable(failure)
        pause = self._seconds(error)
        if pause is None or self._failures >= self._attempts:
            raise error
        if self._failures == 1 and failure is not None:
            _log.warning("%s Trying again.", error.message)
        return pause

    def _seconds(self, error: GatewayError) -> float | None:
        if error.status and error.status not in _RETRIED:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= _MAX_PAUSE else None
        return min(0.2 * 2.0**self._failures, _MAX_BACKOFF)


def unreachable(cause: httpx.TransportError | None) -> UnavailableError:
    """Return the error of a request without an answer.

    Arguments:
        cause: What went wrong; None if a stream ended early.
    """
    if cause is None:
        return UnavailableError("Expected more events; the gateway ended the connection early.")
    error = UnavailableError(
        f"Expected an answer of the gateway at {_origin(cause)}; got {type(cause).__name__}: {cause}. "
        "Is it running (`appa up`), and is the address right?"
    )
    error.__cause__ = cause  # a refused connection differs from a lost answer
    return error


def _origin(cause: httpx.TransportError) -> str:
    url = cause.request.url
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


# -- requests


@dataclass(frozen=True)
class Call:
    """A request that may be sent more than once."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None


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


def _key(idempotency_key: str | None) -> dict[str, str]:
    """Return the Idempotency-Key header of a write, with a random key unless the caller gives one."""
    return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}


def upload(
    size: int,
    *,
    file_name: str = "",
    report_type: str | None = None,
    errors: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
) -> Call:
    """Send `size` bytes of observations; the same content is the same batch, so no key is needed."""
    params = _given(
        file_name=file_name,
        report_type=report_type,
        errors=json.dumps(errors) if errors else None,
        decoder=json.dumps(decoder) if decoder else None,
    )
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    return Call("POST", "/v1/observations", params, headers)


def list_batches(
    state: str | None = None,
    sender: str | None = None,
    arrived_from: datetime | str | None = None,
    arrived_to: datetime | str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Call:
    """Read a page of uploads, newest first."""
    params = _given(
        state=state,
        sender=sender,
        arrived_from=arrived_from,
        arrived_to=arrived_to,
        limit=limit,
        cursor=cursor,
    )
    return Call("GET", "/v1/batches", params)


def query_observations(format: str, **filters: Any) -> Call:
    """Query stored observations in one of the formats of the gateway."""
    return Call("GET", "/v1/observations", _given(format=format, **filters))


def submit(spec: BaseModel | Mapping[str, Any], idempotency_key: str | None) -> Call:
    """Queue a job; a specification may be a mapping or a pydantic model."""
    body = spec.model_dump(mode="json") if isinstance(spec, BaseModel) else dict(spec)
    body = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in body.items()}
    return Call("POST", "/v1/jobs", headers=_key(idempotency_key), json=body)


def list_jobs(state: str | None, kind: str | None, limit: int, cursor: str | None = None) -> Call:
    """Read a page of jobs, newest first."""
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
    """Read a page of analyses, latest valid time first."""
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


def read_field(analysis_id: str, field: str, **options: Any) -> Call:
    """Read a horizontal field with all that a map needs to draw it."""
    return Call("GET", "/v1/fields", _given(result=analysis_id, field=field, **options))


def read_feedback(analysis_id: str, **filters: Any) -> Call:
    """Read observed values of an analysis, each with what became of it."""
    params = _given(f="json", **{"limit": 100, **filters})
    return Call("GET", f"/v1/analyses/{analysis_id}/feedback", params)


def query_position(collection: str, lon: float, lat: float, **options: Any) -> Call:
    """Ask for values of a collection at one place."""
    named = {name.replace("parameters", "parameter-name"): v for name, v in options.items()}
    params = _given(coords=f"POINT({lon} {lat})", **named)
    return Call("GET", f"/ogc/collections/{collection}/position", params)


def list_verification(limit: int = 20_000, **filters: Any) -> Call:
    """Read a page of the verification series."""
    return Call("GET", "/v1/verification", _given(limit=limit, **filters))


def list_cycles(
    state: str | None = None,
    flavour: str | None = None,
    valid_from: datetime | str | None = None,
    valid_to: datetime | str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Call:
    """Read a page of cycles, latest valid time first."""
    params = _given(
        state=state,
        flavour=flavour,
        valid_from=valid_from,
        valid_to=valid_to,
        limit=limit,
        cursor=cursor,
    )
    return Call("GET", "/v1/cycles", params)


def cycle_path(cycle: str | datetime, flavour: str, verb: str = "") -> str:
    """Return the path of a cycle given by its key, or by its valid time and flavour."""
    key = cycle_key(cycle, flavour) if isinstance(cycle, datetime) else cycle
    return f"/v1/cycles/{key}{verb}"


def rerun_cycle(
    cycle: str | datetime, cut_off: datetime | str | None, idempotency_key: str | None
) -> Call:
    """Request another revision of a final analysis."""
    body = {"cut_off": cut_off.isoformat() if isinstance(cut_off, datetime) else cut_off}
    path = cycle_path(cycle, Flavour.FINAL, "/rerun")
    return Call("POST", path, headers=_key(idempotency_key), json=body)


def end_trial(suite: str, verb: str, **body: Any) -> Call:
    """Promote or drop the challenger that runs."""
    return Call("POST", f"/v1/challengers/{suite}/{verb}", json=body)


def create_webhook(
    url: str, events: Sequence[str], description: str, idempotency_key: str | None
) -> Call:
    """Subscribe an address to events of the given types."""
    body = {"url": url, "events": [str(e) for e in events], "description": description}
    return Call("POST", "/v1/webhooks", headers=_key(idempotency_key), json=body)


def list_deliveries(webhook_id: str, limit: int) -> Call:
    """Read the newest messages of a webhook."""
    return Call("GET", f"/v1/webhooks/{webhook_id}/deliveries", _given(limit=limit))


def retry_delivery(webhook_id: str, event_id: str) -> Call:
    """Send a message of a webhook again that was given up."""
    return Call("POST", f"/v1/webhooks/{webhook_id}/deliveries/{event_id}/retry")


def require_success(job: Job) -> Job:
    """Return `job` if it has succeeded.

    Raises:
        JobFailedError: If it failed or was cancelled, with the reason.
    """
    if job.state is JobState.SUCCEEDED:
        return job
    reason = f" {job.error.code}: {job.error.message}" if job.error else ""
    raise JobFailedError(
        f"Job '{job.id}' ended as {job.state}.{reason}",
        code=job.error.code if job.error else f"job_{job.state}",
    )


def readiness(response: httpx.Response) -> Readiness:
    """Return the checks in an answer of `/health/ready`, which is 503 with them if one has failed.

    Raises:
        GatewayError: If there are none in it.
    """
    try:
        body = response.json()
    except ValueError:
        body = {}
    found = body if "checks" in body else body.get("context") or {}
    if "checks" in found:
        return Readiness.model_validate(found)
    raise_for_problem(response)
    raise GatewayError("Expected the checks of a gateway; another server answers at this address.")
