"""Name the files of the observation store and read which of them are published.

    <root>/date=2025-01-01/hour=06/<arrival>__<owner>__<hash>.parquet   rows of one hour
    <root>/date=2025-01-01/hour=06/_compaction-000001.json              one file replaces many
    <root>/commits/date=2025-01-01/hour=06.log                          manifests, a line each commit
                                           (a folder of parts in a bucket)
    <root>/batches/<batch>.json                                         manifest of a batch alone

The owner of a file is a commit of one or more batches (`worker.observations.store.commits`), or a
batch that was published alone. Data files are immutable. A file is visible only if its commit or its
batch's manifest exists, or if the newest compaction of its hour names it; so readers never see part of
a batch, or a row twice.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from model.domain.errors import InvalidInput, StorageError
from worker.contract.batches import IngestSummary
from worker.contract.layout import OBSERVATIONS_CACHE_BYTES, Layout
from worker.observations.store.commits import (
    Commit,
    CommitLog,
    commit_hour,
    hour_of_batch,
    hour_of_log,
    log_of,
)
from worker.observations.store.places import StorageBackend, place_of

__all__ = [
    "BatchManifest",
    "SHARED",
    "Compaction",
    "StoreFiles",
    "StoredFile",
    "VisibleFiles",
    "hour_of",
    "parse_name",
    "partition_path",
    "shared_path",
]


class StoredFile(BaseModel):
    """One file of a batch.

    Attributes:
        path: Relative to the store's root.
        rows: Number of rows.
        sha256: Of its bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    rows: int
    sha256: str


class BatchManifest(BaseModel):
    """The rows of one batch, published as a whole by this file's appearance.

    Attributes:
        batch_id: The upload.
        received_time: Its arrival at the gateway.
        created: When it was published.
        content_hash: SHA-256 over the hashes of its files.
        rows: Number of rows.
        files: Where they are.
        provenance: How they were made: decoder counts, effective parameters, versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_id: str
    received_time: AwareDatetime
    created: AwareDatetime
    content_hash: str
    rows: int
    files: tuple[StoredFile, ...]
    provenance: dict[str, Any] = {}

    @property
    def summary(self) -> IngestSummary:
        """Return the summary of the upload from its rows in the store."""
        kept = self.provenance.get("summary")
        if kept is None:
            return IngestSummary(observations=self.rows)
        return IngestSummary.model_validate(kept)


class Compaction(BaseModel):
    """A compacted file that replaces others of one hour.

    Attributes:
        generation: Rises with each compaction of the hour.
        created: When it was published.
        file: The new file.
        replaces: Names of the files it stands for, in the same folder.
        batches: Whose rows it holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int
    created: AwareDatetime
    file: StoredFile
    replaces: tuple[str, ...]
    batches: tuple[str, ...]


SHARED = "shared"
"""Key of a provenance value stored in a separate file named by its digest."""

_ALWAYS = datetime(1, 1, 1, tzinfo=UTC)
_LISTED_FROM = timedelta(hours=72)
"""Periods with more hours than this are searched by listing the existing folders."""

_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def hour_of(time: datetime) -> datetime:
    """Return the full hour at or before `time`, UTC."""
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def partition_path(hour: datetime) -> str:
    """Return the folder of an hour, `date=2025-01-01/hour=06`, relative to the root."""
    return f"date={hour:%Y-%m-%d}/hour={hour:%H}"


