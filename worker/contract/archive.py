"""Keep records on disk once they have ended: `records.sqlite` in the data folder.

Redis holds unfinished work. A record that has ended is copied here at once and leaves Redis some
minutes later, with its events and its unique keys (content hashes of uploads, idempotency keys). A
job is written here before it is accepted, a cycle whenever it changes. Redis therefore stays small
however long the installation runs, and its content can be restored from here and from the uploads
and results on disk.

A row is `present` while Redis is expected to hold the record as well. Any number of processes and
threads may read and write; each process opens the file at its first query.
"""

# ruff: noqa: S608  (queries are put together from texts of this module alone)

import errno
import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from model.domain.errors import StorageError
from worker.contract.database import create_tables, transaction
from worker.contract.disk import is_on_network
from worker.contract.layout import Layout
from worker.contract.records import owner_of

__all__ = ["ArchivedRecord", "RecordArchive"]

log = structlog.get_logger()
T = TypeVar("T")

_VERSION = 3
_LOCK_SECONDS = 20.0
_MANY = 500
"""Maximum number of parameters of one query; SQLite allows at least 999."""

_SCHEMA = """
CREATE TABLE records (
  noun TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, kind TEXT NOT NULL,
  ended REAL, written REAL NOT NULL, present INTEGER NOT NULL, record BLOB NOT NULL, events BLOB,
  owner TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (noun, id)) WITHOUT ROWID;
CREATE INDEX by_state ON records (noun, state, id) WHERE NOT present;
CREATE INDEX by_kind ON records (noun, kind, id) WHERE NOT present;
CREATE INDEX presents ON records (noun, id) WHERE present;
CREATE TABLE names (
  noun TEXT NOT NULL, name BLOB NOT NULL, value TEXT NOT NULL, id TEXT NOT NULL,
  PRIMARY KEY (noun, name)) WITHOUT ROWID;
CREATE INDEX by_record ON names (noun, id);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

_COUNTING = """
CREATE TRIGGER added AFTER INSERT ON records WHEN NOT new.present BEGIN
  INSERT INTO totals VALUES (new.noun, new.owner, new.state, new.kind, 1)
    ON CONFLICT (noun, owner, state, kind) DO UPDATE SET count = count + 1; END;
CREATE TRIGGER came AFTER UPDATE ON records WHEN NOT new.present BEGIN
  INSERT INTO totals VALUES (new.noun, new.owner, new.state, new.kind, 1)
    ON CONFLICT (noun, owner, state, kind) DO UPDATE SET count = count + 1; END;
"""
"""Conflict clauses name their columns: eccodes bundles an SQLite of 2018 that requires it, and that
library is in use if eccodes is imported first."""

_COUNTED = f"""
CREATE INDEX by_owner ON records (noun, owner, id) WHERE NOT present;
CREATE INDEX by_owner_and_state ON records (noun, owner, state, id) WHERE NOT present;
CREATE TABLE totals (
  noun TEXT NOT NULL, owner TEXT NOT NULL, state TEXT NOT NULL, kind TEXT NOT NULL,
  count INTEGER NOT NULL, PRIMARY KEY (noun, owner, state, kind)) WITHOUT ROWID;
CREATE TRIGGER dropped AFTER DELETE ON records WHEN NOT old.present BEGIN
  UPDATE totals SET count = count - 1 WHERE noun = old.noun AND owner = old.owner
    AND state = old.state AND kind = old.kind; END;
CREATE TRIGGER left AFTER UPDATE ON records WHEN NOT old.present BEGIN
  UPDATE totals SET count = count - 1 WHERE noun = old.noun AND owner = old.owner
    AND state = old.state AND kind = old.kind; END;
{_COUNTING}"""
"""Totals are kept by triggers: counting millions of rows would take seconds."""

_OWNERS = f"""
DROP TRIGGER added;
DROP TRIGGER dropped;
DROP TRIGGER left;
DROP TRIGGER came;
DROP TABLE totals;
ALTER TABLE records ADD COLUMN owner TEXT NOT NULL DEFAULT '';
UPDATE records SET owner = owner_in(record);
{_COUNTED}
INSERT INTO totals SELECT noun, owner, state, kind, count(*) FROM records WHERE NOT present
  GROUP BY noun, owner, state, kind;
