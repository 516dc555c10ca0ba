"""The OPeNDAP plugin: `.dds`, `.das` and `.dods` of an analysis, streamed."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any
from urllib.parse import unquote

import xarray as xr
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.responses import PlainTextResponse, Response
from xpublish.plugins import Dependencies, hookimpl

from service.datasets.dap_model import OpenDapPlugin, dap_dataset

_READERS = 4
"""Threads that read for streams, apart from those of the gateway's routes."""

_HEADERS = {"XDODS-Server": "dods/3.2", "XDAP": "3.2"}


class OpenDap(OpenDapPlugin):  # type: ignore[misc]
    """xpublish's plugin with constraints read by the letter."""

    @hookimpl
    def dataset_router(self, deps: Dependencies) -> APIRouter:
        """The routes of one data set."""
        router = APIRouter(prefix=self.dataset_router_prefix, tags=list(self.dataset_router_tags))

        def cut(
            request: Request, dataset_id: str, dataset: Annotated[xr.Dataset, Depends(deps.dataset)]
        ) -> Any:
            return dap_dataset(dataset, dataset_id, unquote(request.url.query))

        @router.get(".dds")
        def dds(dataset: Annotated[Any, Depends(cut)]) -> Response:
            """Types and dimensions."""
            return _text("".join(dataset.dds()), "dods-dds")

        @router.get(".das")
        def das(dataset: Annotated[xr.Dataset, Depends(deps.dataset)], dataset_id: str) -> Response:
            """Attributes."""
            return _text("".join(dap_dataset(dataset, dataset_id).das()), "dods-das")

        @router.get(".dods")
        def dods(dataset: Annotated[Any, Depends(cut)]) -> Response:
            """Types, dimensions and values."""
            blocks = _blocks(dataset)
            first = next(blocks)  # an error of reading is still a response of its own
            headers = {**_HEADERS, "Content-Description": "dods-data"}
            media = "application/octet-stream"
            return StreamingResponse(_stream(first, blocks), headers=headers, media_type=media)

        return router


def _text(text: str, description: str) -> Response:
    return PlainTextResponse(text, headers={**_HEADERS, "Content-Description": description})


def _blocks(dataset: Any) -> Iterator[bytes]:
    """The answer in blocks of some megabytes; the first holds the head and the first values."""
    pending = "".join(dataset.dds()).encode() + b"\nData:\n"
    for child in dataset.children:
        for block in child.dods_data():
            pending += block
            if len(pending) >= 1 << 20:
                yield pending
                pending = b""
    yield pending


async def _stream(first: bytes, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Reads in threads of its own, never while the client is slow to take the block before."""
    yield first
    limiter = _limiter()
    while (block := await to_thread.run_sync(next, blocks, None, limiter=limiter)) is not None:
        yield block


_LIMITERS: list[CapacityLimiter] = []


def _limiter() -> CapacityLimiter:
    """Made on first use: it belongs to the running event loop."""
    if not _LIMITERS:
        _LIMITERS.append(CapacityLimiter(_READERS))
    return _LIMITERS[0]
