"""One pass of a plan: its conditions, its start, and the run of the sampler."""

__all__ = ["Job", "sample_pass"]

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.assimilation_settings import AssimilationSettings
from model.batching import Batching
from model.distributed import Ranks, Share
from model.domain.errors import ConfigurationError
from model.domain.windows import WindowPlan
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance import GUIDANCE
from model.guidance.base import Decode, Denoise, Guidance, ObservedBlankets
from model.guidance.conditions import Conditions
from model.guidance.decoded import DecodedObservations, ObservationsOfStates
from model.guidance.fit import FitReport
from model.guidance.latent_state import JointObservations, TiedStates
from model.guidance.prior_start import PriorStart
from model.latent_model import LatentModel
from model.noise import MemberNoise
from model.observed_window import WindowObservations, blanket_observations
from model.passes import Pass
from model.progress import OnStep
from model.sampling import SamplerSettings, sample
from model.trajectory import Blankets, TrajectoryDenoiser
from model.warm_start import WarmStart, hours_since_epoch


@dataclass(frozen=True)
class Job:
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
    ranks: Ranks | None = None
    share: Share | None = None

    def denoiser(
        self, denoise: Denoise, dates: Tensor, blankets: Blankets, guidance: Guidance | None
    ) -> TrajectoryDenoiser:
        """The denoiser of a pass, of this rank's share of it where there are ranks."""
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
    job: Job,
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
    noise = MemberNoise(job.seed, job.members, hours, stream=number, mirrored=job.settings.mirrored)
    start = latents.new_zeros(len(job.members), length, *model.latent_shape)
    dates = torch.tensor([[t.year, t.month, t.day, t.hour] for t in times])
    conditions = _conditions(job, part, latents, known)
    earlier = None
    if job.warm_start is not None:
        earlier = job.warm_start.at(len(job.members), hours).to(start)
    if job.settings.start == "prior":
        guess = None if earlier is None else earlier.mean(dim=0)
        start = _prior_start(job, part, dates, conditions, noise(start), guess)
    elif earlier is not None:
        start = earlier
    level = model.schedule.sigma(torch.tensor(job.sampler.start, dtype=torch.float64))
    return sample(
        job.denoiser(model.denoise, dates, part.blankets, _guidance(job, conditions)),
        start + float(level) * noise(start),
        job.sampler,
        noise,
        on_step=on_step,
        offset=number * job.sampler.steps,
        total=total,
    )


def _prior_start(
    job: Job,
    part: Pass,
    dates: Tensor,
    conditions: Conditions | None,
    white: Tensor,
    guess: Tensor | None,
) -> Tensor:
    """Members of the posterior under the closed-form prior, with the shape of `white`.

    An earlier trajectory (T, c, h, w) is a first guess of their mean.
    """
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
    if guess is not None:
        blankets = part.blankets
        guess = torch.stack([guess[s : s + blankets.size] for s in blankets.starts])
    first = 0 if job.share is None else job.share.first
    solve = job.settings.prior_solve
    start = PriorStart(prior, conditions, job.seed, job.members, solve, guess, first)
    draw = job.denoiser(prior, dates, part.blankets, start)
    # The schedule has alpha = 1, so the white noise arrives as it is at any time.
    return draw(white, torch.ones((), dtype=torch.float64)).mean


def _conditions(job: Job, part: Pass, latents: Tensor, known: Tensor) -> Conditions | None:
    """What a pass is conditioned on: its observations, its known states, both or nothing."""
    seen: list[ObservationsOfStates | None] = []
    if job.observations is not None:
        seen = blanket_observations(job.observations, job.plan, part)
    tied = _tied_states(job, part, latents, known)
    if tied is None and not any(s is not None for s in seen):
        return None

    first = 0 if job.share is None else job.share.first

    def through(decode: Decode) -> ObservedBlankets:
        kinds: list[ObservedBlankets] = []
        if any(s is not None for s in seen):
            kinds.append(DecodedObservations(seen, decode, first))
        return JointObservations(kinds if tied is None else [*kinds, tied])

    model = job.model
    return Conditions(
        through,
        lambda z: model.decode(z, mask=False),
        model.decode_tangent,
        model.prior_covariance,
        job.report,
    )


def _guidance(job: Job, conditions: Conditions | None) -> Guidance | None:
    settings = job.settings.guidance
    return None if conditions is None else GUIDANCE[settings.method](conditions, settings)


def _tied_states(job: Job, part: Pass, latents: Tensor, known: Tensor) -> TiedStates | None:
    first, stop = part.inside(job.plan.length)
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
        job.settings.tie_error_std,
        first=0 if job.share is None else job.share.first,
    )
