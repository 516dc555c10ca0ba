"""Hold what the routes of one gateway process share: stores, files, keys, events, counters.

Data sets and what reads them (xarray, dask, xpublish) are imported at the first request, so that a
gateway nobody asks for them starts quickly and stays small.
"""

import gc
import importlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from anyio import CapacityLimiter, to_thread
from celery import Celery
from fastapi import FastAPI

from model.domain.errors import AppaError
from service.answer_limits import RowBudget
from service.errors import NotInstalled
from service.event_feed import EventFeed
from service.keys import KeyFile
from service.metrics import GatewayMetrics
from service.settings import GatewaySettings
from service.uploads import UploadLimits
from worker.contract.acceptance import Intake
from worker.contract.layout import Layout
from worker.contract.part_file import sweep
from worker.contract.queues import TaskSender, celery_settings
from worker.contract.redis_server import redis_health
from worker.contract.store import Stores, open_stores
from worker.contract.trace_export import finish_traces
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter

if TYPE_CHECKING:
    from service.oidc import TokenIssuer

log = structlog.get_logger()

MAX_READING = 8
"""Maximum number of requests that read data sets at a time: fewer than the gateway has threads."""

MAX_DRAWING = 2
"""Maximum number of pictures drawn at a time. Maps request many at once and drawing is CPU-bound: more
threads would only delay each other and all other requests."""

MAX_STORING = 16
"""Maximum number of uploads written to a bucket at a time: a bucket that does not respond must not
occupy all threads."""

PREOPENED = 8
"""Number of newest results opened in advance while users view any: when a result is published, all of
them request it at once."""

_LOOKING_SECONDS = 300.0
"""Seconds after the last request during which users are assumed to be viewing."""

_TEND_SECONDS = 1.0


class DataSets:
    """The open data sets of one gateway, and the modules that serve them, loaded at first use.

    Arguments:
        analyses: What is published.
        layout: The data folder.
    """

    def __init__(self, analyses: Catalogue, layout: Layout) -> None:
        self._analyses = analyses
        self._layout = layout
        self._building = threading.RLock()
        self._library: Any = None
        self._fields: Any = None
        self._descriptions: Any = None
        self._drawing: Any = None
        self._asked = time.monotonic()
        self._opened: set[str] = set()
        self._closing = threading.Event()
        self._tending = threading.Thread(target=self._tend, name="datasets-tend", daemon=True)
        self.readers = CapacityLimiter(MAX_READING)
        self.painters = CapacityLimiter(MAX_DRAWING)

    def module(self, name: str) -> Any:
        """Return the module `service.data.<name>`.

        Raises:
            NotInstalled: If the extra `data` is missing.
        """
        full = f"service.data.{name}"
        try:
            with self._building:
                new = full not in sys.modules
                found = importlib.import_module(full)
                if new:
                    gc.freeze()  # as `serve` does: a collection would stop all requests
                return found
        except ModuleNotFoundError as error:
            raise NotInstalled(
                f"Expected the extra 'data' on this gateway; the module '{error.name}' is "
                "missing. Install it with: pip install 'appa-service[data]'",
                extra="data",
            ) from error

    @property
    def library(self) -> Any:
        """Return the open data sets; deleted and idle ones are closed while the process lives."""
        with self._building:
            if self._library is None:
                self._library = self.module("library").DatasetLibrary(self._analyses, self._layout)
                self._tending.start()
            return self._library

    @property
    def fields(self) -> Any:
        """Return the reader of fields, a `service.data.fields.FieldReader`."""
        with self._building:
            if self._fields is None:
                self._fields = self.module("fields").FieldReader(self.library, self._analyses)
            return self._fields

    @property
    def maps(self) -> Any:
        """Return what answers WMS, a `service.data.wms.WebMaps`."""
        return self.module("wms").WebMaps(self.drawing)

    @property
    def drawing(self) -> Any:
        """Return what draws maps and tiles, a `service.data.drawing.Drawing`."""
        with self._building:
            if self._drawing is None:
                self._drawing = self.module("drawing").Drawing(self.fields, self._analyses)
            return self._drawing

    @property
    def descriptions(self) -> Any:
        """Return what describes collections, a `service.data.edr_documents.Descriptions`."""
        with self._building:
            if self._descriptions is None:
                module = self.module("edr_documents")
                self._descriptions = module.Descriptions(self.library)
            return self._descriptions

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that reads data sets in a thread, at most `MAX_READING` at a time."""
        self._asked = time.monotonic()
        return await to_thread.run_sync(function, *arguments, limiter=self.readers)

    async def draw(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function that draws in a thread, at most `MAX_DRAWING` at a time."""
        self._asked = time.monotonic()
        return await to_thread.run_sync(function, *arguments, limiter=self.painters)

    def close(self) -> None:
        """Stop opening data sets in advance; open ones stay open."""
        self._closing.set()
        if self._tending.is_alive():
            self._tending.join()

    def open_newest(self) -> None:
        """Open those of the newest `PREOPENED` results that were published since the last call,
        if users are viewing.

        Nothing is fetched from a bucket. A result that cannot be read is tried once and logged.
        """
        if self._fields is None or time.monotonic() - self._asked > _LOOKING_SECONDS:
            self._opened = set()  # idle ones are closed by now; reopened once users view again
            return
        newest = self._analyses.select(ResultFilter(with_dataset=True), None, PREOPENED).items
        opened, self._opened = self._opened, {manifest.id for manifest in newest}
        for manifest in newest:
            file = manifest.dataset_file
            if manifest.id in opened or file is None:
                continue
            if self._layout.analysis_file(manifest.id, file.name).exists():
                try:
                    self.fields.catalogue(manifest.id)
                except AppaError as error:
                    log.warning("result_not_opened", analysis_id=manifest.id, reason=error.message)

    def _tend(self) -> None:
        """Close what is deleted or idle and open what is new, until the gateway stops."""
        while not self._closing.wait(_TEND_SECONDS):
            try:
                self.library.sweep()
                self.open_newest()
            except (AppaError, OSError) as error:
                log.warning("datasets_not_tended", error=str(error))


