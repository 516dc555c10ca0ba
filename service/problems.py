"""Turn exceptions into problem documents, the framework's errors as well as our own."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from kombu.exceptions import OperationalError
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from model.domain.errors import AppaError, StorageError
from service.errors import PROBLEM_JSON, PROBLEMS, RequestError
from worker.contract.disk import DiskLow, is_disk_full
from worker.contract.kinds import KINDS
from worker.contract.usage import QuotaExceeded

CODES_BY_STATUS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "move_refused",
    413: "too_large",
    415: "unsupported_content",
    422: "invalid_input",
}


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str = Field(description="Where: a parameter, or a path into the body such as `steps`.")
    message: str = Field(description="What was expected and what came.")
    known: list[str] | None = Field(
        default=None, description="The possible values, where they are few."
    )


class ProblemDocument(BaseModel):
    """Body of every answer that is not a success (RFC 9457)."""

    type: str = Field(description="Address of the description of this kind of problem.")
    title: str = Field(description="What kind of problem it is; the same text each time.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was expected, what came and what to do.")
    code: str = Field(description="Stable identifier for programs.")
    instance: str | None = Field(default=None, description="Path of the request.")
    request_id: str | None = Field(
        default=None, description="Also in `X-Request-ID` and in the log."
    )
    errors: list[FieldProblem] | None = Field(
        default=None, description="One entry for each bad field."
    )
    context: dict[str, Any] | None = Field(default=None, description="Values for programs.")


def problem_response(
    request: Request,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: list[FieldProblem] | None = None,
    context: dict[str, Any] | None = None,
) -> Response:
    """Return the response whose body is the problem document of `code`."""
    kind = PROBLEMS.get(code, PROBLEMS["internal_error"])
    problem = ProblemDocument(
        type=f"{_root(request)}/problems/{code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=code,
        instance=request.url.path,
        request_id=request.scope.get("appa.request_id"),
        errors=errors,
        context=context,
    )
    return ProblemResponse(
        _plain(problem),
        status_code=kind.status,
        headers=dict(headers or {}),
        media_type=PROBLEM_JSON,
    )


class ProblemResponse(JSONResponse):
    """JSON in ASCII: text of the client is escaped, even if it is not valid Unicode."""

    def render(self, content: Any) -> bytes:
        """Serialise the document, without `context` if that is not valid JSON."""
        try:
            return json.dumps(content, default=str, allow_nan=False).encode()
        except (ValueError, RecursionError):
            kept = {name: value for name, value in content.items() if name != "context"}
            return json.dumps(kept, default=str).encode()


def _plain(problem: ProblemDocument) -> dict[str, Any]:
    try:
        return problem.model_dump(mode="json", exclude_none=True)
    except ValueError:  # lone surrogates
        return problem.model_dump(exclude_none=True)


def _root(request: Request) -> str:
    """Return the root path of the outermost application, also for mounted ones."""
    return str(request.scope.get("app_root_path", request.scope.get("root_path", "")))


def appa_problem(request: Request, error: AppaError) -> Response:
    """Answer an `AppaError` with its own code; a field named in its context becomes an entry."""
    code = error.code if error.code in PROBLEMS else "invalid_input"
    if isinstance(error, StorageError) and is_disk_full(error):
        code = "disk_full"
    context = {k: v for k, v in error.context.items() if v is not None}
    errors = None
    if "field" in context:
        field, known = str(context.pop("field")), context.pop("known", None)
        errors = [FieldProblem(field=field, message=error.message, known=known)]
    headers = error.headers if isinstance(error, RequestError) else None
    if isinstance(error, QuotaExceeded):  # the rest of an upload is not read
        headers = {"Retry-After": str(error.retry_after), "Connection": "close"}
    if isinstance(error, StorageError):
        headers = {"Retry-After": "300" if isinstance(error, DiskLow) else "30"}
    return problem_response(
        request, code, error.message, headers=headers, errors=errors, context=context or None
    )


def _field_problem(error: Mapping[str, Any]) -> FieldProblem:
    place = [str(part) for part in error["loc"]]
    # The location begins with the part of the request: ("body", "steps"), ("query", "limit").
    if place[0] == "body":
        # Drop the kind of job, which pydantic inserts as the tag of the union.
        place = [part for part in place[1:] if part not in KINDS]
    field = ".".join(place)
    context = error.get("ctx", {})
    expected = context.get("expected", context.get("expected_tags"))
    known = None
    if error["type"] in ("enum", "literal_error", "union_tag_invalid") and expected:
        expected = str(expected)
        field = field or "kind"
        known = [part.strip("' ") for part in expected.replace(" or ", ", ").split(",")]
    if error["type"] == "json_invalid":  # the last place is the number of the character
        where = f"character {error['loc'][-1]}"
        return FieldProblem(
            field="body", message=f"Expected JSON; {context.get('error')} at {where}."
        )
    return FieldProblem(field=field or "body", message=_sentence(error), known=known)


def _sentence(error: Mapping[str, Any]) -> str:
    """Return what was expected of a field and what came."""
    context = error.get("ctx", {})
    if error["type"] == "union_tag_invalid":
        return f"Expected one of {context['expected_tags']}; got '{context['tag']}'."
    try:
        got = repr(error.get("input"))
    except RecursionError:
        got = "a value of too many levels"
    came = f"; got {got}." if error["type"] != "missing" and len(got) < 120 else "."
    if error["type"] == "extra_forbidden":
        return f"Expected no field of this name (/docs lists those that exist){came}"
    text = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    return f"{text}." if "; got " in text else text + came  # our own messages say what came


def validation_problem(request: Request, error: RequestValidationError) -> Response:
    """Answer a request that does not fit the schema, with one entry for each field."""
    errors = [_field_problem(e) for e in error.errors()]
    fields = ", ".join(dict.fromkeys(e.field for e in errors))
    detail = f"The request does not fit its contract in: {fields}. See `errors` for each field."
    return problem_response(request, "invalid_input", detail, errors=errors)


def http_problem(request: Request, error: HTTPException) -> Response:
    """Answer errors of the framework: unknown path, wrong method, unreadable body."""
    code = CODES_BY_STATUS.get(error.status_code)
    if code is None:
        code = "bad_request" if error.status_code < 500 else "internal_error"
    detail = str(error.detail)
    if detail == HTTPStatus(error.status_code).phrase:
        detail = f"{request.method} {request.url.path}: {detail}."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request) or headers.get("Allow", "GET")
    return problem_response(request, code, detail, headers=headers)


def _allowed(request: Request) -> str:
    """Return all methods of the path; the framework names those of the first matching route only."""
    path = getattr(request.scope.get("route"), "path", "")
    return ", ".join(sorted(m.upper() for m in request.app.openapi()["paths"].get(path, {})))


def broker_problem(request: Request, error: Exception) -> Response:
    """Answer while Redis cannot be reached: nothing is lost, the client may retry."""
    structlog.get_logger().error("broker_unavailable", error=str(error))
    detail = "The job store did not answer; nothing was changed. Try again in a few seconds."
    return problem_response(request, "broker_unavailable", detail, headers={"Retry-After": "5"})


def storage_problem(request: Request, error: OSError) -> Response:
    """Answer an error of the data folder: full disk or failed I/O."""
    structlog.get_logger().error("storage_error", error=str(error))
    code = "disk_full" if is_disk_full(error) else "storage_error"
    detail = f"The data folder failed: {error.strerror or error}. Nothing of the request was kept."
    return problem_response(request, code, detail, headers={"Retry-After": "30"})


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    handlers: dict[Any, Any] = {
        AppaError: appa_problem,
        RequestValidationError: validation_problem,
        HTTPException: http_problem,
        RedisError: broker_problem,
        OperationalError: broker_problem,
        OSError: storage_problem,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
