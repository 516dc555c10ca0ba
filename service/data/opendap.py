"""Serve analyses over OPeNDAP (DAP 2): `.dds`, `.das` and `.dods`, cut to a constraint and streamed.

The encoders are those of `opendap_protocol`; which variables and which parts of them a constraint
asks for is decided here, because that library matches names by their first letters (a request for
`t2m_mean` would bring `t` and `t2m`, too) and reads the stride of a slice as its end.
DAP 2: https://www.opendap.org/pdf/ESE-RFC-004v1.2.pdf
"""

import re
import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
import xarray as xr
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.responses import PlainTextResponse, Response
from xpublish.plugins import Dependencies, hookimpl

from model.domain.errors import InvalidInput

__all__ = ["dap_dataset", "parse_constraint"]

_PROJECTION = re.compile(r"(\w+)(?:\.(\w+))?((?:\[\d+(?::\d+){0,2}\])*)")
_SLICE = re.compile(r"\[([\d:]+)\]")
_WIDER = {"int8": "int16", "bool": "int16", "int64": "float64", "uint64": "float64"}
"""Types that DAP 2 or its encoder lacks, and the type that holds their values."""

Slices = tuple[slice, ...]


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """`opendap_protocol` asks setuptools' `pkg_resources`, which is no more, for its version."""
    stub: Any = types.ModuleType("pkg_resources")
    stub.DistributionNotFound = PackageNotFoundError

    def unknown(name: str) -> None:
        raise PackageNotFoundError(name)

    stub.get_distribution = unknown
    before = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        if before is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = before


with _pkg_resources():
    import opendap_protocol as dap
    from xpublish_opendap import OpenDapPlugin
    from xpublish_opendap.dap_xarray import dap_dtype


class _Container(dap.DAPObject):  # type: ignore[misc]
    """Attributes of the whole data set: part of the DAS alone."""

    def dds(self, constraint: str = "") -> Iterator[str]:
        return iter(())

    def dods_data(self, constraint: str = "") -> Iterator[bytes]:
        return iter(())


class _Field(dap.DAPDataObject):  # type: ignore[misc]
    """An array with more than one dimension outside of a grid."""

    def dds(self, constraint: str = "") -> Iterator[str]:
        sizes = zip(self.sizes, self.data.shape, strict=True)
        shape = "".join(f"[{dim} = {size}]" for dim, size in sizes)
        yield f"{self.indent}{self.dtype()} {self.name}{shape};\n"


@dataclass(frozen=True)
class Projection:
    """One variable of a constraint: a whole one, or the array or a map of a grid (`member`)."""

    variable: str
    member: str | None
    slices: Slices


def parse_constraint(text: str) -> list[Projection]:
    """What a constraint expression asks for; nothing means all.

    Raises:
        InvalidInput: For what is not a list of variables with slices.
    """
    wanted = []
    for part in filter(None, text.split(",")):
        match = _PROJECTION.fullmatch(part)
        if match is None:
            raise InvalidInput(
                f"Expected a constraint such as 't2m[0][0:3]' or 't2m,latitude'; got '{part}'. "
                "Selections (after '&') are not offered."
            )
        variable, member, slices = match.groups()
        wanted.append(Projection(variable, member, tuple(map(_slice, _SLICE.findall(slices)))))
    return wanted


def _slice(text: str) -> slice:
    """`5`, `0:9` or `0:2:9` (start, stride, stop): the stop is part of it."""
    numbers = [int(n) for n in text.split(":")]
    start, stop = numbers[0], numbers[-1]
    step = numbers[1] if len(numbers) == 3 else 1
    if step < 1 or stop < start:
        raise InvalidInput(f"Expected slices such as [0:9] or [0:2:9]; got [{text}].")
    return slice(start, stop + 1, step)


