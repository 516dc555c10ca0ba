"""The skill of a checkpoint in one object: what `appa verify osse` prints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydantic import BaseModel

from model.latent_model import LatentModel
from model.osse.autoencoder_skill import AutoencoderSkill
from model.osse.goals import Goal, judge, summed_memory
from model.osse.rank_shape import RankShape, rank_shapes
from model.osse.seasons import season
from model.osse.skill import SkillSettings
from model.osse.start_skill import StartSkill
from model.osse.summary import (
    ForecastRow,
    GroupRow,
    MethodRow,
    channel_means,
    forecast_rows,
    group_rows,
    method_rows,
)

__all__ = ["SkillReport", "as_json", "make_report"]


@dataclass(frozen=True)
class SkillReport:
    """All figures; errors are standardised RMSE.

    Attributes:
        checkpoint: Its name.
        simulated: Whether it knows a simulated climate.
        unseen: Whether all starts lie in the card's test period; None if it names none.
        settings: The experiment.
        channels: Names, in order.
        starts: Figures of every start.
        autoencoder, methods, groups, forecasts, ranks, goals: The tables.
        spread_ratio: Mean spread over error of the filtering ensemble.
        memory: Peak memory of a cycle and of everything, GiB.
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


def make_report(
    model: LatentModel,
    settings: SkillSettings,
    autoencoder: AutoencoderSkill,
    starts: Sequence[StartSkill],
) -> SkillReport:
    """Sums up the starts of an experiment, at least one."""
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
    )


def _unseen(
    periods: Sequence[Any] | None, starts: Sequence[StartSkill], settings: SkillSettings
) -> bool | None:
    """Whether every hour a start used lies in a test period; None if the card names none."""
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
    """Plain values: every table, every start and every channel; NaN is None."""
    values = {f.name: _plain(getattr(report, f.name)) for f in fields(report)}
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