@dataclass
class Gateway:
    """State of one gateway process; routes get it by the dependency `GatewayDep`."""

    settings: GatewaySettings
    layout: Layout
    stores: Stores
    feed: EventFeed
    sender: TaskSender
    keys: KeyFile
    issuer: "TokenIssuer | None"
    analyses: Catalogue
    metrics: GatewayMetrics
    data_sets: DataSets
    rows: RowBudget
    keepers: CapacityLimiter | None = None
    listeners: int = 0
    places: dict[str, tuple[float, int | None]] = field(default_factory=dict)
    """Queue positions with the time they were read, shared by all listeners of a job."""

    @property
    def intake(self) -> Intake:
        """Return the layout, stores and sender that take an accepted upload."""
        return Intake(self.layout, self.stores, self.sender)

    @property
    def upload_limits(self) -> UploadLimits:
        """Return the limits of one upload: size, free space, idle time, rate."""
        s = self.settings
        return UploadLimits(
            s.max_upload_bytes, s.min_free_bytes, s.upload_idle_seconds, s.upload_min_rate
        )


def _open_issuer(settings: GatewaySettings) -> "TokenIssuer | None":
    """Return the issuer whose tokens are accepted, if configured; imports `service.oidc` only then."""
    if not settings.oidc_issuer:
        return None
    issuer: TokenIssuer = importlib.import_module("service.oidc").TokenIssuer(settings)
    return issuer


def open_gateway(settings: GatewaySettings) -> Gateway:
    """Create the state of a gateway process without connecting or reading any file."""
    layout = settings.layout
    stores = open_stores(settings.redis_url, settings.redis_prefix, layout)
    sender = Celery("appa-gateway", set_as_current=False)
    sender.conf.update(
        celery_settings(settings.redis_url, settings.redis_prefix, settings.job_limit_seconds + 600)
    )
    analyses = Catalogue(layout)
    return Gateway(
        settings=settings,
        layout=layout,
        stores=stores,
        feed=EventFeed(settings.redis_url, stores.keys),
        sender=sender,
        keys=KeyFile(layout.keys_file),
        issuer=_open_issuer(settings),
        analyses=analyses,
        metrics=GatewayMetrics(stores, layout),
        data_sets=DataSets(analyses, layout),
        rows=RowBudget(settings.query_held_bytes, MAX_READING),
        keepers=CapacityLimiter(MAX_STORING) if layout.uploads_url else None,
    )


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """ASGI lifespan: remove leftovers of a killed gateway, follow events until shutdown."""
    gateway: Gateway = app.state.gateway
    gateway.layout.create()
    if removed := sweep(gateway.layout.tmp):
        log.warning("unfinished_uploads_removed", count=removed)
    health = await to_thread.run_sync(redis_health, gateway.stores.redis)
    for warning in health.warnings:
        log.warning("redis", advice=warning)
    if gateway.settings.keys_required and not gateway.keys.all() and gateway.issuer is None:
        log.warning("no_api_keys", advice="create one with `appa keys create NAME --scope SCOPE`")
    await gateway.feed.start()
    try:
        yield
    finally:
        await gateway.feed.stop()
        await to_thread.run_sync(gateway.data_sets.close)
        gateway.stores.redis.close()
        gateway.analyses.close()
        if gateway.stores.archive is not None:
            gateway.stores.archive.close()
        await to_thread.run_sync(finish_traces)  # uvicorn ends the process by the signal it got
