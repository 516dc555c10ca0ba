"""Physical constants, with units and source; the one file that holds them.

Values are those of the ECMWF Integrated Forecasting System (IFS documentation CY48R1, part IV,
"Physical processes", chapter 12), which made ERA5; the standard atmosphere follows ICAO Doc 7488.
"""

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
