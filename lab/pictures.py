"""Draw the pictures of demo, rehearsal and verification with one set of helpers.

Maps are those of the quicklooks (`worker.results.outputs.maps`): centred on Greenwich, with coastlines.
Figures are made without pyplot, so that no display and no global state is needed.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.domain.grids import Grid
from worker.results.outputs.maps import WorldMap

__all__ = [
    "SIMULATED",
    "curve",
    "date_axis",
    "heading",
    "hours_after",
    "limits",
    "new_figure",
    "save",
    "symmetric_limit",
    "world_field",
]

Array = NDArray[np.floating[Any]]
SIMULATED = "simulated atmosphere, not for real decisions"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def heading(
    what: str, times: Iterable[datetime], checkpoint: str, *, simulated: bool = True
) -> str:
    """Return the heading of a picture: its subject, and below it times, checkpoint and a disclaimer.

    Arguments:
        what: Subject of the picture.
        times: Valid times shown (UTC), at least one.
        checkpoint: Name; empty if it is unknown.
        simulated: Whether the atmosphere is simulated, which the disclaimer says.
    """
    shown = sorted(times)
    span = " to ".join(dict.fromkeys(f"{t:%Y-%m-%d %H}" for t in (shown[0], shown[-1])))
    about = (f"{span} UTC", checkpoint, SIMULATED if simulated else "")
    return f"{what}\n{' · '.join(filter(None, about))}"


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, its heading also among the properties of the file; return its path."""
    title = " · ".join(figure.get_suptitle().splitlines())
    figure.savefig(path, dpi=110, metadata={"Title": title})
    return path


def date_axis(axes: Axes, ticks: int = 8) -> None:
    """Label the x axis with at most `ticks` dates, each as short as its neighbours allow."""
    locator = AutoDateLocator(maxticks=ticks)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def curve(
    axes: Axes, points: Iterable[tuple[Any, float]], style: str, colour: str, label: str = ""
) -> None:
    """Plot a curve through (x, y); x may be times. Nothing is drawn without points."""
    if pairs := list(points):
        axes.plot(*zip(*pairs, strict=True), style, color=colour, label=label)


def world_field(
    axes: Axes,
    grid: Grid,
    field: Array,
    title: str,
    label: str,
    *,
    colours: str = "turbo",
    bounds: tuple[float, float],
    steps: int = 20,
) -> WorldMap:
    """Draw a field (Y, X) as filled contours with a colour bar and coastlines.

    Arguments:
        axes: Where to draw.
        grid: Of the field.
        field: Values.
        title: Above the map.
        label: Units, beside the colour bar.
        colours: Name of a colour map.
        bounds: Range of the colour scale.
        steps: How many colours.
    """
    shown = WorldMap(axes, grid, title)
    low, high = bounds
    levels = np.linspace(low, max(high, low + 1e-9), steps + 1)
    shown.shade(field, levels, colours, label, extend="both")
    shown.coasts()
    return shown


def limits(*fields: Array) -> tuple[float, float]:
    """Return the 1st and 99th percentile of all fields, leaving out NaN."""
    together = np.concatenate([np.ravel(field) for field in fields])
    return float(np.nanpercentile(together, 1)), float(np.nanpercentile(together, 99))


def symmetric_limit(field: Array, least: float = 0.0) -> float:
    """Return the 99th percentile of the magnitude, or `least` if that is larger."""
    return max(float(np.nanpercentile(np.abs(field), 99)), least)


def hours_after(start: datetime, time: datetime) -> float:
    """Return the hours from `start` to `time`."""
    return (time - start).total_seconds() / 3600
