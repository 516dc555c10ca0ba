"""Draw an ensemble of trajectories given observations and a plan: the entry point of the model.

Filtering, reanalysis and forecast differ only in the plan: which states are observed, which are
tied to a background, and which are written. A plan is carried out in one or several passes, each
with its conditions, its start and a run of the sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from model.assimilation_settings import (
    GUIDANCE,
    AssimilationSettings,
    WarmStart,
    hours_since_epoch,
    recommended_settings,
    warm_sampler,
)
from model.background import BackgroundPrior
from model.distributed import Ranks, Share, local_window
from model.domain.ensembles import AntitheticPairs
from model.domain.errors import ConfigurationError, InvalidInput
from model.domain.windows import WindowPlan
from model.execution import Batching, Chunks, MemoryUse, OnStep, no_progress
from model.forecast import forecast_deviations, forecast_mean
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import (
    Conditions,
    Decode,
    Denoise,
    Fit,
    FitReport,
    Guidance,
    ObservedBlankets,
    OnFit,
)
from model.guidance.observed import (
    DecodedObservations,
    JointObservations,
    ObservationsOfStates,
    TiedStates,
)
from model.guidance.prior_covariance import PriorStart
from model.latent_model import LatentModel
from model.nn.embedding import date_rows
from model.passes import Pass, WindowObservations, blanket_observations, plan_passes
from model.samplers.control import MemberNoise
from model.samplers.sampling import SamplerSettings, sample
from model.trajectory import Blankets, TrajectoryDenoiser

__all__ = [
    "AssimilationSettings",
    "PassInputs",
    "Trajectory",
    "assimilate",
    "recommended_settings",
    "sample_pass",
]


@dataclass(frozen=True)
class PassInputs:
    """The arguments of `assimilate` and other values that all passes share."""

    model: LatentModel
    observations: WindowObservations | None
    plan: WindowPlan
    members: tuple[int, ...]
    seed: int
    settings: AssimilationSettings
    sampler: SamplerSettings
    warm_start: WarmStart | None
    prior: BackgroundPrior | None
    batching: Batching
    report: FitReport
    ranks: Ranks | None = None
    share: Share | None = None
    ensemble: int | None = None

    def denoiser(
        self, denoise: Denoise, dates: Tensor, blankets: Blankets, guidance: Guidance | None
    ) -> TrajectoryDenoiser:
        """Return the denoiser of a pass, limited to this rank's share if there are ranks."""
        where: dict[str, Any] = {}
        if self.ranks is not None and self.share is not None:
            whole = self.share.whole
            exchange = partial(self.ranks.exchange, whole)
            where = {"first": self.share.first, "total": whole.count, "exchange": exchange}
        return TrajectoryDenoiser(
            denoise,
            self.model.schedule,
            dates,
            blankets,
            mode=self.settings.mode,
            guidance=guidance,
            batching=self.batching,
            **where,
        )


def sample_pass(
    inputs: PassInputs,
    part: Pass,
    number: int,
    latents: Tensor,
    known: Tensor,
    on_step: OnStep,
    total: int,
) -> Tensor:
    """Return the states of one pass, with shape (M, length, c, h, w)."""
    model, length = inputs.model, part.blankets.length
    times = [inputs.plan.times[0] + timedelta(hours=part.first + i) for i in range(length)]
    hours = [hours_since_epoch(time) for time in times]
    noise = MemberNoise(
        inputs.seed, inputs.members, hours, stream=number, antithetic=inputs.settings.antithetic
    )
    start = latents.new_zeros(len(inputs.members), length, *model.latent_shape)
    dates = date_rows(times)
    if (tied := _forecast_from(inputs, part, known)) is not None:
        on_step(number * inputs.sampler.steps, total)
        return _forecast(inputs, latents[:, part.first : part.first + tied], dates, noise)
    conditions = _conditions(inputs, part, latents, known)
    earlier = None
    if inputs.warm_start is not None:
        whole = inputs.warm_start.at(inputs.ensemble or len(inputs.members), hours).to(start)
        earlier = whole if inputs.ensemble is None else whole[list(inputs.members)]
    if inputs.settings.start == "prior":
        guess = None if earlier is None else whole.mean(dim=0)
        if inputs.prior is not None:  # close enough to the solution for a single linearisation
            guess = inputs.prior.climatology(dates[None])[0].to(start)
        start = _prior_start(inputs, part, dates, conditions, noise(start), guess)
        if inputs.prior is not None or not inputs.settings.diffusion:
            return start
    elif earlier is not None:
        start = earlier
    level = model.schedule.sigma(torch.tensor(inputs.sampler.start, dtype=torch.float64))
    return sample(
        inputs.denoiser(model.denoise, dates, part.blankets, _guidance(inputs, conditions)),
        start + float(level) * noise(start),
        inputs.sampler,
        noise,
        on_step=on_step,
        offset=number * inputs.sampler.steps,
        total=total,
    )


