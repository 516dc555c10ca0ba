"""Raise one exception class for each kind of problem that a gateway reports.

Every answer of the gateway that is no success is an RFC 9457 problem document with a stable
`code`; `raise_for_problem` turns it into an exception that carries status, code and document.
"""

from typing import Any

import httpx

from model.domain.errors import AppaError

__all__ = [
    "AuthenticationError",
    "GatewayError",
    "IntegrityError",
    "InvalidRequestError",
    "JobFailedError",
    "NotFoundError",
    "RateLimitedError",
    "UnavailableError",
    "raise_for_problem",
]


class GatewayError(AppaError):
    """The gateway refused or failed.

    Attributes:
        status: HTTP status, 0 when there was no answer.
        problem: The problem document, empty when the answer held none.
        retry_after: Seconds the gateway asks to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "gateway_error",
        status: int = 0,
        problem: dict[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.code = code
        self.status = status
        self.problem = problem or {}
        self.retry_after = retry_after

    @property
    def request_id(self) -> str | None:
        """What to quote when asking the operator."""
        found = self.problem.get("request_id")
        return None if found is None else str(found)

    @property
    def fields(self) -> dict[str, str]:
        """What is wrong, by field."""
        return {e["field"]: e["message"] for e in self.problem.get("errors", [])}


class AuthenticationError(GatewayError):
    """No key, a wrong one, or one without the scope."""


class NotFoundError(GatewayError):
    """No such batch, job, analysis or file."""


class InvalidRequestError(GatewayError):
    """The request does not fit; `fields` says where."""


class RateLimitedError(GatewayError):
    """Too many requests or unfinished jobs."""


class UnavailableError(GatewayError):
    """The gateway, its broker, its disk or the workers cannot do it now."""

    retryable = True


class IntegrityError(GatewayError):
    """A downloaded file is not the published one."""


class JobFailedError(GatewayError):
    """A job ended without a result."""


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
    """The response, if it is a success; its body must have been read.

    Raises:
        GatewayError: Of the class that fits the status, with the problem document.
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
        code=str(problem.get("code", "gateway_error")),
        status=response.status_code,
        problem=problem,
        retry_after=_seconds(response.headers.get("retry-after")),
    )
