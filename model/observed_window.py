"""The observations of each blanket of a pass, from those of a window."""

__all__ = ["WindowObservations", "blanket_observations"]

import math
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.domain.windows import WindowPlan
from model.guidance.decoded import ObservationsOfStates, OperatorOfStates
from model.passes import Pass


class WindowObservations(ObservationsOfStates, Protocol):
    """Observations of the states of a plan, such as an `ObservationSet`."""

    def select(self, mask: NDArray[np.bool_]) -> "WindowObservations":
        """The observations where the mask (N,) holds."""

    def for_blanket(self, start: int, stop: int) -> "WindowObservations":
        """Those that read only states in [start, stop), on states numbered from `start`."""


class _OperatorOfMiddle:
    """An operator of the middle states of a blanket, on all states of the blanket."""

    def __init__(self, inner: OperatorOfStates, middle: slice, size: int) -> None:
        self._inner = inner
        self._middle = middle
        self._size = size

    # Asked only by what reads columns: an operator of whole states need not have either.

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        return (self._size, *self._inner.state_shape[1:])

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        return self._inner.columns + self._middle.start * math.prod(self.state_shape[1:])

    def observe(self, values: Tensor) -> Tensor:
        return self._inner.observe(values)

    def __call__(self, states: Tensor) -> Tensor:
        return self._inner(states[..., self._middle, :, :, :])


class _Shifted:
    """Observations of the middle states of a blanket that has others before and after."""

    def __init__(self, inner: ObservationsOfStates, middle: slice, size: int) -> None:
        self._inner = inner
        self._middle = middle
        self._size = size

    def __len__(self) -> int:
        return len(self._inner)

    @property
    def values(self) -> Tensor:
        return self._inner.values

    @property
    def error_std(self) -> Tensor:
        return self._inner.error_std

    @property
    def time_support(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first, last = self._inner.time_support
        return first + self._middle.start, last + self._middle.start

    @cached_property
    def operator(self) -> OperatorOfStates:
        """One object for all calls: what others derive from an operator they keep under it."""
        return _OperatorOfMiddle(self._inner.operator, self._middle, self._size)


def blanket_observations(
    observations: WindowObservations, plan: WindowPlan, part: Pass
) -> list[ObservationsOfStates | None]:
    """What each blanket of a pass sees.

    An observation between two states belongs to the later one, as in (start, end] windows. It is
    used where the plan says that state is observed, and once: not again in a later pass.
    """
    _, last = observations.time_support
    usable = np.array(plan.observed) & (np.arange(plan.length) >= part.known)
    chosen = observations.select(usable[last])
    seen: list[ObservationsOfStates | None] = []
    for start in part.blankets.starts:
        begin = part.first + start
        first, stop = max(begin, 0), min(begin + part.blankets.size, plan.length)
        if first >= stop:
            seen.append(None)
            continue
        inner = chosen.for_blanket(first, stop)
        whole = stop - first == part.blankets.size
        middle = slice(first - begin, stop - begin)
        seen.append(inner if whole else _Shifted(inner, middle, part.blankets.size))
    return seen
