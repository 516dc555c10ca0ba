r"""Define the physical constants, the standard atmosphere and the formulas of moist air.

Constants of the air and of the Earth are those of the ECMWF Integrated Forecasting System (IFS
documentation CY48R1, part IV, "Physical processes", chapter 12), which made ERA5. The standard
atmosphere is that of ICAO Doc 7488/3 (1993) up to 32 km, with the gas constant that the document
defines it by.

Saturation is over water at all temperatures, as WMO reports define dewpoint and humidity:

.. math:: e_s = 611.2 \exp\!\left(\frac{17.67\,(T - 273.15)}{T - 29.65}\right), \qquad
          q = \frac{\varepsilon e}{p - (1 - \varepsilon) e}

(D. Bolton, "The computation of equivalent potential temperature", Mon. Wea. Rev. 108, 1980,
equation 10). The formulas of earthkit-meteo are the IFS's own, fitted for its mixed phase: over
water they lie 2 % below these at 220 K and 4 % at 200 K (Bolton's fit is to 0.3 % down to 238 K), and
the package brings pint and array-api-compat along for four lines of arithmetic.

Formulas take numpy arrays or tensors, of any shape, and return the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EARTH_RADIUS",
    "EARTH_ROTATION",
    "EPSILON",
    "GAS_CONSTANT_DRY",
    "GAS_CONSTANT_VAPOUR",
    "GEOCENTRIC_CONSTANT",
    "GRAVITY",
    "FOOT",
    "KNOT",
    "MEAN_EARTH_RADIUS",
    "SATURATION_AT_FREEZING",
    "SIDEREAL_DAY",
    "SOLAR_DAY",
    "STANDARD_LAPSE_RATE",
    "STANDARD_PRESSURE",
    "STANDARD_TEMPERATURE",
    "VIRTUAL",
    "ZERO_CELSIUS",
    "dewpoint_from_specific_humidity",
    "dewpoint_of_log_ratio",
    "height_of_pressure",
    "pressure_after_rise",
    "pressure_at_height",
    "saturation_vapour_pressure",
    "specific_humidity_from_dewpoint",
    "specific_humidity_from_mixing_ratio",
    "vapour_pressure",
    "virtual_temperature",
]

GRAVITY = 9.80665
"""Standard gravity, m s-2; geopotential height = geopotential / GRAVITY."""

GAS_CONSTANT_DRY = 287.0597
"""Dry air, J kg-1 K-1."""

GAS_CONSTANT_VAPOUR = 461.5250
"""Water vapour, J kg-1 K-1."""

EPSILON = GAS_CONSTANT_DRY / GAS_CONSTANT_VAPOUR
"""Ratio of the gas constants, 1."""

VIRTUAL = 1.0 / EPSILON - 1.0
"""Weight of specific humidity in the virtual temperature, 1."""

EARTH_RADIUS = 6_371_229.0
"""Radius of the IFS's spherical Earth, m."""

MEAN_EARTH_RADIUS = 6_371_008.8
"""Mean radius of the Earth (IUGG), m; used for satellite orbits."""

GEOCENTRIC_CONSTANT = 3.986004415e14
"""Geocentric gravitational constant, m3 s-2 (IAU numerical standards, GME2009, TT-compatible)."""

EARTH_ROTATION = 7.292115e-5
"""Angular velocity of the Earth, rad s-1."""

SIDEREAL_DAY = 86_164.1
"""Rotation period of the Earth among the stars, s."""

SOLAR_DAY = 86_400.0
"""Mean rotation period of the Earth under the Sun, s."""

STANDARD_LAPSE_RATE = 0.0065
"""ICAO standard atmosphere below 11 km, K m-1."""

STANDARD_PRESSURE = 101_325.0
"""ICAO standard atmosphere at sea level, Pa."""

STANDARD_TEMPERATURE = 288.15
"""ICAO standard atmosphere at sea level, K."""

ZERO_CELSIUS = 273.15
"""0 degrees Celsius, K."""

SATURATION_AT_FREEZING = 611.2
"""Saturation vapour pressure over water at 0 degrees Celsius, Pa (Bolton 1980)."""

FOOT = 0.3048
"""International foot, in m."""
KNOT = 1852.0 / 3600.0
"""One knot, m s-1."""


Float = NDArray[np.float64]

ICAO_GAS_CONSTANT = 287.05287
TROPOPAUSE = 11_000.0
STRATOSPHERE = 20_000.0
TROPOPAUSE_TEMPERATURE = 216.65
STRATOSPHERE_WARMING = 0.001
TROPOSPHERE_EXPONENT = GRAVITY / (ICAO_GAS_CONSTANT * STANDARD_LAPSE_RATE)
STRATOSPHERE_EXPONENT = GRAVITY / (ICAO_GAS_CONSTANT * STRATOSPHERE_WARMING)
SCALE_HEIGHT = ICAO_GAS_CONSTANT * TROPOPAUSE_TEMPERATURE / GRAVITY


