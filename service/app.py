"""Build and serve the gateway's application.

`create_app` builds everything, so that a test builds its own application. Around every request
run its id, its log line, its metrics and the limit of its body; logs are structured, one event a
line, for people or for machines. `serve` runs the application with uvicorn.

Data sets require an API key, and only a limited number of requests read them at a time.
"""

import logging
import os
import re
import sys
import threading
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from anyio import to_thread
from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.domain.errors import AppaError, ConfigurationError
from model.domain.files import code_version
from service.answer_limits import ConcurrencyLimit, PictureLimit
from service.audit import AuditLog
from service.auth import authenticate
from service.connections import BodyLimit, ConnectionLimits, limited_protocol
from service.gateway import MAX_DRAWING, MAX_READING, Gateway, open_gateway, running
from service.keys import Scope as KeyScope
from service.metrics import GatewayMetrics
from service.openapi import describe
from service.problems import add_problem_handlers, appa_problem, broker_problem, problem_response
from service.routes import (
    analyses,
    challengers,
    cycles,
    events,
    feedback,
    fields,
    jobs,
    observations,
    ogc,
    ogc_maps,
    stac,
    system,
)
from service.settings import GatewaySettings
from worker.contract.loading import loading
from worker.contract.logs import configure_logs
from worker.contract.trace_export import export_traces
from worker.contract.traces import continue_trace, trace_id

PREFIX = "/v1/data"
SWITCH_SECONDS = 0.001
"""Thread switch interval in seconds, a fifth of Python's default. The event loop has to get the GIL back
many times per request, while threads that draw and read compete for it."""

log = structlog.get_logger()


class DataAccess:
    """ASGI application to mount below `PREFIX`."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._limit = ConcurrencyLimit(MAX_READING)
        self._building = threading.Lock()
        self._application: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # refused, as the routes of the gateway do
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        request = Request(scope, receive)
        try:
            key = await authenticate(self.gateway, request.headers, pieces=True)
            key.require(KeyScope.ANALYSES_READ)
        except AppaError as error:
            await appa_problem(request, error)(scope, receive, send)
            return
        except RedisError as error:
            await broker_problem(request, error)(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves the body out
            scope = {**scope, "method": "GET"}
        await self._limit.run(self._serve, scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        application = self._application
        if application is None:
            application = await to_thread.run_sync(self._build)
        await application(scope, receive, send)

    def _build(self) -> ASGIApp:
        with self._building:
            if self._application is None:
                data_sets, max_values = self.gateway.data_sets, self.gateway.settings.edr_max_values
                application = data_sets.module("application")
                built: ASGIApp = application.build_application(data_sets.library, max_values)
                self._application = built
            return self._application


def configure_gateway_logs(settings: GatewaySettings) -> None:
    """Send all records to standard error, uvicorn's included; its access lines are replaced."""
    configure_logs(settings, sys.stderr)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(settings.log_level)
        logger.propagate = name != "uvicorn.access"  # our own access line says more


REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
QUIET = ("/health/", "/metrics")
SLOW_SECONDS = 2.0


