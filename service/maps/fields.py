"""Define the fields that maps show: stored and derived quantities, their units, colours and ranges.

A field is a stored variable under its short name, or one computed from stored ones, member by member.
Values are SI; `Display` says how people read them. Colour maps are matplotlib's, chosen to be told
apart with the common kinds of colour blindness: RdYlBu, RdBu, PuOr, YlGnBu, YlOrBr and
BuPu of ColorBrewer, viridis and cividis. Ranges by level follow the standard atmosphere.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.domain.physics import (
    GRAVITY,
    STANDARD_LAPSE_RATE,
    STANDARD_TEMPERATURE,
    ZERO_CELSIUS,
    height_of_pressure,
    saturation_vapour_pressure,
    vapour_pressure,
)
from model.domain.variables import VARIABLES

__all__ = ["FIELDS", "Display", "MapField", "Parts", "available_fields", "field_named"]

Range = tuple[float, float]
Members = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """Inputs of a formula: stored variables at the level asked for.

    Attributes:
        at: Stored variables at the level asked for, by short name, each with shape (*, Y, X).
        below: The same at the lower level of a layer; empty for other fields.
        pressure: Pressure of the level, Pa; NaN at the surface.
    """

    at: Members
    below: Members
    pressure: float


@dataclass(frozen=True)
class Display:
    """Conversion to the units that people read: `value * scale + offset` in `units`."""

    units: str
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class MapField:
    """A quantity that maps can show.

    Attributes:
        name: As in requests: the short name of a stored variable, or of a derived quantity.
        long_name: Name for titles.
        units: Units of the values.
        needs: Short names of the stored variables it is computed from.
        leveled: Whether it needs a pressure level.
        layer: Whether it needs a second, lower level.
        formula: Computes it; None for a stored variable.
        linear: Whether the formula applied to the ensemble mean gives the mean of the members.
        colours: Name of the colour map.
        range: Range of the colour map at a pressure in Pa, in `units`; None for the range of the values.
        span: Size of a large difference or spread, in `units`; 0 for the range of the values.
        display: Display units; None for `units`.
        contour: Contour interval, in `units`; 0 leaves it to the client.
    """

    name: str
    long_name: str
    units: str
    needs: tuple[str, ...]
    leveled: bool = False
    layer: bool = False
    formula: Callable[[Parts], Any] | None = None
    linear: bool = True
    colours: str = "viridis"
    range: Callable[[float], Range] | None = None
    span: float = 0.0
    display: Display | None = None
    contour: float = 0.0

    @property
    def shown(self) -> Display:
        """Return the units in which people read the field; its own units where none are set."""
        return self.display or Display(self.units)


def _fixed(low: float, high: float) -> Callable[[float], Range]:
    return lambda pressure: (low, high)


def _standard_height(pressure: float) -> float:
    return float(height_of_pressure(np.array(pressure)))


def _temperature(pressure: float) -> Range:
    """Return a range of ±35 K around the standard atmosphere, shifted 10 K colder for the poles."""
    height = min(_standard_height(pressure), 11_000.0)
    middle = STANDARD_TEMPERATURE - STANDARD_LAPSE_RATE * height - 10.0
    return round(middle - 35.0), round(middle + 35.0)


def _height(pressure: float) -> Range:
    """Return the range around the standard height for a column 12 % colder to 8 % warmer."""
    height = _standard_height(pressure)
    return round(0.88 * height - 250.0, -1), round(1.08 * height + 150.0, -1)


def _wind(pressure: float) -> Range:
    return (0.0, 80.0) if pressure < 45_000.0 else (0.0, 40.0)


def _component(pressure: float) -> Range:
    low, high = _wind(pressure)
    return low - high, high


def _humidity(pressure: float) -> Range:
    """Return the range from 0 to saturation at the warmest temperature, at most 20 g/kg."""
    warm = _temperature(pressure)[1]
    saturation = 0.622 * float(saturation_vapour_pressure(np.float64(warm))) / pressure
    return 0.0, float(f"{min(saturation, 0.02):.1g}")


def _speed(u: str, v: str) -> Callable[[Parts], Any]:
    return lambda parts: np.hypot(parts.at[u], parts.at[v])


def _relative_humidity(parts: Parts) -> Any:
    saturated = saturation_vapour_pressure(parts.at["t"])
    return vapour_pressure(parts.at["q"], parts.pressure) / saturated


def _thickness(parts: Parts) -> Any:
    return (parts.at["z"] - parts.below["z"]) / GRAVITY


_CELSIUS = Display("°C", 1.0, -ZERO_CELSIUS)
_HECTOPASCAL = Display("hPa", 0.01)
_WARM = "RdYlBu_r"

_ALL = (
    MapField(
        "t2m", "2 metre temperature", "K", ("t2m",), colours=_WARM, span=5.0, contour=4.0,
        range=_fixed(ZERO_CELSIUS - 48.0, ZERO_CELSIUS + 48.0), display=_CELSIUS,
    ),
    MapField(
        "si10", "10 metre wind speed", "m s-1", ("u10", "v10"), formula=_speed("u10", "v10"),
        linear=False, colours="YlGnBu", range=_fixed(0.0, 30.0), span=5.0, contour=5.0,
    ),
    MapField(
        "u10", "10 metre eastward wind", "m s-1", ("u10",), colours="PuOr_r",
        range=_fixed(-30.0, 30.0), span=5.0, contour=5.0,
    ),
    MapField(
        "v10", "10 metre northward wind", "m s-1", ("v10",), colours="PuOr_r",
        range=_fixed(-30.0, 30.0), span=5.0, contour=5.0,
    ),
    MapField(
        "msl", "mean sea level pressure", "Pa", ("msl",), colours="cividis",
        range=_fixed(96_000.0, 105_000.0), span=500.0, contour=400.0, display=_HECTOPASCAL,
    ),
    MapField(
        "tp", "precipitation of the hour before", "m", ("tp",), colours="YlGnBu",
        range=_fixed(0.0, 0.01), span=0.002, display=Display("mm", 1000.0),
    ),
    MapField(
        "sst", "sea surface temperature", "K", ("sst",), colours=_WARM, span=2.0, contour=2.0,
        range=_fixed(ZERO_CELSIUS - 2.0, ZERO_CELSIUS + 32.0), display=_CELSIUS,
    ),
    MapField(
        "t", "temperature", "K", ("t",), True, colours=_WARM, range=_temperature, span=4.0,
        display=_CELSIUS, contour=4.0,
    ),
    MapField(
        "ws", "wind speed", "m s-1", ("u", "v"), True, formula=_speed("u", "v"), linear=False,
        colours="YlGnBu", range=_wind, span=10.0, contour=10.0,
    ),
    MapField(
        "u", "eastward wind", "m s-1", ("u",), True, colours="PuOr_r", range=_component,
        span=10.0, contour=10.0,
    ),
    MapField(
        "v", "northward wind", "m s-1", ("v",), True, colours="PuOr_r", range=_component,
        span=10.0, contour=10.0,
    ),
    MapField(
        "gh", "geopotential height", "m", ("z",), True, range=_height, span=50.0, contour=80.0,
        formula=lambda parts: parts.at["z"] / GRAVITY, display=Display("dam", 0.1),
    ),
    MapField(
        "z", "geopotential", "m2 s-2", ("z",), True, span=500.0, contour=80.0 * GRAVITY,
        range=lambda pressure: tuple(GRAVITY * x for x in _height(pressure)),  # type: ignore[arg-type,return-value]
    ),
    MapField(
        "thickness", "thickness of the layer", "m", ("z",), True, True, formula=_thickness,
        span=50.0, contour=60.0, display=Display("dam", 0.1),
    ),
    MapField(
        "r", "relative humidity over water", "1", ("t", "q"), True, formula=_relative_humidity,
        linear=False, colours="YlGnBu", range=_fixed(0.0, 1.0), span=0.3, contour=0.1,
        display=Display("%", 100.0),
    ),
    MapField(
        "q", "specific humidity", "1", ("q",), True, colours="YlGnBu", range=_humidity,
        span=0.002, display=Display("g kg-1", 1000.0),
    ),
)  # fmt: skip

FIELDS: dict[str, MapField] = {field.name: field for field in _ALL}
"""The predefined fields by name; stored variables of extensions are shown in their own units."""


def field_named(name: str) -> MapField | None:
    """Return the field of this name: one of `FIELDS`, or a variable of an extension; None if neither."""
    known = FIELDS.get(name)
    if known is not None:
        return known
    for variable in VARIABLES.values():
        if variable.short == name and variable.kind != "observed":
            leveled = variable.kind == "atmospheric"
            title = variable.id.replace("_", " ")
            return MapField(name, title, variable.units, (name,), leveled)
    return None


def available_fields(stored: Collection[str]) -> Iterable[MapField]:
    """Yield the fields that can be made of the stored variables, by their short names."""
    extra = (v.short for v in VARIABLES.values() if v.kind != "observed")
    for name in dict.fromkeys((*FIELDS, *extra)):
        field = field_named(name)
        if field is not None and set(field.needs) <= set(stored):
            yield field
