"""Store suites: the one that the cycles run, the one on trial beside it, and their comparison.

A suite is everything an analysis depends on besides its observations: checkpoint, observation errors,
quality control, settings of the assimilation. The champion computes the operational analyses of the
cycles, the challenger repeats each of them. A suite is frozen when its trial begins: every job contains
the complete suite, so that later edits of the policy do not affect the comparison.

`suites.sqlite` in the data folder holds the champions, every trial with its cycles and paired errors,
and its outcome. It does not exist before the first trial. Promotion is one transaction.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import StorageError
from worker.contract.database import create_tables, transaction
from worker.contract.record_store import MoveRefused
from worker.contract.records import Record, utc_now

__all__ = [
    "CHALLENGER",
    "CHALLENGES",
    "ChampionPeriod",
    "Difference",
    "Outcome",
    "PairedSquares",
    "Suite",
    "SuiteSettings",
    "SuiteStore",
    "Trial",
    "TrialCycle",
    "suite_of",
]

CHALLENGER = "challenger"
"""Flavour of the results of a suite on trial; such results are not listed or used as background unless
requested."""
CHALLENGES = "challenges"
"""Key in the `cycle` of such a result, with the champion's `analysis_id`, `hours` compared, `branched`."""


class SuiteSettings(BaseModel):
    """Settings of the assimilation that a suite has of its own; null for those of the policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: int | None = Field(default=None, ge=1, le=512, description="Ensemble members.")
    steps: int | None = Field(default=None, ge=1, le=1000, description="Diffusion steps.")
    window_hours: int | None = Field(default=None, ge=1, le=240, description="States in a window.")
    warm_start: bool | None = Field(default=None, description="Go on from an earlier analysis.")
    background_max_age_hours: int | None = Field(
        default=None, ge=1, le=240, description="Oldest previous analysis that is continued."
    )
    sampler: str | None = Field(default=None, max_length=100, description="Sampler.")
    guidance: str | None = Field(default=None, max_length=100, description="Guidance.")
    precision: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of the networks' products."
    )


class Suite(BaseModel):
    """A checkpoint, changes of observation errors and of checks, and settings, under a name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Its name.")
    model: str | None = Field(default=None, description="Checkpoint; null for the worker's own.")
    errors: dict[str, Any] = Field(
        default={}, description="Observation errors, upon those of the installation."
    )
    checks: dict[str, Any] = Field(
        default={}, description="Parameters of the checks, upon those of the installation."
    )
    settings: SuiteSettings = Field(default=SuiteSettings(), description="Of the assimilation.")

    @property
    def id(self) -> str:
        """Return the name with a digest of the content, so that changed content is another suite."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def facts(self) -> dict[str, Any]:
        """Return the suite as jobs and manifests hold it, in the entry `suite` of their `cycle`."""
        return {"id": self.id, **self.model_dump(mode="json", exclude_defaults=True)}


def suite_of(cycle: Mapping[str, Any]) -> Suite | None:
    """Return the suite that the `cycle` of a job or manifest holds; None for the installation's own."""
    facts = cycle.get("suite")
    if not facts:
        return None
    return Suite.model_validate({name: value for name, value in facts.items() if name != "id"})


class Outcome(StrEnum):
    """How the trial of a challenger ended."""

    PROMOTED = "promoted"
    DROPPED = "dropped"
    REPLACED = "replaced"
    WITHDRAWN = "withdrawn"


class ChampionPeriod(Record):
    """Since when a suite has been champion."""

    suite_id: str = Field(description="Name and digest; empty for what the policy says of itself.")
    since: datetime = Field(description="UTC.")
    by: str = Field(default="", description="API key that decided it; empty for none.")
    note: str = Field(default="", description="Why.")


class PairedSquares(Record):
    """Squared errors of both suites at the same withheld values of one network and variable."""

    network: str = Field(description="Report type.")
    variable: str = Field(description="Observed variable.")
    count: int = Field(ge=1, description="Values.")
    champion: float = Field(
        ge=0.0, description="Sum of its squares, in units of the errors assumed."
    )
    challenger: float = Field(ge=0.0, description="The same of the challenger, in the same units.")


class Difference(Record):
    """How much larger the challenger's mean square error is than the champion's, over a trial."""

    network: str = Field(description="Report type, or `all`.")
    variables: str = Field(description="`temperature`, `wind`, `humidity`, `mass`, or `all`.")
    cycles: int = Field(description="Cycles compared.")
    values: int = Field(description="Values compared.")
    percent: float = Field(description="Below zero where the challenger is better.")
    low: float | None = Field(description="Lower end of the 95 % interval; null of few cycles.")
    high: float | None = Field(description="Upper end of the 95 % interval; null of few cycles.")
    correlation: float = Field(
        description="Of the difference with that of the cycle before, allowed for in the interval."
    )


