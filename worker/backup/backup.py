"""Back up an installation's records, settings and keys, without uploads, observations and results.

A backup is a folder, or the same folder in one tar file, on disk or in a bucket:

    manifest.json          written last: every part with its size and SHA-256
    broker.jsonl           the keys of Redis
    results.txt            ids of the published results, to check what was copied beside it
    files/keys.json        and every other file that lies directly in the data folder: SQLite files
                           (catalogue, records, backlog of the feeds), keys, sources, policies, errors
    files/pins/…           pins of results, and the lists of what was pulled from archives
    files/verification/…   series of verification and `logs/audit*.jsonl`, in a bucket alone

The order makes a backup of a running system consistent. Redis is read first and the SQLite files
after it: a record leaves Redis only once it is in the archive of records, so at least one of the two
copies holds it. Uploads, observations and results are plain files; copied after the backup, they
include everything that the records refer to (`docs/operations.md`).
"""

import shutil
import socket
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError

from model.domain.errors import InvalidInput, StorageError
from model.domain.files import code_version, file_digest, sync_file, write_atomic
from worker.backup.broker import dump_keys
from worker.contract.buckets import open_bucket
from worker.contract.layout import Layout
from worker.contract.records import Record, utc_now
from worker.results.catalogue import Catalogue

__all__ = [
    "BROKER",
    "BackupManifest",
    "FILES",
    "IncompleteBackup",
    "Part",
    "RESULTS",
    "is_address",
    "is_archive",
    "is_passing",
    "make_backup",
    "opened_at",
    "opened_backup",
    "send_backup",
]

MANIFEST, BROKER, RESULTS, FILES = "manifest.json", "broker.jsonl", "results.txt", "files"
_KEPT_FOLDERS = ("pins", "pulls")
_PASSING = (".lock", "-wal", "-shm", "-journal", ".disk_low")
"""Suffixes of files that belong to running processes or accompany another file; not backed up."""
_ARCHIVES = (".tar", ".tar.gz", ".tgz")


class IncompleteBackup(InvalidInput):
    """A backup that was not finished, or whose parts are not what its manifest says."""

    code = "backup_incomplete"


class Part(Record):
    """One file of a backup, with its size and checksum."""

    name: str = Field(description="Path in the backup.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(description="Of its bytes.")


class BackupManifest(Record):
    """Manifest of a backup: when, where and of what it was made, and its files."""

    format: Literal["appa-backup"] = Field(default="appa-backup", description="What this is.")
    version: Literal[1] = Field(default=1, description="Of this layout.")
    created: datetime = Field(description="When it was begun (UTC).")
    host: str = Field(description="Machine on which it was made.")
    made_by: str = Field(description="Version of the code.")
    prefix: str = Field(description="Of the keys in Redis.")
    server: str = Field(description="The server and its version.")
    keys: int = Field(ge=0, description="Keys of Redis.")
    one_moment: bool = Field(description="Whether all keys are of one moment.")
    parts: list[Part] = Field(description="All other files, by name.")


def is_archive(place: Path) -> bool:
    """Return whether a backup at `place` is one tar file."""
    return place.name.endswith(_ARCHIVES)


def is_passing(path: Path) -> bool:
    """Return whether a file of the data folder is transient: of a running process, or left over."""
    name = path.name
    return name.endswith(_PASSING) or name.startswith(".part-") or ".damaged-" in name


def make_backup(
    layout: Layout, url: str, prefix: str, place: Path, *, whole: bool = False
) -> BackupManifest:
    """Back up an installation, which may go on running.

    Arguments:
        layout: The data folder.
        url: Its Redis server.
        prefix: Prefix of its keys.
        place: A folder that is new or empty, or a new file `….tar` or `….tar.gz`.
        whole: Whether it holds the series of verification and the audit log, which are copied
            beside it otherwise.

    Raises:
        InvalidInput: If there is no data folder, or something is at `place`.
        StorageError: If Redis does not answer, or a file cannot be read or written.
    """
    _require_place(layout, place)
    if not is_archive(place):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _fill(layout, url, prefix, place, whole=whole)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as text:
        folder = Path(text)
        manifest = _fill(layout, url, prefix, folder, whole=whole)
        packed = folder.with_name(f"{folder.name}.part")
        try:
            _pack(folder, manifest, packed, compressed=not place.name.endswith(".tar"))
            packed.replace(place)
        finally:
            packed.unlink(missing_ok=True)
    return manifest


def _require_place(layout: Layout, place: Path) -> None:
    if not layout.root.is_dir():
        raise InvalidInput(f"Expected a data folder; '{layout.root}' is none. Give --data.")
    if place.resolve().is_relative_to(layout.root.resolve()):
        raise InvalidInput(
            f"Expected a place outside the data folder '{layout.root}'; got '{place}'. A backup "
            "belongs on another disk."
        )
    taken = place.exists() if is_archive(place) else place.is_file() or _has_entries(place)
    if taken:
        raise InvalidInput(
            f"Expected a new or empty folder, or a new file ….tar or ….tar.gz; '{place}' holds "
            "something. Give another name."
        )
    if is_archive(place) and not place.parent.is_dir():
        raise InvalidInput(f"Expected a folder that exists; '{place.parent}' is none.")


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _fill(layout: Layout, url: str, prefix: str, folder: Path, *, whole: bool) -> BackupManifest:
    """Write all parts to `folder`, Redis first, the manifest last."""
    begun = utc_now()
    copy = dump_keys(url, prefix, folder / BROKER)
    with Catalogue(layout) as catalogue:
        listed = "".join(f"{entry.id}\n" for entry in catalogue.entries())
    write_atomic(folder / RESULTS, listed, mode=0o600)
    paths = [*_files(layout), *(_beside(layout) if whole else ())]
    names = [BROKER, RESULTS, *(_copy_file(layout, path, folder) for path in paths)]
    parts = [_part(folder, name) for name in sorted(names)]
    manifest = BackupManifest(
        created=begun,
        host=socket.gethostname(),
        made_by=code_version(),
        prefix=prefix,
        server=copy.server,
        keys=copy.keys,
        one_moment=copy.one_moment,
        parts=parts,
    )
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1), mode=0o600)
    return manifest


