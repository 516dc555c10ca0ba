"""Score a chain of cycles on its last day: analyses, forecasts, spread and cost.

If cycles continue from the analysis of several hours before, hourly cycles form that many independent
chains, which differ only in their hours; two of them are run. If the checkpoint has no statistics of
background errors, every cycle is a cold window, as in operation, and those that are not scored are
left out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from lab.osse.cases import ReadTruth
from lab.osse.cycling import AnalysisChain
from lab.osse.network import Network
from lab.osse.scores import standardised_rmse
from lab.osse.summary import channel_groups
from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import AssimilationSettings
from model.background import around_forecast
from model.diagnostics.scores import spread_skill
from model.domain.windows import HOUR, WindowPlan
from model.execution import OnStep, no_progress
from model.latent_model import LatentModel

__all__ = ["CycleSettings", "CycledSkill", "forecast_from", "score_cycles", "spread_ratio"]

SCORED_EVERY = 3
"""Hours between scored analyses of the last day."""
FORECAST_EVERY = 12
"""Hours between the forecasts of the last day."""
LEAD = 24


class CycledSkill(BaseModel):
    """Skill of a chain of cycles: standardised RMSE, averaged over channels and the last day.

    Attributes:
        start: End of the cold window that the chain begins with (UTC).
        days: Length of the chain.
        continued: Whether cycles continue from each other; else each is a cold window.
        filtering, wind, humidity: Errors of the analyses, and of two groups of channels.
        cold: Error of the cold window that ends where the chain does.
        forecast_24h: Error of forecasts over a day.
        spread_over_error: Of the analyses.
        cycle_seconds: Median wall clock of a cycle: its operators included, and, of continued ones, not
            the simulation of their observations.
        by_day: Error of the last analysis of each day of the chain.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    start: datetime
    days: float
    continued: bool
    filtering: float
    wind: float
    humidity: float
    cold: float
    forecast_24h: float
    spread_over_error: float
    cycle_seconds: float
    by_day: tuple[float, ...]


@dataclass(frozen=True)
class CycleSettings:
    """Settings of a chain of cycles.

    Attributes:
        days: Of cycles after the cold window.
        members: Size of the ensemble, even.
        past: States that a forecast is tied to.
        seed: Of observation errors and members.
        network: The simulated observing network.
        withhold: Share of the stations that is left out.
        settings: How the checkpoint assimilates; None for what its card recommends.
    """

    days: float
    members: int = 8
    past: int = 12
    seed: int = 0
    network: Network = field(default_factory=Network)
    withhold: float = 0.1
    settings: AssimilationSettings | None = None


@dataclass
class _Collected:
    errors: list[Tensor] = field(default_factory=list)
    forecasts: list[Tensor] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    by_day: list[float] = field(default_factory=list)

    def skill(
        self,
        groups: dict[str, list[int]],
        start: datetime,
        days: float,
        *,
        continued: bool,
        cold: float,
    ) -> CycledSkill:
        """Return the means of what was collected; `groups` holds channel numbers by quantity."""
        mean = torch.stack(self.errors).mean(0)
        return CycledSkill(
            start=start,
            days=days,
            continued=continued,
            filtering=float(mean.mean()),
            wind=float(mean[groups["wind"]].mean()),
            humidity=float(mean[groups["humidity"]].mean()),
            cold=cold,
            forecast_24h=float(torch.stack(self.forecasts).mean()),
            spread_over_error=float(np.nanmean(torch.stack(self.ratios).numpy())),
            cycle_seconds=float(np.median(self.seconds)),
            by_day=tuple(self.by_day),
        )