"""
"""Upgrade of a file of version 1, which did not store owners."""

_NAMED = f"""
DROP TRIGGER added;
DROP TRIGGER came;
{_COUNTING}
"""
"""Upgrade of a file of version 2, whose conflict clauses do not name their columns."""

_COLUMNS = "noun, id, state, kind, ended, written, present, record, events"


@dataclass(frozen=True)
class ArchivedRecord:
    """A record on disk.

    Attributes:
        noun: `job`, `batch` or `cycle`.
        id: Id of the record.
        state: Its state.
        kind: Kind of job, container of an upload, flavour of a cycle.
        fields: The record as JSON values.
        ended: When it reached its end, in seconds since 1970; None before.
        present: Whether Redis is expected to hold it as well.
        events: Its events as (id, type, data), data as JSON text.
        names: Values of its unique keys, by key.
        written: When the row was written, in seconds since 1970.
    """

    noun: str
    id: str
    state: str
    kind: str
    fields: Mapping[str, Any]
    ended: float | None
    present: bool = True
    events: Sequence[Sequence[str]] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    written: float = 0.0


class RecordArchive:
    """The records on disk of one data folder.

    Every method raises `StorageError` when the file cannot be read or written; its cause is an
    `OSError` if the disk is full.

    Arguments:
        layout: The data folder.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []

    def close(self) -> None:
        """Close the file; the next query opens it again."""
        with self._lock:
            if self._database is not None and self._process == os.getpid():
                self._database.close()
            self._database = None

    # -- reading

    def find(self, noun: str, record_id: str) -> ArchivedRecord | None:
        """Return a record without its names, or None."""
        query = f"SELECT {_COLUMNS} FROM records WHERE noun = ? AND id = ?"
        row = self._ask(lambda d: d.execute(query, (noun, record_id)).fetchone())
        return None if row is None else _kept(row)

    def known(self, noun: str, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that have a row."""
        return {row[0] for row in self._of("SELECT id FROM records", noun, "id", ids)}

    def select(
        self,
        noun: str,
        *,
        state: str = "",
        kind: str = "",
        owner: str | None = None,
        low: str = "",
        below: str = "",
        limit: int = -1,
    ) -> list[ArchivedRecord]:
        """Return records that have left Redis, highest id first.

        Arguments:
            noun: Which records.
            state: Only those in this state.
            kind: Only those of this kind.
            owner: Only those of this owner, `NOBODY` included.
            low: Lowest id.
            below: All ids are lower than this.
            limit: Most records; -1 for all.
        """
        parts = {"state = ?": state, "kind = ?": kind, "id >= ?": low, "id < ?": below}
        given = {part: value for part, value in parts.items() if value}
        given |= {} if owner is None else {"owner = ?": owner}
        where = " AND ".join(["noun = ?", "NOT present", *given])
        query = f"SELECT {_COLUMNS} FROM records WHERE {where} ORDER BY id DESC LIMIT ?"
        values = (noun, *given.values(), limit)
        return [_kept(row) for row in self._ask(lambda d: d.execute(query, values).fetchall())]

    def states(self, noun: str, low: str, *, below: str = "", state: str = "") -> dict[str, str]:
        """Return id and state of the records that have left Redis with ids from `low` on.

        Arguments:
            noun: Which records.
            low: Lowest id.
            below: All ids are lower than this.
            state: Only those in this state.
        """
        parts = {"id < ?": below, "state = ?": state}
        given = {part: value for part, value in parts.items() if value}
        where = " AND ".join(["noun = ?", "id >= ?", "NOT present", *given])
        query = f"SELECT id, state FROM records WHERE {where}"
        values = (noun, low, *given.values())
        return dict(self._ask(lambda d: d.execute(query, values).fetchall()))

    def count(self, noun: str, *, state: str = "", kind: str = "", owner: str | None = None) -> int:
        """Return how many records have left Redis, of a state, kind and owner where given."""
        parts = {"state = ?": state, "kind = ?": kind}
        given = {part: value for part, value in parts.items() if value}
        given |= {} if owner is None else {"owner = ?": owner}
        where = " AND ".join(["noun = ?", *given])
        query = f"SELECT coalesce(sum(count), 0) FROM totals WHERE {where}"
        return int(self._ask(lambda d: d.execute(query, (noun, *given.values())).fetchone())[0])

    def in_redis(self, noun: str) -> list[ArchivedRecord]:
        """Return the records that Redis should hold, by id; their number stays small."""
        query = f"SELECT {_COLUMNS} FROM records WHERE noun = ? AND present ORDER BY id"
        return [_kept(row) for row in self._ask(lambda d: d.execute(query, (noun,)).fetchall())]

    def names(self, noun: str, names: Sequence[str]) -> dict[str, str]:
        """Return the values of those unique keys that are stored here."""
        if not names:
            return {}
        digests = {_digest(name): name for name in names}
        rows = self._of("SELECT name, value FROM names", noun, "name", list(digests))
        return {digests[digest]: value for digest, value in rows}

    def get_note(self, name: str) -> str | None:
        """Return a note, a text under a name, or None."""
        query = "SELECT value FROM notes WHERE name = ?"
        row = self._ask(lambda d: d.execute(query, (name,)).fetchone())
        return None if row is None else str(row[0])

    # -- writing

    def put(self, records: Iterable[ArchivedRecord]) -> None:
        """Insert or replace records, durably; unique keys that exist already are not changed."""
        rows, names, now = [], [], time.time()
        for kept in records:
            text = zlib.compress(json.dumps(dict(kept.fields), separators=(",", ":")).encode())
            events = zlib.compress(json.dumps(list(kept.events)).encode()) if kept.events else None
            facts = (kept.noun, kept.id, kept.state, kept.kind, kept.ended, now)
            owner = owner_of(str(kept.fields.get("api_key", "")))
            rows.append((*facts, int(kept.present), text, events, owner))
            names += [(kept.noun, _digest(n), v, kept.id) for n, v in kept.names.items()]
        insert = (
            f"INSERT INTO records ({_COLUMNS}, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (noun, id) DO UPDATE SET state = excluded.state, kind = excluded.kind, "
            "ended = excluded.ended, written = excluded.written, present = excluded.present, "
            "record = excluded.record, events = coalesce(excluded.events, events), "
            "owner = excluded.owner"
        )

        def write(database: sqlite3.Connection) -> None:
            database.executemany(insert, rows)
            database.executemany("INSERT OR IGNORE INTO names VALUES (?, ?, ?, ?)", names)

        if rows:
            self._write(write)

    def set_present(self, noun: str, ids: Sequence[str], present: bool) -> None:
        """Set whether Redis is expected to hold these records as well."""
        update = "UPDATE records SET present = ? WHERE noun = ? AND id = ? AND present != ?"
        rows = [(int(present), noun, record_id, int(present)) for record_id in ids]
        if rows:
            self._write(lambda d: d.executemany(update, rows))

    def drop(self, noun: str, ids: Sequence[str], *, names: bool = True) -> None:
        """Remove records and, by default, their unique keys."""
        rows = [(noun, record_id) for record_id in ids]

        def write(database: sqlite3.Connection) -> None:
            database.executemany("DELETE FROM records WHERE noun = ? AND id = ?", rows)
            if names:
                database.executemany("DELETE FROM names WHERE noun = ? AND id = ?", rows)

        if rows:
            self._write(write)

    def bind_keys(self, noun: str, names: Mapping[str, str], record_id: str) -> None:
        """Add unique keys with their values to a record."""
        rows = [(noun, _digest(name), value, record_id) for name, value in names.items()]
        if rows:
            insert = "INSERT OR IGNORE INTO names VALUES (?, ?, ?, ?)"
            self._write(lambda d: d.executemany(insert, rows))

    def delete_keys(self, noun: str, names: Sequence[str]) -> None:
        """Delete unique keys, so that new records may use them."""
        rows = [(noun, _digest(name)) for name in names]
        delete = "DELETE FROM names WHERE noun = ? AND name = ?"
        self._write(lambda d: d.executemany(delete, rows))

    def set_note(self, name: str, value: str) -> None:
        """Store a note, a text under a name."""
        insert = "INSERT OR REPLACE INTO notes VALUES (?, ?)"
        self._write(lambda d: d.execute(insert, (name, value)))

    def expire(self, noun: str, before: float, limit: int = 5_000) -> int:
        """Remove the oldest records that left Redis and ended before a time; return how many.

        Arguments:
            noun: Which records.
            before: Seconds since 1970.
            limit: Maximum number to remove; call again until none are left.
        """
        query = (
            "SELECT id FROM (SELECT id, ended FROM records WHERE noun = ? AND NOT present "
            "ORDER BY id LIMIT ?) WHERE ended < ?"
        )
        rows = self._ask(lambda d: d.execute(query, (noun, limit, before)).fetchall())
        self.drop(noun, [row[0] for row in rows])
        return len(rows)

    # -- plumbing

    def _of(self, select: str, noun: str, column: str, values: Sequence[Any]) -> list[Any]:
        """Return the rows of a noun whose `column` is one of `values`."""

        def ask(database: sqlite3.Connection) -> list[Any]:
            rows: list[Any] = []
            for first in range(0, len(values), _MANY):
                some = values[first : first + _MANY]
                places = ", ".join("?" * len(some))
                query = f"{select} WHERE noun = ? AND {column} IN ({places})"
                rows += database.execute(query, (noun, *some)).fetchall()
            return rows

        return self._ask(ask) if values else []

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        def write(database: sqlite3.Connection) -> None:
            with transaction(database):
                change(database)

        self._ask(write)

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        if self._process != os.getpid():  # a connection must not be used beyond a fork
            self._inherited.append(self._database)
            self._lock, self._database = threading.RLock(), None
            self._process = os.getpid()
        with self._lock:
            try:
                return question(self._connect())
            except sqlite3.Error as error:
                self.close()
                raise _storage_error(error) from _cause(error)

    def _connect(self) -> sqlite3.Connection:
        if self._database is not None:
            return self._database
        path = self.layout.records_file
        if not path.exists():
            path.touch(mode=0o600)
        database = sqlite3.connect(
            path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            network = is_on_network(path)  # no WAL: it needs shared memory
            database.execute(f"PRAGMA journal_mode = {'DELETE' if network else 'WAL'}")
            database.execute("PRAGMA synchronous = FULL")
            database.create_function("owner_in", 1, _owner_in, deterministic=True)
            create_tables(database, _SCHEMA + _COUNTED, _VERSION, upgrades={1: _OWNERS, 2: _NAMED})
        except sqlite3.Error as error:
            database.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                self._set_aside(error)
                return self._connect()
            raise
        self._database = database
        return database

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename a damaged file; its content is rebuilt from disk as far as possible."""
        path = self.layout.records_file
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        log.error("records damaged", reason=str(error), moved_to=str(aside))
        path.rename(aside)
        for name in (f"{path.name}-wal", f"{path.name}-shm"):
            path.with_name(name).unlink(missing_ok=True)


_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _kept(row: Sequence[Any]) -> ArchivedRecord:
    noun, record_id, state, kind, ended, written, present, record, events = row
    return ArchivedRecord(
        noun,
        record_id,
        state,
        kind,
        json.loads(zlib.decompress(record)),
        ended,
        bool(present),
        json.loads(zlib.decompress(events)) if events else (),
        written=written,
    )


def _owner_in(record: bytes) -> str:
    return owner_of(str(json.loads(zlib.decompress(record)).get("api_key", "")))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def _cause(error: sqlite3.Error) -> BaseException:
    """Return an `OSError` for SQLite's error of a full disk, else the error itself."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, str(error))
    return error


def _storage_error(error: sqlite3.Error) -> StorageError:
    return StorageError(f"Expected to read and write 'records.sqlite' in the data folder; {error}.")
