"""The observations of each blanket of a pass, from those of a window."""

__all__ = ["WindowObservations", "blanket_observations"]

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.domain.windows import WindowPlan
from model.guidance.decoded import ObservationsOfStates
from model.passes import Pass


class WindowObservations(ObservationsOfStates, Protocol):
    """Observations of the states of a plan, such as an `ObservationSet`."""

    def select(self, mask: NDArray[np.bool_]) -> "WindowObservations":
        """The observations where the mask (N,) holds."""

    def for_blanket(self, start: int, stop: int) -> "WindowObservations":
        """Those that read only states in [start, stop), on states numbered from `start`."""


class _Shifted:
    """Observations of the middle states of a blanket that has others before and after."""

    def __init__(self, inner: ObservationsOfStates, before: int, count: int) -> None:
        self._inner = inner
        self._states = slice(before, before + count)

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
        return first + self._states.start, last + self._states.start

    @property
    def operator(self) -> Callable[[Tensor], Tensor]:
        inner = self._inner.operator
        return lambda states: inner(states[..., self._states, :, :, :])


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
        seen.append(inner if whole else _Shifted(inner, first - begin, stop - first))
    return seen
