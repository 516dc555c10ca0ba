"""Keep the states of a result out of memory while its files are written.

A day of eight members on 721 × 1440 points is 57 GB. States are written to a scratch file as they are
decoded, and read an hour, or a few rows, at a time. The file is unlinked at once, so that it vanishes
with the process, however that ends.
"""

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["StateFile", "States"]

Float = NDArray[np.float32]


class States(Protocol):
    """Physical states with shape (M, T, C, Y, X): an array, or a file that is read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return members, times, channels, rows and columns: (M, T, C, Y, X)."""

    def __getitem__(self, index: Any) -> Any:
        """Return a part of them as an array."""


class StateFile:
    """States in a scratch file.

    Arguments:
        folder: Folder of the file, with enough space.
        shape: (M, T, C, Y, X).
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._file = tempfile.TemporaryFile(dir=folder)
        weakref.finalize(self, self._file.close)
        self._file.truncate(4 * int(np.prod(shape)))

    def __setitem__(self, place: tuple[int, int], state: Float) -> None:
        """Write the state (C, Y, X) of a member at a time.

        Raises:
            OSError: If the disk is full. Writing to a memory map would kill the process by SIGBUS instead.
        """
        data = np.ascontiguousarray(state, dtype=np.float32).data.cast("B")
        offset = len(data) * (place[0] * self.shape[1] + place[1])
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def __getitem__(self, index: Any) -> Float:
        """Return a copy of a part; only the pages that hold it are read."""
        whole = np.memmap(self._file, np.float32, "r", shape=self.shape)
        return np.array(whole[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all states as one array, for writers that need it."""
        return self[...] if dtype is None else self[...].astype(dtype)
