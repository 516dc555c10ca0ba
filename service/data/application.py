"""Build the application of the data sets: xpublish with its plugins, on the published analyses."""

from collections import OrderedDict
from threading import Lock
from typing import Any

import structlog
import xarray as xr
import zarr
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from xpublish.plugins import Plugin, hookimpl
from xpublish.plugins.included.dataset_info import DatasetInfoPlugin
from xpublish.rest import Rest
from xpublish_zarr import ZarrPlugin

from model.domain.files import code_version
from service.data.edr import Edr
from service.data.library import BoundedAnswers, DatasetLibrary
from service.problems import add_problem_handlers, problem_response

log = structlog.get_logger()


class PublishedAnalyses(Plugin):
    """Gives the plugins the published analyses."""

    name: str = "published-analyses"
    library: Any

    @hookimpl
    def get_datasets(self) -> list[str]:
        """Return the ids and `latest-…` names of all data sets."""
        names: list[str] = self.library.names()
        return names

    @hookimpl
    def get_dataset(self, dataset_id: str) -> xr.Dataset:
        """The data set of an id, as in its file."""
        raw: xr.Dataset = self.library.get(dataset_id).raw
        return raw


class DerivedCache:
    """What plugins derive from a data set (its zarr metadata), the newest few.

    xpublish's own cache is not made for threads. Responses are not kept: chunks are cheap to read.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._lock = Lock()
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value put under `key`, or `default`."""
        with self._lock:
            return self._kept.get(key, default)

    def put(self, key: str, value: Any, cost: float, nbytes: int | None = None) -> None:
        """Keeps `value` unless it is a response."""
        if isinstance(value, Response):
            return
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)


class DataRest(Rest):
    """xpublish with data sets directly below its root: `/<id>/zarr`, `/<id>/edr`"""

    derived = DerivedCache()

    def setup_datasets(self, datasets: Any) -> str:
        """Where the routes of a data set begin."""
        super().setup_datasets(datasets)
        self._dataset_route_prefix = "/{dataset_id}"
        return self._dataset_route_prefix

    @property
    def cache(self) -> Any:
        """Return the cache that xpublish hands to its plugins."""
        return self.derived


async def bad_request(request: Request, error: Exception) -> Response:
    """What the plugins raise for queries that name what is not in the data set."""
    log.info("query_refused", path=request.url.path, error=repr(error)[:300])
    detail = f"The query does not fit the data set: {type(error).__name__}: {error}."
    return problem_response(request, "invalid_input", detail[:500])


async def unexpected_error(request: Request, error: Exception) -> Response:
    detail = f"The data set could not be read: {type(error).__name__}. The log has the cause."
    return problem_response(request, "internal_error", detail)


def build_application(library: DatasetLibrary, most_values: int) -> FastAPI:
    """The application; its paths are relative to where it is mounted.

    Arguments:
        library: The data sets.
        most_values: Most values of one EDR answer.
    """
    # A chunk that holds nothing but zeros is sent like any other.
    zarr.config.set({"array.write_empty_chunks": True})
    plugins = (
        PublishedAnalyses(library=library),
        DatasetInfoPlugin(),
        ZarrPlugin(),
        Edr(library=library),
    )
    about = {
        "title": "Appa data sets",
        "version": code_version(),
        "description": "Published analyses by zarr and OGC EDR. See docs/data-access.md.",
        "redoc_url": None,
    }
    rest = DataRest(plugins={plugin.name: plugin for plugin in plugins}, app_kws=about)
    app = rest.app
    app.add_middleware(BoundedAnswers, most=most_values)
    add_problem_handlers(app)
    for misfit in (LookupError, TypeError, ValueError, NotImplementedError):
        app.add_exception_handler(misfit, bad_request)
    app.add_exception_handler(Exception, unexpected_error)
    return app
