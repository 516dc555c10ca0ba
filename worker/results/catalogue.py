"""Index the published results: which exist, in what order, with which files.

The catalogue is `catalogue.sqlite` in the data folder. It is derived entirely from the manifests: a
result is published by renaming its folder, or by writing its manifest to a bucket, and a process that
dies before the row is inserted leaves a complete result. Every query therefore first compares the
catalogue with the folder of results, or of cached manifests. While that folder is unchanged this costs
one `stat`; otherwise new or rewritten manifests are read and rows of removed ones dropped, in one
transaction, by the first process that queries. Any number of processes and threads may query at once.

A file that is damaged, or of another version, is replaced and rebuilt. If none can be written (a full
disk, an archive mounted read-only), and on network file systems, which SQLite's write-ahead log does
not support, each process keeps its own catalogue in memory.
"""

import fcntl
import math
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import structlog

from model.domain.errors import AppaError, InvalidInput, StorageError
from worker.contract.database import create_tables, snapshot, transaction
from worker.contract.disk import is_on_network
from worker.contract.layout import Layout
from worker.contract.suites import CHALLENGER
from worker.results.entries import COLUMNS, SCHEMA, SCHEMA_VERSION, Entry, ResultFilter
from worker.results.manifest import (
    AnalysisManifest,
    ManifestFile,
    NoSuchAnalysis,
    read_manifest,
)
from worker.results.store import result_store

__all__ = ["Catalogue", "Entry", "ResultFilter", "ResultPage"]

log = structlog.get_logger()
T = TypeVar("T")

_UNUSABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
"""SQLite errors caused by the file system; all others count as damage of the file."""

_LOCK_SECONDS = 60.0
"""Maximum wait for a process that is filling the catalogue."""

_MEMORY_SECONDS = 60.0
"""Pause before a file that could not be used is retried."""

_SETTLED_NS = 1_000_000_000
"""Age below which a folder may change again without a new modification time (clock granularity)."""

_PARSED = 1024
"""Number of manifests cached in memory."""


@dataclass(frozen=True)
class ResultPage:
    """A page of results, newest first.

    Attributes:
        items: Their manifests.
        next_cursor: Cursor of the next page; None after the last result.
        total: Number of results that match the filter.
    """

    items: list[AnalysisManifest]
    next_cursor: str | None
    total: int


