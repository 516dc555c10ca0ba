"""Define the entries of the catalogue, and filters for queries.

An entry depends only on the manifest, so that a rebuilt catalogue is the same.
"""

import json
from collections.abc import Collection
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from worker.contract.suites import CHALLENGER
from worker.results.manifest import RESTART_ROLE, AnalysisManifest

__all__ = ["COLUMNS", "SCHEMA", "SCHEMA_VERSION", "Entry", "ResultFilter"]

SCHEMA_VERSION = 2
"""Schema version, increased when a table changes; a catalogue of another version is rebuilt."""

SCHEMA = """
CREATE TABLE results (
    id TEXT PRIMARY KEY,
    stamp INTEGER NOT NULL,
    kind TEXT NOT NULL,
    flavour TEXT NOT NULL,
    revision INTEGER NOT NULL,
    valid_time TEXT NOT NULL,
    first_time TEXT NOT NULL,
    last_time TEXT NOT NULL,
    created TEXT NOT NULL,
    cycle TEXT NOT NULL,
    suite TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    restart_bytes INTEGER,
    dataset TEXT NOT NULL,
    position TEXT NOT NULL
);
CREATE INDEX results_by_position ON results (position);
CREATE INDEX results_by_kind ON results (kind, flavour, position);
CREATE TABLE unreadable (id TEXT PRIMARY KEY, stamp INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL)
"""
"""Statements that create the tables."""


@dataclass(frozen=True)
class Entry:
    """One published result in the catalogue.

    Attributes:
        id: Name of the result.
        stamp: Modification time of its manifest, in nanoseconds.
        kind: Kind of the job.
        flavour: `early`, `final`, `challenger`, or empty outside the cycles.
        revision: For this valid time.
        valid_time: Analysis time; start of a forecast or reanalysis (UTC).
        first_time: First valid time in the files (UTC).
        last_time: Last valid time in the files (UTC).
        created: When it was finished (UTC).
        cycle: Key of its cycle; empty outside the cycles.
        suite: Id of the suite that computed it; empty for the installation's own.
        checkpoint: Name of the weights; empty if the manifest does not give it.
        restart_bytes: Size of its restart files; None without any.
        dataset: File that is served as a data set; empty if there is none.
    """

    id: str
    stamp: int
    kind: str
    flavour: str
    revision: int
    valid_time: datetime
    first_time: datetime
    last_time: datetime
    created: datetime
    cycle: str
    suite: str
    checkpoint: str
    restart_bytes: int | None
    dataset: str

    @classmethod
    def of(cls, manifest: AnalysisManifest, stamp: int) -> "Entry":
        """Return the entry of a manifest that was last written at `stamp`."""
        times = manifest.times or [manifest.valid_time]
        restarts = [file.size for file in manifest.files if file.role == RESTART_ROLE]
        dataset = manifest.dataset_file
        return cls(
            id=manifest.id,
            stamp=stamp,
            kind=manifest.kind,
            flavour=manifest.flavour,
            revision=manifest.revision,
            valid_time=manifest.valid_time,
            first_time=min(times),
            last_time=max(times),
            created=manifest.created,
            cycle=str(manifest.cycle.get("key", "")),
            suite=str(manifest.cycle.get("suite", {}).get("id", "")),
            checkpoint=str(manifest.provenance.get("checkpoint", "")),
            restart_bytes=sum(restarts) if restarts else None,
            dataset=dataset.name if dataset else "",
        )

    @property
    def position(self) -> str:
        """Sort key by valid time, then revision, then creation; serves as a cursor."""
        times = f"{self.valid_time:%Y%m%dT%H%M%S}_{self.revision:06d}"
        return f"{times}_{self.created:%Y%m%dT%H%M%S%f}_{self.id}"

    def to_row(self) -> tuple[Any, ...]:
        """Return the columns of the table `results`."""
        values = (_text(v) if isinstance(v, datetime) else v for v in astuple(self))
        return (*values, self.position)

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> "Entry":
        """Return the entry with these columns."""
        named = zip(fields(cls), row, strict=True)
        values: list[Any] = [
            datetime.fromisoformat(v) if f.type is datetime else v for f, v in named
        ]
        return cls(*values)


COLUMNS = ", ".join(field.name for field in fields(Entry))
"""Columns of the table `results` that make up an entry, in order."""


def _text(time: datetime) -> str:
    """Return ISO 8601 text in UTC that sorts chronologically."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class ResultFilter:
    """Conditions on results; None and False set no condition, except for `challengers`.

    Attributes:
        kind: One kind, or any of several.
        flavour: `early`, `final`, `challenger`, or empty for results outside the cycles.
        valid_from: First valid time accepted.
        valid_to: Last valid time accepted.
        ids: Only these results.
        start: Results with times in their files at or after this.
        end: Results with times in their files at or before this.
        last_from: Results whose last time is this or later.
        last_to: Results whose last time is this or earlier.
        created_from: Finished at this time or later.
        created_to: Finished at this time or earlier.
        with_dataset: Only results with a file that is served as a data set.
        with_restart: Only results that can be continued.
        challengers: Whether to include results of suites on trial, which are left out unless their
            flavour or ids are given.
    """

    kind: str | Collection[str] | None = None
    flavour: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    ids: Collection[str] | None = None
    start: datetime | None = None
    end: datetime | None = None
    last_from: datetime | None = None
    last_to: datetime | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None
    with_dataset: bool = False
    with_restart: bool = False
    challengers: bool = False

    def where(self) -> tuple[str, list[str]]:
        """Return the SQL condition and the values of its parameters."""
        kinds = [self.kind] if isinstance(self.kind, str) else self.kind
        among = "IN (SELECT value FROM json_each(?))"
        conditions: list[tuple[str, str | datetime | None]] = [
            (f"kind {among}", None if kinds is None else json.dumps(sorted(kinds))),
            (f"id {among}", None if self.ids is None else json.dumps(sorted(self.ids))),
            ("flavour = ?", self.flavour),
            ("valid_time >= ?", self.valid_from),
            ("valid_time <= ?", self.valid_to),
            ("last_time >= ?", self.start),
            ("first_time <= ?", self.end),
            ("last_time >= ?", self.last_from),
            ("last_time <= ?", self.last_to),
            ("created >= ?", self.created_from),
            ("created <= ?", self.created_to),
        ]
        given = [(text, value) for text, value in conditions if value is not None]
        texts = [text for text, _ in given]
        texts += ["dataset != ''"] * self.with_dataset
        texts += ["restart_bytes IS NOT NULL"] * self.with_restart
        named = self.challengers or self.flavour is not None or self.ids is not None
        texts += [f"flavour != '{CHALLENGER}'"] * (not named)
        values = [_text(v) if isinstance(v, datetime) else v for _, v in given]
        return " AND ".join(texts) or "1", values
