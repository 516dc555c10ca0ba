"""Keep backups in a bucket: one tar file each, which is there whole or not at all.

Where results, uploads and observations lie in buckets, nothing is copied beside a backup. So one that
is sent to a bucket also holds what else lies in the data folder alone: the series of verification
and the audit log.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.domain.errors import InvalidInput
from worker.backup.backup import BackupManifest, is_archive, make_backup, opened_backup
from worker.contract.buckets import open_bucket
from worker.contract.layout import Layout

__all__ = ["is_address", "opened", "send_backup"]


def is_address(place: str) -> bool:
    """Return whether a backup lies in a bucket."""
    return place.startswith("s3://")


def send_backup(layout: Layout, url: str, prefix: str, address: str) -> BackupManifest:
    """Back up an installation, which may go on running, to one object.

    Arguments:
        layout: The data folder.
        url: Its Redis server.
        prefix: Of its keys.
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
def opened(place: str) -> Iterator[tuple[Path, BackupManifest]]:
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
