"""Guard the data sets: keys, a bounded number of readers, names that move; then xpublish.

xpublish and what it brings (dask, shapely, pyproj) are imported at the first request, so that a
gateway nobody asks for data sets starts quickly and stays small.
"""

import asyncio
import importlib
import threading
from typing import Any

import structlog
from anyio import to_thread
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.domain.errors import AppaError
from service.auth import authenticate
from service.errors import NotInstalled
from service.gateway import Gateway
from service.keys import Scope as KeyScope
from service.problems import appa_problem, broker_problem

PREFIX = "/v1/data"
log = structlog.get_logger()

_READERS = 8
"""Requests that read at the same time: fewer than the gateway has threads."""

_SWEEP_SECONDS = 5.0


class DataAccess:
    """ASGI application to mount below `PREFIX`."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._slots = asyncio.Semaphore(_READERS)
        self._building = threading.Lock()
        self._application: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # refused, as the routes of the gateway do
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        request = Request(scope, receive)
        try:
            key = await authenticate(self.gateway, request.headers, pieces=True)
            key.need(KeyScope.ANALYSES_READ)
        except AppaError as error:
            await appa_problem(request, error)(scope, receive, send)
            return
        except RedisError as error:
            await broker_problem(request, error)(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves the body out
            scope = {**scope, "method": "GET"}
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Holds a slot until the answer is known; sending it to a slow client needs none."""
        await self._slots.acquire()
        held = True

        async def send_on(message: Message) -> None:
            nonlocal held
            if held and message["type"] == "http.response.start":
                held = False
                self._slots.release()
            await send(message)

        try:
            application = self._application
            if application is None:
                application = await to_thread.run_sync(self._build)
            await application(scope, receive, send_on)
        finally:
            if held:
                self._slots.release()

    def _build(self) -> ASGIApp:
        with self._building:
            if self._application is None:
                try:
                    library, application = (
                        importlib.import_module(f"service.data.{name}")
                        for name in ("library", "application")
                    )
                except ModuleNotFoundError as error:
                    raise NotInstalled(
                        f"Expected the extra 'data' on this gateway; the module '{error.name}' is "
                        "missing. Install it with: pip install 'appa-service[data]'",
                        extra="data",
                    ) from error
                datasets = library.DatasetLibrary(self.gateway.analyses, self.gateway.layout)
                built: ASGIApp = application.build_application(
                    datasets, self.gateway.settings.edr_max_values
                )
                _start_sweeping(datasets)
                self._application = built
            return self._application


def _start_sweeping(library: Any) -> None:
    """Closes deleted and idle data sets for as long as the process lives."""
    pause = threading.Event()

    def sweep_on() -> None:
        while not pause.wait(_SWEEP_SECONDS):
            try:
                library.sweep()
            except OSError as error:
                log.warning("datasets_not_swept", error=str(error))

    threading.Thread(target=sweep_on, name="datasets-sweep", daemon=True).start()
