"""THE entry point: from observations and a plan to an ensemble of trajectories.

Filtering, reanalysis and forecast differ only in the plan: which states are observed, which are
tied to a background, and which are written.
"""

__all__ = ["AssimilationSettings", "Trajectory", "assimilate", "recommended_settings"]

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

import torch
from torch import Tensor

from model.batching import Batching
from model.domain.errors import ConfigurationError, InvalidInput
from model.domain.windows import WindowPlan
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance import GUIDANCE, GuidanceSettings
from model.guidance.base import Decode, Guidance, ObservedBlankets
from model.guidance.conditions import Conditions
from model.guidance.decoded import DecodedObservations, ObservationsOfStates
from model.guidance.fit import Fit, FitReport, OnFit
from model.guidance.latent_state import JointObservations, TiedStates
from model.guidance.mmps import MMPSSettings
from model.guidance.prior_covariance import PriorCovarianceSettings
from model.guidance.prior_start import PriorStart
from model.latent_model import LatentModel
from model.noise import MemberNoise
from model.observed_window import WindowObservations, blanket_observations
from model.passes import Pass, plan_passes
from model.progress import OnStep, no_progress
from model.sampling import SamplerSettings, sample
from model.trajectory import TrajectoryDenoiser
from model.warm_start import WarmStart, WarmStartSettings, hours_since_epoch, warm_sampler


@dataclass(frozen=True)
class AssimilationSettings:
    """How a plan is carried out; the same for every kind of job.

    Attributes:
        sampler: The sampler of a cold start.
        warm: Where a warm start enters, or a start from the prior.
        start: What a cold start starts from: `noise`, or `prior`: members of the posterior under
            the checkpoint's closed-form prior, re-noised as for a warm start.
        prior_solve: How the system of a start from the prior is solved.
        guidance: The guidance and its settings; the type says which method.
        mode: How blankets are composed, one of `model.trajectory.MODES`.
        tie_error_std: One standard deviation of tied states, in latent units.
        batch_rows: The largest number of blankets evaluated at once; None to measure it.
        memory_budget: Bytes that an evaluation may use; None for half of the memory.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    warm: WarmStartSettings = field(default_factory=WarmStartSettings)
    start: Literal["noise", "prior"] = "noise"
    prior_solve: PriorCovarianceSettings = field(
        default_factory=lambda: PriorCovarianceSettings(iterations=80, steps=2)
    )
    guidance: GuidanceSettings = field(default_factory=MMPSSettings)
    mode: str = "symmetrical"
    tie_error_std: float = 0.05
    batch_rows: int | None = None
    memory_budget: int | None = None


def recommended_settings(latent_model: LatentModel) -> AssimilationSettings:
    """What suits a checkpoint: linear algebra first where it has a closed-form prior."""
    if not isinstance(latent_model.denoise.base, ZonalGaussianPrior):
        return AssimilationSettings()
    return AssimilationSettings(
        start="prior",
        warm=WarmStartSettings(sigma=0.5, steps=5),
        guidance=PriorCovarianceSettings(iterations=15, tolerance=0.1),
    )


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


@dataclass(frozen=True)
class _Job:
    """The arguments of `assimilate`, with what is the same in every pass."""

    model: LatentModel
    observations: WindowObservations | None
    plan: WindowPlan
    members: tuple[int, ...]
    seed: int
    settings: AssimilationSettings
    sampler: SamplerSettings
    warm_start: WarmStart | None
    batching: Batching
    report: FitReport


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
        warm_start: An earlier trajectory that overlaps the window.
        diagnostics: Told the fit to the observations of every evaluation.
        first_member: Number of the first member, where an ensemble is made in several jobs.

    Returns:
        The ensemble.

    Raises:
        InvalidInput: If background, observations and plan do not fit together.
    """
    settings = settings or recommended_settings(latent_model)
    sampler = settings.sampler
    if warm_start is not None or settings.start == "prior":
        sampler = warm_sampler(sampler, settings.warm, latent_model.schedule)
    job = _Job(
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
    )
    latents, tied = _tied_latents(job, background)
    stride = plan.stride or latent_model.blanket_stride
    passes = plan_passes(plan, latent_model.blanket_size, stride)
    total = len(passes) * sampler.steps
    for number, part in enumerate(passes):
        known = tied | (torch.arange(plan.length) < part.known)
        drawn = _sample_pass(job, part, number, latents, known, on_step, total)
        first, stop = part.inside(plan.length)
        # Known states stay as they are: they have been conditioned on.
        new = [i for i in range(first, stop) if not known[i]]
        latents[:, new] = drawn[:, [i - part.first for i in new]]
    return _result(job, latents)


