"""Around every request: its id, its log line, its metrics, and the limit of its body."""

import re
import time
import uuid
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import GatewayMetrics
from service.problems import problem_response

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
QUIET = ("/health/", "/metrics")
SLOW_SECONDS = 2.0
log = structlog.get_logger()


class RequestContext:
    """Gives each request an id (the client's own if it is well formed), logs and counts it.

    It also is the last place for errors nobody foresaw: they are logged with their trace, and the
    client sees a problem document with the id to ask about.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope["appa.request_id"] = request_id
        state: dict[str, Any] = {"status": 0, "bytes": 0}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            else:
                state["bytes"] += len(message.get("body", b""))
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        start = time.perf_counter()
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if not state["status"]:
                detail = f"The gateway failed; its log has the cause under {request_id}."
                response = problem_response(Request(scope), "internal_error", detail)
                await response(scope, receive, send_with_id)
        finally:
            self._record(scope, state, time.perf_counter() - start)

    def _record(self, scope: Scope, state: dict[str, Any], seconds: float) -> None:
        method, path, status = scope["method"], scope["path"], state["status"]
        route = getattr(scope.get("route"), "path", "unmatched")
        if method not in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            method = "OTHER"  # clients may not create time series at will
        self.metrics.requests.labels(method, route, status or "aborted").inc()
        if not route.endswith("/events"):
            self.metrics.seconds.labels(method, route).observe(seconds)
        level = _level(method, path, status, seconds)
        line = {"method": method, "path": path, "status": status, "bytes": state["bytes"]}
        getattr(log, level)("request", **line, ms=round(1000 * seconds, 1))


def _level(method: str, path: str, status: int, seconds: float) -> str:
    """Reading that went well is for debugging; what changed, failed or took long is told."""
    if status >= 500:
        return "debug" if path.startswith(QUIET) else "warning"
    reading = method in ("GET", "HEAD") and 200 <= status < 400 and seconds < SLOW_SECONDS
    return "debug" if reading else "info"


class BodyLimit:
    """Refuses bodies above a limit, by Content-Length before reading and by count while reading.

    Uploads are left out: they have a limit of their own and never are in memory.
    """

    def __init__(self, app: ASGIApp, limit: int, except_path: str) -> None:
        self.app = app
        self.limit = limit
        self.except_path = except_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/").endswith(self.except_path):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.limit:
            detail = f"Expected a body of at most {self.limit} bytes; got {length}."
            headers = {"Connection": "close"}
            response = problem_response(Request(scope), "too_large", detail, headers=headers)
            await response(scope, receive, send)
            return
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"Expected a body of at most {self.limit} bytes.")
            return message

        await self.app(scope, receive_counted, send)
