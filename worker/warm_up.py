"""A tiny job that nobody sees: kernels are chosen, memory is reserved, and a model that cannot
assimilate is found out before a worker reports that it is ready.
"""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from model.assimilate import assimilate, recommended_settings
from model.domain.windows import WindowPlan
from model.latent_model import LatentModel
from model.operators.observation_set import build_observation_set
from worker.decoders.base import DecodeContext
from worker.decoders.rows import build_table

__all__ = ["warm_up"]

_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def warm_up(model: LatentModel) -> None:
    """One member, one diffusion step, one observation at the equator.

    Raises:
        Exception: Whatever is wrong with the model.
    """
    plan = WindowPlan.filtering(_TIME, model.blanket_size)
    channel = model.channels[0]
    table = build_table(
        DecodeContext(batch_id="warm-up", received_time=_TIME),
        1,
        report_type="synop" if channel.level is None else "temp",
        station_id="warm-up",
        time=np.datetime64(_TIME.replace(tzinfo=None), "ns"),
        lat=0.0,
        lon=0.0,
        vertical_kind="surface" if channel.level is None else "pressure",
        vertical=None if channel.level is None else 100.0 * channel.level,
        variable=channel.variable,
        obs_value=model.state_normalisation.mean.flatten()[0].item(),
        obs_error=model.state_normalisation.std.flatten()[0].item(),
    )
    observations, _ = build_observation_set(
        table, model.grid, model.channels, plan.times, model.statics
    )
    settings = recommended_settings(model)
    settings = replace(
        settings,
        sampler=replace(settings.sampler, steps=1),
        warm=replace(settings.warm, steps=1),
    )
    assimilate(model, observations.to(model.dtype, model.device), plan, 1, 0, settings=settings)
