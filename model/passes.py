"""A window plan as runs of the sampler: one, or several that each add some new states.

This is the only place that turns a plan into work; filtering, reanalysis and forecast all come out
as passes with states that are known, and states that are not.
"""

__all__ = ["Pass", "plan_passes"]

from dataclasses import dataclass

from model.domain.windows import WindowPlan
from model.trajectory import Blankets


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
        """First and last-plus-one index of the states that belong to a plan of `length`."""
        return max(self.first, 0), min(self.stop, length)


def _cover(plan: WindowPlan, start: int, stop: int, size: int, stride: int, known: int) -> Pass:
    """Covers [start, stop), adding states on the side that knows nothing."""
    blankets = Blankets.covering(stop - start, size, stride)
    extra = blankets.length - (stop - start)
    last = stop - 1
    open_end = not plan.observed[last] and not plan.tied[last]
    return Pass(start if open_end else start - extra, blankets, known)


def plan_passes(plan: WindowPlan, size: int, stride: int) -> tuple[Pass, ...]:
    """The passes of a plan.

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
