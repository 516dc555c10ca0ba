"""Cache fields, pictures and descriptions in memory; concurrent requests compute each value once."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["BoundedCache", "KeyedLocks"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class KeyedLocks(Generic[Key]):
    """One lock per key, so that only threads that compute the same value wait for each other."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._locks: dict[Key, Lock] = {}
        self._wanted: Counter[Key] = Counter()

    @contextmanager
    def hold(self, key: Key) -> Iterator[None]:
        """Hold the lock of a key."""
        with self._lock:
            lock = self._locks.setdefault(key, Lock())
            self._wanted[key] += 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._wanted[key] -= 1
                if not self._wanted[key]:
                    del self._locks[key], self._wanted[key]


class BoundedCache(Generic[Key, Value]):
    """Cache of the most recently used values up to a total size; safe to use from several threads.

    If several threads ask for a missing key at once, one computes the value and the others wait.

    Arguments:
        max_size: Total size; one value is kept however large it is.
        size: Returns the size of a value, such as its bytes; 1 to count values.
    """

    def __init__(self, max_size: int, size: Callable[[Value], int]) -> None:
        self._max_size = max_size
        self._size = size
        self._lock = Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._total = 0
        self._making: KeyedLocks[Key] = KeyedLocks()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of a key, computed by `make` if it is missing; errors of `make` propagate."""
        known = self._recall(key)
        if known is not None:
            return known
        with self._making.hold(key):
            found = self._recall(key)
            if found is None:
                found = make()
                self._keep(key, found)
            return found

    def _recall(self, key: Key) -> Value | None:
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
            return found

    def _keep(self, key: Key, value: Value) -> None:
        with self._lock:
            if key in self._values:
                return
            self._values[key] = value
            self._total += self._size(value)
            while self._total > self._max_size and len(self._values) > 1:
                _, dropped = self._values.popitem(last=False)
                self._total -= self._size(dropped)
