"""Requests to a gateway, repeated while it is away; the asyncio twin."""

import asyncio
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from service import client_calls as calls
from service.client_base import ATTEMPTS, TIMEOUT, client_options, lost
from service.client_calls import Call
from service.client_errors import GatewayError, raise_for_problem
from service.client_uploads import as_async

__all__ = ["AsyncGatewayConnection"]


class AsyncGatewayConnection:
    """One gateway and how it is talked to: repeats, problem documents, closing."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._http = httpx.AsyncClient(**client_options(url, key, timeout))
        self._attempts = attempts

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _get(self, path: str) -> Any:
        return await self._json(Call("GET", path))

    async def _json(self, call: Call, content: Callable[[], Iterator[bytes]] | None = None) -> Any:
        answer = await self._call(call, content)
        return answer.json()

    async def _call(
        self, call: Call, content: Callable[[], Iterator[bytes]] | None = None
    ) -> httpx.Response:
        for attempt in range(1, self._attempts + 1):
            try:
                return raise_for_problem(
                    await self._http.request(
                        call.method,
                        call.path,
                        params=dict(call.params),
                        headers=dict(call.headers),
                        json=call.json,
                        content=as_async(content()) if content else None,
                    )
                )
            except httpx.TransportError as problem:
                error: GatewayError = lost(problem)
            except GatewayError as problem:
                error = problem
            pause = calls.retry_pause(attempt, error.status or None, error.retry_after)
            if pause is None or attempt == self._attempts:
                raise error
            await asyncio.sleep(pause)
        raise AssertionError("at least one attempt is made")
