"""Convert the units and quantities of foreign reports to SI, and back.

Covers the spellings of units found in files, wind from speed and direction, humidity from
dewpoint or mixing ratio, and pressure from flight level. Unknown units are refused; nothing is
guessed from the size of a value.
"""

from collections.abc import Mapping

import numpy as np

from model.domain.variables import VARIABLES

__all__ = [
    "Conversion",
    "GRAVITY",
    "KNOT",
    "conversion",
    "dewpoint_from_specific_humidity",
    "flight_level_from_pressure",
    "pressure_from_flight_level",
    "specific_humidity_from_dewpoint",
    "specific_humidity_from_mixing_ratio",
    "wind_components",
    "wind_direction",
]

GRAVITY = 9.80665
"""Standard gravity in m s-2 (WMO, ISO 80000-3): geopotential metres to m2 s-2."""

KNOT = 1852.0 / 3600.0
"""One knot in m s-1."""

EPSILON = 0.62198
"""Molar mass of water over that of dry air (WMO No. 8, annex 4.B)."""


def wind_components(speed: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eastward and northward wind from speed in m s-1 and the direction it comes from in degrees.

    Calm (speed zero) gives zeros, whatever the direction.
    """
    angle = np.deg2rad(np.where(speed == 0.0, 0.0, direction))
    # The sum turns -0.0 into 0.0.
    return -speed * np.sin(angle) + 0.0, -speed * np.cos(angle) + 0.0


def wind_direction(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Direction the wind comes from in degrees, (0, 360], and 0 in calm."""
    angle = np.rad2deg(np.arctan2(-u, -v)) % 360.0
    return np.where((u == 0.0) & (v == 0.0), 0.0, np.where(angle == 0.0, 360.0, angle))


def saturation_vapour_pressure(temperature: np.ndarray) -> np.ndarray:
    """Saturation vapour pressure over water in Pa.

    Source: The Computation of Equivalent Potential Temperature (Bolton, 1980), eq. 10,
    https://doi.org/10.1175/1520-0493(1980)108<1046:TCOEPT>2.0.CO;2
    """
    return 611.2 * np.exp(17.67 * (temperature - 273.15) / (temperature - 29.65))


def specific_humidity_from_dewpoint(dewpoint: np.ndarray, pressure: np.ndarray) -> np.ndarray:
    r"""Specific humidity in kg kg-1 from dewpoint in K and pressure in Pa.

    .. math:: q = \frac{\varepsilon e}{p - (1 - \varepsilon) e}, \quad e = e_s(T_d)

    with :math:`e_s` over water, as WMO reports define the dewpoint at all temperatures. NaN where
    the vapour pressure would exceed the pressure, or below 100 K.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        e = saturation_vapour_pressure(np.where(dewpoint > 100.0, dewpoint, np.nan))
        q = EPSILON * e / (pressure - (1.0 - EPSILON) * e)
        return np.where(e < pressure, q, np.nan)


def dewpoint_from_specific_humidity(q: np.ndarray, pressure: np.ndarray) -> np.ndarray:
    """Inverse of `specific_humidity_from_dewpoint`; NaN for dry air."""
    with np.errstate(invalid="ignore", divide="ignore"):
        e = np.where(q > 0.0, q * pressure / (EPSILON + (1.0 - EPSILON) * q), np.nan)
        ratio = np.log(e / 611.2)
    return (17.67 * 273.15 - 29.65 * ratio) / (17.67 - ratio)


def specific_humidity_from_mixing_ratio(ratio: np.ndarray) -> np.ndarray:
    """Specific humidity from the mixing ratio, both in kg kg-1: q = r / (1 + r)."""
    return ratio / (1.0 + ratio)


def pressure_from_flight_level(altitude: np.ndarray) -> np.ndarray:
    """Pressure in Pa from pressure altitude in m by the ICAO standard atmosphere.

    Aircraft report pressure altitude: the height at which the standard atmosphere has the measured
    static pressure. Layers to 32 km; NaN outside [-1000, 32000] m.
    Source: ICAO Doc 7488/3, Manual of the ICAO Standard Atmosphere.
    """
    gas = 287.05287
    h = np.where((altitude >= -1_000.0) & (altitude <= 32_000.0), altitude, np.nan)
    with np.errstate(invalid="ignore"):
        low = 101_325.0 * (1.0 - 0.0065 * np.minimum(h, 11_000.0) / 288.15) ** (
            GRAVITY / (gas * 0.0065)
        )
        above = np.clip(h - 11_000.0, 0.0, 9_000.0)
        isothermal = np.exp(-GRAVITY * above / (gas * 216.65))
        top = np.maximum(h - 20_000.0, 0.0)
        inversion = (1.0 + 0.001 * top / 216.65) ** (-GRAVITY / (gas * 0.001))
    return low * isothermal * inversion


def flight_level_from_pressure(pressure: np.ndarray) -> np.ndarray:
    """Pressure altitude in m: inverse of `pressure_from_flight_level` up to 32 km."""
    gas = 287.05287
    at_11, at_20 = pressure_from_flight_level(np.array([11_000.0, 20_000.0]))
    with np.errstate(invalid="ignore", divide="ignore"):
        low = 288.15 / 0.0065 * (1.0 - (pressure / 101_325.0) ** (gas * 0.0065 / GRAVITY))
        middle = 11_000.0 - gas * 216.65 / GRAVITY * np.log(pressure / at_11)
        top = 20_000.0 + 216.65 / 0.001 * ((pressure / at_20) ** (-gas * 0.001 / GRAVITY) - 1.0)
    return np.where(pressure >= at_11, low, np.where(pressure >= at_20, middle, top))


Conversion = tuple[float, float]
"""SI value = scale * value + offset."""

_SAME: Conversion = (1.0, 0.0)
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "K": ("k", "kelvin"),
    "degC": ("degc", "deg c", "c", "°c", "celsius", "degrees_celsius", "degree_celsius", "deg_c"),
    "degF": ("degf", "f", "°f", "fahrenheit"),
    "Pa": ("pa", "pascal"),
    "hPa": ("hpa", "mb", "mbar", "millibar"),
    "m s-1": ("m s-1", "m/s", "m s**-1", "m.s-1", "ms-1", "m s^-1", "meter/sec"),
    "kt": ("kt", "kts", "knot", "knots"),
    "km h-1": ("km/h", "km h-1", "kph"),
    "m2 s-2": ("m2 s-2", "m**2 s**-2", "m^2 s^-2", "m2/s2", "j kg-1", "j/kg"),
    "gpm": ("gpm", "geopotential meter", "geopotential_meter"),
    "m": ("m", "meter", "metre", "meters", "metres"),
    "mm": ("mm",),
    "kg m-2": ("kg m-2", "kg m**-2", "kg/m2", "kg m^-2"),
    "1": ("1", "kg kg-1", "kg kg**-1", "kg/kg", "dimensionless", "", "(0 - 1)", "fraction"),
    "g kg-1": ("g/kg", "g kg-1", "g kg**-1"),
    "%": ("%", "percent"),
}
_BY_SPELLING = {text: unit for unit, texts in _SPELLINGS.items() for text in texts}
_TO_SI: Mapping[tuple[str, str], Conversion] = {
    ("degC", "K"): (1.0, 273.15),
    ("degF", "K"): (5.0 / 9.0, 273.15 - 32.0 * 5.0 / 9.0),
    ("hPa", "Pa"): (100.0, 0.0),
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
    """How values in `units` become SI values of `variable`; None if they cannot.

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
