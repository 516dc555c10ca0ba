"""Return memory that a process has freed to the system, once the process has been idle for a while.

The C library keeps what a job frees for the next one, up to the peak of the job: taking it from the
system again costs a page fault for each 4 KiB. A worker that goes from job to job keeps it therefore;
one that waits gives it back, and pays those faults in its next job.
"""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["IDLE_SECONDS", "IdleMemory"]

IDLE_SECONDS = 10.0
"""Pause after which a process is idle: longer than between the messages of a queue that has work."""


def _return_freed_memory() -> None:
    """Collect garbage, and return freed memory to the system where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


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