def pressure_at_height(height: Float) -> Float:
    """Return the standard pressure in Pa at geopotential heights in m above mean sea level.

    The lowest layer is continued below sea level, the highest above 32 km; NaN stays NaN.
    """
    height = np.asarray(height, dtype=np.float64)
    low = np.minimum(height, TROPOPAUSE)
    troposphere = (
        STANDARD_PRESSURE
        * (1.0 - STANDARD_LAPSE_RATE * low / STANDARD_TEMPERATURE) ** TROPOSPHERE_EXPONENT
    )
    above = np.clip(height - TROPOPAUSE, 0.0, STRATOSPHERE - TROPOPAUSE)
    top = np.maximum(height - STRATOSPHERE, 0.0)
    ratio = 1.0 + STRATOSPHERE_WARMING * top / TROPOPAUSE_TEMPERATURE
    pressure: Float = (
        troposphere
        * np.exp(-GRAVITY * above / (ICAO_GAS_CONSTANT * TROPOPAUSE_TEMPERATURE))
        * ratio**-STRATOSPHERE_EXPONENT
    )
    return pressure


P_TROPOPAUSE, P_STRATOSPHERE = pressure_at_height(np.array([TROPOPAUSE, STRATOSPHERE]))


def height_of_pressure(pressure: Float) -> Float:
    """Return the geopotential height in m of standard pressures in Pa.

    Inverse of `pressure_at_height`; NaN where the pressure is NaN or below zero.
    """
    pressure = np.asarray(pressure, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        troposphere = (
            STANDARD_TEMPERATURE
            / STANDARD_LAPSE_RATE
            * (1.0 - (pressure / STANDARD_PRESSURE) ** (1.0 / TROPOSPHERE_EXPONENT))
        )
        middle = TROPOPAUSE - SCALE_HEIGHT * np.log(pressure / P_TROPOPAUSE)
        ratio = (pressure / P_STRATOSPHERE) ** (-1.0 / STRATOSPHERE_EXPONENT)
    top = STRATOSPHERE + TROPOPAUSE_TEMPERATURE / STRATOSPHERE_WARMING * (ratio - 1.0)
    aloft = np.where(pressure >= P_STRATOSPHERE, middle, top)
    return np.where(pressure >= P_TROPOPAUSE, troposphere, aloft)


def pressure_after_rise(
    pressure: Any, temperature: Any, rise: Any, lapse_rate: float = STANDARD_LAPSE_RATE
) -> Any:
    r"""Return the pressure in Pa after a rise through a layer of constant lapse rate.

    .. math:: p' = p \left(1 - \frac{\Gamma \, \delta z}{T}\right)^{g / (R \Gamma)}

    Arguments:
        pressure: Pa, where the rise begins.
        temperature: K, where the rise begins.
        rise: m, upwards.
        lapse_rate: K m-1, above zero.
    """
    ratio = 1.0 - lapse_rate * rise / temperature
    return pressure * ratio ** (GRAVITY / (GAS_CONSTANT_DRY * lapse_rate))


def saturation_vapour_pressure(temperature: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    """Return the saturation vapour pressure over water in Pa at temperatures in K.

    Arguments:
        temperature: K.
        exp: The exponential of the array's own library: `torch.exp` for tensors.
    """
    return SATURATION_AT_FREEZING * exp(
        17.67 * (temperature - ZERO_CELSIUS) / (temperature - 29.65)
    )


def vapour_pressure(humidity: Any, pressure: Any) -> Any:
    """Return the vapour pressure of specific humidities in kg kg-1 at pressures, in their unit."""
    return humidity * pressure / (EPSILON + (1.0 - EPSILON) * humidity)


def specific_humidity_from_dewpoint(dewpoint: Float, pressure: Float) -> Float:
    """Return specific humidity in kg kg-1 from dewpoint in K and pressure in Pa.

    NaN where the vapour pressure would exceed the pressure, or below 100 K.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        e = saturation_vapour_pressure(np.where(dewpoint > 100.0, dewpoint, np.nan))
        q = EPSILON * e / (pressure - (1.0 - EPSILON) * e)
        return np.where(e < pressure, q, np.nan)


def dewpoint_from_specific_humidity(humidity: Float, pressure: Float) -> Float:
    """Return the inverse of `specific_humidity_from_dewpoint`; NaN for dry air."""
    with np.errstate(invalid="ignore", divide="ignore"):
        e = np.where(humidity > 0.0, vapour_pressure(humidity, pressure), np.nan)
        ratio = np.log(e / SATURATION_AT_FREEZING)
    return np.asarray(dewpoint_of_log_ratio(ratio))


def dewpoint_of_log_ratio(ratio: Any) -> Any:
    """Return the dewpoint in K of logarithms of vapour pressure over that of saturation at 0 degrees C.

    The inverse of `saturation_vapour_pressure`, for arrays and tensors.
    """
    return (17.67 * ZERO_CELSIUS - 29.65 * ratio) / (17.67 - ratio)


def specific_humidity_from_mixing_ratio(ratio: Float) -> Float:
    """Return the specific humidity of mixing ratios, both in kg kg-1: q = r / (1 + r)."""
    return ratio / (1.0 + ratio)


def virtual_temperature(temperature: Any, humidity: Any) -> Any:
    """Return the temperature in K of dry air with the same density and pressure.

    Arguments:
        temperature: K.
        humidity: Specific humidity, kg kg-1.
    """
    return temperature * (1.0 + VIRTUAL * humidity)
