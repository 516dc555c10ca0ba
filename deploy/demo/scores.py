"""How far fields are from the truth: per quantity in its unit, and over all channels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model.diagnostics.scores import rmse
from model.domain.grids import Grid
from model.domain.variables import VARIABLES, Channel

__all__ = ["SHOWN", "Errors", "Scorer", "channel_fields"]

SHOWN: tuple[tuple[str, str, str, float], ...] = (
    ("t2m", "2m_temperature", "K", 1.0),
    ("msl", "mean_sea_level_pressure", "hPa", 0.01),
    ("z500", "geopotential_500hPa", "m", 1 / 9.80665),
    ("t850", "temperature_850hPa", "K", 1.0),
    ("u300", "u_component_of_wind_300hPa", "m/s", 1.0),
)
"""Column, channel, unit and factor to it."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Errors:
    """Root mean square errors against the truth.

    Attributes:
        standardised: Mean over channels, in standard deviations of each.
        shown: In physical units, by column of `SHOWN`.
    """

    standardised: float
    shown: dict[str, float]


class Scorer:
    """Scores fields against the truth.

    Arguments:
        grid: Of all fields.
        channels: C channels, in order.
        std: Standard deviation of each, with shape (C,).
    """

    def __init__(self, grid: Grid, channels: Sequence[Channel], std: torch.Tensor) -> None:
        self.grid = grid
        self.names = [c.name for c in channels]
        self.std = std.double().flatten().cpu()

    def __call__(self, fields: Array | torch.Tensor, truth: Array | torch.Tensor) -> Errors:
        """Scores fields (C, Y, X) against the truth (C, Y, X); NaN cells of the truth are left out."""
        exact = torch.as_tensor(truth)
        values = torch.where(torch.isnan(exact), torch.nan, torch.as_tensor(fields))
        error = rmse(values, exact, self.grid)
        shown = {
            column: float(error[self.names.index(channel)]) * factor
            for column, channel, _, factor in SHOWN
        }
        return Errors(float((error / self.std).mean()), shown)


def channel_fields(dataset: xr.Dataset, channels: Sequence[Channel], time: int = 0) -> Array:
    """The ensemble mean of a result file at one of its times, with shape (C, Y, X)."""
    fields = []
    for channel in channels:
        name = f"{VARIABLES[channel.variable].short}_mean"
        field = dataset[name].isel(time=time)
        if channel.level is not None:
            field = field.sel(air_pressure=100.0 * channel.level)
        fields.append(field.values)
    return np.stack(fields).astype(np.float32)
