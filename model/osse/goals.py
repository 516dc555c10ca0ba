"""What the skill of the embedded checkpoint should be, and whether it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.osse.autoencoder_skill import AutoencoderSkill
from model.osse.rank_shape import RankShape
from model.osse.seasons import SEASONS
from model.osse.skill import SkillSettings
from model.osse.start_skill import Method, StartSkill
from model.osse.summary import ForecastRow, overall

__all__ = ["STRONG_EXCESS", "Goal", "judge", "summed_memory"]

STRONG_EXCESS = 0.5
"""A rank histogram whose outer bins hold half as much again as they should is a strong U."""

MEMBERS = 8
"""The costs are those of so many members."""


@dataclass(frozen=True)
class Goal:
    """A goal and what was found.

    Attributes:
        what: What it is about.
        goal: In words.
        found: The figure.
        met: None where this run cannot tell.
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
    """Every goal, in the order of the tables."""
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
    """Peak memory in GiB of a cycle, and of everything.

    A process never forgets its peak, so the start with the lowest tells what a cycle needs.
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
