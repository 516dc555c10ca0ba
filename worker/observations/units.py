"""Convert the units and quantities of external reports to SI, and back.

Covers the spellings of units found in files, wind from speed and direction, and pressure from
flight level; humidity is in `model.domain.physics`. Unknown units are refused; nothing is guessed
from the size of a value.
"""

from collections.abc import Mapping

import numpy as np

from model.domain.physics import FOOT, GRAVITY, KNOT, ZERO_CELSIUS, pressure_at_height
from model.domain.variables import VARIABLES

__all__ = [
    "Conversion",
    "conversion",
    "coordinate_factor",
    "pressure_from_flight_level",
    "no_direction",
    "wind_components",
    "wind_direction",
]


def no_direction(direction: np.ndarray) -> np.ndarray:
    """Return which directions in degrees are outside 0 to 360; missing ones are not."""
    with np.errstate(invalid="ignore"):
        return np.asarray((direction < 0.0) | (direction > 360.0))


def wind_components(speed: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eastward and northward wind from speed in m s-1 and the direction it comes from in degrees.

    Calm (speed zero) gives zeros, whatever the direction; a direction outside 0 to 360 counts as missing.
    """
    real = np.where(no_direction(direction), np.nan, direction)
    angle = np.deg2rad(np.where(speed == 0.0, 0.0, real))
    # The sum turns -0.0 into 0.0.
    return -speed * np.sin(angle) + 0.0, -speed * np.cos(angle) + 0.0


def wind_direction(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the direction the wind comes from in degrees, (0, 360], and 0 in calm."""
    angle = np.rad2deg(np.arctan2(-u, -v)) % 360.0
    return np.where((u == 0.0) & (v == 0.0), 0.0, np.where(angle == 0.0, 360.0, angle))


def pressure_from_flight_level(altitude: np.ndarray) -> np.ndarray:
    """Return the pressure in Pa of pressure altitudes in m; NaN outside [-1000, 32000] m.

    Aircraft report pressure altitude: the height at which the standard atmosphere has the measured
    static pressure.
    """
    inside = (altitude >= -1_000.0) & (altitude <= 32_000.0)
    return pressure_at_height(np.where(inside, altitude, np.nan))


Conversion = tuple[float, float]
"""SI value = scale * value + offset."""

_SAME: Conversion = (1.0, 0.0)
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "K": ("k", "kelvin"),
    "degC": ("degc", "deg c", "c", "°c", "celsius", "degrees_celsius", "degree_celsius", "deg_c"),
    "degF": ("degf", "f", "°f", "fahrenheit"),
    "Pa": ("pa", "pascal", "pascals"),
    "hPa": ("hpa", "mb", "mbar", "millibar", "millibars", "hectopascal", "hectopascals"),
    "kPa": ("kpa", "kilopascal"),
    "m s-1": ("m s-1", "m/s", "m s**-1", "m.s-1", "ms-1", "m s^-1", "meter/sec"),
    "kt": ("kt", "kts", "knot", "knots"),
    "km h-1": ("km/h", "km h-1", "kph"),
    "m2 s-2": ("m2 s-2", "m**2 s**-2", "m^2 s^-2", "m2/s2", "j kg-1", "j/kg"),
    "gpm": ("gpm", "geopotential meter", "geopotential_meter"),
    "m": ("m", "meter", "metre", "meters", "metres"),
    "mm": ("mm",),
    "km": ("km", "kilometer", "kilometre", "kilometers", "kilometres"),
    "ft": ("ft", "feet", "foot"),
    "degree": (
        *(
            "degree",
            "degrees",
            "deg",
            "°",
            "degree_north",
            "degrees_north",
            "degree_n",
            "degrees_n",
        ),
        *("degreen", "degreesn", "degree_east", "degrees_east", "degree_e", "degrees_e"),
        *("degreee", "degreese"),
    ),
    "rad": ("rad", "radian", "radians"),
    "kg m-2": ("kg m-2", "kg m**-2", "kg/m2", "kg m^-2"),
    "1": ("1", "kg kg-1", "kg kg**-1", "kg/kg", "dimensionless", "", "(0 - 1)", "fraction"),
    "g kg-1": ("g/kg", "g kg-1", "g kg**-1"),
    "%": ("%", "percent"),
}
_BY_SPELLING = {text: unit for unit, texts in _SPELLINGS.items() for text in texts}
_TO_SI: Mapping[tuple[str, str], Conversion] = {
    ("degC", "K"): (1.0, ZERO_CELSIUS),
    ("degF", "K"): (5.0 / 9.0, ZERO_CELSIUS - 32.0 * 5.0 / 9.0),
    ("hPa", "Pa"): (100.0, 0.0),
    ("kPa", "Pa"): (1000.0, 0.0),
    ("kt", "m s-1"): (KNOT, 0.0),
    ("km h-1", "m s-1"): (1.0 / 3.6, 0.0),
    ("gpm", "m2 s-2"): (GRAVITY, 0.0),
    ("m", "m2 s-2"): (GRAVITY, 0.0),  # geopotential height under the name of geopotential
    ("mm", "m"): (1e-3, 0.0),
    ("kg m-2", "m"): (1e-3, 0.0),  # liquid water
    ("mm", "kg m-2"): (1.0, 0.0),
    ("g kg-1", "1"): (1e-3, 0.0),
    ("%", "1"): (1e-2, 0.0),
}


def conversion(units: str, variable: str) -> Conversion | None:
    """Return the conversion of values in `units` to SI units of `variable`; None if there is none.

    A millimetre is water for precipitation and precipitable water only; a metre is a height for
    geopotential only. `SI` stands for the variable's own unit. Nothing is guessed from the size of
    values.
    """
    wanted = VARIABLES[variable].units
    if units == "SI":
        return _SAME
    found = _BY_SPELLING.get(units.strip().lower())
    if found is None:
        return None
    if found == wanted:
        return _SAME
    return _TO_SI.get((found, wanted))


_COORDINATES: Mapping[str, Mapping[str, float]] = {
    "Pa": {"Pa": 1.0, "hPa": 100.0, "kPa": 1000.0},
    "m": {"m": 1.0, "km": 1000.0, "gpm": 1.0, "ft": FOOT},
    "degree": {"degree": 1.0, "rad": 180.0 / np.pi},
}


def coordinate_factor(units: str, wanted: str) -> float | None:
    """Return the factor from `units` to `Pa`, `m` or `degree` of a position or level; None if unknown."""
    return _COORDINATES[wanted].get(_BY_SPELLING.get(units.strip().lower(), ""))
