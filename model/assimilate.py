"""THE entry point: from observations and a plan to an ensemble of trajectories.

Filtering, reanalysis and forecast differ only in the plan: which states are observed, which are
tied to a background, and which are written.
"""

__all__ = ["AssimilationSettings", "Trajectory", "assimilate", "recommended_settings"]

from dataclasses import dataclass, replace
from datetime import datetime

import torch
from torch import Tensor

from model.assimilation_settings import AssimilationSettings, recommended_settings
from model.batching import Batching
from model.distributed import Ranks, local_window
from model.domain.errors import InvalidInput
from model.domain.windows import WindowPlan
from model.ensemble_spread import Twins
from model.guidance.fit import Fit, FitReport, OnFit
from model.latent_model import LatentModel
from model.observed_window import WindowObservations
from model.passes import plan_passes
from model.progress import OnStep, no_progress
from model.sampling_pass import Job, sample_pass
from model.warm_start import WarmStart, warm_sampler


@dataclass(frozen=True)
class Trajectory:
    """An ensemble of trajectories.

    Attributes:
        states: Physical states in SI units of the written times, on the CPU, float32, with shape
            (M, T_written, C, Y, X).
        times: Their valid times.
        latents: Standardised latents of all times of the plan, on the CPU, with shape
            (M, T, c, h, w): what the next cycle's warm start needs.
        first_time: Valid time of the first latent state.
        fits: (noise level, fit to the observations), from noisy to clean.
        settings: How it was made.
        seed: Seed of the job.
        members: Number of each member; with the seed it determines the member's noise.
    """

    states: Tensor
    times: tuple[datetime, ...]
    latents: Tensor
    first_time: datetime
    fits: tuple[tuple[float, Fit], ...]
    settings: AssimilationSettings
    seed: int
    members: tuple[int, ...]

    @property
    def warm_start(self) -> WarmStart:
        """For the next cycle."""
        return WarmStart(self.latents, self.first_time)

    @property
    def twins(self) -> Twins:
        """How the members of an analysis depend on each other."""
        return Twins.of(self.members, self.settings.mirrored)


def assimilate(
    latent_model: LatentModel,
    observations: WindowObservations | None,
    plan: WindowPlan,
    members: int,
    seed: int,
    *,
    background: Tensor | None = None,
    settings: AssimilationSettings | None = None,
    on_step: OnStep = no_progress,
    warm_start: WarmStart | None = None,
    diagnostics: OnFit | None = None,
    first_member: int = 0,
    ranks: Ranks | None = None,
) -> Trajectory:
    """Draws members of the posterior of a trajectory.

    Arguments:
        latent_model: The checkpoint.
        observations: An `ObservationSet` on the states of `plan.times`; None for none.
        plan: Which states are observed, tied and written.
        members: M, the number of members.
        seed: With a member's number it determines the member, whatever is computed beside it.
        background: The tied states in order of time, physical (M or 1, T_tied, C, Y, X) or
            standardised latents (M or 1, T_tied, c, h, w).
        settings: How the plan is carried out; None for what suits the checkpoint.
        on_step: Called with (i, n) before every diffusion step; may raise `JobCancelled`.
        warm_start: An earlier trajectory that overlaps the window: sampling starts from it, or
            where it starts from the prior, the solver does.
        diagnostics: Told the fit to the observations of every evaluation.
        first_member: Number of the first member, where an ensemble is made in several jobs.
        ranks: The processes that make this trajectory together, each calling with the same
            arguments; each returns the states of its own blankets. None for this process alone.

    Returns:
        The ensemble.

    Raises:
        InvalidInput: If background, observations and plan do not fit together.
    """
    settings = settings or recommended_settings(latent_model)
    sampler = settings.sampler
    if settings.start == "prior":
        sampler = warm_sampler(sampler, settings.entry, latent_model.schedule)
    elif warm_start is not None:
        sampler = warm_sampler(sampler, settings.warm, latent_model.schedule)
    stride = plan.stride or latent_model.blanket_stride
    plan = _blanket_by_blanket(plan, latent_model.blanket_size, settings)
    passes = plan_passes(plan, latent_model.blanket_size, stride)
    local = None
    if ranks is not None:
        local = local_window(plan, passes, ranks)
        if observations is not None:
            observations = observations.for_blanket(local.start, local.stop)
        if background is not None:
            background = background[:, local.tied_states]
        plan, passes = local.plan, (local.part,)
    job = Job(
        model=latent_model,
        observations=observations,
        plan=plan,
        members=tuple(range(first_member, first_member + members)),
        seed=seed,
        settings=settings,
        sampler=sampler,
        warm_start=warm_start,
        batching=Batching(settings.memory_budget, settings.batch_rows),
        report=FitReport(diagnostics),
        ranks=ranks,
        share=None if local is None else local.share,
    )
    latents, tied = _tied_latents(job, background)
    total = len(passes) * sampler.steps
    for number, part in enumerate(passes):
        known = tied | (torch.arange(plan.length) < part.known)
        drawn = sample_pass(job, part, number, latents, known, on_step, total)
        first, stop = part.inside(plan.length)
        # Known states stay as they are: they have been conditioned on.
        new = [i for i in range(first, stop) if not known[i]]
        latents[:, new] = drawn[:, [i - part.first for i in new]]
    result = _result(job, latents)
    if local is not None and not local.writes:
        return replace(result, states=result.states[:, :0], times=())
    return result


def _blanket_by_blanket(plan: WindowPlan, size: int, settings: AssimilationSettings) -> WindowPlan:
    """The plan of a forecast in passes of a blanket each, where sampling starts from the prior.

    Each blanket is started by itself, so one without a tied state would know nothing of them.
    """
    whole = plan.new_states_per_pass is None and any(plan.tied) and plan.length > size
    if settings.start == "prior" and whole:
        return replace(plan, new_states_per_pass=max(size // 2, 1))
    return plan


def _tied_latents(job: Job, background: Tensor | None) -> tuple[Tensor, Tensor]:
    """Latents (M, T, c, h, w) with the tied states filled in, and which those are (T,)."""
    model, plan = job.model, job.plan
    tied = torch.tensor(plan.tied)
    shape = (len(job.members), plan.length, *model.latent_shape)
    latents = torch.zeros(shape, dtype=model.dtype, device=model.device)
    if background is None and not tied.any():
        return latents, tied
    if background is None or background.shape[:2] not in {
        (m, int(tied.sum())) for m in (1, len(job.members))
    }:
        got = None if background is None else tuple(background.shape)
        raise InvalidInput(
            f"Expected a background with shape ({len(job.members)} or 1, {int(tied.sum())}, ...), "
            f"one state for each tied time of the plan; got {got}."
        )
    if background.shape[2:] != model.latent_shape:
        with torch.no_grad():
            background = model.encode(background)
    latents[:, tied] = background.to(latents)
    return latents, tied


@torch.no_grad()
def _result(job: Job, latents: Tensor) -> Trajectory:
    plan, model = job.plan, job.model
    written = latents[:, torch.tensor(plan.written)].flatten(0, 1)
    batching = Batching(rows=job.batching.rows or plan.length)
    states = batching(lambda rows: model.decode(written[rows]).float().cpu(), len(written))
    return Trajectory(
        states=states.unflatten(0, (len(job.members), -1)),
        times=plan.written_times,
        latents=latents.cpu(),
        first_time=plan.times[0],
        fits=job.report.levels,
        settings=replace(job.settings, sampler=job.sampler),
        seed=job.seed,
        members=job.members,
    )