def dap_dataset(dataset: xr.Dataset, name: str, constraint: str = "") -> Any:
    """The DAP data set of what `constraint` asks for.

    Arguments:
        dataset: Values and attributes as in the file.
        name: Of the data set.
        constraint: A DAP 2 projection.

    Raises:
        InvalidInput: For an unknown variable or a slice outside of it.
    """
    every = [str(n) for n in (*dataset.sizes, *dataset.data_vars)]
    wanted = parse_constraint(constraint) or [Projection(name, None, ()) for name in every]
    unknown = [p.variable for p in wanted if p.variable not in every]
    if unknown:
        raise InvalidInput(f"Expected variables of {', '.join(every)}; got {', '.join(unknown)}.")
    built = dap.Dataset(name=name)
    # Answers come in the order of the data set: clients count variables instead of reading names.
    for projection in sorted(wanted, key=lambda p: every.index(p.variable)):
        built.append(_projected(dataset[projection.variable], projection))
    container = _Container(name="NC_GLOBAL")
    container.append(*_attributes(dataset.attrs))
    built.append(container)
    return built


def _projected(array: xr.DataArray, projection: Projection) -> Any:
    """A whole variable, or a structure with the one member of a grid that is asked for."""
    name, member = projection.variable, projection.member
    if member is None:
        return _variable(_cut(array, projection.slices), name)
    if member not in (name, *array.dims):
        raise InvalidInput(
            f"Expected '{name}' or a dimension of it after '{name}.'; got '{member}'."
        )
    part = _cut(array if member == name else array[member], projection.slices)
    structure = dap.Structure(name=name)
    field = _Field(name=member, data=part.data, dtype=dap_dtype(part))
    field.sizes = part.dims
    structure.append(field)
    return structure


def _cut(array: xr.DataArray, slices: Slices) -> xr.DataArray:
    if len(slices) > array.ndim or any(
        s.stop > n for s, n in zip(slices, array.shape, strict=False)
    ):
        asked = "".join(f"[{s.start}:{s.step}:{s.stop - 1}]" for s in slices)
        raise InvalidInput(
            f"Expected slices within the shape {array.shape} of '{array.name}'; got {asked}."
        )
    return _typed(array.isel(dict(zip(array.dims, slices, strict=False))))


def _variable(array: xr.DataArray, name: str) -> Any:
    kind = dap_dtype(array)
    if array.ndim == 0:
        built = kind(value=array.values.item(), name=name)  # numpy scalars would get a length
    elif array.dims == (name,):
        built = dap.Array(name=name, data=array.values, dtype=kind)
    else:
        maps = [
            dap.Array(name=str(dim), data=values.values, dtype=dap_dtype(values))
            for dim in array.dims
            for values in (_typed(array[dim]),)
        ]
        built = dap.Grid(name=name, data=array.data, dtype=kind, dimensions=maps)
    built.append(*_attributes(array.attrs))
    return built


def _typed(array: xr.DataArray) -> xr.DataArray:
    wider = _WIDER.get(array.dtype.name)
    return array if wider is None else array.astype(wider, keep_attrs=True)


def _attributes(attributes: dict[Any, Any]) -> list[Any]:
    return [
        _attribute(str(name), value)
        for name, value in attributes.items()
        if not str(name).startswith("_xpublish")
    ]


def _attribute(name: str, value: Any) -> Any:
    """Numbers and lists of numbers with their type; anything else as text."""
    values = np.atleast_1d(np.asarray(value))
    if values.dtype.kind not in "iuf":
        text = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return dap.Attribute(name=name, value=text, dtype=dap.String)
    if values.dtype == np.float32:  # all digits, for clients that compare as double
        dtype, values = dap.Float32, values.astype(np.float64)
    elif values.dtype.kind in "iu" and np.all(np.abs(values.astype(float)) < 2**31):
        dtype, values = dap.Int32, values.astype(np.int64)
    else:
        dtype, values = dap.Float64, values.astype(np.float64)
    return dap.Attribute(name=name, value=", ".join(str(v) for v in values), dtype=dtype)


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
