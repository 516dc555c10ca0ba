"""Skill of a checkpoint in a simulated world: one start time, everything scored against truth.

Every method sees the same simulated observations of the same window. Errors are standardised: each
channel's area-weighted RMSE over the standard deviation the checkpoint standardises it with.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import torch
from torch import Tensor

from model.assimilate import AssimilationSettings, Trajectory, assimilate
from model.diagnostics.scores import rmse, spread_skill
from model.domain.windows import WindowPlan
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet, build_observation_set
from model.osse.baselines.windowed import windowed_analysis
from model.osse.network import Network, simulate_observations
from model.osse.one_hour import one_hour_analysis
from model.progress import OnStep, no_progress

__all__ = ["SkillSettings", "StartSkill", "climatological_states", "date_rows", "score_start"]

ReadTruth = Callable[[datetime, int], Tensor]
"""(first time UTC, count) -> physical states (count, C, Y, X), NaN where undefined."""


@dataclass(frozen=True)
class SkillSettings:
    """One experiment.

    Attributes:
        window: Hours of observations up to the analysis.
        members: Size of the ensemble.
        lead: Hours of forecast; 0 for none.
        past: States that the forecast is tied to.
        seed: Of observation errors and members.
        network: What observes.
        settings: How the checkpoint assimilates; None for what its card recommends.
    """

    window: int = 24
    members: int = 8
    lead: int = 24
    past: int = 6
    seed: int = 0
    network: Network = field(default_factory=Network)
    settings: AssimilationSettings | None = None


@dataclass(frozen=True)
class StartSkill:
    """Standardised RMSE by method and channel for one analysis time.

    Attributes:
        end: Analysis time.
        observations: Number in the window.
        errors: Method to (C,).
        spread_ratio: Spread over error of the filtering ensemble by channel, with shape (C,).
        seconds: Wall clock by method.
        chi: Root mean square post-fit innovation by noise level, in units of the error.
    """

    end: datetime
    observations: int
    errors: dict[str, Tensor]
    spread_ratio: Tensor
    seconds: dict[str, float]
    chi: tuple[tuple[float, float], ...]


class _Scorer:
    """Collects errors and times of methods."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.errors: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self._std = model.state_normalisation.std.flatten().double().cpu()

    def score(self, name: str, states: Tensor, truth: Tensor) -> None:
        """States and truth with shape (C, Y, X)."""
        # Sea surface temperature is undefined on land in the truth; NaN cells are left out.
        states = torch.where(torch.isnan(truth), torch.nan, states)
        self.errors[name] = rmse(states, truth, self.model.grid) / self._std

    def timed(self, name: str, work: Callable[[], Trajectory | Tensor]) -> Trajectory | Tensor:
        begin = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - begin
        return result


def score_start(
    model: LatentModel,
    truth_at: ReadTruth,
    end: datetime,
    settings: SkillSettings | None = None,
    on_step: OnStep = no_progress,
) -> StartSkill:
    """Observes, assimilates, forecasts and scores one window that ends at `end` (UTC)."""
    s = settings or SkillSettings()
    first = end - timedelta(hours=s.window - 1)
    truth = truth_at(first, s.window + s.lead)
    times = [first + timedelta(hours=i) for i in range(s.window)]
    table = simulate_observations(
        torch.nan_to_num(truth[: s.window], nan=273.0),
        model.grid,
        model.channels,
        times,
        s.seed + int(end.timestamp()) // 3600,
        statics=model.statics,
        network=s.network,
    )
    observations, _ = build_observation_set(table, model.grid, model.channels, times, model.statics)
    scorer, last, middle = _Scorer(model), s.window - 1, s.window // 2
    with torch.no_grad():
        scorer.score("reconstruction", model.decode(model.encode(truth[last])), truth[last])
    _score_baselines(scorer, model, observations, times, truth)
    _score_one_hour(scorer, table, times, truth[last])
    plan = WindowPlan.filtering(end, s.window, written=s.window)
    analysis = scorer.timed(
        "filtering",
        lambda: assimilate(
            model,
            observations,
            plan,
            s.members,
            s.seed,
            settings=s.settings,
            on_step=on_step,
        ),
    )
    mean = analysis.states.mean(0)
    scorer.score("filtering", mean[last], truth[last])
    scorer.score("reanalysis", mean[middle], truth[middle])
    ensemble = torch.where(torch.isnan(truth[last]), torch.nan, analysis.states[:, last])
    ratio = spread_skill(ensemble, truth[last], model.grid).ratio
    if s.lead:
        _score_forecast(scorer, s, analysis, truth, end, on_step)
    chi = tuple((level, fit.chi_after) for level, fit in analysis.fits)
    return StartSkill(end, len(observations), scorer.errors, ratio, scorer.seconds, chi)


