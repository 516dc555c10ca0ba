"""Keep memory that a process has freed while it works, and return it to the system once it is idle.

Taking memory from the system again costs a page fault for each 4 KiB. By default glibc takes each array
of more than 32 MiB from the system and returns it as soon as it is freed, which is a tenth of the time
of an analysis. A process that solves keeps what it frees therefore (`keep_freed_memory`), up to the peak
of its work; one that waits gives it back, and pays those faults in its next job.
"""

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["IDLE_SECONDS", "IdleMemory", "keep_freed_memory", "share_heap"]

IDLE_SECONDS = 10.0
"""Pause after which a process is idle: longer than between the messages of a queue that has work."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_LARGE_WINDOW = 2**27
"""Bytes of the states of a window from which on freed arrays are returned at once: in a heap they would
leave holes of their size, which arrays that are a little larger do not fit into."""


def share_heap() -> None:
    """Give all threads of this process one heap, where the C library can (glibc).

    Call it before the process starts threads: the heap of a thread has parts of 64 MiB, and no array
    that is larger.
    """
    _tune({_M_ARENA_MAX: 1})


def keep_freed_memory(window_bytes: int) -> None:
    """Let the C library keep all memory that this process frees, where it can (glibc; `man 3 mallopt`).

    Nothing is changed where the environment says how memory is allocated, or arrays are large.

    Arguments:
        window_bytes: Size of the states of one window.
    """
    if window_bytes < _LARGE_WINDOW:
        _tune({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def _tune(values: Mapping[int, int]) -> None:
    asked = any(name.startswith("MALLOC_") for name in os.environ)
    if asked or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = _of_the_c_library("mallopt")
    if mallopt is not None:
        for parameter, value in values.items():
            mallopt(parameter, value)


def _return_freed_memory() -> None:
    """Collect garbage, and return freed memory to the system where the C library can (glibc)."""
    gc.collect()
    trim = _of_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_the_c_library(name: str) -> Callable[..., int] | None:
    """Return a function of glibc, None elsewhere."""
    if sys.platform != "linux":
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found


class IdleMemory:
    """Returns the memory that work has freed, once, when no work followed for some seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working = 0
        self._ended: float | None = None
        self._parts: list[tuple[Callable[[], None], Callable[[], None] | None]] = []
        self._resting = False

    def add(self, rest: Callable[[], None], wake: Callable[[], None] | None = None) -> None:
        """Let a part of this process rest while it is idle.

        Arguments:
            rest: Frees what can be made again.
            wake: Makes it again before work begins; None if work does so itself.
        """
        self._parts.append((rest, wake))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep freed memory within a block, and for `IDLE_SECONDS` after it; wake what rests.

        What `wake` of a part raises is raised before the block, and the next block tries again.
        """
        with self._lock:
            if self._resting:
                for _, wake in self._parts:
                    if wake is not None:
                        wake()
                self._resting = False
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                self._ended = time.monotonic()

    def tend(self) -> bool:
        """Return freed memory if this process has become idle; return whether it tried."""
        with self._lock:
            if self._working or self._ended is None:
                return False
            if time.monotonic() - self._ended < IDLE_SECONDS:
                return False
            self._ended = None
            self._resting = True  # in part, should one of them raise
            for rest, _ in self._parts:
                rest()
        _return_freed_memory()
        return True
