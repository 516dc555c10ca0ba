"""Pages of the verification series, for answers over HTTP."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field

from model.domain.errors import InvalidInput
from worker.jobs.job import Record
from worker.jobs.layout import Layout
from worker.jobs.verification_series import SeriesEntry, SeriesFilter, read_entry

__all__ = ["MOST_FILES", "SeriesPage", "SeriesRow", "page_series"]

MOST_FILES = 750
"""Files opened for one page at most; a page that ends there may hold few rows, even none."""

_CURSOR = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,250})~(?P<rows>\d{1,9})")


class SeriesRow(Record):
    """One number of the verification series."""

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
    """Some rows, by valid time.

    Attributes:
        rows: At most the number asked for.
        next_cursor: Gives the next page; None after the last row.
    """

    rows: list[SeriesRow]
    next_cursor: str | None


def page_series(
    layout: Layout,
    entries: Sequence[SeriesEntry],
    wanted: SeriesFilter,
    cursor: str | None,
    limit: int,
) -> SeriesPage:
    """Rows of `entries` after `cursor`.

    Arguments:
        layout: The data folder.
        entries: Sorted by name, as `find_series` gives them.
        wanted: Which rows.
        cursor: `next_cursor` of the page before.
        limit: Most rows.

    Raises:
        InvalidInput: If the cursor is none.
        StorageError: If a file cannot be read.
    """
    name, skip = _parse(cursor)
    rows: list[SeriesRow] = []
    opened = 0
    for entry in entries:
        if entry.name < name:
            continue
        if len(rows) == limit or opened == MOST_FILES:
            return SeriesPage(rows, f"{entry.name}~0")
        opened += 1
        start = skip if entry.name == name else 0
        found = read_entry(layout, entry, wanted).slice(start)
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
