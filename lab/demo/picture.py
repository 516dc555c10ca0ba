"""Draw what the demo made: the last analysis and its members, the forecast, the truth, and the errors."""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lab.demo.run import DemoResult
from lab.demo.world import World
from lab.pictures import (
    curve,
    heading,
    hours_after,
    new_figure,
    save,
    symmetric_limit,
    world_field,
)
from model.domain.physics import GRAVITY, ZERO_CELSIUS

__all__ = ["draw_demo"]

Field = NDArray[np.float32]

HEIGHTS = np.arange(460.0, 601.0, 8.0)
"""Contours of the height of 500 hPa, dam."""

OF_MEMBERS = [516.0, 548.0, 580.0]
"""Those that are drawn for each member."""


def draw_demo(result: DemoResult, world: World, path: Path) -> Path:
    """Draw the last analysis and the forecast, each beside the truth, members and spread, and errors.

    Returns:
        The path of the PNG.
    """
    time, fields = list(result.fields.items())[-1]
    truth = world.state(time).numpy()
    figure = new_figure(13, 17)
    layout = figure.add_gridspec(4, 2, height_ratios=[1, 1, 1, 0.8])
    axes = [[figure.add_subplot(layout[row, column]) for column in (0, 1)] for row in range(3)]
    _weather(axes[0][0], world, fields, f"analysis, {time:%d %b %H UTC}")
    _weather(axes[0][1], world, truth, f"simulated truth, {time:%d %b %H UTC}")
    if result.geopotential is not None:
        _members(axes[1][0], world, result.geopotential / GRAVITY)
    _difference(axes[1][1], world, _height(world, fields) - _height(world, truth))
    if result.forecast is not None:
        until, states = result.forecast
        _weather(axes[2][0], world, states, f"forecast for {until:%d %b %H UTC}")
        later = world.state(until).numpy()
        _weather(axes[2][1], world, later, f"simulated truth, {until:%d %b %H UTC}")
    _curves(figure.add_subplot(layout[3, :]), result)
    what = "2 m temperature and 500 hPa height"
    figure.suptitle(heading(what, [time], world.card.name))
    return save(figure, path)


def _channel(world: World, state: Field, name: str) -> Field:
    """Return one channel (Y, X) of a state (C, Y, X)."""
    field: Field = state[[c.name for c in world.channels].index(name)]
    return field


def _height(world: World, state: Field) -> Field:
    """Return the height of 500 hPa of a state (C, Y, X), m."""
    return _channel(world, state, "geopotential_500hPa") / GRAVITY


def _weather(axes: Axes, world: World, state: Field, title: str) -> None:
    """Draw 2 m temperature, with contours of the height of 500 hPa."""
    celsius = _channel(world, state, "2m_temperature") - ZERO_CELSIUS
    shown = world_field(axes, world.grid, celsius, title, "deg C", bounds=(-60.0, 45.0), steps=21)
    shown.lines(_height(world, state) / 10, HEIGHTS, "white", 0.8)


def _members(axes: Axes, world: World, heights: xr.Dataset) -> None:
    """Draw the spread of heights, m, under some contours of each member."""
    spread = heights["z_spread"].values
    title = f"spread, and {', '.join(f'{x:.0f}' for x in OF_MEMBERS)} dam of each member"
    bounds = 0.0, _round_limit(spread)
    shown = world_field(axes, world.grid, spread, title, "m", colours="viridis", bounds=bounds)
    for height in heights["z"].values:
        shown.lines(height / 10, np.array(OF_MEMBERS), "white", 0.5, labels=False)


def _difference(axes: Axes, world: World, error: Field) -> None:
    limit = _round_limit(error)
    title = "analysis minus truth, 500 hPa height"
    bounds = -limit, limit
    world_field(axes, world.grid, error, title, "m", colours="RdBu_r", bounds=bounds)


def _round_limit(field: Field) -> float:
    """Return the limit of a scale, m, of which each of 20 colours spans whole metres."""
    return 20.0 * float(np.ceil(symmetric_limit(field, 1.0) / 20.0))


def _curves(axes: Axes, result: DemoResult) -> None:
    start = result.analyses[0][0]
    styles = {"climatology": "0.6", "background": "tab:orange", "analysis": "tab:blue"}
    for name, colour in styles.items():
        errors = [
            (hours_after(start, time), found[name].standardised)
            for time, found in result.analyses
            if name in found
        ]
        curve(axes, errors, "o-", colour, name)
    for name, colour in {"persistence": "tab:red", "forecast": "tab:green"}.items():
        leads = [(float(lead), found[name].standardised) for lead, found in result.forecasts]
        curve(axes, leads, "s--", colour, name)
    axes.set(
        xlabel=f"hours after {start:%d %b %H UTC}",
        ylabel="mean standardised RMSE",
        title="errors against the truth",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