class Trial(Record):
    """A challenger beside a champion, from its beginning to its end."""

    id: int = Field(description="Number of the trial.")
    suite: Suite = Field(description="The challenger.")
    suite_id: str = Field(description="Its name and a digest of its content.")
    champion_id: str = Field(description="Suite beside which it runs; empty for the first one.")
    begun: datetime = Field(description="When it was first seen in the policy (UTC).")
    first_time: datetime = Field(description="Valid time of its first cycle (UTC).")
    counted_from: datetime = Field(description="Valid time of the first cycle compared (UTC).")
    least_cycles: int = Field(description="Cycles compared before a verdict.")
    ended: datetime | None = Field(default=None, description="When it ended (UTC); null before.")
    outcome: Outcome | None = Field(default=None, description="How it ended.")
    by: str = Field(default="", description="API key that ended it; empty for none.")
    note: str = Field(default="", description="Why it was ended, or what it waits for.")
    differences: list[Difference] = Field(default=[], description="All values first.")

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Return the verdict from all values together, at the 5 % level."""
        whole = self.differences[0] if self.differences else None
        if whole is None or whole.cycles < self.least_cycles or whole.low is None:
            return "undecided"
        if whole.high is not None and whole.high < 0.0:
            return "better"
        return "worse" if whole.low > 0.0 else "undecided"


@dataclass(frozen=True)
class TrialCycle:
    """One cycle of a challenger; states are those of `CycleState` from `submitted` on."""

    key: str
    valid_time: datetime
    state: str
    attempts: int
    job_id: str
    analysis_id: str
    champion_id: str
    message: str


_VERSION = 1
_LOCK_SECONDS = 20.0
_SCHEMA = """
CREATE TABLE champions (id INTEGER PRIMARY KEY, suite TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE trials (
  id INTEGER PRIMARY KEY, suite_id TEXT NOT NULL, ended INTEGER NOT NULL, record TEXT NOT NULL);
CREATE UNIQUE INDEX one_at_a_time ON trials (ended) WHERE NOT ended;
CREATE TABLE cycles (
  trial INTEGER NOT NULL, key TEXT NOT NULL, valid_time TEXT NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL, job_id TEXT NOT NULL, analysis_id TEXT NOT NULL,
  champion_id TEXT NOT NULL, message TEXT NOT NULL, PRIMARY KEY (trial, key)) WITHOUT ROWID;
CREATE TABLE pairs (
  trial INTEGER NOT NULL, valid_time TEXT NOT NULL, network TEXT NOT NULL, variable TEXT NOT NULL,
  count INTEGER NOT NULL, champion REAL NOT NULL, challenger REAL NOT NULL,
  PRIMARY KEY (trial, valid_time, network, variable)) WITHOUT ROWID
"""
_OPEN = "SELECT record FROM trials WHERE NOT ended"


class SuiteStore:
    """Champions and trials; any number of processes and threads may read and write.

    Arguments:
        path: `suites.sqlite` of the data folder; created when the first trial begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- reading

    def champion(self) -> Suite | None:
        """Return the suite that the cycles run; None for the settings of the policy itself."""
        rows = self._read("SELECT suite FROM champions ORDER BY id DESC LIMIT 1")
        return Suite.model_validate_json(rows[0][0]) if rows and rows[0][0] else None

    def champion_periods(self, limit: int = 50) -> list[ChampionPeriod]:
        """Return the newest champions, the present one first; none before the first promotion."""
        rows = self._read("SELECT record FROM champions ORDER BY id DESC LIMIT ?", limit)
        return [ChampionPeriod.model_validate_json(text) for (text,) in rows]

    def trial(self) -> Trial | None:
        """Return the trial that runs; None while there is none."""
        rows = self._read(_OPEN)
        return Trial.model_validate_json(rows[0][0]) if rows else None

    def trials(self, limit: int = 50) -> list[Trial]:
        """Return the newest trials, newest first, the one that runs included."""
        rows = self._read("SELECT record FROM trials ORDER BY id DESC LIMIT ?", limit)
        return [Trial.model_validate_json(text) for (text,) in rows]

    def last_trial_of(self, suite: Suite) -> Trial | None:
        """Return the newest trial of exactly this suite; None if it had none."""
        query = "SELECT record FROM trials WHERE suite_id = ? ORDER BY id DESC LIMIT 1"
        rows = self._read(query, suite.id)
        return Trial.model_validate_json(rows[0][0]) if rows else None

    def counts(self, trial: Trial) -> dict[str, int]:
        """Return the number of a trial's cycles by state."""
        query = "SELECT state, count(*) FROM cycles WHERE trial = ? GROUP BY state"
        return dict(self._read(query, trial.id))

    def newest(self, trial: Trial, *, state: str | None = None) -> TrialCycle | None:
        """Return the trial's cycle with the latest valid time, of those in `state` if given."""
        where, values = ("AND state = ?", [state]) if state else ("", [])
        query = f"SELECT {_CYCLE} FROM cycles WHERE trial = ? {where} ORDER BY key DESC LIMIT 1"  # noqa: S608
        rows = self._read(query, trial.id, *values)
        return _cycle(rows[0]) if rows else None

    def pairs(self, trial: Trial) -> dict[datetime, list[PairedSquares]]:
        """Return the paired errors of the cycles that count, by valid time, oldest first."""
        query = (
            "SELECT valid_time, network, variable, count, champion, challenger FROM pairs "
            "WHERE trial = ? AND valid_time >= ? ORDER BY valid_time, network, variable"
        )
        found: dict[datetime, list[PairedSquares]] = {}
        for time, *row in self._read(query, trial.id, trial.counted_from.isoformat()):
            values = dict(zip(PairedSquares.model_fields, row, strict=True))
            found.setdefault(datetime.fromisoformat(time), []).append(PairedSquares(**values))
        return found

    # -- changing

    def begin(self, trial: Trial) -> Trial:
        """Begin a trial and set its number, unless one is running; return the running trial."""
        with self._writing() as database:
            running = database.execute(_OPEN).fetchone()
            if running:
                return Trial.model_validate_json(running[0])
            last = database.execute("SELECT max(id) FROM trials").fetchone()[0]
            made = trial.model_copy(update={"id": (last or 0) + 1})
            row = (made.id, made.suite_id, 0, made.model_dump_json())
            database.execute("INSERT INTO trials VALUES (?, ?, ?, ?)", row)
        return made

    def update(self, trial: Trial, **values: Any) -> bool:
        """Set fields of a trial while it is running; return whether it was."""
        with self._writing() as database:
            return _change(database, trial.id, values) is not None

    def note_cycle(
        self, trial: Trial, cycle: TrialCycle, pairs: Sequence[PairedSquares] = ()
    ) -> None:
        """Store the state of a cycle of a trial and, in the same transaction, its paired errors."""
        time = cycle.valid_time.isoformat()
        key, _, *rest = astuple(cycle)
        row = (trial.id, key, time, *rest)
        lines = [(trial.id, time, *pair.model_dump().values()) for pair in pairs]
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO cycles VALUES (?,?,?,?,?,?,?,?,?)", row)
            database.executemany("INSERT OR REPLACE INTO pairs VALUES (?,?,?,?,?,?,?)", lines)

    def end(self, trial: Trial, outcome: Outcome, by: str = "", note: str = "") -> Trial:
        """End a trial; if promoted, its suite becomes the champion in the same transaction.

        Raises:
            MoveRefused: If it has ended already.
        """
        values = {"ended": utc_now(), "outcome": outcome, "by": by, "note": note}
        with self._writing() as database:
            ended = _change(database, trial.id, values)
            if ended is None:
                raise MoveRefused(
                    f"Expected a challenger that runs; the trial of '{trial.suite_id}' has ended.",
                    id=trial.suite_id,
                )
            if outcome is Outcome.PROMOTED:
                _set_champion(database, ended.suite, by, note)
        return ended

    def revert(self, by: str = "", note: str = "") -> ChampionPeriod:
        """Make the suite that was champion before the present one the champion again.

        Raises:
            MoveRefused: If no suite was promoted.
        """
        with self._writing() as database:
            query = "SELECT suite FROM champions ORDER BY id DESC LIMIT 2"
            rows = database.execute(query).fetchall()
            if not rows:
                raise MoveRefused("Expected a suite that was promoted; there was none.")
            before = rows[1][0] if len(rows) == 2 else ""
            suite = Suite.model_validate_json(before) if before else None
            return _set_champion(database, suite, by, note)

    # -- the file

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        try:
            with closing(self._connect()) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise StorageError(f"Expected to read {self.path.name}; {error}.") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as database, transaction(database):
                yield database
        except sqlite3.DatabaseError as error:  # a full disk, an archive mounted read-only
            raise StorageError(f"Expected to write {self.path.name}; {error}.") from error

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_LOCK_SECONDS, isolation_level=None)
        create_tables(database, _SCHEMA, _VERSION)
        return database


