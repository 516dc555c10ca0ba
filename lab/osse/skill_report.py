"""Report the skill of a checkpoint in one object, and check it against the bundled one's goals.

This is what `appa verify osse` prints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import BaseModel

from lab.osse.cycled_skill import CycledSkill
from lab.osse.scores import AutoencoderSkill, Method, StartSkill, rank_shapes
from lab.osse.skill import SkillSettings
from lab.osse.summary import (
    SEASONS,
    ForecastRow,
    GroupRow,
    MethodRow,
    channel_means,
    forecast_rows,
    group_rows,
    method_rows,
    overall,
    season,
)
from model.diagnostics.ensembles import RankShape
from model.latent_model import LatentModel

__all__ = [
    "Goal",
    "STRONG_EXCESS",
    "SkillReport",
    "as_json",
    "judge",
    "make_report",
    "summed_memory",
]

STRONG_EXCESS = 0.5
"""Outer-bin excess of a rank histogram above which it has a strong U shape."""

MEMBERS = 8
"""Size of the ensemble for which the goals of cost hold."""


@dataclass(frozen=True)
class Goal:
    """A goal and what was found.

    Attributes:
        what: What it is about.
        goal: In words.
        found: The figure.
        met: None where this run does not decide it.
    """

    what: str
    goal: str
    found: str
    met: bool | None


def judge(
    starts: Sequence[StartSkill],
    autoencoder: AutoencoderSkill,
    forecasts: Sequence[ForecastRow],
    ranks: Sequence[RankShape],
    settings: SkillSettings,
) -> tuple[Goal, ...]:
    """Return every goal, in the order of the tables."""
    return (
        *_autoencoder(autoencoder),
        *_analyses(starts),
        *_forecasts(forecasts),
        *_ensemble(starts, ranks),
        *_cost(starts, settings),
    )


def _below(value: float, bound: float) -> bool | None:
    return None if math.isnan(value) or math.isnan(bound) else value <= bound


def _number(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{value:.3f}"


def _autoencoder(skill: AutoencoderSkill) -> tuple[Goal, ...]:
    worst = max(skill.spectra, key=lambda s: abs(s.deviation))
    place = worst.variable if worst.level is None else f"{worst.variable} {worst.level} hPa"
    within = [s for s in skill.spectra if abs(s.deviation) <= 0.10]
    return (
        Goal("autoencoder", "≤ 0.10", f"{skill.mean:.3f}", skill.mean <= 0.10),
        Goal(
            "spectra of reconstructed states",
            f"within 10 % up to wavenumber {skill.largest_wavenumber}",
            f"{len(within)} of {len(skill.spectra)} variables; largest {worst.deviation:+.0%} "
            f"({place}, wavenumber {worst.wavenumber})",
            len(within) == len(skill.spectra),
        ),
    )


def _analyses(starts: Sequence[StartSkill]) -> tuple[Goal, ...]:
    error, middle = overall(starts, Method.FILTERING), overall(starts, Method.REANALYSIS)
    found = _number(error)
    goals = [
        Goal("filtering", "≤ 0.25", found, _below(error, 0.25)),
        Goal("filtering, at the very least", "≤ 0.38", found, _below(error, 0.38)),
    ]
    for method in (Method.OPTIMAL_INTERPOLATION, Method.WINDOWED):
        other = overall(starts, method)
        if not math.isnan(other):
            what, goal = f"filtering against {method}", f"< {_number(other)}"
            goals.append(Goal(what, goal, found, _below(error, other)))
    goals.append(
        Goal(Method.REANALYSIS, f"< filtering ({found})", _number(middle), _below(middle, error))
    )
    return tuple(goals)


def _forecasts(rows: Sequence[ForecastRow]) -> tuple[Goal, ...]:
    if not rows:
        return ()
    seasons = [r for r in rows if r.group == "all" and r.season in SEASONS]
    better = all(r.forecast < r.persistence for r in seasons)
    # Seasons without a start cannot make it met, but one can make it missed.
    met = better if len(seasons) == len(SEASONS) or not better else None
    text = ", ".join(f"{r.season} {r.forecast:.3f} / {r.persistence:.3f}" for r in seasons)
    goals = [Goal("forecast", "better than persistence in every season", text, met)]
    for group in ("wind", "temperature"):
        for row in (r for r in rows if r.group == group and r.season == "all"):
            goals.append(
                Goal(
                    f"forecast, {group}",
                    f"better than climatology in all {row.channels} channels",
                    f"{row.above_climatology} channels; {row.forecast:.3f} / {row.climatology:.3f}",
                    row.above_climatology == row.channels,
                )
            )
    return tuple(goals)


def _ensemble(starts: Sequence[StartSkill], ranks: Sequence[RankShape]) -> tuple[Goal, ...]:
    ratio = float(np.nanmean([s.spread_ratio for s in starts]))
    goals = [Goal("spread over error", "0.8 to 1.2", f"{ratio:.2f}", 0.8 <= ratio <= 1.2)]
    for shape in ranks:
        if " " in shape.name or shape.name == "all":
            continue
        error = "" if shape.uncertainty is None else f" ± {shape.uncertainty:.2f}"
        goals.append(
            Goal(
                f"ranks of withheld {shape.name}",
                f"no strong U (outer-bin excess ≤ {STRONG_EXCESS})",
                f"{shape.excess:+.2f}{error}",
                shape.excess <= STRONG_EXCESS,
            )
        )
    return tuple(goals)


def summed_memory(starts: Sequence[StartSkill]) -> tuple[float, float]:
    """Return the peak memory in GiB of a cycle, and of everything.

    The peak of a process never decreases, so the lowest over all starts is that of a cycle.
    """
    return min(s.memory["cycle"] for s in starts), max(s.memory["end"] for s in starts)


def _cost(starts: Sequence[StartSkill], settings: SkillSettings) -> tuple[Goal, ...]:
    goals = []
    for what, method, bound in (
        ("cold cycle", Method.FILTERING, 60.0),
        ("warm-started cycle", Method.WARM, 25.0),
    ):
        if not any(method in s.seconds for s in starts):
            continue
        seconds = float(np.median([s.seconds.get(method, math.nan) for s in starts]))
        met = _below(seconds, bound) if settings.members == MEMBERS else None
        used = float(np.median([s.processor.get(method, math.nan) for s in starts]))
        found = f"{seconds:.0f} s ({used:.0f} of processor) with {settings.members}"
        goals.append(Goal(what, f"≤ {bound:.0f} s with {MEMBERS} members on 2 cores", found, met))
    cycle, whole = summed_memory(starts)
    found = f"{cycle:.1f} GiB a cycle, {whole:.1f} with all baselines"
    met = cycle <= 6.0 if settings.members >= MEMBERS or cycle > 6.0 else None
    return (*goals, Goal("peak memory", "≤ 6 GiB", found, met))


@dataclass(frozen=True)
class SkillReport:
    """All figures; errors are standardised RMSE.

    Attributes:
        checkpoint: Its name.
        simulated: Whether it was trained on a simulated climate.
        unseen: Whether all starts lie in the card's test period; None if it names none.
        settings: The experiment.
        channels: Names, in order.
        starts: Figures of every start.
        autoencoder, methods, groups, forecasts, ranks, goals: The tables.
        spread_ratio: Mean spread over error of the filtering ensemble.
        memory: Peak memory of a cycle and of everything, GiB.
        cycled: Figures of a chain of cycles, if one was run.
        relative_error: The denoiser's mean square error over the closed form's, by noise level;
            None without a closed form.
    """

    checkpoint: str
    simulated: bool
    unseen: bool | None
    settings: SkillSettings
    channels: tuple[str, ...]
    starts: tuple[StartSkill, ...]
    autoencoder: AutoencoderSkill
    methods: tuple[MethodRow, ...]
    groups: tuple[GroupRow, ...]
    forecasts: tuple[ForecastRow, ...]
    ranks: tuple[RankShape, ...]
    spread_ratio: float
    memory: tuple[float, float]
    goals: tuple[Goal, ...]
    cycled: CycledSkill | None = None
    relative_error: dict[str, float] | None = None


def make_report(
    model: LatentModel,
    settings: SkillSettings,
    autoencoder: AutoencoderSkill,
    starts: Sequence[StartSkill],
    cycled: CycledSkill | None = None,
    relative_error: dict[str, float] | None = None,
) -> SkillReport:
    """Summarise the starts of an experiment, at least one, and the other measurements."""
    forecasts = forecast_rows(starts, model.channels)
    ranks = rank_shapes(s.ranks for s in starts)
    return SkillReport(
        checkpoint=model.card.name,
        simulated=model.card.simulated,
        unseen=_unseen(model.card.provenance.get("test_periods"), starts, settings),
        settings=settings,
        channels=tuple(c.name for c in model.channels),
        starts=tuple(starts),
        autoencoder=autoencoder,
        methods=method_rows(starts),
        groups=group_rows(starts, model.channels),
        forecasts=forecasts,
        ranks=ranks,
        spread_ratio=float(np.nanmean([s.spread_ratio for s in starts])),
        memory=summed_memory(starts),
        goals=judge(starts, autoencoder, forecasts, ranks, settings),
        cycled=cycled,
        relative_error=relative_error,
    )


def _unseen(
    periods: Sequence[Any] | None, starts: Sequence[StartSkill], settings: SkillSettings
) -> bool | None:
    """Return whether every hour a start used lies in a test period; None if the card names none."""
    if not periods:
        return None
    spans = [[_utc_seconds(datetime.fromisoformat(str(t))) for t in period] for period in periods]
    return all(
        any(
            low <= s.end.timestamp() - 3600 * settings.window
            and s.end.timestamp() + 3600 * settings.lead <= high
            for low, high in spans
        )
        for s in starts
    )


def _utc_seconds(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def as_json(report: SkillReport) -> dict[str, Any]:
    """Return plain values: every table, every start and every channel; NaN is None.

    The main figures of a checkpoint have short names: `cold`, `cycled`, `denoiser`.
    """
    values = {f.name: _plain(getattr(report, f.name)) for f in fields(report)}
    named = {"filtering": Method.FILTERING, "ablation": Method.ABLATION}
    named |= {"windowed_oi": Method.WINDOWED, "forecast_24h": Method.FORECAST}
    values["cold"] = _plain({k: overall(report.starts, m) for k, m in named.items()})
    values["denoiser"] = {"relative_error": values.pop("relative_error")}
    values["starts"] = [
        _plain(s.model_dump(exclude={"ranks"})) | {"season": season(s.end)} for s in report.starts
    ]
    values["by_channel"] = _plain(
        {method: errors.tolist() for method, errors in channel_means(report.starts).items()}
    )
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
