"""What a nature run stores: names, units and rounding, after WeatherBench2's ERA5 stores."""

from dataclasses import dataclass

__all__ = ["LEVELS", "STATIC", "VARIABLES", "VariableSpec"]

LEVELS = (50, 100, 200, 300, 500, 700, 850, 925)
"""hPa."""


@dataclass(frozen=True)
class VariableSpec:
    """One array of the store.

    ``quantum`` is the step the values are rounded to, a power of two in the variable's units;
    None keeps 9 bits of mantissa instead (relative error 1e-3, for humidity and rain).
    """

    units: str
    standard_name: str
    levels: bool
    quantum: float | None


VARIABLES = {
    "2m_temperature": VariableSpec("K", "air_temperature", False, 2**-5),
    "10m_u_component_of_wind": VariableSpec("m s**-1", "eastward_wind", False, 2**-5),
    "10m_v_component_of_wind": VariableSpec("m s**-1", "northward_wind", False, 2**-5),
    "mean_sea_level_pressure": VariableSpec("Pa", "air_pressure_at_mean_sea_level", False, 2.0**0),
    "sea_surface_temperature": VariableSpec("K", "sea_surface_temperature", False, 2**-5),
    "total_precipitation": VariableSpec("m", "precipitation_amount", False, None),
    "temperature": VariableSpec("K", "air_temperature", True, 2**-5),
    "u_component_of_wind": VariableSpec("m s**-1", "eastward_wind", True, 2**-5),
    "v_component_of_wind": VariableSpec("m s**-1", "northward_wind", True, 2**-5),
    "geopotential": VariableSpec("m**2 s**-2", "geopotential", True, 2.0**0),
    "specific_humidity": VariableSpec("kg kg**-1", "specific_humidity", True, None),
}

STATIC = {
    "geopotential_at_surface": VariableSpec("m**2 s**-2", "surface_geopotential", False, None),
    "land_sea_mask": VariableSpec("(0 - 1)", "land_binary_mask", False, None),
}