def _tied_latents(job: _Job, background: Tensor | None) -> tuple[Tensor, Tensor]:
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


def _sample_pass(
    job: _Job,
    part: Pass,
    number: int,
    latents: Tensor,
    known: Tensor,
    on_step: OnStep,
    total: int,
) -> Tensor:
    """The states of one pass, with shape (M, length, c, h, w)."""
    model, length = job.model, part.blankets.length
    times = [job.plan.times[0] + timedelta(hours=part.first + i) for i in range(length)]
    hours = [hours_since_epoch(time) for time in times]
    noise = MemberNoise(job.seed, job.members, hours, stream=number)
    start = latents.new_zeros(len(job.members), length, *model.latent_shape)
    dates = torch.tensor([[t.year, t.month, t.day, t.hour] for t in times])
    conditions = _conditions(job, part, latents, known)
    if job.warm_start is not None:
        start = job.warm_start.at(len(job.members), hours).to(start)
    elif job.settings.start == "prior":
        start = _prior_start(job, part, dates, conditions, noise(start))
    level = model.schedule.sigma(torch.tensor(job.sampler.start, dtype=torch.float64))
    denoiser = TrajectoryDenoiser(
        model.denoise,
        model.schedule,
        dates,
        part.blankets,
        mode=job.settings.mode,
        guidance=_guidance(job, conditions),
        batching=job.batching,
    )
    return sample(
        denoiser,
        start + float(level) * noise(start),
        job.sampler,
        noise,
        on_step=on_step,
        offset=number * job.sampler.steps,
        total=total,
    )


def _prior_start(
    job: _Job, part: Pass, dates: Tensor, conditions: Conditions | None, white: Tensor
) -> Tensor:
    """Members of the posterior under the closed-form prior, with the shape of `white`."""
    model, prior = job.model, job.model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior):
        raise ConfigurationError(
            "Expected a checkpoint with a closed-form prior for a start from the prior; this one "
            "has none. Start from 'noise'."
        )
    if conditions is None:
        conditions = Conditions(
            lambda decode: JointObservations([]), model.decode, model.decode_tangent
        )
    start = PriorStart(prior, conditions, job.seed, job.members, job.settings.prior_solve)
    draw = TrajectoryDenoiser(
        prior,
        model.schedule,
        dates,
        part.blankets,
        mode=job.settings.mode,
        guidance=start,
        batching=job.batching,
    )
    # The schedule has alpha = 1, so the white noise arrives as it is at any time.
    return draw(white, torch.ones((), dtype=torch.float64)).mean


def _conditions(job: _Job, part: Pass, latents: Tensor, known: Tensor) -> Conditions | None:
    """What a pass is conditioned on: its observations, its known states, both or nothing."""
    seen: list[ObservationsOfStates | None] = []
    if job.observations is not None:
        seen = blanket_observations(job.observations, job.plan, part)
    tied = _tied_states(job, part, latents, known)
    if tied is None and not any(s is not None for s in seen):
        return None

    def through(decode: Decode) -> ObservedBlankets:
        kinds: list[ObservedBlankets] = []
        if any(s is not None for s in seen):
            kinds.append(DecodedObservations(seen, decode))
        return JointObservations(kinds if tied is None else [*kinds, tied])

    model = job.model
    return Conditions(
        through,
        lambda z: model.decode(z, mask=False),
        model.decode_tangent,
        model.prior_covariance,
        job.report,
    )


def _guidance(job: _Job, conditions: Conditions | None) -> Guidance | None:
    settings = job.settings.guidance
    return None if conditions is None else GUIDANCE[settings.method](conditions, settings)


def _tied_states(job: _Job, part: Pass, latents: Tensor, known: Tensor) -> TiedStates | None:
    first, stop = part.inside(job.plan.length)
    if not known[first:stop].any():
        return None
    before, after = first - part.first, part.stop - stop
    padded = torch.nn.functional.pad(known[first:stop], (before, after))
    states = latents[:, first:stop]
    states = torch.nn.functional.pad(states, (0, 0, 0, 0, 0, 0, before, after))
    blankets = part.blankets
    return TiedStates(states, padded, blankets.starts, blankets.size, job.settings.tie_error_std)


@torch.no_grad()
def _result(job: _Job, latents: Tensor) -> Trajectory:
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
