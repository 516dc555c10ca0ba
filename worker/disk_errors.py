"""Telling a full disk from other faults of file libraries.

HDF5 and ecCodes say "HDF error" or the like, whatever the reason. When they fail, a probe is
written: if that fails for want of space, so did they.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.domain.errors import AppaError

__all__ = ["FULL", "disk_errors"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that mean: no room for more."""

_PROBE = bytes(1 << 20)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Inside, an error for want of space in `folder` becomes an `OSError` that says so.

    Raises:
        OSError: With one of the numbers in `FULL`.
    """
    try:
        yield
    except AppaError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno in FULL):
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
        if error.errno in FULL:
            raise error from cause
    finally:
        probe.unlink(missing_ok=True)
