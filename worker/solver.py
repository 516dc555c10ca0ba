"""Run the model for one job: its analysis, a forecast from an earlier one, draws from the prior.

Each kind of run has its own seed, derived from the job's, so that first guess and analysis never share
noise. A background is the first guess of a window, as an ensemble of latent trajectories: the input of
the solver, or drawn by it if there is none.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import (
    AssimilationSettings,
    WarmStart,
    guidance_settings,
    recommended_settings,
)
from model.background import BackgroundPrior, around_forecast, innovation_weights
from model.domain.errors import ConfigurationError
from model.domain.windows import HOUR, WindowPlan
from model.execution import OnStep
from model.guidance.base import BlanketRows, Observed
from model.guidance.observed import DecodedObservations
from model.latent_model import LatentModel
from model.nn.embedding import date_rows
from model.operators.observation_set import ObservationSet
from model.samplers.sampling import SAMPLERS
from worker.contract.kinds import SpecBase

__all__ = ["Analysis", "Background", "Draw", "Solver", "MemberSplit", "pairs_info"]


@dataclass(frozen=True, eq=False)
class Background:
    """The first guess x_b of a window, as an ensemble of latent trajectories.

    Attributes:
        times: Consecutive full hours (UTC); T of them.
        latents: Standardised latents, with shape (M, T, c, h, w).
        source: `previous_analysis`, `uploaded` or `climatology`.
        info: Its origin and age; JSON-able.
        flags: Flags for users of the result, such as `cold_start`.
        antithetic: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
        prior: If the window continues an analysis: the prior before its new observations.
    """

    times: tuple[datetime, ...]
    latents: Tensor
    source: str
    info: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    antithetic: bool = False
    prior: BackgroundPrior | None = None

    @property
    def members(self) -> int:
        """Return M, the size of the ensemble."""
        return int(self.latents.shape[0])


def pairs_info(antithetic: bool) -> dict[str, Any]:
    """Return the entry of `Background.info` about antithetic pairs; none for independent members."""
    return {"mirrored": True} if antithetic else {}


_PRIOR_SEED, _FORECAST_SEED, _BACKGROUND_SEED = 1 << 40, 1 << 41, 1 << 42
_SHORT = 3
"""Longest forecast, in hours, that starts warm from persistence."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """Analysis of a job: the latents of its members, and how they were drawn.

    Attributes:
        latents: Standardised latents of all times of the plan, with shape (M, T, c, h, w).
        seeds: The seed of each member; with the member's number it determines the noise.
        configuration: Settings of sampler and guidance; JSON-able.
        flags: `zero_observations`, `warm_start` and the like.
        antithetic: Whether members 0 and 1, 2 and 3 … have opposite perturbations. Those of a
            forecast have, nearly, if those of its analysis have: with the checkpoint that ships,
            the means of pairs vary by 0.6 % of what those of independent members would at +12 h.
        memory: Sizes of sub-batches, and the number of retries with smaller ones after running out
            of memory; JSON-able.
        parts: Member numbers of each part drawn together; empty if all were drawn at once.
        ranks: Number of processes that shared the blankets.
    """

    latents: Tensor
    seeds: tuple[int, ...]
    configuration: dict[str, Any]
    flags: tuple[str, ...] = ()
    antithetic: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    parts: tuple[range, ...] = ()
    ranks: int = 1


class Draw(Protocol):
    """Draw members of an analysis by their numbers; see `Solver.analysis`."""

    def __call__(self, members: range, **options: Any) -> Trajectory:
        """Return the trajectory of members by their numbers; options are those of `assimilate`."""


class MemberSplit(Protocol):
    """Draw the members of an analysis in parts, in this process or in others."""

    @property
    def parts(self) -> tuple[range, ...]:
        """Return the member numbers of each part; empty if all are drawn at once."""

    @property
    def ranks(self) -> int:
        """Return the number of processes that share the blankets."""

    def __call__(self, draw: Draw) -> tuple[Tensor, Trajectory]:
        """Return the latents of all members in order, and the trajectory of some of them."""


class Solver:
    """Run the model for one job.

    Arguments:
        model: The loaded model.
        spec: Members, seed, steps.
        progress: Called at every step (`on_step`).
        minimal_batches: Whether to use the smallest sub-batches, after an attempt ran out of memory.

    Attributes:
        memory_retries: Number of retries with smaller sub-batches, over all runs.
    """

    def __init__(
        self,
        model: LatentModel,
        spec: SpecBase,
        progress: OnStep,
        *,
        minimal_batches: bool = False,
    ) -> None:
        self.model = model
        self.spec = spec
        self.progress = progress
        self.memory_retries = 0
        settings = _settings(model, spec)
        self.settings = settings.smallest if minimal_batches else settings

    def prior(self, times: Sequence[datetime], *, closed_form: bool = False) -> Tensor:
        """Return draws from the prior of the model at `times`, with shape (M, T, c, h, w).

        Arguments:
            times: Consecutive full hours (UTC).
            closed_form: Whether the closed form, where sampling starts from it, suffices: the network
                takes ten times as long.
        """
        none = (False,) * len(times)
        plan = WindowPlan(tuple(times), none, none, _only_last(len(times)))
        settings = replace(self.settings, diffusion=not closed_form)
        seed = self.spec.seed + _PRIOR_SEED
        return self._run(plan, None, seed, settings=settings).latents

    def forecast(self, latents: Tensor, times: Sequence[datetime], until: datetime) -> Tensor:
        """Return the states after `times` up to `until`, with shape (M, hours, c, h, w).

        Arguments:
            latents: Known states, with shape (M, T, c, h, w).
            times: Times of the T states.
            until: Last time to forecast.
        """
        lead = round((until - times[-1]) / HOUR)
        past = min(len(times), max(1, self.model.blanket_size - lead))
        plan = WindowPlan.forecast(times[-1], past=past, lead_hours=lead)
        plan = replace(plan, written=_only_last(plan.length))
        known = latents[:, -past:]
        warm = WarmStart(known, plan.times[0]) if lead <= _SHORT else None
        seed = self.spec.seed + _FORECAST_SEED
        return self._run(plan, None, seed, background=known, warm_start=warm).latents[:, past:]

    def around(self, analysed: Tensor, times: Sequence[datetime]) -> BackgroundPrior:
        """Return the prior of a window given the analysis of its first states.

        Arguments:
            analysed: Ensemble mean of the first states, with shape (k, c, h, w).
            times: Times of all states of the window.
        """
        around = around_forecast(self.model)
        if around is None:
            raise ConfigurationError("Expected a checkpoint that knows the errors of backgrounds.")
        return around(analysed, date_rows(times))

    def drawn_around(self, prior: BackgroundPrior, times: Sequence[datetime]) -> Tensor:
        """Return draws from a prior around a background, with shape (M, T, c, h, w)."""
        plan = WindowPlan.filtering(times[-1], len(times))
        return self._run(plan, None, self.spec.seed + _BACKGROUND_SEED, prior=prior).latents

    def analysis(
        self,
        plan: WindowPlan,
        observations: ObservationSet,
        background: Background,
        split: MemberSplit | None = None,
    ) -> Analysis:
        """Return the analysis of the job, or its forecast if states are tied.

        Without observations and tied states there is nothing to condition on: the analysis is the
        background, and is flagged so.

        Arguments:
            plan: Times of the states.
            observations: Observations that passed all checks.
            background: The first guess.
            split: Draws the members in parts; None to draw all at once.
        """
        members, tied = self.spec.members, torch.tensor(plan.tied)
        seeds = (self.spec.seed,) * members
        pairs = self.keeps_pairs(background.antithetic, background.members)
        if not len(observations) and not tied.any():
            return Analysis(
                self.resize(background.latents),
                seeds,
                self._described(),
                ("zero_observations",),
                pairs,
            )
        draw = self.draw(plan, observations, background)
        if split is None:
            result = draw(range(members))
            latents = result.latents
        else:
            latents, result = split(draw)
        return Analysis(
            latents,
            seeds,
            asdict(result.settings),
            ("warm_start",) if self._warm(background) else (),
            result.settings.antithetic and (pairs or not tied.any().item()),
            asdict(result.memory),
            () if split is None else split.parts,
            1 if split is None else split.ranks,
        )

    def innovation_weights(
        self,
        prior: BackgroundPrior,
        analysed: Tensor,
        observations: ObservationSet,
        verified: ObservationSet,
        sensitivity: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return what innovations did to a weighted sum of verified equivalents, with shape (N,).

        Both innovations and equivalents are in units of the errors; see
        `model.background.innovation_weights`.

        Arguments:
            prior: Prior of the window, one blanket.
            analysed: The posterior mean, with shape (K, c, h, w).
            observations: The N observations in use.
            verified: Observations of the same states that were not used.
            sensitivity: The weight of each of them.
        """
        model, row = self.model, BlanketRows(*torch.zeros(2, 1, dtype=torch.long))
        x = analysed[None].to(model.dtype).to(model.device)

        def seen(part: ObservationSet) -> Observed:
            there = part.to(model.dtype, model.device)
            return cast(Observed, DecodedObservations([there], model.decode_tangent).select(row, x))

        weights = innovation_weights(
            prior,
            seen(observations),
            seen(verified),
            x,
            torch.from_numpy(sensitivity)[None].to(x),
            self.settings.prior_solve,
        )
        return weights[0].double().cpu().numpy()

    def draw(self, plan: WindowPlan, observations: ObservationSet, background: Background) -> Draw:
        """Return a function that draws members of the analysis by their numbers."""
        tied = torch.tensor(plan.tied)
        # States are decoded when they are written, a few at a time, because all may exceed memory.
        plan = replace(plan, written=_only_last(plan.length))
        start = WarmStart(background.latents, plan.times[0]) if self._warm(background) else None
        seen = None
        if len(observations):
            seen = observations.to(self.model.dtype, self.model.device)

        def drawn(members: range, **options: Any) -> Trajectory:
            known = self.resize(background.latents)[members.start : members.stop, tied]
            return self._run(
                plan,
                seen,
                self.spec.seed,
                members,
                background=known if tied.any() else None,
                warm_start=start,
                prior=background.prior,
                **options,
            )

        return drawn

    def _warm(self, background: Background) -> bool:
        climatology = background.source == "climatology"
        return self.spec.starts_warm and not climatology and background.prior is None

    def resize(self, latents: Tensor) -> Tensor:
        """Return an ensemble of the job's size; members are repeated if there are fewer."""
        return latents[torch.arange(self.spec.members) % len(latents)]

    def keeps_pairs(self, antithetic: bool, members: int) -> bool:
        """Return whether an ensemble of `members` stays in antithetic pairs when resized."""
        return antithetic and (self.spec.members <= members or members % 2 == 0)

    def _run(
        self,
        plan: WindowPlan,
        observations: ObservationSet | None,
        seed: int,
        members: range | None = None,
        **options: Any,
    ) -> Trajectory:
        members = members or range(self.spec.members)
        result = assimilate(
            self.model,
            observations,
            plan,
            len(members),
            seed,
            first_member=members.start,
            ensemble=self.spec.members,
            decode=False,  # decoded once, for both observations and files
            **{"settings": self.settings, "on_step": self.progress, **options},
        )
        self.memory_retries += result.memory.retries
        return result

    def _described(self) -> dict[str, Any]:
        return asdict(self.settings)


def _settings(model: LatentModel, spec: SpecBase) -> AssimilationSettings:
    """Return the checkpoint's recommended settings, overridden by the job's choices.

    Raises:
        UnknownName: If the job names a sampler or guidance that is not installed here.
    """
    settings = recommended_settings(model)
    if spec.sampler is not None:
        SAMPLERS[spec.sampler]
        settings = replace(settings, sampler=replace(settings.sampler, name=spec.sampler))
    if spec.guidance is not None and spec.guidance != settings.guidance.method:
        settings = replace(settings, guidance=guidance_settings(spec.guidance))
    if spec.steps is None:
        return settings
    return replace(
        settings,
        sampler=replace(settings.sampler, steps=spec.steps),
        entry=replace(settings.entry, steps=spec.steps),
        warm=replace(settings.warm, steps=min(spec.steps, settings.warm.steps)),
    )


def _only_last(count: int) -> tuple[bool, ...]:
    """Return the flags of a plan that writes only its last time, the minimum of a plan."""
    return (False,) * (count - 1) + (True,)
