"""Read and extend the time series of verification: one small, immutable Parquet file per result.

Long form: one row for each network, variable, layer and statistic of one analysis. The files are named
by valid time, flavour, revision and analysis, so that a period is found without opening any; see
`docs/verification.md` for the statistics. Pages serve the HTTP API.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from model.domain.errors import InvalidInput, StorageError
from model.domain.files import write_atomic
from worker.contract.layout import Layout
from worker.contract.records import Record
from worker.results.manifest import AnalysisManifest
from worker.results.store import result_store

__all__ = [
    "ALL",
    "LIMIT_SUFFIXES",
    "MAX_FILES",
    "OUTSIDE_FLAG",
    "SCORES_VERSION",
    "SERIES_NAME",
    "SERIES_SCHEMA",
    "SeriesEntry",
    "SeriesFilter",
    "SeriesPage",
    "SeriesRow",
    "StatisticRow",
    "WORSE_FLAG",
    "append_to_series",
    "find_series",
    "newest_revisions",
    "page_series",
    "read_entry",
    "read_series",
    "series_table",
]

ALL = "all"
"""Network, variable or layer of a statistic over all of them."""

LIMIT_SUFFIXES = ("_limit_low", "_limit_high")
"""Suffixes of statistics that hold the control limits of another statistic."""

OUTSIDE_FLAG = "outside_control_limits"
"""Flag of an analysis with statistics outside their control limits."""

WORSE_FLAG = "cycles_worse_than_cold"
"""Flag of a cold window that is better than the cycles according to the newest comparisons."""

SCORES_VERSION = 1
"""Version of `scores` in manifests, increased when a field changes its meaning or is removed."""

SERIES_NAME = "verification.parquet"
"""Name of the file in the folder of a result, which is copied to the series."""

_WORD = pa.dictionary(pa.int32(), pa.string())
SERIES_SCHEMA = pa.schema(
    [
        pa.field("valid_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("flavour", _WORD, nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("analysis_id", _WORD, nullable=False),
        pa.field("network", _WORD, nullable=False),
        pa.field("variable", _WORD, nullable=False),
        pa.field("layer", _WORD, nullable=False),
        pa.field("statistic", _WORD, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ],
    metadata={"convention": "appa verification series 1"},
)
_STAMP = "%Y%m%dT%H%MZ"
_NAME = re.compile(
    r"(?P<time>\d{8}T\d{4}Z)_(?P<flavour>[a-z]+)_v(?P<revision>\d+)__(?P<id>.+)\.parquet"
)
_NO_FLAVOUR = "job"
"""Represents the empty flavour of a job outside the cycles in file names."""


@dataclass(frozen=True, order=True)
class SeriesEntry:
    """One result in the series; sorts by valid time, flavour and revision.

    Attributes:
        valid_time: Valid time of the analysis (UTC).
        flavour: `early`, `final`, or empty outside the cycles.
        revision: For this valid time.
        analysis_id: The result.
    """

    valid_time: datetime
    flavour: str
    revision: int
    analysis_id: str

    @property
    def name(self) -> str:
        """Return the file name; names sort as entries do."""
        flavour = self.flavour or _NO_FLAVOUR
        time = f"{self.valid_time.astimezone(UTC):{_STAMP}}"
        return f"{time}_{flavour}_v{self.revision:04d}__{self.analysis_id}.parquet"

    def path(self, layout: Layout) -> Path:
        """Return the path of the file with the rows of this result."""
        return layout.verification / f"{self.valid_time.astimezone(UTC):%Y%m}" / self.name

    @classmethod
    def parse(cls, name: str) -> "SeriesEntry | None":
        """Return the entry with this file name; None if it is not the name of one."""
        form = _NAME.fullmatch(name)
        if form is None:
            return None
        try:
            time = datetime.strptime(form["time"], _STAMP).replace(tzinfo=UTC)
        except ValueError:
            return None
        flavour = "" if form["flavour"] == _NO_FLAVOUR else form["flavour"]
        return cls(time, flavour, int(form["revision"]), form["id"])


@dataclass(frozen=True)
class SeriesFilter:
    """Conditions on rows of the series; an empty one accepts all."""

    statistics: Sequence[str] = ()
    networks: Sequence[str] = ()
    variables: Sequence[str] = ()
    layers: Sequence[str] = ()

    def apply(self, table: pa.Table) -> pa.Table:
        """Return the rows of `table` that match all conditions."""
        for column, names in (
            ("statistic", self.statistics),
            ("network", self.networks),
            ("variable", self.variables),
            ("layer", self.layers),
        ):
            if names and len(table):
                chosen = pa.array(list(names), pa.string())
                table = table.filter(pc.is_in(table[column], value_set=chosen))
        return table


def find_series(
    layout: Layout,
    start: datetime | None = None,
    end: datetime | None = None,
    flavours: Sequence[str] = (),
) -> list[SeriesEntry]:
    """Return the results in the series by valid time, flavour and revision.

    Arguments:
        layout: The data folder.
        start: First valid time.
        end: Last valid time.
        flavours: Only these; the empty one is that of jobs outside the cycles.
    """
    found = []
    for folder in _folders(layout.verification):
        month = folder.name
        if start is not None and month < f"{start.astimezone(UTC):%Y%m}":
            continue
        if end is not None and month > f"{end.astimezone(UTC):%Y%m}":
            continue
        for path in folder.iterdir():
            entry = SeriesEntry.parse(path.name)
            if (
                entry is not None
                and (start is None or entry.valid_time >= start)
                and (end is None or entry.valid_time <= end)
                and (not flavours or entry.flavour in flavours)
            ):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.name)


def _folders(root: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.name.isdecimal() and path.is_dir())
    except FileNotFoundError:
        return []


def newest_revisions(entries: Iterable[SeriesEntry]) -> list[SeriesEntry]:
    """Return the highest revision of each valid time and flavour, in the same order."""
    newest: dict[tuple[datetime, str], SeriesEntry] = {}
    for entry in sorted(entries, key=lambda e: e.name):
        newest[entry.valid_time, entry.flavour] = entry
    return list(newest.values())


def read_entry(layout: Layout, entry: SeriesEntry, rows: SeriesFilter | None = None) -> pa.Table:
    """Return the rows of one result that `rows` accepts, in the order they were written.

    Raises:
        StorageError: If the file is there but cannot be read.
    """
    path = entry.path(layout)
    try:
        table = pq.ParquetFile(path).read().select(SERIES_SCHEMA.names)
    except FileNotFoundError:  # removed by an operator since it was listed
        return SERIES_SCHEMA.empty_table()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise StorageError(
            f"Expected a readable file of the verification series; {path.name}: {error}. "
            "Remove it to go on without this analysis."
        ) from error
    plain = pa.schema([pa.field(f.name, _decoded(f.type)) for f in SERIES_SCHEMA])
    return (rows or SeriesFilter()).apply(table.cast(plain)).cast(SERIES_SCHEMA)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def read_series(
    layout: Layout, entries: Iterable[SeriesEntry], rows: SeriesFilter | None = None
) -> pa.Table:
    """Return the rows of several results that `rows` accepts, a table of `SERIES_SCHEMA`.

    Raises:
        StorageError: If a file cannot be read.
    """
    tables = [read_entry(layout, entry, rows) for entry in entries]
    tables = [table for table in tables if len(table)]
    if not tables:
        return SERIES_SCHEMA.empty_table()
    return pa.concat_tables(tables).unify_dictionaries()


MAX_FILES = 750
"""Maximum number of files opened for one page; such a page may hold few rows, or none."""

_CURSOR = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,250})~(?P<rows>\d{1,9})")


class SeriesRow(Record):
    """One row of the verification series, as it is sent to clients."""

    valid_time: datetime = Field(description="Of the analysis (UTC).")
    flavour: str = Field(description="`early`, `final`, or empty outside the cycles.")
    revision: int = Field(description="Of the analysis for this valid time.")
    analysis_id: str = Field(description="The analysis.")
    network: str = Field(description="Report type; `all` of them; `states` for the states' own.")
    variable: str = Field(description="Variable id, or `all`.")
    layer: str = Field(description="`surface`, `400-600 hPa` …, or `all`.")
    statistic: str = Field(description="Name of the statistic, see docs/verification.md.")
    value: float = Field(description="SI units of the variable, or a ratio.")
    count: int = Field(description="Values behind it.")


@dataclass(frozen=True)
class SeriesPage:
    """A page of rows, by valid time.

    Attributes:
        rows: Rows, at most as many as requested.
        next_cursor: Cursor of the next page; None after the last row.
    """

    rows: list[SeriesRow]
    next_cursor: str | None


def page_series(
    layout: Layout,
    entries: Sequence[SeriesEntry],
    conditions: SeriesFilter,
    cursor: str | None,
    limit: int,
) -> SeriesPage:
    """Return a page of the rows of `entries` after `cursor`.

    Arguments:
        layout: The data folder.
        entries: Entries sorted by name, from `find_series`.
        conditions: Conditions on rows.
        cursor: `next_cursor` of the previous page.
        limit: Maximum number of rows of the page.

    Raises:
        InvalidInput: If the cursor is not one of a page.
        StorageError: If a file cannot be read.
    """
    name, skip = _parse(cursor)
    rows: list[SeriesRow] = []
    opened = 0
    for entry in entries:
        if entry.name < name:
            continue
        if len(rows) == limit or opened == MAX_FILES:
            return SeriesPage(rows, f"{entry.name}~0")
        opened += 1
        start = skip if entry.name == name else 0
        found = read_entry(layout, entry, conditions).slice(start)
        room = limit - len(rows)
        rows += [SeriesRow.model_validate(row) for row in found.slice(0, room).to_pylist()]
        if len(found) > room:
            return SeriesPage(rows, f"{entry.name}~{start + room}")
    return SeriesPage(rows, None)


def _parse(cursor: str | None) -> tuple[str, int]:
    if cursor is None:
        return "", 0
    form = _CURSOR.fullmatch(cursor)
    if form is None:
        raise InvalidInput(
            "Expected 'cursor' as 'next_cursor' of the page before; got "
            f"'{cursor[:80]}'. Leave it out for the first page.",
            field="cursor",
        )
    return form["name"], int(form["rows"])


@dataclass(frozen=True)
class StatisticRow:
    """One statistic of one network, variable and layer, with the number of values."""

    network: str
    variable: str
    layer: str
    statistic: str
    value: float
    count: int


def series_table(entry: SeriesEntry, rows: Sequence[StatisticRow]) -> pa.Table:
    """Return the rows of one result as a table of `SERIES_SCHEMA`, without non-finite ones."""
    rows = [row for row in rows if math.isfinite(row.value)]
    count = len(rows)
    columns = {
        "valid_time": [entry.valid_time] * count,
        "flavour": [entry.flavour] * count,
        "revision": [entry.revision] * count,
        "analysis_id": [entry.analysis_id] * count,
    } | {
        name: [getattr(row, name) for row in rows]
        for name in ("network", "variable", "layer", "statistic", "value", "count")
    }
    arrays = []
    for field in SERIES_SCHEMA:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        arrays.append(pa.array(columns[field.name], kind).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=SERIES_SCHEMA)


def append_to_series(layout: Layout, manifest: AnalysisManifest) -> bool:
    """Copy the statistics of a result into the series; idempotent.

    Arguments:
        layout: The data folder.
        manifest: Manifest of a published result.

    Returns:
        Whether the result has statistics; a forecast has none.

    Raises:
        StorageError: If the file cannot be copied.
    """
    if not any(file.name == SERIES_NAME for file in manifest.files):
        return False
    entry = SeriesEntry(manifest.valid_time, manifest.flavour, manifest.revision, manifest.id)
    target = entry.path(layout)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        source = result_store(layout).file(manifest.id, SERIES_NAME)
        write_atomic(target, source.read_bytes())
    except OSError as error:
        raise StorageError(
            f"Expected to add '{manifest.id}' to the verification series; {error}."
        ) from error
    return True
