"""Load the background of a job: earlier states and their forecast, or climatology.

Climatology is an ensemble drawn from the model's own prior for these dates: the denoiser knows
season and hour of day, so that a sample without observations is a draw from the climatology of
that moment, and the members' spread is its variability.
"""

from datetime import datetime
from typing import Any, Protocol

import torch

from model.domain.errors import InvalidInput
from model.domain.windows import HOUR, WindowPlan
from worker.backgrounds.restarts import Restart
from worker.contract.kinds import SpecBase
from worker.solver import Background, Solver, pairs_info

__all__ = [
    "EarlierStates",
    "climatology",
    "covers",
    "load_background",
    "previous_analysis",
    "tied_states",
]


class EarlierStates(Protocol):
    """States that can be continued: those of a published result, or an uploaded first guess."""

    @property
    def restart(self) -> Restart:
        """Their times and latents."""

    @property
    def source(self) -> str:
        """What `Background.source` says."""

    @property
    def mirrored(self) -> bool:
        """Whether members 0 and 1, 2 and 3 … have opposite perturbations."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader of the result must know."""

    def describe(self) -> dict[str, Any]:
        """Which states these are, for the manifest; JSON-able."""

    def hours_to(self, time: datetime) -> int:
        """States up to and including `time`."""


def climatology(plan: WindowPlan, solver: Solver) -> Background:
    """An ensemble drawn from the prior, at the times of the plan."""
    latents = solver.prior(plan.times)
    mirrored = solver.settings.antithetic
    info = {"source": "climatology", "members": len(latents)} | pairs_info(mirrored)
    return Background(plan.times, latents, "climatology", info, ("cold_start",), mirrored)


def covers(earlier: EarlierStates, plan: WindowPlan) -> bool:
    """Whether the states reach back to the first time of the plan, or end before it."""
    return earlier.restart.times[0] <= plan.times[0]


def previous_analysis(plan: WindowPlan, earlier: EarlierStates, solver: Solver) -> Background:
    """The earlier states at the times of the plan, brought forward by the model.

    A forecast of a few hours keeps pairs of opposite perturbations: with the checkpoint that ships,
    the means of pairs vary by 0.1 % of what those of independent members would at +1 h, and by
    0.6 % at +12 h.
    """
    restart = earlier.restart
    mirrored = solver.keeps_pairs(earlier.mirrored, len(restart.latents))
    last = restart.times[-1]
    latents = solver.resize(restart.latents)
    times = restart.times
    if last < plan.times[-1]:
        ahead = solver.forecast(latents, times, plan.times[-1])
        mirrored = mirrored and solver.settings.antithetic
        latents = torch.cat((latents, ahead), dim=1)
        times = times + _hours_after(last, ahead.shape[1])
    first = times.index(plan.times[0])
    return Background(
        plan.times,
        latents[:, first : first + plan.length],
        earlier.source,
        _info(earlier, plan.times[-1], len(latents)) | pairs_info(mirrored),
        earlier.flags,
        mirrored,
    )


def tied_states(plan: WindowPlan, earlier: EarlierStates) -> Background:
    """The earlier states at the tied times of the plan; zeros elsewhere, which nobody reads."""
    restart = earlier.restart
    shape = (restart.latents.shape[0], plan.length, *restart.latents.shape[2:])
    latents = torch.zeros(shape)
    for i, (time, tied) in enumerate(zip(plan.times, plan.tied, strict=True)):
        if tied:
            latents[:, i] = restart.latents[:, restart.times.index(time)]
    info = _info(earlier, plan.times[sum(plan.tied) - 1], shape[0])
    mirrored = earlier.mirrored
    info |= pairs_info(mirrored)
    return Background(plan.times, latents, earlier.source, info, earlier.flags, mirrored)


def _info(earlier: EarlierStates, at: datetime, members: int) -> dict[str, object]:
    age = (at - earlier.restart.times[-1]) / HOUR
    return {
        **earlier.describe(),
        "valid_time": earlier.restart.times[-1].isoformat(),
        "age_hours": age,
        "members": members,
    }


def _hours_after(last: datetime, count: int) -> tuple[datetime, ...]:
    return tuple(last + (i + 1) * HOUR for i in range(count))


def load_background(
    plan: WindowPlan, spec: SpecBase, earlier: EarlierStates | None, solver: Solver
) -> Background:
    """The first guess at `plan.times`.

    Arguments:
        plan: Times; which of them are tied.
        spec: The choice between a previous analysis and climatology.
        earlier: The uploaded first guess, or the newest result that can be continued, if any.
        solver: Runs the model where states must be made.

    Raises:
        InvalidInput: If a previous analysis is needed and there is none.
    """
    if any(plan.tied):
        if earlier is None:
            raise InvalidInput(
                f"Expected a published analysis at {spec.reference_time.isoformat()} with a "
                "restart file of this model; there is none. Run a filtering job for that time.",
                field="valid_time",
            )
        return tied_states(plan, earlier)
    if spec.background != "climatology" and earlier is not None and covers(earlier, plan):
        return previous_analysis(plan, earlier, solver)
    if spec.background == "previous_analysis":
        raise InvalidInput(
            f"Expected a previous analysis at most {spec.background_max_age_hours} h before "
            f"{spec.reference_time.isoformat()} that reaches back to "
            f"{plan.times[0].isoformat()}; there is none. Use background 'auto' for a cold start.",
            field="background",
        )
    return climatology(plan, solver)
