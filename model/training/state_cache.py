"""Standardised states (or latents) on disk as one half-precision array, read by memory map.

Decompressing a store again for every epoch costs more than a training step; a flat float16 array
costs a page fault. Rounding is 2^-11 relative, far below the autoencoder's error.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.domain.errors import InvalidInput

__all__ = ["ArrayCache", "build_cache"]

Chunk = tuple[NDArray[np.float32], NDArray[np.datetime64]]


class ArrayCache:
    """A (N, ...) float16 array beside its valid times.

    Attributes:
        array: Memory map with shape (N, ...).
        times: Valid times, ascending, with shape (N,).
    """

    def __init__(self, folder: Path) -> None:
        index = folder / "index.json"
        if not index.exists():
            raise InvalidInput(f"Expected a finished cache in {folder}; build it first.")
        meta = json.loads(index.read_text())
        self.array = np.memmap(
            folder / "array.f16", np.float16, mode="r", shape=tuple(meta["shape"])
        )
        self.times = np.load(folder / "times.npy")

    def __len__(self) -> int:
        return len(self.array)

    def windows(self, length: int) -> NDArray[np.int64]:
        """First positions of all runs of `length` consecutive hourly times."""
        starts = np.arange(max(len(self.times) - length + 1, 0))
        span = self.times[starts + length - 1] - self.times[starts]
        return starts[span == np.timedelta64(length - 1, "h")]


def build_cache(
    folder: Path, chunks: Callable[[], Iterator[Chunk]], count: int, item: tuple[int, ...]
) -> ArrayCache:
    """Writes `count` items of shape `item` from `chunks()`; a finished cache is left as it is.

    The index is written last, so an interrupted build is built again and never half read.
    """
    if (folder / "index.json").exists():
        return ArrayCache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    array = np.memmap(folder / "array.f16", np.float16, mode="w+", shape=(count, *item))
    times = np.empty(count, "datetime64[h]")
    done = 0
    for values, when in chunks():
        array[done : done + len(values)] = values
        times[done : done + len(values)] = when
        done += len(values)
    array.flush()
    if done != count:
        raise InvalidInput(f"Expected {count} items for the cache {folder}; got {done}.")
    np.save(folder / "times.npy", times)
    (folder / "index.json").write_text(json.dumps({"shape": [count, *item]}))
    return ArrayCache(folder)
