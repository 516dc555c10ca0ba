"""Bound the rows that all answers of one gateway hold in memory at a time.

The rows of a page are in memory until they are sent. A client may read slowly, or not at all for as
long as it is allowed to, and many may do so together. Rows are counted as they are read from the
store; an answer that would pass the limit of all together is refused with 503 and Retry-After.
"""

import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
from anyio import CapacityLimiter
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.errors import Unavailable

__all__ = ["HeldRows", "RowAnswer", "RowBudget", "table_bytes"]

_RETRY_SECONDS = 10


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
