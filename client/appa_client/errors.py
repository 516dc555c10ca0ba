"""Define the exceptions of the client: one class for each kind of problem a gateway reports.

Every error response of the gateway is an RFC 9457 problem document with a stable `code`;
`raise_for_problem` turns it into an exception that carries status, code and document.
"""

from typing import Any

import httpx

__all__ = [
    "AppaClientError",
    "AuthenticationError",
    "BadSignature",
    "GatewayError",
    "IntegrityError",
    "InvalidRequestError",
    "JobFailedError",
    "NotFoundError",
    "RateLimitedError",
    "UnavailableError",
    "raise_for_problem",
]


class AppaClientError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes:
        message: What was expected, what came, and what to do.
        code: Stable identifier for programs.
        retryable: Whether the same call may succeed later.
    """

    code = "client_error"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code


class BadSignature(AppaClientError, ValueError):
    """A webhook message that the holder of the secret did not sign, or that is too old."""

    code = "bad_signature"


class GatewayError(AppaClientError):
    """A request that the gateway refused or failed, or did not answer.

    Attributes:
        status: HTTP status; 0 without a response.
        problem: The problem document; empty when the response held none.
        retry_after: Seconds the gateway asks to wait, or None.
    """

    code = "gateway_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int = 0,
        problem: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.problem = problem or {}
        self.retry_after = retry_after

    @property
    def request_id(self) -> str | None:
        """Id of the request, to quote to the operator."""
        request_id = self.problem.get("request_id")
        return None if request_id is None else str(request_id)

    @property
    def fields(self) -> dict[str, str]:
        """What is wrong with each invalid field, by the field's name."""
        return {e["field"]: e["message"] for e in self.problem.get("errors", [])}


class AuthenticationError(GatewayError):
    """No key, a wrong key, or a key without the scope that the request needs."""

    code = "unauthenticated"


class NotFoundError(GatewayError):
    """No such batch, job, analysis or file."""

    code = "not_found"


class InvalidRequestError(GatewayError):
    """A request that does not fit its schema; `fields` says where."""

    code = "invalid_input"


class RateLimitedError(GatewayError):
    """Too many requests, or too many unfinished jobs; `retry_after` says how long to wait."""

    code = "rate_limited"


class UnavailableError(GatewayError):
    """The gateway, its broker, its disk or its workers cannot serve the request now."""

    code = "unreachable"
    retryable = True


class IntegrityError(GatewayError):
    """A downloaded file that differs from the published one."""

    code = "integrity_error"


class JobFailedError(GatewayError):
    """A job that ended without a result."""

    code = "job_failed"


def _class_of(status: int) -> type[GatewayError]:
    if status in (401, 403):
        return AuthenticationError
    if status == 404:
        return NotFoundError
    if status == 429:
        return RateLimitedError
    if status in (502, 503, 504, 507):
        return UnavailableError
    return InvalidRequestError if 400 <= status < 500 else GatewayError


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None


def raise_for_problem(response: httpx.Response) -> httpx.Response:
    """Return `response` if it is no error; the body of an error must have been read.

    Raises:
        GatewayError: The subclass that fits the status, with the problem document.
    """
    if response.status_code < 400:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    problem = problem if isinstance(problem, dict) else {}
    detail = problem.get("detail") or f"{response.status_code} {response.reason_phrase}"
    for field, message in {e["field"]: e["message"] for e in problem.get("errors", [])}.items():
        if message not in detail:
            detail += f"\n  {field}: {message}"
    raise _class_of(response.status_code)(
        detail,
        code=str(problem.get("code", GatewayError.code)),
        status=response.status_code,
        problem=problem,
        retry_after=_seconds(response.headers.get("retry-after")),
    )
