"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path

from model.domain.errors import StorageError
from worker.jobs.observation_files import StoreFiles

__all__ = ["put"]


def put(files: StoreFiles, relative: str, content: bytes, *, exclusive: bool = False) -> None:
    """Writes one file: temporary name, fsync, rename on disks; one upload on object stores.

    Arguments:
        files: The store.
        relative: Path below its root.
        content: All of it.
        exclusive: Refuse to replace a file that exists.

    Raises:
        StorageError: If it cannot be written, or exists and `exclusive` is set.
    """
    path = files.path(relative)
    protocol = files.filesystem.protocol
    try:
        if "file" in ((protocol,) if isinstance(protocol, str) else protocol):
            _put_local(Path(path), content, exclusive=exclusive)
            return
        if exclusive and files.filesystem.exists(path):
            raise FileExistsError(path)
        # Object stores show an object only when its upload is complete.
        files.filesystem.pipe_file(path, content)
    except FileExistsError as error:
        raise StorageError(
            f"Expected no '{relative}' yet; it exists: another writer won."
        ) from error
    except OSError as error:
        raise StorageError(
            f"Cannot write '{relative}' of the observation store: {error}."
        ) from error


def _put_local(path: Path, content: bytes, *, exclusive: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(temporary, path)  # fails if the name is taken
            temporary.unlink()
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