class Catalogue:
    """The published results of one data folder; safe to use from several threads.

    Results are ordered by valid time, then revision, then creation, newest first. The catalogue opens
    its file at the first query and may be closed or used as a context manager; a child process must
    create its own.

    Arguments:
        layout: The data folder.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._results = result_store(layout)
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._memory_until = math.inf if is_on_network(layout.root) else 0.0
        self._parsed: OrderedDict[str, tuple[int, AnalysisManifest]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next query opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = self._inode = None

    def find(self, analysis_id: str) -> AnalysisManifest | None:
        """Return the present manifest of a published result, or None."""
        try:
            stamp = _stamp(self._layout.manifest(analysis_id))
        except InvalidInput:  # not a valid name of a result
            return None
        if stamp == 0:
            if not self._results.fetch_manifest(analysis_id):
                return None
            stamp = _stamp(self._layout.manifest(analysis_id))
        with self._lock:
            known = self._parsed.get(analysis_id)
            if known is not None and known[0] == stamp:
                self._parsed.move_to_end(analysis_id)
                return known[1]
        manifest, _ = _read(self._layout, analysis_id)
        if manifest is not None:
            self._keep(manifest, stamp)
        return manifest

    def get(self, analysis_id: str) -> AnalysisManifest:
        """Return the manifest of a published result.

        Raises:
            NoSuchAnalysis: If there is none.
        """
        manifest = self.find(analysis_id)
        if manifest is None:
            raise NoSuchAnalysis(
                f"Expected the id of a published analysis; got '{analysis_id}'. "
                "List them with GET /v1/analyses.",
                analysis_id=analysis_id,
            )
        return manifest

    def file(self, analysis_id: str, name: str) -> tuple[ManifestFile, Path]:
        """Return a file that the manifest of a result lists, and its path on this machine.

        With results in a bucket the file may not be cached yet: `ResultStore.file` fetches it,
        `ResultStore.remote` reads it from the bucket.

        Raises:
            NoSuchAnalysis: If there is no such result or file.
        """
        manifest = self.get(analysis_id)
        for entry in manifest.files:
            if entry.name == name:
                return entry, self._layout.analysis_file(analysis_id, name)
        names = ", ".join(f.name for f in manifest.files) or "none"
        raise NoSuchAnalysis(
            f"Expected a file of '{analysis_id}'; got '{name}'. Its files: {names}."
        )

    def entries(self, matching: ResultFilter | None = None) -> list[Entry]:
        """Return all matching entries, newest first; without a filter including challengers."""
        return self._select(matching or ResultFilter(challengers=True), None, None)[0]

    def manifests(self, matching: ResultFilter | None = None) -> Iterator[AnalysisManifest]:
        """Yield the manifests of all matching results, newest first."""
        found = (self.find(entry.id) for entry in self.entries(matching))
        return (manifest for manifest in found if manifest is not None)

    def select(self, matching: ResultFilter, cursor: str | None, limit: int) -> ResultPage:
        """Return at most `limit` results after `cursor`, newest first."""
        rows, total = self._select(matching, cursor, limit + 1)
        page = rows[:limit]
        found = (self.find(entry.id) for entry in page)
        items = [manifest for manifest in found if manifest is not None]
        following = page[-1].position if page and len(rows) > limit else None
        # A result that was removed or replaced meanwhile is left out and not counted.
        return ResultPage(items, following, total - (len(page) - len(items)))

    def latest(self, matching: ResultFilter) -> AnalysisManifest | None:
        """Return the newest matching result: latest valid time, then highest revision."""
        rows, _ = self._select(matching, None, 1)
        return self.find(rows[0].id) if rows else None

    def kinds(self) -> list[tuple[str, str]]:
        """Return each kind with an empty flavour, and with each flavour except that of challengers."""
        query = (
            "SELECT DISTINCT kind, flavour FROM results WHERE flavour != ? "
            "UNION SELECT kind, '' FROM results"
        )
        return self._ask(lambda database: sorted(database.execute(query, (CHALLENGER,)).fetchall()))

    def unreadable(self) -> dict[str, str]:
        """Return the folders that hold no result, with the reason."""
        query = "SELECT id, reason FROM unreadable ORDER BY id"
        return self._ask(lambda database: dict(database.execute(query).fetchall()))

    def rebuild(self) -> int:
        """Rebuild the catalogue from all manifests; return the number of results.

        Raises:
            BucketUnavailable: If they lie in a bucket that does not answer.
        """

        def fill(database: sqlite3.Connection) -> int:
            with transaction(database):
                database.execute("DELETE FROM results")
                database.execute("DELETE FROM unreadable")
                self._scan(database)
            return _count(database, "1", [])

        self._results.refresh(now=True)
        with self._lock:
            self._parsed.clear()
            return self._ask(fill)

    def _select(
        self, matching: ResultFilter, cursor: str | None, limit: int | None
    ) -> tuple[list[Entry], int]:
        """Return entries after `cursor`, newest first, and the number of all matching ones."""
        where, values = matching.where()
        query = f"SELECT {COLUMNS} FROM results WHERE {where}"  # noqa: S608 (no outside text)
        after = [] if cursor is None else [cursor]
        query += " AND position < ?" if after else ""
        query += f" ORDER BY position DESC LIMIT {-1 if limit is None else limit}"

        def ask(database: sqlite3.Connection) -> tuple[list[Entry], int]:
            with snapshot(database):
                rows = database.execute(query, [*values, *after]).fetchall()
                total = _count(database, where, values)
            return [Entry.from_row(row) for row in rows], total

        return self._ask(ask)

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query on an up-to-date catalogue: the file, a new file, or one in memory."""
        self._results.refresh()
        with self._lock:
            replaced = False
            while True:
                try:
                    database = self._connect()
                    self._heal(database)
                    return question(database)
                except sqlite3.DatabaseError as error:
                    if self._inode is None and time.monotonic() < self._memory_until:
                        raise StorageError(f"Expected a usable catalogue; {error}.") from error
                    inode = self._inode
                    self.close()
                    if replaced or getattr(error, "sqlite_errorcode", 1) & 0xFF in _UNUSABLE:
                        log.warning("catalogue kept in memory", reason=str(error))
                        self._memory_until = time.monotonic() + _MEMORY_SECONDS
                    else:
                        log.warning("catalogue replaced", reason=str(error))
                        replaced = True
                        _discard(self._layout, inode)

    def _connect(self) -> sqlite3.Connection:
        """Return the open catalogue; reopen it if its file was replaced."""
        path = self._layout.catalogue_file
        in_memory = time.monotonic() < self._memory_until
        if self._database is not None:
            if (self._inode is None) == in_memory and self._inode in (None, _inode(path)):
                return self._database
            self.close()
        self._database = sqlite3.connect(
            ":memory:" if in_memory else path,
            timeout=_LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        self._inode = None if in_memory else _inode(path)
        with suppress(sqlite3.OperationalError):  # another process is doing the same
            self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        create_tables(self._database, SCHEMA, SCHEMA_VERSION, replace=True)
        return self._database

    def _heal(self, database: sqlite3.Connection) -> None:
        """Update the catalogue from the folder of results."""
        if not self._is_current(database):
            with transaction(database):
                if not self._is_current(database):  # unless another process just did
                    self._scan(database)

    def _is_current(self, database: sqlite3.Connection) -> bool:
        """Return whether neither the folder nor an unreadable manifest changed since the scan."""
        row = database.execute("SELECT value FROM state WHERE name = 'listed'").fetchone()
        if row is None or row[0] != _stamp(self._layout.analyses):
            return False
        waiting = database.execute("SELECT id, stamp FROM unreadable").fetchall()
        return all(_stamp(_manifest_path(self._layout, name)) == stamp for name, stamp in waiting)

    def _scan(self, database: sqlite3.Connection) -> None:
        """Index new or rewritten manifests, and drop rows of removed ones."""
        # The time before listing: changes while manifests are read are found by the next scan.
        now, listed = time.time_ns(), _stamp(self._layout.analyses)
        query = "SELECT id, stamp FROM results UNION ALL SELECT id, stamp FROM unreadable"
        known: dict[str, int] = dict(database.execute(query).fetchall())
        with suppress(FileNotFoundError):
            for name in os.listdir(self._layout.analyses):
                stamp = _stamp(_manifest_path(self._layout, name))
                if known.pop(name, None) != stamp:
                    self._index(database, name, stamp)
        for name in known:
            _forget(database, name)
            self._parsed.pop(name, None)
        settled = now - listed > _SETTLED_NS
        database.execute(
            "INSERT OR REPLACE INTO state VALUES ('listed', ?)", (listed if settled else -1,)
        )

    def _index(self, database: sqlite3.Connection, name: str, stamp: int) -> None:
        """Insert or replace the row of one folder."""
        _forget(database, name)
        manifest, reason = _read(self._layout, name) if stamp else (None, "no manifest")
        if manifest is None:
            if stamp:
                log.warning("manifest unreadable", analysis=name, reason=reason)
            database.execute("INSERT INTO unreadable VALUES (?, ?, ?)", (name, stamp, reason))
            return
        row = Entry.of(manifest, stamp).to_row()
        places = ", ".join("?" * len(row))
        database.execute(f"INSERT INTO results VALUES ({places})", row)  # noqa: S608
        self._keep(manifest, stamp)

    def _keep(self, manifest: AnalysisManifest, stamp: int) -> None:
        with self._lock:
            self._parsed[manifest.id] = (stamp, manifest)
            self._parsed.move_to_end(manifest.id)
            while len(self._parsed) > _PARSED:
                self._parsed.popitem(last=False)


def _read(layout: Layout, name: str) -> tuple[AnalysisManifest | None, str]:
    """Return a manifest, or None and the reason."""
    try:
        manifest = read_manifest(layout, name)
    except (AppaError, ValueError, OSError) as error:
        return None, str(error)[:300]
    if manifest.id != name:
        return None, f"the manifest is that of '{manifest.id}'"
    return manifest, ""


def _manifest_path(layout: Layout, name: str) -> Path:
    """Return the path of the manifest in any folder, even one with an invalid name."""
    return layout.analyses / name / "manifest.json"


def _stamp(path: Path) -> int:
    """Return the modification time in nanoseconds; 0 if there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _count(database: sqlite3.Connection, where: str, values: list[str]) -> int:
    query = f"SELECT COUNT(*) FROM results WHERE {where}"  # noqa: S608 (no outside text)
    return int(database.execute(query, values).fetchone()[0])


def _forget(database: sqlite3.Connection, name: str) -> None:
    database.execute("DELETE FROM results WHERE id = ?", (name,))
    database.execute("DELETE FROM unreadable WHERE id = ?", (name,))


def _discard(layout: Layout, inode: int | None) -> None:
    """Delete a damaged file, unless another process has replaced it already."""
    path = layout.catalogue_file
    with suppress(OSError), (layout.root / ".catalogue.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _inode(path) == inode:
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
