"""Climatology as first guess: members drawn from the model's own prior for these dates.

The denoiser knows season and hour of day, so that a sample without observations is a draw from
the climatology of that moment, and the members' spread is its variability.
"""

from model.domain.windows import WindowPlan
from worker.backgrounds.background import Background, pairs_info
from worker.pipeline.solve import Solver

__all__ = ["climatology"]


def climatology(plan: WindowPlan, solver: Solver) -> Background:
    """An ensemble drawn from the prior, at the times of the plan."""
    latents = solver.prior(plan.times)
    mirrored = solver.settings.mirrored
    info = {"source": "climatology", "members": len(latents)} | pairs_info(mirrored)
    return Background(plan.times, latents, "climatology", info, ("cold_start",), mirrored)