def _forecast_from(inputs: PassInputs, part: Pass, known: Tensor) -> int | None:
    """Return the number of known states that a pass forecasts from; None if it is no pure forecast.

    A forecast by a single evaluation needs a network with one noise level per state. Without it,
    the known states are assimilated as observations of the latent state.
    """
    model, first = inputs.model, part.first
    if inputs.settings.start != "prior" or not model.card.backbone.noise_per_state:
        return None
    if inputs.observations is not None or len(part.blankets.starts) > 1 or first < 0:
        return None
    here = known[first : part.stop]
    count = int(here.sum())
    return count if 0 < count < part.blankets.size and bool(here[:count].all()) else None


def _forecast(inputs: PassInputs, known: Tensor, dates: Tensor, noise: MemberNoise) -> Tensor:
    """Return the states of a pass that forecasts, with shape (M, K, c, h, w)."""
    model, settings, count = inputs.model, inputs.settings, known.shape[1]
    prior = cast(ZonalGaussianPrior, model.denoise.base)
    like = known.new_zeros(len(known), len(dates), *model.latent_shape)
    dates = dates.to(known.device)
    sigma = settings.tie_error_std
    mean = inputs.batching(
        lambda rows: forecast_mean(model.denoise, known[rows], dates, sigma), len(known)
    )
    off = forecast_deviations(prior, count, sigma, noise(like), noise(like))
    return torch.cat([known, mean + settings.forecast_spread * off], dim=1)


def _prior_start(
    inputs: PassInputs,
    part: Pass,
    dates: Tensor,
    conditions: Conditions | None,
    white: Tensor,
    guess: Tensor | None,
) -> Tensor:
    """Return members of the posterior under the closed-form prior, with the shape of `white`.

    `guess`, an earlier trajectory (T, c, h, w), is the first guess of the posterior mean.
    """
    model, prior = inputs.model, inputs.prior or inputs.model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior | BackgroundPrior):
        raise ConfigurationError(
            "Expected a checkpoint with a closed-form prior for a start from the prior; this one "
            "has none. Start from 'noise'."
        )
    if conditions is None:
        conditions = Conditions(
            lambda decode: JointObservations([]), model.decode, model.decode_tangent
        )
    if guess is not None:
        blankets = part.blankets
        guess = torch.stack([guess[s : s + blankets.size] for s in blankets.starts])
    first = 0 if inputs.share is None else inputs.share.first
    solve = inputs.settings.prior_solve
    transform, spread = None, 1.0
    if inputs.prior is not None:
        transform, spread = inputs.prior.propagation, inputs.prior.spread
    start = PriorStart(
        prior, conditions, inputs.seed, inputs.members, solve, guess, first, transform, spread
    )
    draw = inputs.denoiser(model.denoise, dates, part.blankets, start)
    # The schedule has alpha = 1, so the white noise is not scaled, whatever the diffusion time.
    members: Tensor = draw(white, torch.ones((), dtype=torch.float64)).mean
    return members


def _conditions(
    inputs: PassInputs, part: Pass, latents: Tensor, known: Tensor
) -> Conditions | None:
    """Return what a pass is conditioned on: its observations, its known states, both or nothing."""
    seen: list[ObservationsOfStates | None] = []
    if inputs.observations is not None:
        seen = blanket_observations(inputs.observations, inputs.plan, part)
    tied = _tied_states(inputs, part, latents, known)
    if tied is None and not any(s is not None for s in seen):
        return None

    first = 0 if inputs.share is None else inputs.share.first

    def build_observations(decode: Decode) -> ObservedBlankets:
        kinds: list[ObservedBlankets] = []
        if any(s is not None for s in seen):
            kinds.append(DecodedObservations(seen, decode, first))
        return JointObservations(kinds if tied is None else [*kinds, tied])

    model = inputs.model
    return Conditions(
        build_observations,
        model.decode_partly,
        model.decode_tangent,
        model.prior_covariance,
        inputs.report,
        inputs.batching.chunks,
    )


