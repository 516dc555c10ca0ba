"""Draw a quick-look of a result: surface, upper air, spread, and observation coverage."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from model.domain.observations import QC_FLAGS
from model.domain.physics import GRAVITY, ZERO_CELSIUS
from model.domain.variables import Channel
from model.domain.windows import HOUR
from worker.observations.columns import category_codes, float_column
from worker.results.outputs.formats import product_file, put_file
from worker.results.outputs.maps import GREY, INK, WorldMap
from worker.results.outputs.product import Product, Written, title

__all__ = ["draw", "write_product"]

USED, REJECTED, WITHHELD = "#1f77b4", "#d1495b", "#edae49"

Array = NDArray[np.floating[Any]]


class Picture:
    """Draw maps of the last time of a product; absent fields leave their map empty."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.place = {channel: i for i, channel in enumerate(product.channels)}
        levels = product.levels or (500,)
        self.level = min(levels, key=lambda level: abs(level - 500))

    def members(self, variable: str, level: int | None = None) -> Array | None:
        """Return the ensemble at the last time, with shape (M, Y, X); None if absent."""
        index = self.place.get(Channel(variable, level))
        return None if index is None else self.product.states[:, -1, index].astype(np.float64)

    def mean(self, variable: str, level: int | None = None) -> Array | None:
        """Return the ensemble mean at the last time, with shape (Y, X)."""
        members = self.members(variable, level)
        return None if members is None else members.mean(axis=0)

    def spread(self, variable: str, level: int | None = None) -> Array | None:
        """Return the ensemble standard deviation (Y, X); None for one member."""
        members = self.members(variable, level)
        return None if members is None else self.product.pairs.std(members)

    def surface(self, axes: Axes) -> None:
        """Draw 2 m temperature in colours and mean sea level pressure in lines."""
        chart = WorldMap(axes, self.product.grid, "2 m temperature, mean sea level pressure (hPa)")
        temperature, pressure = self.mean("2m_temperature"), self.mean("mean_sea_level_pressure")
        if temperature is not None:
            levels = np.arange(-48.0, 49.0, 4.0)
            chart.shade(temperature - ZERO_CELSIUS, levels, "RdYlBu_r", "°C", extend="both")
        if pressure is not None:
            chart.lines(pressure / 100.0, np.arange(900.0, 1100.0, 6.0))
        chart.coasts()

    def upper_air(self, axes: Axes) -> None:
        """Draw the height of the 500 hPa surface and the wind there."""
        chart = WorldMap(axes, self.product.grid, f"{self.level} hPa height and wind")
        height = self.mean("geopotential", self.level)
        if height is not None:
            dekametres = height / GRAVITY / 10.0
            step = 8.0 if self.level == 500 else 4.0
            low, high = np.floor(dekametres.min() / step), np.ceil(dekametres.max() / step)
            levels = step * np.arange(low, high + 1)
            chart.shade(dekametres, levels, "viridis", "dam")
        chart.coasts(colour="#ffffff", width=0.6)
        u, v = (self.mean(f"{x}_component_of_wind", self.level) for x in "uv")
        if u is not None and v is not None:
            chart.winds(u, v)

    def uncertainty(self, axes: Axes) -> None:
        """Draw the spread of 2 m temperature in colours, of mean sea level pressure in lines."""
        name = "Ensemble spread: 2 m temperature, mean sea level pressure (hPa)"
        chart = WorldMap(axes, self.product.grid, name)
        temperature = self.spread("2m_temperature")
        pressure = self.spread("mean_sea_level_pressure")
        if temperature is not None:
            top = max(float(np.quantile(temperature, 0.995)), 1e-3)
            levels = MaxNLocator(12).tick_values(0.0, top)
            chart.shade(temperature, levels, "YlGnBu", "K", extend="max")
        else:
            _note(axes, "one member: no spread")
        if pressure is not None:
            top = float(np.quantile(pressure / 100.0, 0.98))
            chart.lines(pressure / 100.0, MaxNLocator(4).tick_values(0.0, top))
        chart.coasts()

    def precipitation(self, axes: Axes) -> None:
        """Draw the precipitation of the last hour."""
        chart = WorldMap(axes, self.product.grid, "Precipitation of the hour before")
        depth = self.mean("total_precipitation")
        if depth is not None:
            levels = np.array([0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
            chart.land()
            even = BoundaryNorm(levels, 256, extend="max")
            chart.shade(depth * 1000.0, levels, "YlGnBu", "mm", extend="max", norm=even)
        chart.coasts()

    def coverage(self, axes: Axes) -> None:
        """Draw the observations of the window, coloured by outcome."""
        chart = WorldMap(axes, self.product.grid, "Observations of the window")
        chart.land()
        table = self.product.feedback
        if not len(table):
            _note(axes, "no observations in the window")
            return
        size = float(np.clip(20000.0 / len(table), 1.0, 9.0))
        for name, colour, rows in _outcomes(table):
            count = int(rows.sum())
            if count:
                lon, lat = float_column(table, "lon")[rows], float_column(table, "lat")[rows]
                chart.points(lon, lat, colour, size, f"{name} {count:,}".replace(",", " "))
        axes.legend(
            loc="lower left",
            ncols=3,
            fontsize=8,
            markerscale=3 / np.sqrt(size),
            framealpha=0.9,
            edgecolor="none",
            handletextpad=0.2,
            columnspacing=1.2,
        )


def _outcomes(table: pa.Table) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Return label, colour and rows of each outcome; used ones last, so that they lie on top."""
    used = pc.is_null(table["rejected_by"]).to_numpy()
    code, names = category_codes(table, "rejected_by")
    apart = [i for i, n in enumerate(names) if n == QC_FLAGS["withheld"].name]
    withheld = np.isin(code, apart)
    return [
        ("rejected", REJECTED, ~used & ~withheld),
        ("withheld", WITHHELD, withheld),
        ("used", USED, used),
    ]


def _note(axes: Axes, text: str) -> None:
    axes.text(0, 0, text, ha="center", va="center", color=GREY, fontsize=11, zorder=5)


def _footer(product: Product) -> str:
    facts = [f"{product.members} members", f"grid {product.grid.name}"]
    checkpoint = product.provenance.get("checkpoint")
    if checkpoint:
        digest = str(product.provenance.get("checkpoint_sha256", ""))[:8]
        facts.append(f"checkpoint {checkpoint} {digest}".strip())
    source = product.background_info.get("source")
    if source:
        facts.append(f"background: {str(source).replace('_', ' ')}")
    if product.flags:
        facts.append("flags: " + ", ".join(flag.replace("_", " ") for flag in product.flags))
    return "   ·   ".join(facts)


def _valid(product: Product) -> list[str]:
    """Return the valid time shown, if the title does not already name it."""
    lead = product.times[-1] - product.reference_time
    if not lead:
        return []
    ahead = f", +{lead / HOUR:.0f} h" if product.kind.forecast else ""
    return [f"valid {product.times[-1]:%Y-%m-%d %H} UTC{ahead}"]


def draw(product: Product) -> Figure:
    """Draw four maps with a heading and, below, members, checkpoint, background and flags."""
    figure = Figure(figsize=(15.0, 8.3), facecolor="white")
    FigureCanvasAgg(figure)
    # Fixed positions, twice as wide as high: an automatic layout would draw everything twice.
    places = {"left": 0.03, "right": 0.96, "bottom": 0.055, "top": 0.905}
    axes = figure.subplots(2, 2, gridspec_kw={**places, "wspace": 0.138, "hspace": 0.163})
    picture = Picture(product)
    picture.surface(axes[0, 0])
    picture.upper_air(axes[0, 1])
    picture.uncertainty(axes[1, 0])
    last = picture.precipitation if product.window is None else picture.coverage
    last(axes[1, 1])
    heading = "   ·   ".join([title(product), *_valid(product)])
    figure.suptitle(heading, x=0.012, y=0.985, ha="left", fontsize=14, color=INK, weight="bold")
    figure.supxlabel(_footer(product), x=0.012, y=0.006, ha="left", fontsize=8, color=GREY)
    return figure


def _write(product: Product, path: Path) -> None:
    draw(product).savefig(path, format="png", dpi=110)


def write_product(product: Product, folder: Path) -> Written:
    """Write one PNG of the last valid time."""
    path = product_file(product, folder, "png", "ql")
    return [(put_file(path, partial(_write, product)), "quicklook")]