def _score_forecast(
    scorer: _Scorer,
    s: SkillSettings,
    analysis: Trajectory,
    truth: Tensor,
    end: datetime,
    on_step: OnStep,
) -> None:
    plan = WindowPlan.forecast(end, past=s.past, lead_hours=s.lead)
    background = analysis.latents[:, s.window - s.past : s.window]
    forecast = scorer.timed(
        "forecast",
        lambda: assimilate(
            scorer.model,
            None,
            plan,
            s.members,
            s.seed,
            background=background,
            settings=s.settings,
            on_step=on_step,
        ),
    )
    target = truth[s.window + s.lead - 1]
    scorer.score("forecast", forecast.states.mean(0)[-1], target)
    scorer.score("persistence of the analysis", analysis.states.mean(0)[s.window - 1], target)
    scorer.score(
        "climatology at the lead time",
        climatological_states(scorer.model, [plan.times[-1]])[0],
        target,
    )


def _score_baselines(
    scorer: _Scorer,
    model: LatentModel,
    observations: ObservationSet,
    times: Sequence[datetime],
    truth: Tensor,
) -> None:
    """Climatology, persistence of the truth, and windowed optimal interpolation."""
    last, middle = len(times) - 1, len(times) // 2
    scorer.score("climatology", climatological_states(model, [times[-1]])[0], truth[last])
    scorer.score("6-hour persistence of the truth", truth[last - 6], truth[last])
    if len(truth) > last + 24:
        scorer.score("24-hour persistence of the truth", truth[last], truth[last + 24])
    prior = model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior) or prior.blanket_size > len(times):
        return
    k = prior.blanket_size
    seen = observations.for_blanket(len(times) - k, len(times))
    result = scorer.timed(
        "windowed OI",
        lambda: (
            windowed_analysis(
                prior,
                lambda z: model.decode(z, mask=False),
                seen,
                date_rows(times[-k:]),
                iterations=60,
                tolerance=0.01,
            ).latents
        ),
    )
    with torch.no_grad():
        scorer.score("windowed OI", model.decode(result[0, -1], mask=False), truth[last])
        inside = middle - (len(times) - k)
        if inside >= 0:
            state = model.decode(result[0, inside], mask=False)
            scorer.score("windowed OI mid-window", state, truth[middle])


def _score_one_hour(
    scorer: _Scorer, table: pa.Table, times: Sequence[datetime], truth: Tensor
) -> None:
    model, end, name = scorer.model, times[-1], "optimal interpolation, 1 hour"
    if not isinstance(model.denoise.base, ZonalGaussianPrior):
        return
    dates = date_rows([end - timedelta(hours=i) for i in reversed(range(model.blanket_size))])
    background = climatological_states(model, [end])[0]
    state = scorer.timed(name, lambda: one_hour_analysis(model, table, end, background, dates))
    scorer.score(name, state, truth)


@torch.no_grad()
def climatological_states(model: LatentModel, times: Sequence[datetime]) -> Tensor:
    """Mean states (T, C, Y, X): seasonal where the checkpoint knows the season."""
    prior = model.denoise.base
    if isinstance(prior, ZonalGaussianPrior):
        return model.decode(prior.climatology(date_rows(times)[None])[0], mask=False)
    mean = model.state_normalisation.mean
    return mean.expand(len(times), *model.state_shape).clone()


def date_rows(times: Sequence[datetime]) -> Tensor:
    """Year, month, day and hour (UTC) of times, int64 with shape (T, 4)."""
    utc = [t.astimezone(UTC) for t in times]
    return torch.tensor([[t.year, t.month, t.day, t.hour] for t in utc])
