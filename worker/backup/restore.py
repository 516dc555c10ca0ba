"""Bring an installation back: from a backup, or from its data folder alone where Redis was lost.

`restore_backup` puts back what a backup holds: files of the data folder, keys of Redis. Uploads,
observations and results are copied beside it as the files they are; `check_installation` then tells
which of those that the backup names are missing or damaged.

`recover` rebuilds what Redis held from what is on disk: uploads (`raw/`) with their records, their
rows in the observation store, results with their manifests, and in `records.sqlite` jobs, cycles and
webhooks. A running scheduler does the same by itself, step by step (`worker.archivist`, `Reconciler`
in `worker.scheduler`); `recover` does all steps at once, waits for entries that are too recent to be
judged, and reports what was restored. It may run while the system runs: every step is atomic and
idempotent.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from model.domain.errors import AppaError, ConfigurationError, StorageError
from model.domain.files import file_digest, sync_file, sync_folder
from worker.archivist import AnyStore, Archivist
from worker.backup.backup import BROKER, FILES, RESULTS, BackupManifest, is_passing
from worker.backup.broker import clear_keys, count_keys, restore_keys
from worker.contract.batches import BatchState
from worker.contract.cycles import CycleState
from worker.contract.jobs import JobState
from worker.contract.layout import Layout
from worker.contract.queues import TaskSender
from worker.contract.store import Stores, open_stores
from worker.contract.uploads import upload_store
from worker.observations.store.store import ObservationStore
from worker.results.catalogue import Catalogue
from worker.results.manifest import read_manifest
from worker.results.store import result_store
from worker.scheduler import Reconciler

__all__ = [
    "BackupCheck",
    "NotEmpty",
    "Recovered",
    "Restored",
    "check_installation",
    "recover",
    "require_room",
    "restore_backup",
]


class NotEmpty(ConfigurationError):
    """A data folder or a Redis server that holds an installation already."""

    code = "restore_not_empty"


@dataclass(frozen=True)
class Restored:
    """Files and keys that were restored.

    Attributes:
        files: Names in the data folder.
        keys: Keys of Redis; those that have expired since the backup are left out.
        aside: Folder to which existing files were moved; None if there were none.
    """

    files: list[str]
    keys: int
    aside: str | None = None


def restore_backup(
    folder: Path,
    manifest: BackupManifest,
    layout: Layout,
    url: str,
    prefix: str,
    *,
    replace: bool = False,
) -> Restored:
    """Put a backup back into an installation that does not run.

    Arguments:
        folder: The backup, opened and verified.
        manifest: Its manifest.
        layout: The data folder; made if absent.
        url: The Redis server.
        prefix: Prefix of the keys; that of the backup.
        replace: Whether to replace an existing installation: its keys are deleted and its files moved
            to `replaced-<time>`. Uploads, observations and results stay as they are.

    Raises:
        NotEmpty: If there is an installation and `replace` is not set, or it runs.
        ConfigurationError: If the keys cannot be put back: another prefix, an older server.
        StorageError: If Redis does not answer or a file cannot be written.
    """
    if prefix != manifest.prefix:
        raise ConfigurationError(
            f"Expected the prefix '{manifest.prefix}' of the backup, for records name their keys; "
            f"got '{prefix}'. Set APPA_REDIS_PREFIX={manifest.prefix}.",
            prefix=manifest.prefix,
        )
    _require_stopped(url, prefix)
    require_room(layout, replace=replace)
    if not replace and (keys := count_keys(url, prefix)):
        raise NotEmpty(
            f"Expected a Redis without keys under '{prefix}:'; {url} has {keys}. Give another "
            "server, or --replace to delete them.",
            keys=keys,
        )
    aside = _set_aside(layout) if replace else None
    layout.create()
    names = [part.name.removeprefix(f"{FILES}/") for part in manifest.parts if "/" in part.name]
    files = [_put_file(folder / FILES / name, layout, name) for name in names]
    clear_keys(url, prefix)
    keys = restore_keys(url, folder / BROKER)
    return Restored(files, keys, aside)


def _require_stopped(url: str, prefix: str) -> None:
    stores = open_stores(url, prefix)
    with closing(stores.redis):
        running = [report.name for report in stores.workers.alive()] if _answers(stores) else []
    if running:
        raise NotEmpty(
            f"Expected an installation that does not run; {', '.join(running)} report to {url}. "
            "Stop them and wait half a minute.",
            workers=running,
        )


def _answers(stores: Stores) -> bool:
    """Return whether the server answers; if not, its next use raises the error."""
    with suppress(Exception):
        return bool(stores.redis.ping())
    return False


def require_room(layout: Layout, *, replace: bool = False) -> None:
    """Refuse a data folder that is not empty, unless what it holds may be replaced.

    Raises:
        NotEmpty: If it holds anything.
    """
    found = [] if replace else sorted(_entries(layout))
    if found:
        raise NotEmpty(
            f"Expected an empty data folder; '{layout.root}' holds {', '.join(found[:5])}"
            f"{' …' if len(found) > 5 else ''}. Give another --data, or --replace to move the files "
            "in it aside and keep its uploads, observations and results.",
            found=found[:20],
        )


def _entries(layout: Layout) -> Iterator[str]:
    """Yield the entries of the data folder, except locks, empty folders and the server's files."""
    if not layout.root.is_dir():
        return
    for path in layout.root.iterdir():
        if path == layout.broker or (path.is_file() and is_passing(path)):
            continue
        if not path.is_dir() or any(path.iterdir()):
            yield path.name


