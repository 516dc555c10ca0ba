"""Query the observation store by time, box, network, variable, outcome and cut-off.

Only needed data are read: hours are folders, columns are projected, and conditions are pushed down to
the row groups.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from model.domain.errors import ResourceExhausted, StorageError
from model.domain.observations import OBSERVATION_SCHEMA, QC_FLAGS, REPORT_TYPES
from model.domain.registry import Registry
from model.domain.variables import VARIABLES
from worker.observations.stations import identifiers
from worker.observations.store.files import StoreFiles

__all__ = [
    "MAX_PAGE",
    "ObservationPage",
    "ObservationQuery",
    "query_observations",
    "read_files",
    "read_rows",
]

MAX_PAGE = 1_000_000
"""Maximum number of rows of one page."""

_ATTEMPTS = 3
_COLUMNS: Registry[pa.Field] = Registry("column", **{f.name: f for f in OBSERVATION_SCHEMA})


class ObservationQuery(BaseModel):
    """A query of the store; empty lists mean "all"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: AwareDatetime = Field(description="Observed after this time (exclusive).")
    end: AwareDatetime = Field(description="Observed up to this time (inclusive).")
    box: tuple[float, float, float, float] | None = Field(
        default=None, description="West, south, east, north in degrees; west > east crosses 180."
    )
    report_types: tuple[str, ...] = Field(default=(), description="Networks.")
    variables: tuple[str, ...] = Field(default=(), description="Variable ids.")
    stations: tuple[str, ...] = Field(
        default=(), description="Station ids; any that stands for the station."
    )
    batches: tuple[str, ...] = Field(default=(), description="Batch ids.")
    outcome: Literal["all", "used", "rejected"] = Field(
        default="all", description="By quality control."
    )
    rejected_by: tuple[str, ...] = Field(default=(), description="Names of outcomes, e.g. `track`.")
    cut_off: AwareDatetime | None = Field(
        default=None, description="Only what had arrived by this time; makes pages repeatable."
    )
    columns: tuple[str, ...] = Field(default=(), description="Columns to return.")
    limit: int = Field(default=10_000, ge=1, le=MAX_PAGE, description="Most rows in one page.")
    offset: int = Field(default=0, ge=0, description="Rows to skip, from `next_offset`.")

    @model_validator(mode="after")
    def _known(self) -> "ObservationQuery":
        if self.end <= self.start:
            raise ValueError(f"expected an end after the start; got {self.start} and {self.end}")
        if self.box is not None and not -90.0 <= self.box[1] <= self.box[3] <= 90.0:
            raise ValueError("expected west, south, east, north with south <= north, in degrees")
        known: tuple[tuple[Registry[Any], tuple[str, ...]], ...] = (
            (REPORT_TYPES, self.report_types),
            (VARIABLES, self.variables),
            (QC_FLAGS, self.rejected_by),
            (_COLUMNS, self.columns),
        )
        for registry, names in known:
            for name in names:
                registry[name]
        return self


@dataclass(frozen=True)
class ObservationPage:
    """A page of rows, with the offset of the next page.

    Attributes:
        table: Columns of the observation table, in order of hour and arrival.
        next_offset: Offset of the next page; None if there are no more rows.
    """

    table: pa.Table
    next_offset: int | None


OnBytes = Callable[[int], None]
"""Called with the size in bytes of the rows read so far; may raise an error to stop reading."""


def query_observations(
    files: StoreFiles, query: ObservationQuery, on_bytes: OnBytes | None = None
) -> ObservationPage:
    """Return one page of the rows that a query selects.

    Memory is bounded by the page, not by the answer. New batches may shift later pages unless the
    query names a `cut_off`.

    Arguments:
        files: The store.
        query: The query.
        on_bytes: Called with the memory of the page while it is read.
    """
    for _ in range(_ATTEMPTS):
        counted = _Counted(on_bytes)
        try:
            return _page(files, query, counted)
        except FileNotFoundError:
            counted.undo()
            continue  # a compaction replaced a file between listing and reading
    raise StorageError("Files of the observation store kept vanishing while they were read.")