def parse_name(name: str) -> tuple[datetime, str] | None:
    """Return the arrival and batch in the name of a data file; None for any other file."""
    if name.startswith((".", "_")) or not name.endswith(".parquet") or name.count("__") < 2:
        return None
    stamp, rest = name.split("__", 1)
    try:
        arrival = datetime.strptime(stamp, "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return arrival, rest.rsplit("__", 1)[0]


@dataclass(frozen=True)
class VisibleFiles:
    """The files to read for one hour.

    Attributes:
        paths: Relative to the root, in order of arrival; a compacted file comes first.
        later: Batches in the compacted file that are not yet to be visible.
    """

    paths: tuple[str, ...]
    later: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoreFiles:
    """The files below one root, in a folder or in a bucket.

    Attributes:
        url: The folder, or `s3://bucket/prefix`.
        cache: Local folder for the disk cache of a bucket.
        cache_bytes: Size limit of the cache.
    """

    url: str
    cache: str = ""
    cache_bytes: int = OBSERVATIONS_CACHE_BYTES

    @classmethod
    def of(cls, layout: Layout) -> "StoreFiles":
        """Return the files of an installation's store."""
        folder = str(layout.observations)
        if not layout.observations_url:
            return cls(folder)
        return cls(layout.observations_url, folder, layout.observations_cache_bytes)

    @property
    def place(self) -> StorageBackend:
        """Return the folder or bucket in which the files lie."""
        return place_of(self.url, self.cache, self.cache_bytes)

    def batch_path(self, batch_id: str) -> str:
        """Return the path of a batch's manifest, relative to the root."""
        if not _BATCH.fullmatch(batch_id):
            raise InvalidInput(
                f"Expected a batch id of letters, digits, '.', '_' and '-'; got {batch_id!r}.",
                batch_id=batch_id,
            )
        return f"batches/{batch_id}.json"

    def manifest(self, batch_id: str) -> BatchManifest | None:
        """Return the manifest of a batch; None while it is not published."""
        if (log := self.log_of_batch(batch_id)) and (commit := log.of_batch(batch_id)):
            found = next(m for m in log.content(commit) if m["batch_id"] == batch_id)
            return BatchManifest.model_validate(self._resolved(found))
        text = self.read_text(self.batch_path(batch_id))
        return None if text is None else BatchManifest.model_validate_json(text)

    def manifests(self, batch_ids: Iterable[str]) -> dict[str, BatchManifest]:
        """Return the manifests of the published ones of some batches; cheaper than one by one."""
        names, found = list(batch_ids), dict[str, BatchManifest]()
        by_log: dict[CommitLog, list[str]] = {}
        for name in names:
            if (log := self.log_of_batch(name)) is not None:
                by_log.setdefault(log, []).append(name)
        for log, some in by_log.items():
            commits = log.of_batches(some)
            for content in log.contents(set(commits.values())) if commits else ():
                if content["batch_id"] in commits:
                    manifest = BatchManifest.model_validate(self._resolved(content))
                    found[manifest.batch_id] = manifest
        alone = [name for name in names if name not in found]
        texts = self.place.read_many([self.batch_path(name) for name in alone])
        for name, text in zip(alone, texts, strict=True):
            if text is not None:
                found[name] = BatchManifest.model_validate_json(text)
        return found

    def content_hashes(self, batch_ids: Iterable[str]) -> dict[str, str]:
        """Return the hash of the rows of each batch that is published, in the order asked for."""
        names, found = list(batch_ids), dict[str, str]()
        commits: dict[int, tuple[CommitLog, dict[str, Commit]]] = {}
        for name in names:
            log = self.log_of_batch(name)
            commit = None if log is None else log.of_batch(name)
            if log is not None and commit is not None:
                commits.setdefault(id(log), (log, {}))[1][commit.name] = commit
            elif _BATCH.fullmatch(name) and (manifest := self.manifest(name)) is not None:
                found[name] = manifest.content_hash
        for log, some in commits.values():
            for content in log.contents(some.values()):
                found[content["batch_id"]] = content["content_hash"]
        return {name: found[name] for name in names if name in found}

    def batches(self) -> Iterator[str]:
        """Yield the ids of all published batches, in order."""
        alone = {n[:-5] for n in self.names("batches") if n.endswith(".json")}
        yield from sorted(alone.union(*(c.batches for log in self.logs() for c in log.commits())))

    # -- commits

    def log_of_batch(self, batch_id: str) -> CommitLog | None:
        """Return the log that may hold a batch; None if its id names no hour."""
        hour = hour_of_batch(batch_id)
        return None if hour is None else self.log(hour)

    def log(self, hour: datetime) -> CommitLog:
        """Return the log of the batches whose ids name an hour."""
        return log_of(self.url, hour)

    def logs(self, since: datetime = _ALWAYS) -> Iterator[CommitLog]:
        """Yield the logs of the hours from `since` on, in order."""
        for day in self.names("commits"):
            if day < f"date={since:%Y-%m-%d}":
                continue
            for name in self.names(f"commits/{day}"):
                hour = hour_of_log(f"{day}/{name}")
                if hour >= since:
                    yield self.log(hour)

    def _resolved(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return a manifest with shared values inserted in place of their digests."""
        provenance = {
            key: self._shared(value[SHARED])
            if isinstance(value, dict) and SHARED in value
            else value
            for key, value in manifest["provenance"].items()
        }
        return {**manifest, "provenance": provenance}

    def _shared(self, digest: str) -> Any:
        return json.loads(_read_shared(self, digest))

    def owned(self, folder: str, name: str, owner: str) -> tuple[str, ...] | None:
        """Return the batches with rows in a data file; None while it is not published.

        Arguments:
            folder: Folder of the hour, relative to the root.
            name: Name of the file.
            owner: The batch or commit in its name.
        """
        hour = commit_hour(owner)
        if hour is None:
            return (owner,) if f"{folder}/{name}" in _published(self, owner) else None
        commit = self.log(hour).find(owner)
        return None if commit is None else commit.batches

    def names(self, folder: str) -> list[str]:
        """Return the file names in a folder relative to the root, sorted; empty if it does not exist."""
        return self.place.names(folder)

    def read_text(self, relative: str) -> str | None:
        """Return the content of a small file, None if it does not exist."""
        content = self.place.read(relative)
        return None if content is None else content.decode()

    def days(self) -> Iterator[datetime]:
        """Yield the days (UTC) that have a folder, in order."""
        for name in self.names(""):
            with suppress(ValueError):
                day = datetime.fromisoformat(name.removeprefix("date="))
                yield day.replace(tzinfo=UTC)

    def day_bytes(self, day: datetime) -> int:
        """Return the bytes of a day."""
        return self.place.sizes(f"date={day:%Y-%m-%d}")

    def remove_day(self, day: datetime) -> bool:
        """Delete all rows observed on a day; return whether there were any."""
        return self.place.remove_folder(f"date={day:%Y-%m-%d}")

    def compaction(self, hour: datetime, names: list[str] | None = None) -> Compaction | None:
        """Return the newest compaction of an hour."""
        folder = partition_path(hour)
        names = self.names(folder) if names is None else names
        found = [n for n in names if n.startswith("_compaction-") and n.endswith(".json")]
        if not found:
            return None
        text = self.read_text(f"{folder}/{found[-1]}")
        if text is None:
            raise FileNotFoundError(found[-1])  # replaced by a newer one; readers list again
        return _parse_compaction(text)

    def known_batches(self, hours: Iterable[datetime]) -> frozenset[str]:
        """Return the batches with rows in `hours` that are published now, as a snapshot.

        A query of several hours is restricted to these: otherwise a batch published while the hours
        are listed one after the other would be visible only in the later ones.
        """
        known: set[str] = set()
        for hour in hours:
            names = self.names(partition_path(hour))
            compaction = self.compaction(hour, names)
            replaced = _replaced(compaction)
            known.update(() if compaction is None else compaction.batches)
            for name in names:
                if name not in replaced and (parsed := parse_name(name)):
                    known.update(self.owned(partition_path(hour), name, parsed[1]) or ())
        return frozenset(known)

    def visible(
        self,
        hour: datetime,
        cut_off: datetime | None = None,
        known: frozenset[str] | None = None,
    ) -> VisibleFiles:
        """Return the published files of an hour that may hold rows received up to `cut_off`.

        Arguments:
            hour: A full hour.
            cut_off: Leave out files that arrived later.
            known: From `known_batches`; None takes every batch published now.
        """
        folder = partition_path(hour)
        names = self.names(folder)
        compaction = self.compaction(hour, names)
        replaced = _replaced(compaction)
        paths = [] if compaction is None else [compaction.file.path]
        for name in names:
            parsed = parse_name(name)
            if parsed is None or name in replaced:
                continue
            arrival, owner = parsed
            if cut_off is not None and arrival > cut_off:
                continue
            batches = self.owned(folder, name, owner)
            if batches is not None and (known is None or known.issuperset(batches)):
                paths.append(f"{folder}/{name}")
        merged = () if compaction is None else compaction.batches
        later = () if known is None else tuple(b for b in merged if b not in known)
        return VisibleFiles(tuple(paths), later)

    def hours(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Yield the hours whose partitions may hold times in (start, end]; existing ones if many."""
        hour, last = hour_of(start), hour_of(end)
        if last - hour > _LISTED_FROM:
            yield from self.existing(hour, last)
            return
        while hour <= last:
            yield hour
            hour += timedelta(hours=1)

    def existing(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """Yield the hours from `first` to `last` that have a folder, in order."""
        for day in self.names(""):
            date = day.removeprefix("date=")
            if day == date or not f"{first:%Y-%m-%d}" <= date <= f"{last:%Y-%m-%d}":
                continue
            for folder in self.names(day):
                hour = datetime.fromisoformat(f"{date}T{folder.removeprefix('hour=')}:00+00:00")
                if first <= hour <= last:
                    yield hour


def shared_path(digest: str) -> str:
    """Return the path of a value shared by manifests, relative to the root."""
    return f"shared/{digest}.json"


@lru_cache(maxsize=16)
def _parse_compaction(text: str) -> Compaction:
    return Compaction.model_validate_json(text)


@lru_cache(maxsize=64)
def _read_shared(files: StoreFiles, digest: str) -> str:
    text = files.read_text(shared_path(digest))
    if text is None:
        raise StorageError(
            f"Expected '{shared_path(digest)}' in the observation store, which manifests name; it "
            "is gone. Restore it from a backup."
        )
    return text


def _replaced(compaction: Compaction | None) -> frozenset[str]:
    if compaction is None:
        return frozenset()
    # Its own file is in the same folder.
    return frozenset((*compaction.replaces, compaction.file.path.rsplit("/", 1)[1]))


def _published(files: StoreFiles, batch_id: str) -> frozenset[str]:
    """Return the paths of a published batch; empty, and not cached, before its publication."""
    try:
        return _published_files(files, batch_id)
    except LookupError:
        return frozenset()


@lru_cache(maxsize=8192)
def _published_files(files: StoreFiles, batch_id: str) -> frozenset[str]:
    text = files.read_text(files.batch_path(batch_id))
    if text is None:
        raise LookupError(batch_id)
    return frozenset(entry["path"] for entry in json.loads(text)["files"])
