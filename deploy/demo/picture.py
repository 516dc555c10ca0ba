"""One picture of the demo: the last analysis beside the truth, and errors by hour."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deploy.demo.run import DemoResult
from deploy.demo.world import World
from worker.outputs.coastlines import coastlines

__all__ = ["draw"]

Array = NDArray[np.float32]


def draw(result: DemoResult, world: World, path: Path) -> Path:
    """Writes a PNG."""
    mpl.use("Agg")
    time, fields = list(result.fields.items())[-1]
    truth = world.state(time).numpy()
    names = [c.name for c in world.channels]
    t2m, z500 = names.index("2m_temperature"), names.index("geopotential_500hPa")
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(2, 2)
    height = 1 / 9.80665
    _map(axes[0, 0], world, fields[t2m], fields[z500] * height, f"analysis, {time:%d %b %H UTC}")
    _map(axes[0, 1], world, truth[t2m], truth[z500] * height, "simulated truth")
    _difference(axes[1, 0], world, (fields[z500] - truth[z500]) * height)
    _curves(axes[1, 1], result)
    figure.suptitle(
        "2 m temperature and 500 hPa height: simulated atmosphere, not for real decisions"
    )
    figure.savefig(path, dpi=110)
    return path


def _frame(axes: Axes, world: World, title: str) -> tuple[Array, Array]:
    lon = np.append(world.grid.longitude, 360.0)
    for line in coastlines():
        for shift in (0.0, 360.0):
            axes.plot(line[:, 0] + shift, line[:, 1], color="0.2", linewidth=0.6)
    axes.set(title=title, xlim=(0, 360), ylim=(-88, 88), xticks=[], yticks=[])
    return lon, world.grid.latitude


def _wrapped(field: Array) -> Array:
    return np.concatenate((field, field[:, :1]), axis=1)


def _map(axes: Axes, world: World, temperature: Array, height: Array, title: str) -> None:
    lon, lat = _frame(axes, world, title)
    filled = axes.contourf(
        lon, lat, _wrapped(temperature) - 273.15, np.arange(-60, 46, 5), cmap="turbo", extend="both"
    )
    lines = axes.contour(
        lon, lat, _wrapped(height) / 10, np.arange(460, 601, 8), colors="white", linewidths=0.8
    )
    axes.clabel(lines, fontsize=6, fmt="%d")
    axes.figure.colorbar(filled, ax=axes, label="deg C", shrink=0.8)


def _difference(axes: Axes, world: World, height: Array) -> None:
    lon, lat = _frame(axes, world, "analysis minus truth, 500 hPa height")
    limit = max(float(np.percentile(np.abs(height), 99)), 1.0)
    levels = np.linspace(-limit, limit, 21)
    filled = axes.contourf(lon, lat, _wrapped(height), levels, cmap="RdBu_r", extend="both")
    axes.figure.colorbar(filled, ax=axes, label="m", shrink=0.8)


def _curves(axes: Axes, result: DemoResult) -> None:
    start = result.analyses[0][0]
    styles = {"climatology": "0.6", "background": "tab:orange", "analysis": "tab:blue"}
    for name, colour in styles.items():
        points = [
            ((time - start).total_seconds() / 3600, errors[name].standardised)
            for time, errors in result.analyses
            if name in errors
        ]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    styles = {"persistence": "tab:red", "forecast": "tab:green"}
    for name, colour in styles.items():
        points = [(lead, errors[name].standardised) for lead, errors in result.forecasts]
        axes.plot(*zip(*points, strict=True), "s--", color=colour, label=name)
    axes.set(
        xlabel=f"hours after {start:%d %b %H UTC}",
        ylabel="mean standardised RMSE",
        title="errors against the truth",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
