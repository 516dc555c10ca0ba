"""Let requests of one sort take turns, so that what else is asked for does not wait behind them.

Threads alone cannot do that: of a hundred tiles that come at once, the event loop would read, route and
check each before it gets to the call of a page that came last. Those that wait here have cost nothing.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["PictureTurns", "Turns"]

_DRAWN = re.compile(r"/ogc/collections/[^/]+/(styles/[^/]+/)?(map|legend)(/|$)")
_MAP_SERVICE = re.compile(r"/ogc/wms/?$")
_MAP_WANTED = re.compile(rb"(^|&)request=get(map|legendgraphic)(&|$)", re.IGNORECASE)
_CALL = re.compile(r"/v1/fields(/|$)")


async def _answer(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, known: Callable[[], None]
) -> None:
    """Answer a request; `known` is called once, when the answer is: a slow client delays only itself."""
    told = False

    async def send_on(message: Message) -> None:
        nonlocal told
        if not told and message["type"] == "http.response.start":
            told = True
            known()
        await send(message)

    try:
        await app(scope, receive, send_on)
    finally:
        if not told:
            known()


class Turns:
    """So many requests at a time; the others wait, in order, for one of these to be answered.

    Arguments:
        count: Requests.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._working = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._queue)

    def allow(self, count: int) -> None:
        """Let so many work at a time from now on; those at work go on."""
        self._count = count
        self._call_up()

    async def take(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in its turn."""
        await self._begin()
        await _answer(app, scope, receive, send, self._end)

    async def _begin(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._call_up()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # called up at the same moment
                self._end()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def _end(self) -> None:
        self._working -= 1
        self._call_up()

    def _call_up(self) -> None:
        while self._working < self._count and self._queue:
            turn = self._queue.popleft()
            if not turn.cancelled():
                self._working += 1
                turn.set_result(None)


class PictureTurns:
    """Middleware that lets maps, tiles and legends take turns, one at a time while fields are asked for.

    Arguments:
        app: The application.
        count: Pictures in work at a time otherwise: a few more than are drawn, so that there always is
            one to draw.
        told: Where it is told how many wait.
    """

    def __init__(self, app: ASGIApp, count: int, told: Gauge) -> None:
        self.app = app
        self._count = count
        self._calls = 0
        self._pictures = Turns(count)
        told.set_function(lambda: self._pictures.waiting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _is_picture(scope):
            await self._pictures.take(self.app, scope, receive, send)
        elif _CALL.search(scope["path"]):
            self._calls += 1
            self._pictures.allow(1)
            await _answer(self.app, scope, receive, send, self._answered)
        else:
            await self.app(scope, receive, send)

    def _answered(self) -> None:
        self._calls -= 1
        if not self._calls:
            self._pictures.allow(self._count)


def _is_picture(scope: Scope) -> bool:
    """Return whether a request is for a picture, or for what describes its tiles."""
    path = scope["path"]
    if _MAP_SERVICE.search(path):
        return _MAP_WANTED.search(scope["query_string"]) is not None
    return _DRAWN.search(path) is not None
