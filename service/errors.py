"""Define the errors of the gateway and their codes on the wire: RFC 9457 problem documents.

Every response that is not a success is `application/problem+json` with a stable `code`, also those
that the framework raises (404, 405, 413, 422). `PROBLEMS` is the list of codes that clients see.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.domain.errors import AppaError

PROBLEM_JSON = "application/problem+json"


@dataclass(frozen=True)
class ProblemType:
    """A kind of problem: its status and a title that never changes."""

    status: int
    title: str


PROBLEMS: dict[str, ProblemType] = {
    "bad_request": ProblemType(400, "The request cannot be read"),
    "unauthenticated": ProblemType(401, "An API key is needed"),
    "forbidden": ProblemType(403, "The API key does not allow this"),
    "not_found": ProblemType(404, "There is nothing here"),
    "method_not_allowed": ProblemType(405, "The method does not fit this address"),
    "request_timeout": ProblemType(408, "The request did not arrive in time"),
    "upload_stalled": ProblemType(408, "The upload stalled"),
    "not_acceptable": ProblemType(406, "No offered format is acceptable"),
    "move_refused": ProblemType(409, "The present state does not allow this move"),
    "precondition_failed": ProblemType(412, "The file is not the expected one"),
    "too_large": ProblemType(413, "The body is too large"),
    "answer_too_large": ProblemType(413, "The answer would be too large"),
    "unsupported_content": ProblemType(415, "The content is of no known format"),
    "range_not_satisfiable": ProblemType(416, "The range lies outside the file"),
    "invalid_input": ProblemType(422, "The input does not fit its contract"),
    "unknown_name": ProblemType(422, "A name is not known"),
    "decode_error": ProblemType(422, "The content cannot be decoded"),
    "idempotency_conflict": ProblemType(422, "The idempotency key was used for other content"),
    "header_too_large": ProblemType(431, "The request line and headers are too large"),
    "rate_limited": ProblemType(429, "Too many requests"),
    "queue_quota": ProblemType(429, "Too many unfinished jobs"),
    "quota_exceeded": ProblemType(429, "The key has used up its day"),
    "internal_error": ProblemType(500, "The gateway failed"),
    "configuration_error": ProblemType(500, "The settings do not fit this machine"),
    "checkpoint_error": ProblemType(500, "A checkpoint does not fit its card"),
    "not_installed": ProblemType(501, "This part of the service is not installed"),
    "storage_error": ProblemType(503, "The data folder cannot be used"),
    "broker_unavailable": ProblemType(503, "The job store cannot be reached"),
    "no_worker": ProblemType(503, "No worker reports"),
    "issuer_unavailable": ProblemType(503, "The issuer of tokens cannot be reached"),
    "not_ready": ProblemType(503, "The service is not ready"),
    "too_many_connections": ProblemType(503, "One address holds too many connections"),
    "too_many_listeners": ProblemType(503, "Too many event streams are open"),
    "too_many_rows": ProblemType(503, "Answers under way hold too many rows"),
    "resource_exhausted": ProblemType(503, "Memory or device ran out"),
    "disk_low": ProblemType(507, "The disk is nearly full"),
    "disk_full": ProblemType(507, "The disk is full"),
}
"""All codes, with status and title; `docs/api.md` lists what to do about each."""


class RequestError(AppaError):
    """An error that ends a request. `headers` go into the response as they are."""

    code = "bad_request"

    def __init__(
        self, message: str, /, *, headers: Mapping[str, str] | None = None, **context: Any
    ) -> None:
        super().__init__(message, **context)
        self.headers = dict(headers or {})


class NotFound(RequestError):
    """No such batch, job, analysis or file."""

    code = "not_found"


class Unauthenticated(RequestError):
    """No API key or token, or one that is not known or not valid.

    Arguments:
        message: What was expected.
        basic: Whether the client may be asked for a password as well.
        error: Code of RFC 6750 that tells what is wrong with a token; empty for a key.
    """

    code = "unauthenticated"

    def __init__(self, message: str, *, basic: bool = False, error: str = "") -> None:
        asked = 'Bearer realm="appa"' + (f', error="{error}"' if error else "")
        asked += ', Basic realm="appa"' if basic else ""
        super().__init__(message, headers={"WWW-Authenticate": asked})
        self.error = error


class Forbidden(RequestError):
    """A key without the scope that the route needs."""

    code = "forbidden"


class UploadStalled(RequestError):
    """An upload that sent nothing for too long."""

    code = "upload_stalled"


class NotAcceptable(RequestError):
    """None of the formats offered is wanted."""

    code = "not_acceptable"


class PreconditionFailed(RequestError):
    """The file does not have the entity tag given in If-Match."""

    code = "precondition_failed"


class RangeNotSatisfiable(RequestError):
    """A byte range outside the file."""

    code = "range_not_satisfiable"

    def __init__(self, size: int, asked: str) -> None:
        message = f"Expected a range within {size} bytes; got '{asked}'."
        super().__init__(message, headers={"Content-Range": f"bytes */{size}"}, size=size)


class TooLarge(RequestError):
    """A body above the limit; the connection is closed because its rest is not read."""

    code = "too_large"

    def __init__(self, limit: int, got: int | None = None) -> None:
        came = f"{got} bytes" if got is not None else "more"
        message = f"Expected a body of at most {limit} bytes; got {came}. Split the file."
        super().__init__(message, headers={"Connection": "close"}, limit=limit, got=got)


class AnswerTooLarge(RequestError):
    """A request for more values than one answer may have (413, as in OGC EDR)."""

    code = "answer_too_large"


class UnsupportedContent(RequestError):
    """Content whose first bytes belong to no accepted format."""

    code = "unsupported_content"


class RateLimited(RequestError):
    """More requests than the key's rate allows."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class QueueQuota(RateLimited):
    """More unfinished jobs than the key's quota allows."""

    code = "queue_quota"


class Unavailable(RequestError):
    """The service cannot do this now; trying later may work."""

    code = "not_ready"
    retryable = True

    def __init__(self, message: str, /, *, code: str = "not_ready", retry_after: int = 5) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})
        self.code = code


class NotInstalled(RequestError):
    """An extra of the distribution that the route needs is missing on this gateway."""

    code = "not_installed"


class DiskFull(RequestError):
    """No space for the upload; nothing of it was kept."""

    code = "disk_full"
    retryable = True
