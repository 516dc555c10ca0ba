"""Limit how many picture requests are handled at a time, so that other requests do not queue behind them.

A bounded thread pool is not enough: of a hundred tiles requested at once, the event loop would parse,
route and authenticate each before the API call that came last. Requests that wait here have cost nothing.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ConcurrencyLimit", "PictureLimit"]

_MAP_OR_LEGEND = re.compile(r"/ogc/collections/[^/]+/(styles/[^/]+/)?(map|legend)(/|$)")
_WMS = re.compile(r"/ogc/wms/?$")
_WMS_PICTURE = re.compile(rb"(^|&)request=get(map|legendgraphic)(&|$)", re.IGNORECASE)
_FIELDS = re.compile(r"/v1/fields(/|$)")


async def _answer(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, on_start: Callable[[], None]
) -> None:
    """Answer a request; call `on_start` once, when the response starts.

    A client that reads slowly therefore holds no slot.
    """
    started = False

    async def send_on(message: Message) -> None:
        nonlocal started
        if not started and message["type"] == "http.response.start":
            started = True
            on_start()
        await send(message)

    try:
        await app(scope, receive, send_on)
    finally:
        if not started:
            on_start()


class ConcurrencyLimit:
    """First-in, first-out limit on concurrent requests, which can be changed while requests wait.

    Arguments:
        count: Maximum number of concurrent requests.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._queue)

    def set_limit(self, count: int) -> None:
        """Change the limit; requests already admitted go on."""
        self._count = count
        self._admit()

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request once it is admitted."""
        await self._begin()
        await _answer(app, scope, receive, send, self._end)

    async def _begin(self) -> None:
        admission: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(admission)
        self._admit()
        try:
            await admission
        except asyncio.CancelledError:
            if not admission.cancelled():  # admitted at the same moment
                self._end()
            elif admission in self._queue:
                self._queue.remove(admission)
            raise

    def _end(self) -> None:
        self._running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._running < self._count and self._queue:
            admission = self._queue.popleft()
            if not admission.cancelled():
                self._running += 1
                admission.set_result(None)


class PictureLimit:
    """Middleware that limits concurrent maps, tiles and legends: to one while fields are requested.

    Arguments:
        app: The application.
        count: Limit at other times: a few more than are drawn, so that there is always one to draw.
        waiting_gauge: Gauge for the number of waiting requests.
    """

    def __init__(self, app: ASGIApp, count: int, waiting_gauge: Gauge) -> None:
        self.app = app
        self._count = count
        self._field_requests = 0
        self._pictures = ConcurrencyLimit(count)
        waiting_gauge.set_function(lambda: self._pictures.waiting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _is_picture(scope):
            await self._pictures.run(self.app, scope, receive, send)
        elif _FIELDS.search(scope["path"]):
            self._field_requests += 1
            self._pictures.set_limit(1)
            await _answer(self.app, scope, receive, send, self._field_answered)
        else:
            await self.app(scope, receive, send)

    def _field_answered(self) -> None:
        self._field_requests -= 1
        if not self._field_requests:
            self._pictures.set_limit(self._count)


def _is_picture(scope: Scope) -> bool:
    """Return whether a request is for a picture, or for what describes its tiles."""
    path = scope["path"]
    if _WMS.search(path):
        return _WMS_PICTURE.search(scope["query_string"]) is not None
    return _MAP_OR_LEGEND.search(path) is not None