def _files(layout: Layout) -> Iterator[Path]:
    """Yield the files to copy: all that lie in the data folder itself, pins and lists of pulls."""
    for path in sorted(layout.root.iterdir()):
        if path.is_file() and not is_passing(path):
            yield path
    for name in _KEPT_FOLDERS:
        # folders in `pulls` hold unfinished downloads, which are repeated
        yield from (p for p in sorted((layout.root / name).glob("*")) if p.is_file())


def _beside(layout: Layout) -> Iterator[Path]:
    """Yield files that lie only in the data folder, also if the bulk data is in buckets."""
    yield from sorted(layout.verification.glob("*/*.parquet"))
    yield from sorted(layout.logs.glob("audit*.jsonl"))


def _copy_file(layout: Layout, path: Path, folder: Path) -> str:
    """Copy a file of the data folder; return its name in the backup."""
    name = f"{FILES}/{path.relative_to(layout.root).as_posix()}"
    copy = folder / name
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy.touch(mode=0o600)
    try:
        if path.suffix == ".sqlite":
            _copy_database(path, copy)
        else:
            shutil.copyfile(path, copy)
            shutil.copystat(path, copy)
        copy.chmod(0o600)
        sync_file(copy)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"Expected to copy '{path}' to '{copy}'; {error}.") from error
    return name


def _copy_database(path: Path, copy: Path) -> None:
    """Copy an SQLite file in a consistent state, even while others write to it."""
    uri = f"{path.resolve().as_uri()}?mode=rw"
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=60)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # no file beside it


def _part(folder: Path, name: str) -> Part:
    path = folder / name
    return Part(name=name, size=path.stat().st_size, sha256=file_digest(path))


# -- one file


def _pack(folder: Path, manifest: BackupManifest, packed: Path, *, compressed: bool) -> None:
    packed.touch(mode=0o600)
    with tarfile.open(packed, "w:gz" if compressed else "w") as archive:
        for name in [*(part.name for part in manifest.parts), MANIFEST]:
            archive.add(folder / name, arcname=name, recursive=False)
    sync_file(packed)


