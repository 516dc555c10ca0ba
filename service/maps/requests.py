"""Define requests for a field: result, quantity, level, time, statistic and view.

A `FieldRequest` is the same for the fields of the web page, for WMS and for contours, so that one
extraction and one set of errors serve them all.
"""

import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from model.domain.errors import InvalidInput

__all__ = ["Canvas", "FieldRequest", "MapView", "Statistic", "is_map_box", "parse_statistic"]

StatisticKind = Literal["mean", "spread", "member", "increment", "difference", "probability"]

_STATISTICS = "'mean', 'spread', 'member:N', 'increment', 'difference:RESULT_ID' or 'probability'"
_RESULT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Statistic:
    """Statistic computed from the members.

    Attributes:
        kind: `mean`, `spread` (standard deviation), one `member`, `increment` (analysis minus
            background), `difference` of two means, or `probability` of a threshold.
        member: Number of the member.
        other: The result subtracted.
        other_time: Valid time of the result subtracted; None for the same.
        threshold: In the units of the field.
        above: Whether values above the threshold count, or those below.
    """

    kind: StatisticKind = "mean"
    member: int = 0
    other: str = ""
    other_time: datetime | None = None
    threshold: float = 0.0
    above: bool = True

    @property
    def signed(self) -> bool:
        """Return whether values lie on both sides of zero."""
        return self.kind in ("increment", "difference")

    def __str__(self) -> str:
        extra = {"member": f":{self.member}", "difference": f":{self.other}"}
        return self.kind + extra.get(self.kind, "")


def parse_statistic(
    text: str,
    threshold: float | None = None,
    direction: str = "above",
    other_time: datetime | None = None,
) -> Statistic:
    """Return the statistic that a request names.

    Raises:
        InvalidInput: Naming the parameter that does not fit.
    """
    kind, _, value = text.partition(":")
    if kind in ("mean", "spread", "increment") and not value:
        return Statistic(kind)  # type: ignore[arg-type]
    if kind == "member" and value.isascii() and value.isdigit() and len(value) < 6:
        return Statistic("member", member=int(value))
    if kind == "difference" and _RESULT.fullmatch(value):
        return Statistic("difference", other=value, other_time=other_time)
    if text == "probability":
        if threshold is None or not math.isfinite(threshold):
            raise InvalidInput(
                f"Expected a finite 'threshold' with statistic=probability; got {threshold}. Give "
                "it in the units of the field.",
                field="threshold",
            )
        return Statistic("probability", threshold=threshold, above=direction == "above")
    raise InvalidInput(
        f"Expected 'statistic' to be {_STATISTICS}; got '{text[:80]}'.", field="statistic"
    )


@dataclass(frozen=True)
class MapView:
    """Region, projection and resolution in which a field is shown.

    Attributes:
        name: `global` on latitudes and longitudes, or a polar stereographic plane.
        width: Maximum number of columns.
        height: Maximum number of rows.
        box: West, south, east, north in degrees, of a global view; None for all.
        centre: Meridian that runs down from the North Pole, or up from the South Pole, degrees east.
        edge: Latitude in degrees at the middle of the edges of a polar view; its sign does not matter.
    """

    name: Literal["global", "north", "south"] = "global"
    width: int = 1440
    height: int = 1440
    box: tuple[float, float, float, float] | None = None
    centre: float = 0.0
    edge: float = 30.0


FARTHEST = 1.0e8
"""Largest coordinate of a map in metres or degrees: five times that of any reference system."""


def is_map_box(left: float, bottom: float, right: float, top: float) -> bool:
    """Return whether these are the edges of a part of the world, in metres or degrees; NaN is not."""
    inside = all(abs(edge) <= FARTHEST for edge in (left, bottom, right, top))
    return inside and left < right and bottom < top


@dataclass(frozen=True)
class Canvas:
    """The region of a map and its size in pixels.

    Attributes:
        system: Reference system, as WMS names it.
        box: Left, bottom, right and top in its units, longitude or easting first.
        width: Pixels across.
        height: Pixels down.
        background: Red, green and blue of undefined pixels; None for transparent.
    """

    system: str
    box: tuple[float, float, float, float]
    width: int
    height: int
    background: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class FieldRequest:
    """Request for one field of a result.

    Attributes:
        result: Id of the result.
        name: Name of the field, see `service.maps.fields.FIELDS`.
        level: hPa; None at the surface.
        base: hPa, lower level of a layer; None for the lowest stored.
        time: Valid time (UTC); None for the analysis time, or the first one after it.
        statistic: Statistic over the members.
    """

    result: str
    name: str
    level: float | None = None
    base: float | None = None
    time: datetime | None = None
    statistic: Statistic = field(default_factory=Statistic)