def read_rows(files: StoreFiles, query: ObservationQuery, max_rows: int | None = None) -> pa.Table:
    """Return all rows of the answer as one table, ignoring `limit` and `offset`.

    Raises:
        ResourceExhausted: If there are more than `max_rows`.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _collect(files, query, max_rows)
        except FileNotFoundError:
            continue
    raise StorageError("Files of the observation store kept vanishing while they were read.")


def read_files(files: StoreFiles, paths: Sequence[str]) -> pa.Table:
    """Return all rows of some files of the store, in their order."""
    table = _dataset(files, paths).to_table()
    return table.cast(OBSERVATION_SCHEMA).unify_dictionaries()


def _dataset(files: StoreFiles, paths: Sequence[str]) -> Any:
    import pyarrow.dataset as ds  # noqa: PLC0415 (it brings pandas: time and memory at every start)

    return ds.FileSystemDataset.from_paths(
        [str(path) for path in files.place.local(paths)],
        schema=OBSERVATION_SCHEMA,
        format=ds.ParquetFileFormat(),
        filesystem=pafs.LocalFileSystem(),
    )


def _collect(files: StoreFiles, query: ObservationQuery, max_rows: int | None) -> pa.Table:
    parts, rows = [], 0
    for batch in _batches(files, query):
        rows += batch.num_rows
        if max_rows is not None and rows > max_rows:
            raise ResourceExhausted(
                f"Expected at most {max_rows} rows between {query.start} and {query.end}; got more. "
                "Ask for a shorter time, fewer variables or a box.",
                limit=max_rows,
            )
        parts.append(batch)
    return pa.Table.from_batches(parts, _schema(query)).unify_dictionaries()


@dataclass
class _Counted:
    """Memory reported for one attempt at reading, so that it can be undone."""

    report: OnBytes | None
    size: int = 0

    def add(self, part: pa.RecordBatch) -> None:
        """Report the memory of some rows."""
        if self.report is not None:
            self.size += part.nbytes
            self.report(part.nbytes)

    def undo(self) -> None:
        """Undo all that was reported."""
        if self.report is not None:
            self.report(-self.size)


def _page(files: StoreFiles, query: ObservationQuery, counted: _Counted) -> ObservationPage:
    parts, skip, room, more = [], query.offset, query.limit, False
    for batch in _batches(files, query):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        rest = batch.slice(skip)
        skip = 0
        parts.append(_own(rest.slice(0, room), batch))
        counted.add(parts[-1])
        more = rest.num_rows > room
        room -= parts[-1].num_rows
        if more:
            break
    table = pa.Table.from_batches(parts, _schema(query)).unify_dictionaries()
    return ObservationPage(table, query.offset + query.limit if more else None)


def _own(part: pa.RecordBatch, whole: pa.RecordBatch) -> pa.RecordBatch:
    """Return a part of a batch; copied if it is small, so that the whole can be freed."""
    if 2 * part.num_rows > whole.num_rows:
        return part
    return part.take(pa.array(range(part.num_rows), pa.int64()))


def _schema(query: ObservationQuery) -> pa.Schema:
    names = query.columns or OBSERVATION_SCHEMA.names
    return pa.schema([OBSERVATION_SCHEMA.field(name) for name in names])


def _batches(files: StoreFiles, query: ObservationQuery) -> Iterator[pa.RecordBatch]:
    condition, schema = _condition(query), _schema(query)
    hours = list(files.hours(query.start, query.end))
    known = files.known_batches(hours)
    for hour in hours:
        visible = files.visible(hour, query.cut_off, known)
        if not visible.paths:
            continue
        wanted = condition
        if visible.later:
            wanted &= ~_one_of("batch_id", visible.later)
        scanner = _dataset(files, visible.paths).scanner(
            columns=schema.names, filter=wanted, batch_readahead=4, fragment_readahead=2
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield batch.cast(schema)


def _condition(query: ObservationQuery) -> Any:
    """Return the query as an expression on the columns."""
    kind = OBSERVATION_SCHEMA.field("time").type
    time = pc.field("time")
    condition = (time > pa.scalar(query.start, kind)) & (time <= pa.scalar(query.end, kind))
    if query.cut_off is not None:
        condition &= pc.field("received_time") <= pa.scalar(query.cut_off, kind)
    for column, names in (
        ("report_type", query.report_types),
        ("variable", query.variables),
        ("batch_id", query.batches),
        ("rejected_by", query.rejected_by),
    ):
        if names:
            condition &= _one_of(column, names)
    if query.stations:
        known = [form for name in query.stations for form in identifiers(name)]
        condition &= _one_of("station_id", known) | _one_of("station_alias", known)
    if query.outcome != "all":
        used = pc.field("rejected_by").is_null()
        condition &= used if query.outcome == "used" else ~used
    return condition if query.box is None else condition & _inside(query.box)


def _one_of(column: str, names: Sequence[str]) -> Any:
    return pc.field(column).cast(pa.string()).isin(list(names))


def _inside(box: tuple[float, float, float, float]) -> Any:
    west, south, east, north = box
    lat, lon = pc.field("lat"), pc.field("lon")
    inside = (lat >= south) & (lat <= north)
    if east - west >= 360.0:
        return inside
    west, east = (west + 180.0) % 360.0 - 180.0, (east + 180.0) % 360.0 - 180.0
    if west <= east:
        return inside & (lon >= west) & (lon <= east)
    return inside & ((lon >= west) | (lon <= east))