@contextmanager
def opened_backup(place: Path) -> Iterator[tuple[Path, BackupManifest]]:
    """Yield the folder and the manifest of a backup after verifying its parts.

    Raises:
        IncompleteBackup: If there is no manifest, or a part is missing or different.
    """
    if not place.exists():
        raise InvalidInput(f"Expected a backup; '{place}' does not exist.")
    if place.is_dir():
        yield place, _verified(place, place)
        return
    with tempfile.TemporaryDirectory(prefix="appa-backup-") as text:
        folder = Path(text)
        try:
            with tarfile.open(place) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise IncompleteBackup(
                f"Expected a backup in one tar file; '{place}' cannot be unpacked: {error}.",
                backup=str(place),
            ) from error
        yield folder, _verified(folder, place)


def _verified(folder: Path, place: Path) -> BackupManifest:
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise IncompleteBackup(
            f"Expected '{MANIFEST}', which is written last; '{place}' has none, so this backup was "
            "not finished. Take another one.",
            backup=str(place),
        ) from None
    except ValidationError as error:
        raise IncompleteBackup(
            f"Expected the manifest of a backup in '{place}'; {error}.", backup=str(place)
        ) from error
    for part in manifest.parts:
        _verify_part(folder, part, place)
    return manifest


def _verify_part(folder: Path, part: Part, place: Path) -> None:
    path = PurePosixPath(part.name)
    known = path.parts[:1] == (FILES,) or part.name in (BROKER, RESULTS)
    if not known or path.is_absolute() or ".." in path.parts:
        raise IncompleteBackup(f"Expected parts below '{FILES}/'; '{place}' names '{part.name}'.")
    found = "nothing"
    with suppress(FileNotFoundError):
        found = file_digest(folder / part.name)
    if found != part.sha256:
        raise IncompleteBackup(
            f"Expected '{part.name}' with SHA-256 {part.sha256[:12]}…; '{place}' has {found[:12]}. "
            "Nothing was restored; take another backup.",
            backup=str(place),
            part=part.name,
        )


def is_address(place: str) -> bool:
    """Return whether a backup lies in a bucket."""
    return place.startswith("s3://")


def send_backup(layout: Layout, url: str, prefix: str, address: str) -> BackupManifest:
    """Back up an installation, which may go on running, to one object.

    Arguments:
        layout: The data folder.
        url: Its Redis server.
        prefix: Prefix of its keys.
        address: A new object, `s3://bucket/prefix/NAME.tar` or `….tar.gz`.

    Raises:
        InvalidInput: If there is no data folder, or something is at `address`.
        StorageError: If Redis does not answer, or a file cannot be read.
        BucketUnavailable: If the bucket does not answer; nothing of the backup is there.
    """
    parent, name = _split(address)
    bucket = open_bucket(parent)
    try:
        bucket.stat(name)
    except FileNotFoundError:
        pass
    else:
        raise InvalidInput(f"Expected a new object; '{address}' exists. Give another name.")
    with tempfile.TemporaryDirectory(prefix="appa-backup-") as text:
        packed = Path(text) / name
        made = make_backup(layout, url, prefix, packed, whole=True)
        bucket.send(packed, name)
    return made


@contextmanager
def opened_at(place: str) -> Iterator[tuple[Path, BackupManifest]]:
    """Yield the folder and the manifest of a backup on disk or in a bucket; see `opened_backup`."""
    if not is_address(place):
        with opened_backup(Path(place)) as found:
            yield found
        return
    parent, name = _split(place)
    with tempfile.TemporaryDirectory(prefix="appa-backup-") as text:
        packed = Path(text) / name
        try:
            with packed.open("wb") as stream:
                stream.writelines(open_bucket(parent).content(name))
        except FileNotFoundError:
            raise InvalidInput(f"Expected a backup; '{place}' does not exist.") from None
        with opened_backup(packed) as found:
            yield found


def _split(address: str) -> tuple[str, str]:
    """Return the address of the folder of an object, and its name there."""
    parent, _, name = address.rpartition("/")
    if parent in ("s3:", "s3:/") or not name or not is_archive(Path(name)):
        raise InvalidInput(
            f"Expected an address such as s3://bucket/backups/{{date}}.tar.gz; got '{address}'."
        )
    return parent, name
