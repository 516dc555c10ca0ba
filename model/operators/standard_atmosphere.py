"""The ICAO standard atmosphere up to 32 km (ICAO Doc 7488, 1993): pressure from height and back."""

import numpy as np
from numpy.typing import NDArray

from model.constants import (
    GAS_CONSTANT_DRY,
    GRAVITY,
    STANDARD_LAPSE_RATE,
    STANDARD_PRESSURE,
    STANDARD_TEMPERATURE,
)

__all__ = ["height_of_pressure", "pressure_at_height"]

Float = NDArray[np.float64]

TROPOPAUSE = 11_000.0
STRATOSPHERE = 20_000.0
TROPOPAUSE_TEMPERATURE = STANDARD_TEMPERATURE - STANDARD_LAPSE_RATE * TROPOPAUSE
STRATOSPHERE_LAPSE_RATE = -0.001
EXPONENT = GRAVITY / (GAS_CONSTANT_DRY * STANDARD_LAPSE_RATE)
SCALE_HEIGHT = GAS_CONSTANT_DRY * TROPOPAUSE_TEMPERATURE / GRAVITY
P_TROPOPAUSE = STANDARD_PRESSURE * (TROPOPAUSE_TEMPERATURE / STANDARD_TEMPERATURE) ** EXPONENT
P_STRATOSPHERE = P_TROPOPAUSE * np.exp(-(STRATOSPHERE - TROPOPAUSE) / SCALE_HEIGHT)
UPPER_EXPONENT = GRAVITY / (GAS_CONSTANT_DRY * STRATOSPHERE_LAPSE_RATE)


def pressure_at_height(height: Float) -> Float:
    """Pa at geopotential heights in m above mean sea level; same shape."""
    height = np.asarray(height, dtype=np.float64)
    low = np.minimum(height, TROPOPAUSE)
    troposphere = (
        STANDARD_PRESSURE * (1.0 - STANDARD_LAPSE_RATE * low / STANDARD_TEMPERATURE) ** EXPONENT
    )
    middle = P_TROPOPAUSE * np.exp(-(np.minimum(height, STRATOSPHERE) - TROPOPAUSE) / SCALE_HEIGHT)
    above = np.maximum(height - STRATOSPHERE, 0.0)
    ratio = 1.0 - STRATOSPHERE_LAPSE_RATE * above / TROPOPAUSE_TEMPERATURE
    return np.where(height <= TROPOPAUSE, troposphere, middle * ratio**UPPER_EXPONENT)


def height_of_pressure(pressure: Float) -> Float:
    """Geopotential height in m of pressures in Pa; same shape. Inverse of `pressure_at_height`."""
    pressure = np.asarray(pressure, dtype=np.float64)
    troposphere = (
        STANDARD_TEMPERATURE
        / STANDARD_LAPSE_RATE
        * (1.0 - (pressure / STANDARD_PRESSURE) ** (1.0 / EXPONENT))
    )
    middle = TROPOPAUSE + SCALE_HEIGHT * np.log(P_TROPOPAUSE / np.maximum(pressure, P_STRATOSPHERE))
    ratio = (np.minimum(pressure, P_STRATOSPHERE) / P_STRATOSPHERE) ** (1.0 / UPPER_EXPONENT)
    above = TROPOPAUSE_TEMPERATURE / STRATOSPHERE_LAPSE_RATE * (1.0 - ratio)
    return np.where(pressure >= P_TROPOPAUSE, troposphere, middle + above)
