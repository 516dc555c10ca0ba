"""Gather results into collections: one for each kind, each flavour, and each single result.

A collection of a kind holds every valid time once, from the result with the shortest lead, of these the
highest revision, of these the newest. A time series over it is therefore that of the best results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import structlog

from model.domain.errors import StorageError
from service.errors import NotFound
from worker.contract.kinds import KINDS
from worker.results.catalogue import Catalogue
from worker.results.entries import Entry, ResultFilter

__all__ = [
    "ANSWER_FORMATS",
    "Holding",
    "ResultCollection",
    "describe_collections",
    "find_collection",
    "find_holding",
]

log = structlog.get_logger()

Told = TypeVar("Told")

ANSWER_FORMATS = {
    "CoverageJSON": "application/prs.coverage+json",
    "GeoJSON": "application/geo+json",
    "NetCDF": "application/netcdf",
}
"""Formats in which collections answer, with their media types; the first is the default."""


@dataclass(frozen=True)
class Holding:
    """One valid time of a collection.

    Attributes:
        time: Valid time (UTC).
        result: Id of the result that holds it.
    """

    time: datetime
    result: str


@dataclass(frozen=True)
class ResultCollection:
    """Results that are queried together.

    Attributes:
        id: As in URLs: `filtering`, `filtering-final`, or the id of a result.
        title: One line.
        description: What it holds.
        holdings: Its valid times, earliest first.
        fixed: Whether it is one result, whose content never changes.
    """

    id: str
    title: str
    description: str
    holdings: tuple[Holding, ...]
    fixed: bool

    def of_newest(self, read: Callable[[str], Told]) -> Told:
        """Return what `read` returns for the result with the latest valid time that can be read.

        Raises:
            StorageError: If none can be read.
        """
        unreadable: StorageError | None = None
        for result in dict.fromkeys(one.result for one in reversed(self.holdings)):
            try:
                return read(result)
            except StorageError as error:
                log.warning("result not readable", id=result, reason=error.message)
                unreadable = error
        raise unreadable or NotFound(f"Expected results in '{self.id}'; there are none.")


def _moving() -> Iterator[tuple[str, str, str | None]]:
    """Yield id, kind and flavour of the collections that grow."""
    for kind in KINDS.values():
        for flavour in (None, "early", "final") if kind.cycled else (None,):
            yield f"{kind.name}-{flavour}" if flavour else kind.name, kind.name, flavour


def find_collection(
    analyses: Catalogue,
    name: str,
    start: datetime | None = None,
    end: datetime | None = None,
) -> ResultCollection:
    """Return a collection with its valid times in [start, end].

    Raises:
        NotFound: If there is no such collection, or none of its results can be read in parts.
    """
    for moving, kind, flavour in _moving():
        if moving == name:
            return _of_kind(analyses, name, kind, flavour, start, end)
    manifest = analyses.find(name)
    if manifest is None or manifest.dataset_file is None:
        known = ", ".join(moving for moving, _, _ in _moving())
        raise NotFound(
            f"Expected a collection, {known} or the id of a result with a data set; got '{name}'. "
            "List them with GET /ogc/collections."
        )
    times = sorted(manifest.times or [manifest.valid_time])
    kept = (t for t in times if _inside(t, start, end))
    revision = f", revision {manifest.revision}"
    flavour = f" ({manifest.flavour})" if manifest.flavour else ""
    noun = KINDS[manifest.kind].noun.capitalize()
    simulated = " of a simulated atmosphere" if "simulated" in manifest.flags else ""
    return ResultCollection(
        id=name,
        title=f"{noun} {manifest.valid_time:%Y-%m-%d %H} UTC{flavour}{revision}",
        description=f"One result{simulated} with {manifest.members} members.",
        holdings=tuple(Holding(t, name) for t in kept),
        fixed=True,
    )


def find_holding(
    analyses: Catalogue, name: str, time: datetime | None = None, parameter: str = "datetime"
) -> Holding:
    """Return the result that a collection shows at one valid time, or at its last.

    Arguments:
        analyses: What is published.
        name: Name of the collection.
        time: Valid time (UTC); None for the last that it has.
        parameter: Name of the time in the request, for error messages.

    Raises:
        NotFound: If there is no such collection, or it has no such time.
    """
    if time is None:
        for moving, kind, flavour in _moving():
            if moving == name:
                wanted = ResultFilter(kind, flavour, with_dataset=True)
                time = max((e.last_time for e in analyses.entries(wanted)), default=None)
    collection = find_collection(analyses, name, time, time)
    if not collection.holdings:
        if time is None:
            raise NotFound(
                f"Expected a result in '{name}'; none is published yet.", field=parameter
            )
        asked = f"'{time:%Y-%m-%dT%H:%M:%SZ}'"
        raise NotFound(
            f"Expected a time of '{name}' in '{parameter}'; got {asked}.", field=parameter
        )
    return collection.holdings[-1]


def _names(analyses: Catalogue, results: int) -> list[str]:
    """Return the ids of non-empty collections, with this many of the newest results."""
    names = [
        name
        for name, kind, flavour in _moving()
        if analyses.latest(ResultFilter(kind, flavour, with_dataset=True)) is not None
    ]
    page = analyses.select(ResultFilter(with_dataset=True), None, results)
    return names + [manifest.id for manifest in page.items]


def describe_collections(
    analyses: Catalogue, results: int, describe: Callable[[ResultCollection], Told]
) -> list[Told]:
    """Describe the collections that hold anything, and this many of the newest results.

    Those that cannot be read are left out.
    """
    found = []
    for name in _names(analyses, results):
        try:
            found.append(describe(find_collection(analyses, name)))
        except StorageError as error:
            log.warning("collection left out", id=name, reason=error.message)
    return found


def _of_kind(
    analyses: Catalogue,
    name: str,
    kind: str,
    flavour: str | None,
    start: datetime | None,
    end: datetime | None,
) -> ResultCollection:
    entries = analyses.entries(ResultFilter(kind, flavour, start=start, end=end, with_dataset=True))
    best: dict[datetime, Entry] = {}
    for entry in entries:
        for time in _times(analyses, entry):
            if _inside(time, start, end) and _better(entry, best.get(time)):
                best[time] = entry
    plural = KINDS[kind].plural
    cycled = f" of the {flavour} cycles" if flavour else ""
    return ResultCollection(
        id=name,
        title=f"{plural.capitalize()}{cycled}",
        description=f"All {plural}{cycled}: of each valid time the shortest lead and newest revision.",
        holdings=tuple(Holding(time, best[time].id) for time in sorted(best)),
        fixed=False,
    )


def _times(analyses: Catalogue, entry: Entry) -> list[datetime]:
    if entry.first_time == entry.last_time:
        return [entry.first_time]
    manifest = analyses.find(entry.id)
    return [] if manifest is None else manifest.times


def _better(entry: Entry, than: Entry | None) -> bool:
    """Return whether a result is preferred at a time that both hold: later start, then revision."""
    if than is None:
        return True
    return (entry.valid_time, entry.revision, entry.created) > (
        than.valid_time,
        than.revision,
        than.created,
    )


def _inside(time: datetime, start: datetime | None, end: datetime | None) -> bool:
    return (start is None or time >= start) and (end is None or time <= end)
