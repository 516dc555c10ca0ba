"""Split a window plan into passes of the sampler, each with its own observations.

There is one pass, or several that each add some new states. Only this module turns a plan into
work: filtering, reanalysis and forecast all become passes with known states and states to generate.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.domain.windows import WindowPlan
from model.guidance.observed import ObservationsOfStates, OperatorOfStates
from model.trajectory import Blankets

__all__ = ["Pass", "WindowObservations", "blanket_observations", "plan_passes"]


@dataclass(frozen=True)
class Pass:
    """One run of the sampler over consecutive states.

    Attributes:
        first: Index in the plan of the first state; negative where states were added before.
        blankets: How the states are covered; they may reach beyond the plan's last state.
        known: States of the plan before this index come from earlier passes.
    """

    first: int
    blankets: Blankets
    known: int = 0

    @property
    def stop(self) -> int:
        """Index in the plan after the last state."""
        return self.first + self.blankets.length

    def inside(self, length: int) -> tuple[int, int]:
        """Return the first and last-plus-one index of the states that belong to a plan of `length`."""
        return max(self.first, 0), min(self.stop, length)


def _cover(plan: WindowPlan, start: int, stop: int, size: int, stride: int, known: int) -> Pass:
    """Cover [start, stop) by whole blankets.

    Surplus states come after `stop` where the last state is neither observed nor tied, else before
    `start`.
    """
    blankets = Blankets.covering(stop - start, size, stride)
    extra = blankets.length - (stop - start)
    last = stop - 1
    open_end = not plan.observed[last] and not plan.tied[last]
    return Pass(start if open_end else start - extra, blankets, known)


def plan_passes(plan: WindowPlan, size: int, stride: int) -> tuple[Pass, ...]:
    """Return the passes of a plan.

    Arguments:
        plan: The plan.
        size: K, states of a blanket.
        stride: States between the starts of neighbouring blankets.

    Returns:
        Passes that together generate every state of the plan, in order of time. Each pass after
        the first sees as many of the states known before it as fit beside the new ones.
    """
    new = plan.new_states_per_pass
    if new is None:
        return (_cover(plan, 0, plan.length, size, stride, 0),)
    tied = next((i for i, t in enumerate(plan.tied) if not t), plan.length)
    known, passes = 0, []
    while known < plan.length:
        ahead = known or tied  # tied states are conditioned on, not generated, by the first pass
        stop = min(ahead + new if ahead else size, plan.length)
        start = max(0, ahead - max(1, size - new)) if ahead else 0
        passes.append(_cover(plan, start, stop, size, stride, known))
        known = stop
    return tuple(passes)


class WindowObservations(ObservationsOfStates, Protocol):
    """Observations of the states of a plan, such as an `ObservationSet`."""

    def select(self, mask: NDArray[np.bool_]) -> "WindowObservations":
        """Return the observations where the mask (N,) holds."""

    def for_blanket(self, start: int, stop: int) -> "WindowObservations":
        """Return those that read only states in [start, stop), on states numbered from `start`."""


class _OperatorOfMiddle:
    """An operator of the middle states of a blanket, on all states of the blanket."""

    def __init__(self, inner: OperatorOfStates, middle: slice, size: int) -> None:
        self._inner = inner
        self._middle = middle
        self._size = size

    # Used only by code that reads columns; an operator of whole states may lack both.

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        return (self._size, *self._inner.state_shape[1:])

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        shift = self._middle.start * math.prod(self.state_shape[1:])
        columns: NDArray[np.int64] = self._inner.columns + shift
        return columns

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
        """The same object at each call, because callers cache data under it."""
        return _OperatorOfMiddle(self._inner.operator, self._middle, self._size)


def blanket_observations(
    observations: WindowObservations, plan: WindowPlan, part: Pass
) -> list[ObservationsOfStates | None]:
    """Return the observations of each blanket of a pass.

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
