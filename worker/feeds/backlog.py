"""Persist the backlog of the feeds: notifications to fetch, finished items, announcements to send.

One SQLite file holds the items to fetch, finished items (for as long as a duplicate notification may
arrive), the counters of each source, and the announcements to other centres. A notification is
acknowledged to its broker only after it is stored here, and an item is finished only after the upload
is accepted: after a crash in between, the step is repeated and recognises duplicates.

Items are identified by the identifier of their data (`data_id`). The same data announced by several
brokers or caches are one item with several links. A later update of the data is fetched again.
"""

import fcntl
import json
import random
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from worker.contract.database import transaction
from worker.contract.feeds import SourceStatus
from worker.feeds.notification import InlineContent, Integrity, Link, Notification
from worker.feeds.sources import Source

__all__ = ["Announcement", "Backlog", "BacklogItem", "Received", "feeds_run", "only_one"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items(
  data_id TEXT PRIMARY KEY, source TEXT NOT NULL, state TEXT NOT NULL, notification TEXT NOT NULL,
  published REAL NOT NULL, received REAL NOT NULL, file_name TEXT NOT NULL, links TEXT NOT NULL,
  integrity TEXT, content TEXT, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL,
  reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '',
  ended REAL, version INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS waiting ON items(source, due) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS ended ON items(ended) WHERE ended IS NOT NULL;
CREATE TABLE IF NOT EXISTS counters(
  source TEXT, name TEXT, value REAL NOT NULL, PRIMARY KEY(source, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS announcements(
  event TEXT PRIMARY KEY, topic TEXT NOT NULL, message TEXT NOT NULL, created REAL NOT NULL,
  begun REAL, sent REAL);
CREATE TABLE IF NOT EXISTS marks(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_LINE = {"connected", "detail", "since"}
_MAX_LINKS = 8
REMEMBERED_SECONDS = 7 * 86_400.0
"""Seconds that identifiers of finished items are kept; Global Caches repeat nothing older than a day."""


@dataclass(frozen=True)
class Received:
    """A notification received from a broker.

    Attributes:
        notification: Its content.
        time: When it was received, in seconds since 1970.
    """

    notification: Notification
    time: float


@dataclass(frozen=True)
class BacklogItem:
    """Announced data that are still to be fetched.

    Attributes:
        attempts: Number of failed fetches.
        version: Number of announced updates of the data.
        published, received: Times in seconds since 1970.
    """

    data_id: str
    notification: str
    file_name: str
    links: tuple[Link, ...]
    integrity: Integrity | None
    content: InlineContent | None
    attempts: int
    published: float
    received: float
    version: int


@dataclass(frozen=True)
class Announcement:
    """A message about a result that the broker has not confirmed.

    Attributes:
        event: Id of the announced result.
        topic: MQTT topic.
        message: JSON text.
        begun: Whether it may have been sent already.
    """

    event: str
    topic: str
    message: str
    begun: bool


class Backlog:
    """The items, counters and announcements of one installation; its methods return quickly.

    Announcements may be recorded from another thread than the rest.

    Arguments:
        path: The SQLite file; created if absent.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # acknowledged data must survive a power cut
        self._db.executescript(_SCHEMA)
        if "version" not in {row[1] for row in self._db.execute("PRAGMA table_info(items)")}:
            self._db.execute("ALTER TABLE items ADD COLUMN version INTEGER NOT NULL DEFAULT 0")
        self._lines: dict[str, str] = {}
        self._changing = threading.Lock()  # serialises the transactions of both threads

    def close(self) -> None:
        """Close the connection to the SQLite file."""
        self._db.close()

    # -- notifications

    def take(
        self, source: Source, received: Iterable[Received], refused: Mapping[str, int] = {}
    ) -> int:
        """Store notifications in one transaction and return the number of new items to fetch.

        Arguments:
            source: The source they came from.
            received: Valid notifications.
            refused: Number of other notifications, which are not stored, by reason.
        """
        fresh = 0
        with self._transaction():
            for one in received:
                outcome = self._take(source, one)
                fresh += outcome == "fresh"
                self._count(source.name, "received")
                if outcome != "fresh":
                    self._count(source.name, outcome)
                self._set(source.name, "last_received", one.time)
            for reason, count in refused.items():
                self._count(source.name, "received", count)
                self._count(source.name, f"refused:{reason}", count)
        return fresh

    def _take(self, source: Source, received: Received) -> str:
        """Store one notification; return `fresh`, `duplicates`, or the reason it is refused."""
        message = received.notification
        data_id = message.properties.data_id
        if message.deletes:
            return "refused:deletion"
        found = self._db.execute(
            "SELECT state, published, links, version FROM items WHERE data_id = ?", (data_id,)
        ).fetchone()
        published = message.properties.pubtime.timestamp()
        if found is None or (message.updates and published > found[1]):
            before = found[3] if found is not None else 0
            self._store(source, received, published, before + message.updates)
            return "fresh"
        state, _, links, _ = found
        known = [Link.model_validate(link) for link in json.loads(links)]
        new = [link for link in message.data_links if link.href not in {k.href for k in known}]
        if state != "done" and new and len(known) < _MAX_LINKS:
            self._more_links(source, data_id, state, [*known, *new][:_MAX_LINKS], received.time)
        return "duplicates"

    def _store(self, source: Source, received: Received, published: float, version: int) -> None:
        message = received.notification
        properties = message.properties
        self._db.execute(
            "INSERT OR REPLACE INTO items(data_id, source, state, notification, published, received,"
            " file_name, links, integrity, content, due, version)"
            " VALUES (?,?,'waiting',?,?,?,?,?,?,?,?,?)",
            (
                properties.data_id,
                source.name,
                str(message.id),
                published,
                received.time,
                message.file_name,
                _links(message.data_links),
                properties.integrity.model_dump_json() if properties.integrity else None,
                properties.content.model_dump_json() if properties.content else None,
                received.time,
                version,
            ),
        )

    def _more_links(
        self, source: Source, data_id: str, state: str, links: Sequence[Link], now: float
    ) -> None:
        """Add links to an item; one that was given up is retried, for the source of the new link."""
        self._db.execute("UPDATE items SET links = ? WHERE data_id = ?", (_links(links), data_id))
        if state == "refused":
            self._db.execute(
                "UPDATE items SET state = 'waiting', source = ?, attempts = 0, due = ?,"
                " received = ?, reason = '', detail = '', ended = NULL WHERE data_id = ?",
                (source.name, now, now, data_id),
            )

    # -- fetching

    def due(self, source: str, limit: int, busy: Iterable[str], now: float) -> list[BacklogItem]:
        """Return the due items of a source, oldest first, without those in `busy`."""
        skipped = set(busy)
        rows = self._db.execute(
            "SELECT data_id, notification, file_name, links, integrity, content, attempts,"
            " published, received, version FROM items WHERE state = 'waiting' AND source = ? AND due <= ?"
            " ORDER BY due LIMIT ?",
            (source, now, limit + len(skipped)),
        )
        return [_item(row) for row in rows if row[0] not in skipped][:limit]

    def next_due(self, source: str) -> float | None:
        """Return when the next item of a source is due; None without any."""
        row = self._db.execute(
            "SELECT min(due) FROM items WHERE state = 'waiting' AND source = ?", (source,)
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def finish(
        self, source: str, item: BacklogItem, batch: str, size: int, *, created: bool
    ) -> None:
        """Finish an item: its data were accepted, or are known already."""
        now = time.time()
        with self._transaction():
            self._end(item, "done", "", "", batch, now)
            self._count(source, "accepted" if created else "known")
            if created:
                self._count(source, "size", size)
                self._set(source, "last_accepted", now)
                self._set(source, "latency", max(0.0, now - item.published))

    def refuse(self, source: str, item: BacklogItem, reason: str, detail: str) -> None:
        """Give up an item whose data cannot be used; counted by reason."""
        with self._transaction():
            self._end(item, "refused", reason, detail, "", time.time())
            self._count(source, f"refused:{reason}")

    def postpone(
        self, source: Source, item: BacklogItem, detail: str, wait: float | None = None
    ) -> None:
        """Schedule a retry of an item with exponential back-off and ±20 % jitter."""
        pause = source.retry_seconds * 2.0 ** min(item.attempts, 30)
        pause = min(max(pause, wait or 0.0), source.retry_max_seconds) * random.uniform(0.8, 1.2)  # noqa: S311
        with self._transaction():
            self._db.execute(
                "UPDATE items SET attempts = attempts + 1, due = ?, detail = ?"
                " WHERE data_id = ? AND notification = ? AND state = 'waiting'",
                (time.time() + pause, detail, item.data_id, item.notification),
            )
            self._count(source.name, "failures")

    def _end(
        self, item: BacklogItem, state: str, reason: str, detail: str, batch: str, now: float
    ) -> None:
        """Set the final state of an item, unless an update with another notification arrived meanwhile."""
        self._db.execute(
            "UPDATE items SET state = ?, reason = ?, detail = ?, batch = ?, ended = ?,"
            " content = NULL WHERE data_id = ? AND notification = ?",
            (state, reason, detail, batch, now, item.data_id, item.notification),
        )

    # -- figures

    def waiting(self, source: str) -> int:
        """Return the number of items of a source in the backlog."""
        query = "SELECT count(*) FROM items WHERE state = 'waiting' AND source = ?"
        return int(self._db.execute(query, (source,)).fetchone()[0])

    def status(self, source: Source, now: float | None = None) -> SourceStatus:
        """Return the figures of a source, without the state of its connection."""
        now = time.time() if now is None else now
        count, oldest = self._db.execute(
            "SELECT count(*), min(received) FROM items WHERE state = 'waiting' AND source = ?",
            (source.name,),
        ).fetchone()
        values: dict[str, float] = dict(
            self._db.execute("SELECT name, value FROM counters WHERE source = ?", (source.name,))
        )
        refused = {k[8:]: int(v) for k, v in values.items() if k.startswith("refused:")}
        plain = ("received", "duplicates", "accepted", "known", "failures", "size")
        return SourceStatus(
            name=source.name,
            broker=source.address,
            topics=source.topics,
            backlog=count,
            lag_seconds=max(0.0, now - oldest) if count else 0.0,
            latency_seconds=values.get("latency"),
            refused=refused,
            last_received=_time(values.get("last_received")),
            last_accepted=_time(values.get("last_accepted")),
            **{name: int(values.get(name, 0)) for name in plain},
        )

    def store_connection(self, status: SourceStatus) -> None:
        """Store whether a source is connected, for readers of this file."""
        text = status.model_dump_json(include=_LINE)
        if self._lines.get(status.name) != text:
            self._lines[status.name] = text
            values = (f"line:{status.name}", text)
            self._db.execute("INSERT OR REPLACE INTO marks VALUES (?,?)", values)

    def line(self, status: SourceStatus) -> SourceStatus:
        """Return `status` with the last stored state of its connection."""
        text = self.mark(f"line:{status.name}")
        found = SourceStatus.model_validate({"name": status.name, **json.loads(text or "{}")})
        return status.model_copy(update={name: getattr(found, name) for name in _LINE})

    def refusals(self, source: str, limit: int = 20) -> list[tuple[str, str, str]]:
        """Return the newest items of a source that were given up: identifier, reason, detail."""
        query = (
            "SELECT data_id, reason, detail FROM items WHERE state = 'refused' AND source = ?"
            " ORDER BY ended DESC LIMIT ?"
        )
        return [(str(a), str(b), str(c)) for a, b, c in self._db.execute(query, (source, limit))]

    def forget(self, older_than: float = REMEMBERED_SECONDS) -> int:
        """Remove items finished more than `older_than` seconds ago; return their number."""
        gone = self._db.execute("DELETE FROM items WHERE ended < ?", (time.time() - older_than,))
        return gone.rowcount

    def drop(self, source: str) -> None:
        """Remove the backlog and counters of a source that was removed."""
        with self._transaction():
            self._db.execute("DELETE FROM items WHERE state = 'waiting' AND source = ?", (source,))
            self._db.execute("DELETE FROM counters WHERE source = ?", (source,))

    def drop_others(self, sources: Collection[str]) -> None:
        """Drop the backlog of all sources not in `sources`: they were removed while no feed was running."""
        found = self._db.execute(
            "SELECT DISTINCT source FROM items WHERE state = 'waiting' UNION"
            " SELECT DISTINCT source FROM counters"
        )
        for (name,) in found.fetchall():
            if name not in sources:
                self.drop(name)

    # -- announcements

    def mark(self, name: str) -> str | None:
        """Return the value stored under a name."""
        row = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def queue(self, name: str, value: str, messages: Iterable[tuple[str, str, str]]) -> int:
        """Store a value under a name and, atomically, queue new announcements (event, topic, message)."""
        added = 0
        with self._transaction():
            for event, topic, message in messages:
                added += self._db.execute(
                    "INSERT OR IGNORE INTO announcements VALUES (?,?,?,?,NULL,NULL)",
                    (event, topic, message, time.time()),
                ).rowcount
            self._db.execute("INSERT OR REPLACE INTO marks VALUES (?,?)", (name, value))
        return added

    def unsent(self, limit: int = 100) -> list[Announcement]:
        """Return queued announcements in their order."""
        query = (
            "SELECT event, topic, message, begun IS NOT NULL FROM announcements"
            " WHERE sent IS NULL ORDER BY created, rowid LIMIT ?"
        )
        rows = self._db.execute(query, (limit,)).fetchall()
        return [Announcement(a, b, c, bool(d)) for a, b, c, d in rows]

    def begin(self, event: str) -> None:
        """Record that an announcement is about to be sent."""
        query = "UPDATE announcements SET begun = ? WHERE event = ?"
        with self._transaction():
            self._db.execute(query, (time.time(), event))

    def sent(self, event: str) -> bool:
        """Record that the broker has confirmed an announcement; return whether it was unconfirmed."""
        query = "UPDATE announcements SET sent = ? WHERE event = ? AND sent IS NULL"
        with self._transaction():
            return bool(self._db.execute(query, (time.time(), event)).rowcount)

    def delay(self, event: str) -> float:
        """Return the seconds from queueing an announcement to its confirmation, or to now."""
        query = "SELECT coalesce(sent, ?) - created FROM announcements WHERE event = ?"
        row = self._db.execute(query, (time.time(), event)).fetchone()
        return max(0.0, row[0]) if row else 0.0

    def unconfirmed(self) -> tuple[int, float]:
        """Return the number of unconfirmed announcements, and the age of the oldest in seconds."""
        query = "SELECT count(*), min(created) FROM announcements WHERE sent IS NULL"
        count, oldest = self._db.execute(query).fetchone()
        return count, max(0.0, time.time() - oldest) if count else 0.0

    def echoed(self, message: str) -> str | None:
        """Record that an announcement was delivered; return its event if it was unconfirmed."""
        # RETURNING needs SQLite 3.35; eccodes bundles one of 2018, which may be the one in use.
        unknown = "message = ? AND begun IS NOT NULL AND sent IS NULL"
        with self._transaction():
            row = self._db.execute(
                f"SELECT event FROM announcements WHERE {unknown}",  # noqa: S608 (no outside text)
                (message,),
            ).fetchone()
            if row is not None:
                self._db.execute(
                    f"UPDATE announcements SET sent = ? WHERE {unknown}",  # noqa: S608
                    (time.time(), message),
                )
        return None if row is None else str(row[0])

    # -- plumbing

    def _count(self, source: str, name: str, value: float = 1) -> None:
        self._db.execute(
            "INSERT INTO counters VALUES (?,?,?)"
            " ON CONFLICT(source, name) DO UPDATE SET value = value + excluded.value",
            (source, name, value),
        )

    def _set(self, source: str, name: str, value: float) -> None:
        self._db.execute("INSERT OR REPLACE INTO counters VALUES (?,?,?)", (source, name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._changing, transaction(self._db):
            yield


@contextmanager
def only_one(backlog_file: Path) -> Iterator[bool]:
    """Try to lock the feeds of a data folder; yield whether this process holds the lock."""
    with backlog_file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def feeds_run(backlog_file: Path) -> bool:
    """Return whether a process on this machine runs the feeds of this data folder."""
    with only_one(backlog_file) as alone:
        return not alone


def _links(links: Sequence[Link]) -> str:
    return json.dumps([link.model_dump(exclude_none=True) for link in links])


def _item(row: Sequence[Any]) -> BacklogItem:
    return BacklogItem(
        data_id=row[0],
        notification=row[1],
        file_name=row[2],
        links=tuple(Link.model_validate(link) for link in json.loads(row[3])),
        integrity=Integrity.model_validate_json(row[4]) if row[4] else None,
        content=InlineContent.model_validate_json(row[5]) if row[5] else None,
        attempts=row[6],
        published=row[7],
        received=row[8],
        version=row[9],
    )


def _time(value: float | None) -> datetime | None:
    return None if value is None else datetime.fromtimestamp(value, UTC)
