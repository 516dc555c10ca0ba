"""Watch the free space on disk: refuse work below the watermark, and recognise a full disk.

Every process checks for itself. Once the watermark was reached, work is accepted again only when
a quarter more than it is free; a marker file in the data folder records that for all processes.

HDF5 and ecCodes report the same generic error for every cause. When they fail, a probe file is
written: if that fails for lack of space, the disk was full for them as well.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from model.domain.errors import AppaError, StorageError
from worker.contract.layout import Layout

__all__ = [
    "DiskLow",
    "DiskSettings",
    "DiskState",
    "disk_errors",
    "disk_state",
    "free_bytes",
    "is_disk_full",
    "is_on_network",
    "require_space",
]

_CLEAR = 1.25
"""Free space, relative to the watermark, above which work is accepted again (hysteresis)."""


class DiskSettings(Protocol):
    """The watermark, in the settings of gateway and workers; zeros switch it off."""

    @property
    def disk_low_bytes(self) -> int:
        """Return the free bytes below which no new work is taken."""

    @property
    def disk_low_percent(self) -> float:
        """Return the same as a share of the file system, 0 to 100."""


class DiskLow(StorageError):
    """Less space is free than the watermark asks for."""

    code = "disk_low"
    retryable = True


@dataclass(frozen=True)
class DiskState:
    """Space on the file system of the data folder.

    Attributes:
        low: Whether new work is refused.
        free: Bytes that may be used.
        total: Bytes in all.
        needed: Free bytes above which work is accepted.
        since: When it became low (UTC); None while it is not.
    """

    low: bool
    free: int
    total: int
    needed: int
    since: datetime | None = None

    @property
    def message(self) -> str:
        """Return one sentence for people, with the figures."""
        if not self.low:
            return f"{_size(self.free)} free, at least {_size(self.needed)} kept"
        return (
            f"Expected at least {_size(self.needed)} free on the disk of the data folder; "
            f"{_size(self.free)} are. New work is refused until there is room: see "
            "`appa retention plan`."
        )

    @property
    def context(self) -> dict[str, int]:
        """Return the figures in bytes, for the context of an error."""
        return {"free_bytes": self.free, "needed_bytes": self.needed, "total_bytes": self.total}


def disk_state(layout: Layout, settings: DiskSettings) -> DiskState:
    """Return the free space, and set or clear the marker in the data folder.

    Raises:
        OSError: If the data folder cannot be read.
    """
    usage = shutil.disk_usage(layout.root)
    watermark = max(settings.disk_low_bytes, int(usage.total * settings.disk_low_percent / 100))
    marker = layout.disk_low_file
    since = _since(layout)
    needed = int(watermark * _CLEAR) if since else watermark
    if usage.free < needed:
        if since is None:
            since = datetime.now(UTC)
            with suppress(OSError):  # no space even for the marker: only the free bytes count
                marker.touch()
        return DiskState(True, usage.free, usage.total, int(watermark * _CLEAR), since)
    if since is not None:
        with suppress(OSError):
            marker.unlink(missing_ok=True)
    return DiskState(False, usage.free, usage.total, watermark)


def require_space(layout: Layout, settings: DiskSettings) -> None:
    """Raise an error when less space is free than new work needs.

    Raises:
        DiskLow: With the bytes that are free and needed.
    """
    state = disk_state(layout, settings)
    if state.low:
        raise DiskLow(state.message, **state.context)


def _since(layout: Layout) -> datetime | None:
    try:
        return datetime.fromtimestamp(layout.disk_low_file.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, reports a full disk, quota or file limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def free_bytes(folder: Path) -> int:
    """Return the bytes that may still be written to the file system of `folder`."""
    return shutil.disk_usage(folder).free


_NETWORK = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "smb",
)
"""Prefixes of file system types that several hosts may mount."""


def is_on_network(path: Path) -> bool:
    """Return whether other hosts may have mounted the file system of `path`, as far as is known."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    absolute = path.resolve()
    around = [(m, kind) for m, kind in mounts if absolute.is_relative_to(m)]
    return max(around, key=lambda mount: len(mount[0]), default=("", ""))[1].startswith(_NETWORK)


_PROBE = bytes(1 << 20)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn any error of the block into an `OSError` when `folder` has no space left.

    Raises:
        OSError: For which `is_disk_full` holds.
    """
    try:
        yield
    except AppaError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) and is_disk_full(error)):
            _raise_if_full(folder, error)
        raise


def _raise_if_full(folder: Path, cause: Exception) -> None:
    probe = folder / ".probe"
    try:
        with probe.open("wb") as stream:
            stream.write(_PROBE)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if is_disk_full(error):
            raise error from cause
    finally:
        probe.unlink(missing_ok=True)
