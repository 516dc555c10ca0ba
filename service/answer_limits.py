"""Limit the answers under way: how many are made at a time, and the rows that they hold in memory.

A bounded thread pool is not enough: of a hundred tiles requested at once, the event loop would parse,
route and authenticate each before the API call that came last. Requests that wait here have cost nothing.

The rows of a page are in memory until they are sent. A client may read slowly, or not at all for as
long as it is allowed to, and many may do so together. Rows are counted as they are read from the
store; an answer that would pass the limit of all together is refused with 503 and Retry-After.
"""

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pyarrow as pa
from anyio import CapacityLimiter
from fastapi.responses import StreamingResponse
from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Unavailable

__all__ = ["ConcurrencyLimit", "HeldRows", "PictureLimit", "RowAnswer", "RowBudget", "table_bytes"]

_RETRY_SECONDS = 10
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


class RowBudget:
    """Bytes of rows in memory, of all answers of this process.

    Arguments:
        limit: Most bytes. One answer alone may pass it: pages have a limit of their own.
        readers: Answers that are read from the store at the same time.
    """

    def __init__(self, limit: int, readers: int) -> None:
        self.limit = limit
        self.readers = CapacityLimiter(readers)
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Return the bytes that are held now."""
        with self._lock:
            return sum(self._held.values())

    def hold(self) -> "HeldRows":
        """Return a new, empty share for one answer."""
        return HeldRows(self)

    def set(self, holder: int, size: int) -> bool:
        """Record the bytes that an answer holds; return whether the budget allows them."""
        with self._lock:
            others = sum(self._held.values()) - self._held.get(holder, 0)
            if others and others + size > self.limit:
                return False
            self._held[holder] = size
            return True

    def release(self, holder: int) -> None:
        """Release the memory that an answer holds in the budget."""
        with self._lock:
            self._held.pop(holder, None)


class HeldRows:
    """Share of the budget held by one answer, until `release` or until it is garbage-collected."""

    def __init__(self, budget: RowBudget) -> None:
        self._budget = budget
        self._size = 0

    def add(self, size: int) -> None:
        """Count rows that were read.

        Raises:
            Unavailable: If the answers under way hold too much.
        """
        self._set(self._size + size)

    def keep(self, table: pa.Table) -> None:
        """Count the rows of the answer instead of all that was read for it."""
        self._set(table_bytes(table))

    def _set(self, size: int) -> None:
        if not self._budget.set(id(self), size):
            self.release()
            raise Unavailable(
                f"Expected answers under way to hold at most {self._budget.limit} bytes of rows; "
                "others hold them. Try again, or ask for fewer rows.",
                code="too_many_rows",
                retry_after=_RETRY_SECONDS,
            )
        self._size = size

    def release(self) -> None:
        """Release this answer's share of the budget."""
        self._budget.release(id(self))

    def __del__(self) -> None:
        self.release()


def table_bytes(table: pa.Table) -> int:
    """Return the bytes of a table whose chunks share their dictionaries."""
    return sum(map(_column_bytes, table.columns))


def _column_bytes(column: pa.ChunkedArray) -> int:
    if not pa.types.is_dictionary(column.type) or not column.num_chunks:
        return int(column.nbytes)
    shared = column.chunk(0).dictionary.nbytes
    return int(shared + sum(chunk.indices.nbytes for chunk in column.chunks))


class RowAnswer(StreamingResponse):
    """Rows sent block by block; their share of the budget is given back when the answer ends.

    Arguments:
        write: Yields the bytes of a table.
        table: The rows.
        held: The share that they hold.
        media_type, headers: Media type and headers of the answer.
    """

    def __init__(
        self,
        write: Callable[[pa.Table], Iterator[bytes]],
        table: pa.Table,
        held: HeldRows,
        *,
        media_type: str,
        headers: dict[str, str],
    ) -> None:
        super().__init__(write(table), media_type=media_type, headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.release()