def _set_aside(layout: Layout) -> str | None:
    """Move the files that lie in the data folder itself, SQLite's side files too, and the pins."""
    if not layout.root.is_dir():
        return None
    aside = layout.root / f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    moved = [p for p in layout.root.iterdir() if p.is_file() and not p.name.endswith(".lock")]
    moved += [layout.pins] if layout.pins.is_dir() else []
    if not moved:
        return None
    aside.mkdir(mode=0o700)
    for path in moved:
        path.rename(aside / path.name)
    return aside.name


def _put_file(source: Path, layout: Layout, name: str) -> str:
    target = layout.root / name
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.touch(mode=0o600)
        shutil.copyfile(source, target)
        sync_file(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageError(
            f"Expected to write '{target}'; {error}. Mend it, then restore again with --replace.",
            file=str(target),
        ) from error
    return name


# -- is everything there?


@dataclass
class BackupCheck:
    """Result of checking a data folder against a backup: what is named, and what is missing.

    Attributes:
        results: Published results.
        files: Their files.
        uploads: Uploads whose bytes or rows must be present.
        missing: What is wrong, by result or upload.
        newer: Results that were published after the backup.
    """

    results: int = 0
    files: int = 0
    uploads: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    newer: int = 0


def check_installation(
    folder: Path, layout: Layout, stores: Stores, *, digests: bool = False
) -> BackupCheck:
    """Compare what is in a data folder with what a backup and the records name.

    Results: each that the backup lists has a manifest, whose files have the size,
    and on request the SHA-256, that it states. Uploads: one that waits has its bytes; one that was
    ingested has its rows in the observation store.

    Arguments:
        folder: The backup, opened and verified.
        layout: The data folder, after the bulk was copied.
        stores: The records, as restored.
        digests: Whether all bytes of results are read.
    """
    found = BackupCheck()
    listed = (folder / RESULTS).read_text().split()
    result_store(layout).refresh(now=True)
    for name in listed:
        _check_result(found, layout, name, digests=digests)
    there = {path.parent.name for path in layout.analyses.glob("*/manifest.json")}
    found.newer = len(there - set(listed))
    _check_uploads(found, layout, stores)
    return found


def _check_result(found: BackupCheck, layout: Layout, name: str, *, digests: bool) -> None:
    found.results += 1
    try:
        manifest = read_manifest(layout, name)
    except (AppaError, ValueError, OSError) as error:
        found.missing[name] = f"no manifest: {error}"
        return
    results = result_store(layout)
    for entry in manifest.files:
        found.files += 1
        size = results.stored_bytes(name, entry)
        if size != entry.size:
            found.missing[name] = f"{entry.name}: expected {entry.size} bytes, got {size}"
        elif digests and file_digest(results.file(name, entry.name)) != entry.sha256:
            found.missing[name] = f"{entry.name}: its SHA-256 is not that of the manifest"


def _check_uploads(found: BackupCheck, layout: Layout, stores: Stores) -> None:
    uploads = upload_store(layout)
    stored = set(ObservationStore.of(layout).files.batches())
    for state in (BatchState.RECEIVED, BatchState.INGESTING):
        for name in stores.batches.ids(state):
            found.uploads += 1
            if name not in stored and not uploads.has(name):
                where = layout.uploads_url or f"raw/{name}"
                found.missing[name] = f"{state.value}, but its bytes are not in '{where}'"
    for name in _ingested(stores):
        found.uploads += 1
        if name not in stored:
            found.missing[name] = "ingested, but no rows of it are in 'observations/'"


def _ingested(stores: Stores) -> Iterator[str]:
    yield from stores.batches.ids(BatchState.INGESTED)
    if stores.archive is not None:
        yield from stores.archive.states("batch", "", state=BatchState.INGESTED)


_PAUSE = 0.5


@dataclass
class Recovered:
    """Contents of an installation after a recovery.

    Attributes:
        results: Published results in the catalogue.
        unreadable: Folders among them that hold no result, with the reason.
        uploads: Uploads with a record, by state.
        jobs: Jobs, by state.
        cycles: Cycles, by state.
        webhooks: Subscriptions.
        restored: Records restored by this call, by noun.
        unusable: Uploads on disk for which no record can be created.
        young: Uploads and jobs that were still too recent at the end; the scheduler restores them.
    """

    results: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    cycles: dict[str, int] = field(default_factory=dict)
    webhooks: int = 0
    restored: dict[str, int] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    young: int = 0

    @property
    def whole(self) -> bool:
        """Return whether all entries were restored: none was unreadable, unusable or too recent."""
        return not (self.unreadable or self.unusable or self.young)


def recover(
    layout: Layout, stores: Stores, sender: TaskSender, *, grace_seconds: float = 30.0
) -> Recovered:
    """Recreate the records of all that the data folder holds, and the catalogue of results.

    Arguments:
        layout: The data folder.
        stores: All records, with the archive of the data folder.
        sender: Sends the messages of uploads and jobs that had not ended.
        grace_seconds: Age below which a gateway may still be creating the record of an upload or job;
            such entries are waited for. 0 where no gateway runs.

    Raises:
        StorageError: If there is no data folder, or it cannot be read or written.
        RedisError: If the server does not answer.
    """
    if not layout.raw.is_dir():
        raise StorageError(f"Expected the data folder of an installation; got '{layout.root}'.")
    records: tuple[AnyStore, ...] = (stores.batches, stores.jobs, stores.cycles)
    before = {store.noun: _in_redis(store) for store in records}
    found = Recovered()
    with Catalogue(layout) as catalogue:
        found.results = catalogue.rebuild()
        found.unreadable = catalogue.unreadable()
    archivist = Archivist(stores, layout, sender, every=0.0, just_written_seconds=grace_seconds)
    reconciler = Reconciler(layout, stores, sender, 0.0, grace_seconds, float("inf"))
    end = time.monotonic() + grace_seconds + 1.0
    while (young := archivist.recover() + len(reconciler.recover())) and time.monotonic() < end:
        time.sleep(_PAUSE)
    found.young, found.unusable = young, reconciler.unusable
    found.restored = {store.noun: _in_redis(store) - before[store.noun] for store in records}
    found.uploads = _by_state(stores.batches, BatchState)
    found.jobs = _by_state(stores.jobs, JobState)
    found.cycles = _by_state(stores.cycles, CycleState)
    found.webhooks = int(stores.redis.hlen(stores.keys.webhooks))
    return found


def _in_redis(store: AnyStore) -> int:
    return int(store.redis.zcard(f"{store.keys.index(store.noun)}:all"))


def _by_state(store: AnyStore, states: type[StrEnum]) -> dict[str, int]:
    counts = {state.value: store.count(state.value) for state in states}
    return {state: count for state, count in counts.items() if count}