def score_cycles(
    model: LatentModel,
    truth_at: ReadTruth,
    start: datetime,
    asked: CycleSettings,
    on_step: OnStep = no_progress,
) -> CycledSkill:
    """Run a chain and score its last day.

    Arguments:
        model: The checkpoint.
        truth_at: Reads the truth, up to a day after the chain.
        start: End of the cold window (UTC).
        asked: Settings of the chain.
        on_step: Called with (i, n) before every hour.
    """
    known = model.card.background
    age = 1 if known is None else known.hours
    step = max(age // 2, 1)
    total = max(round(24 * asked.days) // step, 1) * step
    chain = AnalysisChain(
        model,
        truth_at,
        around_forecast(model),
        members=asked.members,
        step=step,
        age=age,
        settings=asked.settings,
        network=asked.network,
        seed=asked.seed,
        withhold=asked.withhold,
    )
    continues, found = chain.around is not None, _Collected()
    first_scored = max(total - 24, 0) + 1
    if continues:
        chain.start(start)
    for number in range(step, total + 1, step):
        on_step(number, total)
        scored = number >= first_scored and (total - number) % SCORED_EVERY == 0
        end, day_ends = start + number * HOUR, number % 24 == 0
        if not (continues or scored or day_ends):
            continue
        if continues:
            chain.observe()
        begin = time.perf_counter()
        analysis = next(chain.cycles(1)).analysis if continues else chain.start(end)
        found.seconds.append(time.perf_counter() - begin)
        if scored or day_ends:
            _score(found, model, truth_at, analysis, end, (scored, day_ends))
        if scored and (total - number) % FORECAST_EVERY == 0:
            forecast = forecast_from(model, analysis, end, LEAD, asked)
            ahead = truth_at(end + LEAD * HOUR, 1)[0]
            found.forecasts.append(_error(model, forecast, ahead))
    last = start + total * HOUR
    cold = chain.start(last) if continues else analysis  # already the cold window at `last`
    groups = channel_groups(model.channels)
    cold_error = float(_error(model, cold, truth_at(last, 1)[0]).mean())
    return found.skill(groups, start, asked.days, continued=continues, cold=cold_error)


def _error(model: LatentModel, analysis: Trajectory, truth: Tensor) -> Tensor:
    return standardised_rmse(model, analysis.states.mean(0)[-1], truth)


def _score(
    found: _Collected,
    model: LatentModel,
    truth_at: Callable[[datetime, int], Tensor],
    analysis: Trajectory,
    end: datetime,
    what: tuple[bool, bool],
) -> None:
    truth, (scored, day_ends) = truth_at(end, 1)[0], what
    error = _error(model, analysis, truth)
    if day_ends:
        found.by_day.append(float(error.mean()))
    if scored:
        found.errors.append(error)
        found.ratios.append(spread_ratio(model, analysis, truth))


def spread_ratio(model: LatentModel, analysis: Trajectory, truth: Tensor) -> Tensor:
    """Return spread over error of an ensemble's last state by channel, with shape (C,).

    Arguments:
        model: The checkpoint.
        analysis: The ensemble.
        truth: Its true last state (C, Y, X); where it is NaN, cells are left out.
    """
    members = torch.where(torch.isnan(truth), torch.nan, analysis.states[:, -1])
    return spread_skill(members, truth, model.grid, analysis.pairs).ratio


class Forecasts(Protocol):
    """The settings that forecasts read; those of skill and of cycled skill both have them."""

    @property
    def past(self) -> int:
        """States that a forecast is tied to, at most those there are."""

    @property
    def members(self) -> int:
        """Number of members of the ensemble."""

    @property
    def seed(self) -> int:
        """Seed of the random numbers from which members are drawn."""

    @property
    def settings(self) -> AssimilationSettings | None:
        """How the checkpoint assimilates; None for what its card recommends."""


def forecast_from(
    model: LatentModel,
    analysis: Trajectory,
    end: datetime,
    lead: int,
    asked: Forecasts,
    on_step: OnStep = no_progress,
) -> Trajectory:
    """Return the forecast of `lead` hours from the last states of an analysis that ends at `end`."""
    past = min(asked.past, analysis.latents.shape[1])
    return assimilate(
        model,
        None,
        WindowPlan.forecast(end, past=past, lead_hours=lead),
        asked.members,
        asked.seed,
        background=analysis.latents[:, -past:],
        settings=asked.settings,
        on_step=on_step,
    )
