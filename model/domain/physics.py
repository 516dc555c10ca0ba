"""Provide the physical constants and the standard atmosphere, with units and sources.

Constants are those of the ECMWF Integrated Forecasting System (IFS documentation CY48R1,
part IV, "Physical processes", chapter 12), which made ERA5. The standard atmosphere is that of
ICAO Doc 7488 (1993) up to 32 km, as pressure from geopotential height and back.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EARTH_RADIUS",
    "EARTH_ROTATION",
    "EPSILON",
    "GAS_CONSTANT_DRY",
    "GAS_CONSTANT_VAPOUR",
    "GRAVITY",
    "KAPPA",
    "STANDARD_LAPSE_RATE",
    "STANDARD_PRESSURE",
    "STANDARD_TEMPERATURE",
    "height_of_pressure",
    "pressure_at_height",
]

GRAVITY = 9.80665
"""Standard gravity, m s-2; geopotential height = geopotential / GRAVITY."""

GAS_CONSTANT_DRY = 287.0597
"""Dry air, J kg-1 K-1."""

GAS_CONSTANT_VAPOUR = 461.5250
"""Water vapour, J kg-1 K-1."""

EPSILON = GAS_CONSTANT_DRY / GAS_CONSTANT_VAPOUR
"""Ratio of the gas constants, 1."""

KAPPA = 2.0 / 7.0
"""R / c_p of dry air, 1."""

EARTH_RADIUS = 6_371_229.0
"""m."""

EARTH_ROTATION = 7.292115e-5
"""rad s-1."""

STANDARD_LAPSE_RATE = 0.0065
"""ICAO standard atmosphere below 11 km, K m-1."""

STANDARD_PRESSURE = 101_325.0
"""ICAO standard atmosphere at sea level, Pa."""

STANDARD_TEMPERATURE = 288.15
"""ICAO standard atmosphere at sea level, K."""


Float = NDArray[np.float64]

TROPOPAUSE = 11_000.0
STRATOSPHERE = 20_000.0
TROPOPAUSE_TEMPERATURE = STANDARD_TEMPERATURE - STANDARD_LAPSE_RATE * TROPOPAUSE
STRATOSPHERE_LAPSE_RATE = -0.001
TROPOSPHERE_EXPONENT = GRAVITY / (GAS_CONSTANT_DRY * STANDARD_LAPSE_RATE)
SCALE_HEIGHT = GAS_CONSTANT_DRY * TROPOPAUSE_TEMPERATURE / GRAVITY
P_TROPOPAUSE = (
    STANDARD_PRESSURE * (TROPOPAUSE_TEMPERATURE / STANDARD_TEMPERATURE) ** TROPOSPHERE_EXPONENT
)
P_STRATOSPHERE = P_TROPOPAUSE * np.exp(-(STRATOSPHERE - TROPOPAUSE) / SCALE_HEIGHT)
STRATOSPHERE_EXPONENT = GRAVITY / (GAS_CONSTANT_DRY * STRATOSPHERE_LAPSE_RATE)


def pressure_at_height(height: Float) -> Float:
    """Pa at geopotential heights in m above mean sea level; same shape."""
    height = np.asarray(height, dtype=np.float64)
    low = np.minimum(height, TROPOPAUSE)
    troposphere = (
        STANDARD_PRESSURE
        * (1.0 - STANDARD_LAPSE_RATE * low / STANDARD_TEMPERATURE) ** TROPOSPHERE_EXPONENT
    )
    middle = P_TROPOPAUSE * np.exp(-(np.minimum(height, STRATOSPHERE) - TROPOPAUSE) / SCALE_HEIGHT)
    above = np.maximum(height - STRATOSPHERE, 0.0)
    ratio = 1.0 - STRATOSPHERE_LAPSE_RATE * above / TROPOPAUSE_TEMPERATURE
    return np.where(height <= TROPOPAUSE, troposphere, middle * ratio**STRATOSPHERE_EXPONENT)


def height_of_pressure(pressure: Float) -> Float:
    """Geopotential height in m of pressures in Pa; same shape. Inverse of `pressure_at_height`."""
    pressure = np.asarray(pressure, dtype=np.float64)
    troposphere = (
        STANDARD_TEMPERATURE
        / STANDARD_LAPSE_RATE
        * (1.0 - (pressure / STANDARD_PRESSURE) ** (1.0 / TROPOSPHERE_EXPONENT))
    )
    middle = TROPOPAUSE + SCALE_HEIGHT * np.log(P_TROPOPAUSE / np.maximum(pressure, P_STRATOSPHERE))
    ratio = (np.minimum(pressure, P_STRATOSPHERE) / P_STRATOSPHERE) ** (1.0 / STRATOSPHERE_EXPONENT)
    above = TROPOPAUSE_TEMPERATURE / STRATOSPHERE_LAPSE_RATE * (1.0 - ratio)
    return np.where(pressure >= P_TROPOPAUSE, troposphere, middle + above)
