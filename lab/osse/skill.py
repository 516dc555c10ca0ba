"""Score a checkpoint in a simulated world against truth, and keep the results of each start.

Every method sees the same simulated observations of the same window. Errors are standardised:
each channel's area-weighted RMSE over the standard deviation the checkpoint standardises it with.
Results are kept in a file, so that an interrupted experiment continues where it was.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from lab.osse.baselines import score_interpolation, score_persistence, score_windowed
from lab.osse.cases import ObservedCase, ReadTruth, observe_case
from lab.osse.cycled_skill import CycledSkill, forecast_from, spread_ratio
from lab.osse.network import Network
from lab.osse.scores import (
    AutoencoderSkill,
    CaseFields,
    Method,
    Ranks,
    StartScorer,
    StartSkill,
    observation_kinds,
    peak_memory,
    station_ranks,
)
from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import AssimilationSettings, WarmStart, recommended_settings
from model.denoiser import BlanketDenoiser
from model.diagnostics.ensembles import ranks
from model.diagnostics.equivalents import model_equivalents
from model.domain.errors import InvalidInput
from model.domain.files import open_atomic, write_atomic
from model.domain.windows import HOUR, WindowPlan
from model.execution import OnStep, no_progress
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel, climatological_states

__all__ = [
    "OnPhase",
    "ResultsFile",
    "ScoredStart",
    "SkillSettings",
    "experiment",
    "score_start",
    "without_network",
]

OnPhase = Callable[[str], None]
"""Called with the name of each phase as it begins."""

SHOWN = ("2m_temperature", "geopotential_500hPa")
"""Channels whose maps are kept, where the checkpoint has them."""


@dataclass(frozen=True)
class SkillSettings:
    """Settings of one experiment.

    Attributes:
        window: Hours of observations up to the analysis.
        members: Size of the ensemble.
        lead: Hours of forecast; 0 for none.
        past: States that the forecast is tied to.
        seed: Of observation errors and members.
        network: The simulated observing network.
        withhold: Share of the surface stations and radiosondes kept for the rank histograms.
        anomalies: Climatological states behind the one-hour optimal interpolation.
        warm: Whether the cycle an hour later is run too, for its cost.
        windowed: Whether windowed optimal interpolation is scored, the slowest of the baselines.
        ablation: Whether filtering is repeated without the network's correction.
        settings: How the checkpoint assimilates; None for what its card recommends.
    """

    window: int = 24
    members: int = 8
    lead: int = 24
    past: int = 12
    seed: int = 0
    network: Network = field(default_factory=Network)
    withhold: float = 0.1
    anomalies: int = 400
    warm: bool = True
    windowed: bool = True
    ablation: bool = True
    settings: AssimilationSettings | None = None


@dataclass(frozen=True)
class ScoredStart:
    """The figures of one start, and maps of its analysis."""

    skill: StartSkill
    fields: CaseFields


@dataclass(frozen=True)
class _StartRun:
    """Inputs shared by the steps from one start."""

    case: ObservedCase
    settings: SkillSettings
    scorer: StartScorer
    on_step: OnStep


def score_start(
    model: LatentModel,
    truth_at: ReadTruth,
    end: datetime,
    settings: SkillSettings | None = None,
    on_step: OnStep = no_progress,
    on_phase: OnPhase = lambda name: None,
) -> ScoredStart:
    """Observe, assimilate, forecast and score one window that ends at `end` (UTC)."""
    s = settings or SkillSettings()
    on_phase("observing")
    case = observe_case(model, truth_at, end, s.window, s.lead, s.network, s.seed, s.withhold)
    scorer = StartScorer(model)
    run = _StartRun(case, s, scorer, on_step)
    # Before anything else that takes memory, so that the peak is that of a cycle.
    on_phase(Method.FILTERING)
    analysis = _cycle(run, Method.FILTERING, 0, None)
    memory = {"cycle": peak_memory()}
    with torch.no_grad():
        middle = model.decode(analysis.latents[:, case.middle].to(model.device), mask=False)
    scorer.score(Method.REANALYSIS, middle.float().mean(0), case.truth[case.middle])
    on_phase("ranks of withheld stations")
    withheld, counted = _ranks(run, analysis)
    if s.warm:
        on_phase(Method.WARM)
        _cycle(run, Method.WARM, 1, analysis.warm_start)
    if s.ablation and (bare := without_network(model)) is not None:
        on_phase(Method.ABLATION)
        _ablation(run, bare)
    if s.lead:
        on_phase(Method.FORECAST)
        _score_forecast(run, analysis)
    score_persistence(scorer, case)
    on_phase(Method.OPTIMAL_INTERPOLATION)
    score_interpolation(scorer, case, s.anomalies)
    if s.windowed:
        on_phase(Method.WINDOWED)
        score_windowed(scorer, case)
    skill = StartSkill(
        end=end,
        observations=len(case.observations()),
        withheld=withheld,
        errors=scorer.errors,
        spread_ratio=tuple(spread_ratio(model, analysis, case.last).tolist()),
        seconds=scorer.seconds,
        processor=scorer.processor,
        memory=memory | {"end": peak_memory()},
        chi=tuple((level, fit.chi_after) for level, fit in analysis.fits),
        ranks=counted,
    )
    return ScoredStart(skill, _fields(case, analysis))


def _cycle(run: _StartRun, method: Method, later: int, warm: WarmStart | None) -> Trajectory:
    """Run one hourly cycle, timed with the building of its operators, and score its end."""
    s, case = run.settings, run.case
    plan = WindowPlan.filtering(case.end + timedelta(hours=later), s.window)
    analysis = run.scorer.timed(
        method,
        lambda: assimilate(
            case.model,
            case.observations(later),
            plan,
            s.members,
            s.seed,
            settings=s.settings,
            warm_start=warm,
            on_step=run.on_step,
        ),
    )
    run.scorer.score(method, analysis.states.mean(0)[-1], case.truth[s.window - 1 + later])
    return analysis


def without_network(model: LatentModel) -> LatentModel | None:
    """Return a checkpoint without the network's correction; None if it has no closed form."""
    if not isinstance(model.denoise.base, ZonalGaussianPrior):
        return None
    bare = copy.copy(model)
    # Modules of a copy are shared until they are replaced.
    bare._modules = dict(model._modules)
    bare.denoise = BlanketDenoiser(_NoCorrection(), model.denoise.base, model.precision)
    return bare


