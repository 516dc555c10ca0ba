"""Score spectra and balance of the states themselves, which departures at stations do not show.

All are means over the first members; ratios compare analysis and background members of the same valid
time. Fields that are too smooth, too rough or unbalanced are detected here before any forecast shows
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.diagnostics.realism import geostrophic_balance, hydrostatic_residual, power_spectrum
from model.domain.grids import Grid
from model.domain.variables import Channel

__all__ = ["BANDS", "StateScore", "pressure_tendency", "score_states"]

BANDS = {"planetary": (1, 5), "synoptic": (6, 20), "small": (21, 42)}
"""First and last total wavenumber; the last one, 42, is resolved by every grid in use."""

_LEVELS = (250, 500, 850)
_BALANCED = 500
_MEMBERS = 4
"""Number of members used: more would add cost and hardly change the mean."""
_ROWS = 181
"""Number of rows to which a finer regular grid is thinned, such that aliasing does not affect `BANDS`."""


@dataclass(frozen=True)
class StateScore:
    """One quantity of spectra or balance, of analysis and background.

    Attributes:
        quantity: `kinetic_energy_planetary` (and of the other bands, m2 s-2), `geostrophic` (wind
            minus geostrophic wind over wind at 30 to 70 degrees), `hydrostatic` (root mean square
            residual in K), `pressure_tendency` (mean absolute hourly change in Pa),
            `mass_tendency` (change of the global mean of sea-level pressure in Pa an hour).
        level: `500 hPa`, or `all`.
        analysis: The analysis members' mean.
        background: The background members' mean; None without one.
    """

    quantity: str
    level: str
    analysis: float
    background: float | None


def score_states(
    states: NDArray[np.float32],
    background: NDArray[np.float32] | None,
    channels: Sequence[Channel],
    grid: Grid,
) -> list[StateScore]:
    """Return spectra and balance of one valid time.

    Arguments:
        states: Analysis, SI units, with shape (M, C, Y, X).
        background: First guess at the same time, with shape (B, C, Y, X); None without.
        channels: C channels, in order.
        grid: The grid.
    """
    found = _numbers(states, channels, grid)
    before = {} if background is None else _numbers(background, channels, grid)
    return [
        StateScore(quantity, level, value, before.get((quantity, level)))
        for (quantity, level), value in found.items()
    ]


def _numbers(
    states: NDArray[np.float32], channels: Sequence[Channel], grid: Grid
) -> dict[tuple[str, str], float]:
    fields = _Fields(states[:_MEMBERS], channels)
    step = _thinning(grid)
    found: dict[tuple[str, str], float] = {}
    for level in _LEVELS:
        u, v = fields.at("u_component_of_wind", level), fields.at("v_component_of_wind", level)
        if u is None or v is None:
            continue
        if step is not None:
            for band, energy in _energy(u, v, grid, step).items():
                found[f"kinetic_energy_{band}", f"{level} hPa"] = energy
        z = fields.at("geopotential", level)
        if level == _BALANCED and z is not None:
            departure = geostrophic_balance(z, u, v, grid).departure
            found["geostrophic", f"{level} hPa"] = float(departure.mean())
    residual = _hydrostatic(fields, grid, step or 1)
    if residual is not None:
        found["hydrostatic", "all"] = residual
    return {key: value for key, value in found.items() if np.isfinite(value)}


class _Fields:
    """Fields of the states, found by variable and level."""

    def __init__(self, states: NDArray[np.float32], channels: Sequence[Channel]) -> None:
        self.states = torch.from_numpy(np.ascontiguousarray(states))
        self.place = {channel: i for i, channel in enumerate(channels)}
        self.levels = sorted({c.level for c in channels if c.level is not None})

    def at(self, variable: str, level: int, step: int = 1) -> Tensor | None:
        """Return every `step`-th row and column, (M, Y, X), float64; None without the variable."""
        place = self.place.get(Channel(variable, level))
        return None if place is None else self.states[:, place, ::step, ::step].double()


def _thinned(grid: Grid, step: int) -> Grid:
    if step == 1:
        return grid
    return Grid(f"{grid.name}/{step}", "regular", (grid.nlat - 1) // step + 1, grid.nlon // step)


def _energy(u: Tensor, v: Tensor, grid: Grid, step: int) -> dict[str, float]:
    """Return half the power of both wind components in each band that the grid resolves."""
    thin = _thinned(grid, step)
    parts = [power_spectrum(part[..., ::step, ::step], thin).mean(dim=0) for part in (u, v)]
    power = (parts[0] + parts[1]) / 2.0
    return {
        name: float(power[first : last + 1].sum())
        for name, (first, last) in BANDS.items()
        if len(power) > first
    }


def _hydrostatic(fields: _Fields, grid: Grid, step: int) -> float | None:
    """Return the root mean square residual over all layers in K; None if a level is missing."""
    names = ("geopotential", "temperature", "specific_humidity")
    columns = [[fields.at(name, level, step) for level in fields.levels] for name in names]
    if len(fields.levels) < 2 or any(part is None for column in columns for part in column):
        return None
    z, t, q = (torch.stack([p for p in column if p is not None], dim=1) for column in columns)
    thin = _thinned(grid, step)
    weights = torch.from_numpy(thin.area_weights)[:, None] / thin.nlon
    square = hydrostatic_residual(z, t, q, fields.levels).square()
    return float((weights * square).sum(dim=(-2, -1)).mean().sqrt())


def _thinning(grid: Grid) -> int | None:
    """Return the step in rows and columns for spectra; None if they would cost too much."""
    if grid.nlat <= _ROWS:
        return 1
    if grid.kind != "regular":  # rows of a Gaussian grid cannot be left out
        return None
    for step in range(-(-(grid.nlat - 1) // (_ROWS - 1)), 9):
        if (grid.nlat - 1) % step == 0 and grid.nlon % step == 0:
            return step
    return None


def pressure_tendency(pressure: Tensor, grid: Grid) -> tuple[float, float]:
    """Return the change of sea-level pressure over the last hour of one member.

    Arguments:
        pressure: Pa, of at least two consecutive hours, with shape (T, Y, X).
        grid: The grid.

    Returns:
        Area mean of the absolute change, and the change of the area mean, in Pa.
    """
    change = (pressure[-1] - pressure[-2]).double().cpu()
    weights = torch.from_numpy(grid.area_weights)[:, None] / grid.nlon
    return float((weights * change.abs()).sum()), float((weights * change).sum())
