"""Draw a field of a result with matplotlib, from the binary answer of `GET /v1/fields`.

The answer is the length of its metadata (uint32, little-endian), the metadata as JSON, then float32
values row by row from the top. Needs the extra `plot`.
"""

import io
import json
import math
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from appa_client.errors import AppaClientError

__all__ = ["FieldMap", "Owner"]

Line = Sequence[Sequence[float]]
Place = Callable[[float, float], tuple[float, float] | None]


class Owner:
    """Reference from a record to the client that read it; ignored by equality, hashing and pickling."""

    def __init__(self, client: Any = None) -> None:
        self.client = client

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Owner)

    def __hash__(self) -> int:
        return hash(Owner)

    def __reduce__(self) -> tuple[type["Owner"], tuple[()]]:
        return Owner, ()


class FieldMap:
    """A field in display units, parsed from the binary answer.

    Arguments:
        body: The answer.

    Attributes:
        info: The metadata: `long_name`, `level`, `valid_time`, `colours`, `range`, `grid` …
        values: Row by row from the top, NaN where undefined; rows * columns of them.
    """

    def __init__(self, body: bytes) -> None:
        start = 4 + int.from_bytes(body[:4], "little")
        self.info: dict[str, Any] = json.loads(body[4:start])
        raw = array("f")
        raw.frombytes(body[start:])
        if sys.byteorder == "big":
            raw.byteswap()
        self.grid: dict[str, Any] = self.info["grid"]
        if len(raw) != self.grid["rows"] * self.grid["columns"]:
            raise AppaClientError(
                f"Expected {self.grid['rows']} x {self.grid['columns']} values of a field; "
                f"{len(raw)} came. Ask again."
            )
        self.values = array("d", map(self._shown, raw))

    def _shown(self, value: float) -> float:
        display = self.info["display"]
        return float(value * display["scale"] + display["offset"])

    @property
    def image(self) -> "memoryview[float]":
        """The values as a buffer of float64 with shape (rows, columns)."""
        shape = [self.grid["rows"], self.grid["columns"]]
        return memoryview(self.values).cast("B").cast("d", shape=shape)

    @property
    def title(self) -> str:
        """Field, level, statistic; time, result and whether the weather is simulated below."""
        info = self.info
        level = "" if info["level"] is None else f" {info['level']:g} hPa"
        lead = f" (+{info['lead_hours']:g} h)" if info["lead_hours"] > 0 else ""
        about = [f"{info['valid_time'][:16].replace('T', ' ')}Z{lead}", info["kind"]]
        about += [info["flavour"], info["checkpoint"], "simulated" if info["simulated"] else ""]
        first = f"{info['long_name']}{level}, {info['statistic']}"
        return f"{first}\n{' · '.join(part for part in about if part)}"

    def draw(self, coastlines: Sequence[Line] = (), ax: Any = None) -> Any:
        """Draw the field with its colours, contours and coastlines, and return the figure.

        Arguments:
            coastlines: Lines of [longitude, latitude] in degrees.
            ax: Axes to draw into; by default those of a new figure.
        """
        figure, ax = _axes(ax, self.grid)
        low, high = map(self._shown, self.info["range"])
        colours = {"cmap": self.info["colours"], "vmin": low, "vmax": high}
        left, bottom, right, top = self.grid["extent"]
        if self._even:
            extent = (left, right, bottom, top)
            drawn = ax.imshow(self.image, extent=extent, origin="upper", **colours)
        else:
            drawn = ax.pcolormesh(
                self.grid["longitude"],
                self.grid["latitude"],
                self.image,
                shading="nearest",
                **colours,
            )
        for line in coastlines:
            for xs, ys in _pieces(line, self._place, right - left):
                ax.plot(xs, ys, color="#14181c", linewidth=0.5)
        ax.set(xlim=(left, right), ylim=(bottom, top), title=self.title)
        ax.title.set_fontsize(9)
        if self.grid["latitude"] is None:
            ax.set(xticks=[], yticks=[])
        figure.colorbar(drawn, ax=ax, label=self.info["display"]["units"], shrink=0.7)
        return figure

    @property
    def _even(self) -> bool:
        """Whether rows are equally far apart, as in a picture; those of a Gaussian grid are not."""
        rows = self.grid["latitude"]
        if rows is None:
            return True
        steps = [b - a for a, b in zip(rows, rows[1:], strict=False)]
        return max(steps, default=0.0) - min(steps, default=0.0) < 1e-3

    def _place(self, lon: float, lat: float) -> tuple[float, float] | None:
        """Return a place on the plane of the picture; None on the other hemisphere.

        Polar views are stereographic (Snyder, Map Projections, 1987, 21-5 to 21-8), with the radius
        and the meridian that their PROJ string names.
        """
        view = self.grid["view"]
        if view == "global":
            return lon, lat
        sign = 1.0 if view == "north" else -1.0
        if lat * sign < 0.0:
            return None
        named = dict(p.lstrip("+").split("=") for p in self.grid["projection"].split() if "=" in p)
        distance = 2.0 * float(named["R"]) * math.tan(math.radians(90.0 - sign * lat) / 2.0)
        angle = math.radians(lon - float(named["lon_0"]))
        return distance * math.sin(angle), -sign * distance * math.cos(angle)


def _axes(ax: Any, grid: dict[str, Any]) -> tuple[Any, Any]:
    """Return figure and axes; a new figure belongs to no window, so that nothing keeps it."""
    if ax is not None:
        return ax.figure, ax
    from matplotlib.figure import Figure  # noqa: PLC0415 (heavy, and not needed to upload)

    class FieldFigure(Figure):
        """A figure that notebooks show without pyplot."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", bbox_inches="tight")
            return picture.getvalue()

    wide = grid["latitude"] is not None
    figure = FieldFigure(figsize=(9.0, 4.8) if wide else (6.4, 5.6), layout="constrained")
    return figure, figure.add_subplot()


def _pieces(line: Line, place: Place, width: float) -> Iterator[tuple[list[float], list[float]]]:
    """Yield a line on the plane, cut where it leaves it or jumps across its edge."""
    xs: list[float] = []
    ys: list[float] = []
    for lon, lat in line:
        found = place(lon, lat)
        if found is None or (xs and abs(found[0] - xs[-1]) > width / 2.0):
            if len(xs) > 1:
                yield xs, ys
            xs, ys = [], []
        if found is not None:
            xs.append(found[0])
            ys.append(found[1])
    if len(xs) > 1:
        yield xs, ys