_CYCLE = "key, valid_time, state, attempts, job_id, analysis_id, champion_id, message"


def _cycle(row: tuple[Any, ...]) -> TrialCycle:
    key, time, *rest = row
    return TrialCycle(key, datetime.fromisoformat(time), *rest)


def _set_champion(
    database: sqlite3.Connection, suite: Suite | None, by: str, note: str
) -> ChampionPeriod:
    """Store the new champion."""
    name, text = (suite.id, suite.model_dump_json()) if suite else ("", "")
    period = ChampionPeriod(suite_id=name, since=utc_now(), by=by, note=note)
    row = (text, period.model_dump_json())
    database.execute("INSERT INTO champions (suite, record) VALUES (?, ?)", row)
    return period


def _change(database: sqlite3.Connection, trial: int, values: Mapping[str, Any]) -> Trial | None:
    """Set fields of a trial; None if it has ended."""
    query = "SELECT record FROM trials WHERE id = ? AND NOT ended"
    row = database.execute(query, (trial,)).fetchone()
    if row is None:
        return None
    record = Trial.model_validate_json(row[0])
    changed = Trial.model_validate({**record.model_dump(), **values})
    update = "UPDATE trials SET record = ?, ended = ? WHERE id = ?"
    database.execute(update, (changed.model_dump_json(), changed.ended is not None, trial))
    return changed
