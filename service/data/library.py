"""Open published files as data sets: lazily, in pieces of some megabytes, one HDF5 reader at a time.

Data sets are found by analysis id or by a `latest-…` name, at most a fixed number are open, and
deleted or idle ones are closed. How large an answer may be is counted from the shapes of what is
asked, before anything is read.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import structlog
import xarray as xr
from starlette.types import ASGIApp, Receive, Scope, Send
from xpublish.utils.api import DATASET_ID_ATTR_KEY
from zarr.storage import ZipStore

from model.domain.errors import StorageError
from service.data.cache import KeyedLocks
from service.errors import AnswerTooLarge, NotFound
from worker.contract.kinds import KINDS
from worker.contract.layout import Layout
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.store import result_store

__all__ = ["AnswerTooLarge", "BoundedAnswers", "check_answer", "check_points"]

HDF5_LOCK = threading.RLock()
"""Lock around HDF5, which is not thread-safe; reentrant, because opening a file reads coordinates."""

PIECE_BYTES = 4 << 20
"""Target size of a chunk: few requests for small grids, one field per chunk for large ones."""

_VALUE_BYTES = 4
_ORDER = ("air_pressure", "realization", "time")
_HORIZONTAL = ("latitude", "longitude")


def chunk_plan(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return chunk lengths: whole horizontal fields, then levels, members and times up to the target."""
    size = _VALUE_BYTES
    for dim in _HORIZONTAL:
        size *= sizes.get(dim, 1)
    plan = {dim: sizes[dim] for dim in _HORIZONTAL if dim in sizes}
    for dim in _ORDER:
        if dim in sizes:
            plan[dim] = max(1, min(sizes[dim], PIECE_BYTES // max(1, size)))
            size *= plan[dim]
    return plan


@dataclass(eq=False)
class OpenDataset:
    """A published file, open.

    Attributes:
        stored: Values and attributes as in the file, read lazily.
        pieces: Chunk lengths of its dask arrays, by dimension.
        token: Name of its dask graphs; differs for different content.
        close: Closes the file; a later read opens it again.
        views: Cache of what plugins derived from it, dropped with it.
    """

    stored: xr.Dataset
    pieces: Mapping[str, int]
    token: str
    close: Callable[[], None]
    views: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def raw(self) -> xr.Dataset:
        """Return values and attributes as in the file, chunked."""
        return self.stored.chunk(self.pieces, token=self.token)

    @cached_property
    def decoded(self) -> xr.Dataset:
        """Return the data set decoded by CF (times, missing values, coordinates), chunked."""
        # Not under the lock: times are read here, by threads that need it.
        return xr.decode_cf(self.raw, decode_timedelta=False)

    @cached_property
    def plain(self) -> xr.Dataset:
        """Return `decoded` without dask: reading one level costs a third of a dask graph."""
        return xr.decode_cf(self.stored, decode_timedelta=False)


def open_file(path: Path, analysis_id: str) -> OpenDataset:
    """Open a NetCDF file or a zipped zarr store.

    Raises:
        StorageError: If it cannot be read.
    """
    try:
        opened = _open_zarr(path) if path.name.endswith(".zarr.zip") else _open_netcdf(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(
            f"Expected a readable data set in '{path.name}' of '{analysis_id}'; {error}.",
            analysis_id=analysis_id,
            file=path.name,
        ) from error
    # The plugins keep what they derive from a data set under this name.
    opened.stored = opened.stored.assign_attrs({DATASET_ID_ATTR_KEY: analysis_id})
    return opened


def _open_netcdf(path: Path) -> OpenDataset:
    with HDF5_LOCK:
        stored = xr.open_dataset(
            path, engine="netcdf4", decode_cf=False, lock=HDF5_LOCK, cache=False
        )

    def close() -> None:
        with HDF5_LOCK:
            stored.close()

    return _opened(path, stored, close)


def _open_zarr(path: Path) -> OpenDataset:
    store = ZipStore(path, mode="r")
    stored = xr.open_zarr(store, consolidated=True, decode_cf=False, chunks=None)
    return _opened(path, stored, store.close)


def _opened(path: Path, stored: xr.Dataset, close: Callable[[], None]) -> OpenDataset:
    plan = chunk_plan({str(name): size for name, size in stored.sizes.items()})
    return OpenDataset(_bare(stored), plan, f"{path} {path.stat().st_mtime_ns}", close)


def _bare(dataset: xr.Dataset) -> xr.Dataset:
    """Return the data set without the file's encoding, which does not apply to a zarr store."""
    return dataset.drop_encoding()


DEFAULT_MAX_VALUES: Final = 2_000_000
_MAX_VALUES: ContextVar[int] = ContextVar("max_values", default=DEFAULT_MAX_VALUES)

_TABLES = frozenset({"csv", "geojson", "GeoJSON"})
"""Tabular formats: every variable is broadcast to all dimensions."""


class BoundedAnswers:
    """Middleware that sets the maximum number of values of an answer.

    Arguments:
        app: The application; the limit holds in the context of its requests.
        max_values: Maximum number of values.
    """

    def __init__(self, app: ASGIApp, max_values: int) -> None:
        self.app = app
        self.max_values = max_values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = _MAX_VALUES.set(self.max_values)
        try:
            await self.app(scope, receive, send)
        finally:
            _MAX_VALUES.reset(token)


def check_answer(dataset: xr.Dataset, form: str = "", max_values: int | None = None) -> None:
    """Refuse an answer with too many values.

    Arguments:
        dataset: What would be sent, lazily.
        form: Format of the answer.
        max_values: Maximum number of values; None for the limit that `BoundedAnswers` set.

    Raises:
        AnswerTooLarge: Naming what is asked, the limit and how to ask for less.
    """
    if form in _TABLES:
        count = math.prod(dataset.sizes.values()) * len(dataset.data_vars)
    else:
        count = sum(variable.size for variable in dataset.data_vars.values())
    _check(count, dataset, {str(name): size for name, size in dataset.sizes.items()}, max_values)


def check_points(dataset: xr.Dataset, points: int, horizontal: set[str]) -> None:
    """Refuse an area of too many cells, before they are selected one by one.

    Arguments:
        dataset: The fields around it, lazily.
        points: Cells within the area.
        horizontal: The two dimensions that become one of `points`.

    Raises:
        AnswerTooLarge: Naming what is asked, the limit and how to ask for less.
    """
    sizes = {str(n): size for n, size in dataset.sizes.items() if n not in horizontal}
    columns = (
        math.prod(size for name, size in variable.sizes.items() if name not in horizontal)
        for variable in dataset.data_vars.values()
    )
    _check(points * sum(columns), dataset, sizes | {"points": points})


def _check(
    count: int, dataset: xr.Dataset, sizes: dict[str, int], max_values: int | None = None
) -> None:
    max_values = _MAX_VALUES.get() if max_values is None else max_values
    if count <= max_values:
        return
    extent = ", ".join(f"{name} {size}" for name, size in sizes.items())
    context: dict[str, Any] = {"values": count, "limit": max_values, "sizes": sizes}
    raise AnswerTooLarge(
        f"Expected at most {max_values} values in one answer; {count} are asked for: "
        f"{len(dataset.data_vars)} variables over {extent}. Name the variables wanted with "
        "'parameter-name', a level with 'z', a time with 'datetime', a member with 'realization', "
        "or take a smaller box or area. Whole fields are better read by zarr, or "
        "downloaded as a file.",
        **context,
        variables=len(dataset.data_vars),
    )


log = structlog.get_logger()

LATEST: dict[str, ResultFilter] = {
    f"latest-{flavour or kind.name}": ResultFilter(kind.name, flavour, with_dataset=True)
    for kind in KINDS.values()
    for flavour in ((None, "early", "final") if kind.cycled else (None,))
}
"""Aliases of the newest result of each kind, for cycles also of each flavour."""


@dataclass
class OpenedDataset:
    dataset: OpenDataset
    used: float


class DatasetLibrary:
    """Open data sets of published analyses. Safe to use from several threads.

    Arguments:
        analyses: What is published.
        layout: The data folder.
        capacity: Data sets held open at once.
        idle_seconds: Data sets not requested for this long are closed.
    """

    def __init__(
        self,
        analyses: Catalogue,
        layout: Layout,
        *,
        capacity: int = 16,
        idle_seconds: float = 300.0,
    ) -> None:
        self._analyses = analyses
        self._layout = layout
        self._capacity = capacity
        self._idle = idle_seconds
        self._lock = threading.Lock()
        self._opening: KeyedLocks[tuple[str, str]] = KeyedLocks()
        self._held: OrderedDict[tuple[str, str], OpenedDataset] = OrderedDict()

    def names(self) -> list[str]:
        """Return the aliases in `LATEST` that resolve to a result, then all ids, newest first."""
        entries = self._analyses.entries(ResultFilter(with_dataset=True))
        moving = [name for name, wanted in LATEST.items() if self._analyses.latest(wanted)]
        return moving + [entry.id for entry in entries]

    def resolve(self, name: str) -> str:
        """Return the analysis id that `name` stands for now.

        Raises:
            NotFound: If no analysis of that kind is published.
        """
        wanted = LATEST.get(name)
        if wanted is None:
            return name
        manifest = self._analyses.latest(wanted)
        if manifest is None:
            raise NotFound(f"Expected a published analysis for '{name}'; there is none yet.")
        return manifest.id

    def get(self, name: str, role: str = "data") -> OpenDataset:
        """Return the open data set of an analysis.

        Arguments:
            name: Its id, or a name of `LATEST`.
            role: Role of the file: the data of the analysis, or another file of its manifest.

        Raises:
            NotFound: If there is no such analysis, or it has no NetCDF or zarr file of that role.
            StorageError: If its file cannot be read.
        """
        analysis_id = self.resolve(name)
        manifest = self._analyses.get(analysis_id)
        file = manifest.dataset_file
        if role != "data":
            file = next((f for f in manifest.files if f.role == role), None)
        if file is None:
            raise NotFound(
                f"Expected an analysis with a NetCDF or zarr file; '{analysis_id}' has "
                f"{', '.join(f.name for f in manifest.files) or 'no file'}. Ask for the output "
                "`netcdf` when submitting the job.",
                analysis_id=analysis_id,
            )
        place = (analysis_id, file.name)
        held = self._use(place)
        if held is None:
            with self._opening.hold(place):  # others may use what is open meanwhile
                held = self._use(place) or self._open(place)
        return held.dataset

    def _use(self, place: tuple[str, str]) -> OpenedDataset | None:
        """Return a data set that is open, which is the one used last from now on."""
        with self._lock:
            held = self._held.get(place)
            if held is not None:
                held.used = time.monotonic()
                self._held.move_to_end(place)
            return held

    def _open(self, place: tuple[str, str]) -> OpenedDataset:
        # One that lies in a bucket is fetched first.
        path = result_store(self._layout).file(*place)
        held = OpenedDataset(open_file(path, place[0]), time.monotonic())
        with self._lock:
            self._held[place] = held
            while len(self._held) > self._capacity:
                self._close(next(iter(self._held)))
        return held

    def sweep(self) -> int:
        """Close what is deleted or idle, so that deleted files free their space; return how many."""
        with self._lock:
            now = time.monotonic()
            done = [
                place
                for place, held in self._held.items()
                if now - held.used > self._idle or not self._layout.manifest(place[0]).exists()
            ]
            for place in done:
                self._close(place)
            return len(done)

    def close(self) -> None:
        """Close all data sets that are held open."""
        with self._lock:
            for place in list(self._held):
                self._close(place)

    def _close(self, place: tuple[str, str]) -> None:
        try:
            self._held.pop(place).dataset.close()
        except (OSError, RuntimeError) as error:
            log.warning("dataset_not_closed", analysis_id=place[0], error=str(error))