def _guidance(inputs: PassInputs, conditions: Conditions | None) -> Guidance | None:
    settings = inputs.settings.guidance
    return None if conditions is None else GUIDANCE[settings.method](conditions, settings)


def _tied_states(
    inputs: PassInputs, part: Pass, latents: Tensor, known: Tensor
) -> TiedStates | None:
    first, stop = part.inside(inputs.plan.length)
    if not known[first:stop].any():
        return None
    before, after = first - part.first, part.stop - stop
    padded = torch.nn.functional.pad(known[first:stop], (before, after))
    states = latents[:, first:stop]
    states = torch.nn.functional.pad(states, (0, 0, 0, 0, 0, 0, before, after))
    return TiedStates(
        states,
        padded,
        part.blankets.starts,
        part.blankets.size,
        inputs.settings.tie_error_std,
        first=0 if inputs.share is None else inputs.share.first,
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
        settings: Settings it was drawn with.
        memory: How the work was split to fit into memory.
        seed: Seed of the inputs.
        members: Number of each member; with the seed it determines the member's noise.
    """

    states: Tensor
    times: tuple[datetime, ...]
    latents: Tensor
    first_time: datetime
    fits: tuple[tuple[float, Fit], ...]
    settings: AssimilationSettings
    memory: MemoryUse
    seed: int
    members: tuple[int, ...]

    @property
    def warm_start(self) -> WarmStart:
        """Latents and times from which the next cycle starts."""
        return WarmStart(self.latents, self.first_time)

    @property
    def pairs(self) -> AntitheticPairs:
        """Which members form antithetic pairs."""
        return AntitheticPairs.of(self.members, self.settings.antithetic)


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
    prior: BackgroundPrior | None = None,
    first_member: int = 0,
    ensemble: int | None = None,
    ranks: Ranks | None = None,
    decode: bool = True,
) -> Trajectory:
    """Draw members of the posterior of a trajectory.

    Arguments:
        latent_model: The checkpoint.
        observations: An `ObservationSet` on the states of `plan.times`; None for none.
        plan: Which states are observed, tied and written.
        members: M, the number of members.
        seed: With a member's number it determines the member, whatever the size of the ensemble
            and its batches.
        background: The tied states in order of time, physical (M or 1, T_tied, C, Y, X) or
            standardised latents (M or 1, T_tied, c, h, w).
        settings: How the plan is carried out; None for what suits the checkpoint.
        on_step: Called with (i, n) before every diffusion step; may raise `JobCancelled`.
        warm_start: An earlier trajectory that overlaps the window: the first state of sampling, or
            with a start from the prior the first guess of the solver.
        prior: Prior of a window of one blanket, centred on a background; `observations` must then
            be those that the previous analysis has not used. None for the climatological prior.
            Members are drawn from the posterior in closed form: re-noising them every hour would
            discard what earlier cycles have learned.
        diagnostics: Called with the noise level and fit of every evaluation.
        first_member: Number of the first member, where an ensemble is made in several jobs.
        ensemble: Size of the whole ensemble, so that each member takes the member of the warm start
            with its own number; None if these members are all.
        ranks: The processes that make this trajectory together, each calling with the same
            arguments; each returns the states of its own blankets. None for this process alone.
        decode: Whether to decode the written states. False is for callers that decode the latents
            themselves: the result then has no states.

    Returns:
        The ensemble.

    Raises:
        InvalidInput: If background, observations and plan do not fit together.
    """
    settings = settings or recommended_settings(latent_model)
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
    if prior is not None and (len(passes) > 1 or plan.length != latent_model.blanket_size):
        raise InvalidInput(
            f"Expected a window of {latent_model.blanket_size} states to continue from a "
            f"background; got {plan.length}. Start cold."
        )
    inputs = PassInputs(
        model=latent_model,
        observations=observations,
        plan=plan,
        members=tuple(range(first_member, first_member + members)),
        seed=seed,
        settings=settings,
        sampler=_sampler_of(settings, latent_model, warm_start),
        warm_start=warm_start,
        prior=prior,
        batching=Batching(
            settings.memory_budget,
            settings.batch_rows,
            Chunks(settings.memory_budget, settings.decode_states),
        ),
        report=FitReport(diagnostics),
        ranks=ranks,
        share=None if local is None else local.share,
        ensemble=ensemble,
    )
    result = _result(inputs, _sample_passes(inputs, passes, background, on_step), decode)
    if local is not None and not local.writes:
        return replace(result, states=result.states[:, :0], times=())
    return result


def _sampler_of(
    settings: AssimilationSettings, model: LatentModel, warm_start: WarmStart | None
) -> SamplerSettings:
    """Return the sampler, which starts at a lower noise level unless it starts from pure noise."""
    if settings.start == "prior":
        return warm_sampler(settings.sampler, settings.entry, model.schedule)
    if warm_start is not None:
        return warm_sampler(settings.sampler, settings.warm, model.schedule)
    return settings.sampler


def _blanket_by_blanket(plan: WindowPlan, size: int, settings: AssimilationSettings) -> WindowPlan:
    """Return the plan; a forecast that starts from the prior is split into passes of one blanket.

    Blankets are started independently: one without a tied state would not depend on any of them.
    """
    whole = plan.new_states_per_pass is None and any(plan.tied) and plan.length > size
    if settings.start == "prior" and whole:
        return replace(plan, new_states_per_pass=max(size // 2, 1))
    return plan


def _sample_passes(
    inputs: PassInputs, passes: Sequence[Pass], background: Tensor | None, on_step: OnStep
) -> Tensor:
    """Sample one pass after the other, each given the states before it.

    Returns:
        The latents of the whole window, with shape (M, T, c, h, w).
    """
    length = inputs.plan.length
    latents, tied = _tied_latents(inputs, background)
    total = len(passes) * inputs.sampler.steps
    for number, part in enumerate(passes):
        known = tied | (torch.arange(length) < part.known)
        drawn = sample_pass(inputs, part, number, latents, known, on_step, total)
        first, stop = part.inside(length)
        # Known states are kept: the new ones were drawn conditional on them.
        new = [i for i in range(first, stop) if not known[i]]
        latents[:, new] = drawn[:, [i - part.first for i in new]]
    return latents


def _tied_latents(inputs: PassInputs, background: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return latents (M, T, c, h, w) with the tied states filled in, and which those are (T,)."""
    model, plan = inputs.model, inputs.plan
    tied = torch.tensor(plan.tied)
    shape = (len(inputs.members), plan.length, *model.latent_shape)
    latents = torch.zeros(shape, dtype=model.dtype, device=model.device)
    if background is None and not tied.any():
        return latents, tied
    if background is None or background.shape[:2] not in {
        (m, int(tied.sum())) for m in (1, len(inputs.members))
    }:
        got = None if background is None else tuple(background.shape)
        raise InvalidInput(
            f"Expected a background with shape ({len(inputs.members)} or 1, {int(tied.sum())}, ...), "
            f"one state for each tied time of the plan; got {got}."
        )
    if background.shape[2:] != model.latent_shape:
        with torch.no_grad():
            background = model.encode(background)
    latents[:, tied] = background.to(latents)
    return latents, tied


@torch.no_grad()
def _result(inputs: PassInputs, latents: Tensor, decode: bool) -> Trajectory:
    plan, model = inputs.plan, inputs.model
    states = torch.empty(len(inputs.members), 0, *model.state_shape)
    if decode:
        written = latents[:, torch.tensor(plan.written)].flatten(0, 1)
        batching = Batching(rows=inputs.batching.rows or plan.length)
        flat = batching(lambda rows: model.decode(written[rows]).float().cpu(), len(written))
        states = flat.unflatten(0, (len(inputs.members), -1))
    return Trajectory(
        states=states,
        times=plan.written_times if decode else (),
        latents=latents.cpu(),
        first_time=plan.times[0],
        fits=inputs.report.levels,
        settings=replace(inputs.settings, sampler=inputs.sampler),
        memory=inputs.batching.use,
        seed=inputs.seed,
        members=inputs.members,
    )