class RequestContext:
    """Give each request an id (the client's own if it is well formed); log, count and audit it.

    It also handles unexpected exceptions: they are logged with their traceback, and the client gets
    a problem document with the request id to quote.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, audit: AuditLog) -> None:
        self.app = app
        self.metrics = metrics
        self.audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with continue_trace(headers.get("traceparent", "")):
            await self._answer(scope, receive, send, headers.get("x-request-id", ""))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, asked: str) -> None:
        request_id = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope["appa.request_id"] = request_id
        trace.get_current_span().set_attribute("appa.request_id", request_id)
        state: dict[str, Any] = {"status": 0, "bytes": 0}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                state.update(status=message["status"], location=headers.get("location", ""))
                headers["X-Request-ID"] = request_id
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
            method = "OTHER"  # keeps the cardinality of the metric bounded
        self.metrics.requests.labels(method, route, status or "aborted").inc()
        if not route.endswith("/events"):
            self.metrics.seconds.labels(method, route).observe(seconds)
        level = _level(method, path, status, seconds)
        if method not in ("GET", "HEAD", "OPTIONS", "OTHER") and route != "unmatched":
            self._audit(scope, state)
        line = {"method": method, "path": path, "status": status, "bytes": state["bytes"]}
        getattr(log, level)("request", **line, ms=round(1000 * seconds, 1))

    def _audit(self, scope: Scope, state: dict[str, Any]) -> None:
        record = state.get("location", "").rpartition("/")[2]
        client = scope.get("client")
        self.audit.write(
            key=structlog.contextvars.get_contextvars().get("api_key", ""),
            action=getattr(scope.get("route"), "name", ""),
            record=record or next(iter(scope.get("path_params", {}).values()), ""),
            status=state["status"],
            request_id=scope["appa.request_id"],
            trace_id=trace_id(),
            address=client[0] if client else "",
        )


def _level(method: str, path: str, status: int, seconds: float) -> str:
    """Return the log level: `debug` for reads that went well; changes, failures and slow requests are
    at `info`, server errors at `warning`.
    """
    if status >= 500:
        return "debug" if path.startswith(QUIET) else "warning"
    reading = method in ("GET", "HEAD") and 200 <= status < 400 and seconds < SLOW_SECONDS
    return "debug" if reading else "info"


WEB = Path(__file__).parent / "web"
ROUTERS: tuple[APIRouter, ...] = (
    observations.router,
    jobs.router,
    feedback.router,  # before the route of analysis files, which matches any name
    analyses.router,
    fields.router,
    stac.router,
    ogc.router,
    ogc_maps.router,
    cycles.router,
    challengers.router,
    events.router,
    events.webhooks_router,
    system.router,
)
"""A new router is a line here; it carries its own prefix."""


PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
}


class Pages(StaticFiles):
    """Static files of the pages, revalidated at each use; they may load from the same origin only."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file with the headers of a page."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


async def viewer() -> FileResponse:
    """The viewer: one page, no build step."""
    return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)


async def api_page() -> FileResponse:
    """The page about the API; what it shows, it reads with the key of whoever opens it."""
    return FileResponse(WEB / "docs.html", headers=PAGE_HEADERS)


def swagger_files() -> Path:
    """Return the folder with the script and style of Swagger UI; no page loads from elsewhere."""
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "Expected the package 'fastapi-offline', which holds Swagger UI. Install it with: pip "
            "install fastapi-offline"
        )
    return Path(found.origin).parent / "static"


TELEMETRY = TelemetryConfig(
    metrics=False,  # ours are in `/metrics`
    logs=False,
    operation_spans=False,
    auto_configure=False,  # `export_traces` does, as in every process
    exclude=lambda scope: scope["path"].startswith((*QUIET, "/web")),
)
"""FastAPI makes a span for each request where spans are exported, and continues a caller's trace."""


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """Return the application for `settings` (default: from the environment)."""
    settings = settings or GatewaySettings()
    app = FastAPI(
        title="Appa Service",
        telemetry=TELEMETRY,
        version=code_version(),
        lifespan=running,
        root_path=settings.root_path,
        redirect_slashes=False,
        openapi_url=None,  # our own route asks for a key
        generate_unique_id_function=lambda route: route.name,
    )
    gateway = app.state.gateway = open_gateway(settings)
    for router in ROUTERS:
        app.include_router(router)
    app.mount(PREFIX, DataAccess(gateway), name="data")
    app.mount("/web/swagger", Pages(directory=swagger_files()), name="swagger")
    app.mount("/web", Pages(directory=WEB), name="web")
    app.add_api_route("/", viewer, include_in_schema=False)
    app.add_api_route("/docs", api_page, include_in_schema=False)
    add_problem_handlers(app)
    app.add_middleware(
        BodyLimit,
        limit=settings.max_json_bytes,
        seconds=settings.upload_idle_seconds,
        except_path="/v1/observations",
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET",),
            allow_headers=("Authorization", "X-API-Key"),
        )
    metrics = gateway.metrics
    app.add_middleware(PictureLimit, count=MAX_DRAWING + 2, waiting_gauge=metrics.pictures_waiting)
    audit = AuditLog(gateway.layout.audit_file)
    app.add_middleware(RequestContext, metrics=metrics, audit=audit)
    describe(app)
    return app


def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or Ctrl-C; open requests get some seconds to end."""
    os.umask(0o077)  # uploads and keys are for this user alone
    configure_gateway_logs(settings)
    export_traces("gateway")
    with loading():
        app = create_app(settings)
    sys.setswitchinterval(SWITCH_SECONDS)
    uvicorn.run(
        app,
        http=limited_protocol(ConnectionLimits.of(settings)),
        ws="none",  # no route uses WebSocket; the upgrade header is ignored
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=list(settings.proxies),
        timeout_graceful_shutdown=10,
        timeout_keep_alive=30,
        backlog=2048,
    )