class _NoCorrection(nn.Module):
    def forward(self, x: Tensor, t: Tensor, date: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _ablation(run: _StartRun, bare: LatentModel) -> None:
    s, case = run.settings, run.case
    analysis = assimilate(
        bare,
        case.observations(),
        WindowPlan.filtering(case.end, s.window),
        s.members,
        s.seed,
        settings=s.settings,
        on_step=run.on_step,
    )
    run.scorer.score(Method.ABLATION, analysis.states.mean(0)[-1], case.last)


def _ranks(run: _StartRun, analysis: Trajectory) -> tuple[int, Ranks]:
    """Return the number of withheld observations, and their ranks among independent members."""
    seen, rows = run.case.withheld()
    if not len(seen):
        return 0, {}
    members = model_equivalents(analysis.latents, run.case.model, seen)
    rng = np.random.default_rng(run.settings.seed)
    kinds, stations = observation_kinds(rows)
    chosen = analysis.pairs.independent
    # The errors of the set include representativeness errors.
    found = [ranks(members[list(c)], seen.obs_values, seen.obs_errors, rng) for c in chosen]
    counted = station_ranks(
        np.concatenate(found),
        len(chosen[0]),
        np.tile(kinds, len(chosen)),
        np.tile(stations, len(chosen)),
        1 / len(chosen),
    )
    return len(seen), counted


def _score_forecast(run: _StartRun, analysis: Trajectory) -> None:
    s, case, scorer = run.settings, run.case, run.scorer
    forecast = scorer.timed(
        Method.FORECAST,
        lambda: forecast_from(case.model, analysis, case.end, s.lead, s, run.on_step),
    )
    target = case.truth[s.window - 1 + s.lead]
    scorer.score(Method.FORECAST, forecast.states.mean(0)[-1], target)
    scorer.score(Method.PERSISTENCE, analysis.states.mean(0)[-1], target)
    climate = climatological_states(case.model, [case.end + s.lead * HOUR])[0]
    scorer.score(Method.CLIMATOLOGY_AHEAD, climate, target)


def _fields(case: ObservedCase, analysis: Trajectory) -> CaseFields:
    names = [c.name for c in case.model.channels]
    chosen = [names.index(n) for n in SHOWN if n in names] or [0]
    members = analysis.states[:, -1, chosen]
    return CaseFields(
        end=case.end,
        channels=tuple(names[i] for i in chosen),
        truth=case.last[chosen].numpy(),
        analysis=members.mean(0).numpy(),
        spread=members.std(0, correction=analysis.pairs.ddof).numpy(),
    )


class _Contents(BaseModel):
    """The figures that a results file holds."""

    experiment: dict[str, Any]
    autoencoder: AutoencoderSkill | None = None
    starts: tuple[StartSkill, ...] = ()
    cycled: CycledSkill | None = None
    relative_error: dict[str, float] | None = None


def experiment(model: LatentModel, settings: SkillSettings, truth: str | None) -> dict[str, Any]:
    """Return all that the figures depend on, except the code; a results file is of one experiment."""
    values = {k: v for k, v in asdict(settings).items() if k not in ("settings", "network")}
    values |= {"network": asdict(settings.network), "truth": truth, "precision": model.precision}
    values["settings"] = repr(settings.settings or recommended_settings(model))
    values["checkpoint"] = model.card.name
    values["files"] = {name: file.sha256 for name, file in sorted(model.card.files.items())}
    return values


class ResultsFile:
    """Finished parts of one experiment.

    Arguments:
        path: A JSON file, read if it exists and rewritten whenever something is added; maps of
            one case lie beside it as `.npz`. None keeps nothing.
        made_by: From `experiment`.

    Raises:
        InvalidInput: If the file is of another experiment.
    """

    def __init__(self, path: Path | None, made_by: dict[str, Any]) -> None:
        self.path = path
        # As it will be read back: JSON has no tuples.
        wanted = json.loads(json.dumps(made_by))
        self._contents = _Contents(experiment=wanted)
        self._fields: CaseFields | None = None
        if path is None or not path.exists():
            return
        self._contents = _Contents.model_validate_json(path.read_bytes())
        found = self._contents.experiment
        names = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
        if names:
            raise InvalidInput(
                f"Expected results of the same experiment in {path}; it was made with another "
                f"{', '.join(names)}. Name another file, or remove this one.",
                file=str(path),
            )
        self._fields = _read_fields(path.with_suffix(".npz"))

    @property
    def autoencoder(self) -> AutoencoderSkill | None:
        """The autoencoder's figures; None if not finished."""
        return self._contents.autoencoder

    @property
    def fields(self) -> CaseFields | None:
        """Maps of one case, if one is finished."""
        return self._fields

    def start(self, end: datetime) -> StartSkill | None:
        """Return the figures of an analysis time, if finished."""
        return next((s for s in self._contents.starts if s.end == end), None)

    def add_autoencoder(self, skill: AutoencoderSkill) -> None:
        """Add the autoencoder's figures and write the file."""
        self._write({"autoencoder": skill})

    def add_start(self, skill: StartSkill, fields: CaseFields) -> None:
        """Add an analysis time; the first one's maps are kept."""
        if self._fields is None:
            self._fields = fields
            if self.path is not None:
                _write_fields(self.path.with_suffix(".npz"), fields)
        self._write({"starts": (*self._contents.starts, skill)})

    @property
    def cycled(self) -> CycledSkill | None:
        """Return the figures of a chain of cycles, if finished."""
        return self._contents.cycled

    def add_cycled(self, skill: CycledSkill) -> None:
        """Add a chain of cycles and write the file."""
        self._write({"cycled": skill})

    @property
    def relative_error(self) -> dict[str, float] | None:
        """Return the denoiser's error over the closed form's by noise level, if finished."""
        return self._contents.relative_error

    def add_relative_error(self, found: dict[str, float]) -> None:
        """Add the denoiser's figures and write the file."""
        self._write({"relative_error": found})

    def _write(self, change: dict[str, Any]) -> None:
        self._contents = self._contents.model_copy(update=change)
        if self.path is None:
            return
        write_atomic(self.path, self._contents.model_dump_json())


def _write_fields(path: Path, fields: CaseFields) -> None:
    with open_atomic(path) as file:
        np.savez_compressed(
            file,
            end=np.array(fields.end.isoformat()),
            channels=np.array(fields.channels),
            truth=fields.truth,
            analysis=fields.analysis,
            spread=fields.spread,
        )


def _read_fields(path: Path) -> CaseFields | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return CaseFields(
            datetime.fromisoformat(str(file["end"])).astimezone(UTC),
            tuple(map(str, file["channels"])),
            file["truth"],
            file["analysis"],
            file["spread"],
        )
