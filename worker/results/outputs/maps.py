"""Draw world maps on equidistant cylindrical axes: fields, coastlines, winds, observations.

Coastlines are those of `model.domain.coastlines`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from numpy.typing import NDArray

from model.domain.coastlines import coastlines, land_polygons
from model.domain.grids import Grid

__all__ = ["WorldMap"]

INK = "#26323d"
GREY = "#6b7783"
SEA = "#eef3f7"
LAND = "#dfdcd3"

Array = NDArray[np.floating[Any]]
Levels = Sequence[float] | Array


class WorldMap:
    """Draw fields of one grid on one pair of axes, centred on Greenwich.

    Arguments:
        axes: Where to draw.
        grid: Grid of the fields.
        title: Title above the map.
    """

    def __init__(self, axes: Axes, grid: Grid, title: str) -> None:
        self.axes = axes
        east = (grid.longitude + 180.0) % 360.0 - 180.0
        self.order = np.argsort(east)
        self.longitude = np.append(east[self.order], east[self.order][0] + 360.0)
        self.latitude = grid.latitude
        axes.set(xlim=(-180, 180), ylim=(-90, 90), facecolor=SEA)
        axes.set_xticks(range(-120, 121, 60), ["120°W", "60°W", "0°", "60°E", "120°E"])
        axes.set_yticks(range(-60, 61, 30), ["60°S", "30°S", "0°", "30°N", "60°N"])
        axes.tick_params(length=0, labelsize=7, labelcolor=GREY, pad=2)
        axes.grid(color=GREY, linewidth=0.3, alpha=0.35)
        axes.set_title(title, loc="left", fontsize=10, color=INK, pad=5)
        for side in axes.spines.values():
            side.set(color=GREY, linewidth=0.6)

    def _closed(self, field: Array) -> Array:
        """Return the field from west to east, closed by repeating its first column."""
        turned = field[:, self.order]
        return np.concatenate([turned, turned[:, :1]], axis=1)

    def _rows(self) -> Array:
        """Return latitudes with the outermost set to the poles, which Gaussian rows do not reach."""
        rows = self.latitude.copy()
        rows[0], rows[-1] = 90.0, -90.0
        return rows

    def shade(self, field: Array, levels: Levels, colours: Any, label: str, **options: Any) -> None:
        """Draw filled contours with a colour bar."""
        drawn = self.axes.contourf(
            self.longitude, self._rows(), self._closed(field), levels, cmap=colours, **options
        )
        place = self.axes.inset_axes((1.012, 0.08, 0.016, 0.84))
        bar = place.figure.colorbar(drawn, cax=place)
        bar.set_label(label, fontsize=8, color=INK)
        bar.ax.tick_params(labelsize=7, labelcolor=GREY, length=2)
        bar.outline.set(color=GREY, linewidth=0.5)

    def lines(
        self,
        field: Array,
        levels: Levels,
        colour: str = INK,
        width: float = 0.7,
        *,
        labels: bool = True,
    ) -> None:
        """Draw contour lines, where any of the levels occurs, and label every second one."""
        inside = [x for x in levels if np.nanmin(field) < x < np.nanmax(field)]
        if not inside:
            return
        drawn = self.axes.contour(
            self.longitude,
            self._rows(),
            self._closed(field),
            inside,
            colors=colour,
            linewidths=width,
        )
        if labels:
            self.axes.clabel(drawn, inside[::2], fontsize=6, fmt="%g", inline_spacing=2)

    def coasts(self, colour: str = INK, width: float = 0.45) -> None:
        """Draw the outlines of land over the field."""
        outlines = [line + (shift, 0) for line in coastlines() for shift in (-360.0, 0.0)]
        self.axes.add_collection(
            LineCollection(outlines, colors=colour, linewidths=width), autolim=False
        )

    def land(self) -> None:
        """Fill land in a muted colour."""
        shapes = [land + (shift, 0) for land in land_polygons() for shift in (-360.0, 0.0)]
        self.axes.add_collection(
            PolyCollection(shapes, facecolors=LAND, edgecolors="#b9b5a8", linewidths=0.4),
            autolim=False,
        )

    def winds(self, u: Array, v: Array, every: float = 12.0) -> None:
        """Draw wind arrows, in m/s, one in `every` degrees."""
        step = max(1, round(every / (180.0 / len(self.latitude))))
        rows = np.arange(step // 2, len(self.latitude), step)
        rows = rows[np.abs(self.latitude[rows]) < 80]
        columns = np.arange(step // 2, len(self.order), step)
        place = np.ix_(rows, self.order[columns])
        drawn = self.axes.quiver(
            self.longitude[columns],
            self.latitude[rows],
            u[place],
            v[place],
            color=INK,
            width=0.0016,
            scale=900,
            alpha=0.85,
        )
        self.axes.quiverkey(
            drawn, 0.93, 1.045, 30, "30 m s⁻¹", labelpos="W", fontproperties={"size": 7}
        )

    def points(self, lon: Array, lat: Array, colour: str, size: float, label: str) -> None:
        """Draw observations as dots with a legend entry."""
        self.axes.scatter(lon, lat, s=size, c=colour, linewidths=0, label=label, alpha=0.85)
