"""Map ecCodes short names to our variables, and our variables to GRIB2 codes."""

from collections.abc import Mapping

__all__ = ["ALOFT", "SURFACE", "SURFACE_LEVELS"]

SURFACE: Mapping[str, str] = {
    "2t": "2m_temperature",
    "10u": "10m_u_component_of_wind",
    "10v": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "prmsl": "mean_sea_level_pressure",
    "mslet": "mean_sea_level_pressure",
    "sst": "sea_surface_temperature",
    "tp": "total_precipitation",
    "sp": "surface_pressure",
    "2d": "2m_dewpoint_temperature",
    "2r": "2m_relative_humidity",
    "10si": "10m_wind_speed",
    "tcwv": "total_column_water_vapour",
    "pwat": "total_column_water_vapour",
}
ALOFT: Mapping[str, str] = {
    "t": "temperature",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "z": "geopotential",
    "gh": "geopotential",
    "q": "specific_humidity",
    "r": "relative_humidity",
    "ws": "wind_speed",
}
SURFACE_LEVELS = {
    "surface", "heightAboveGround", "meanSea", "entireAtmosphere", "atmosphereSingleLayer",
    "atmosphere",
}  # fmt: skip
"""Types of level on which the surface names mean what they say."""


GRIB2_CODES = {
    "2m_temperature": (0, 0, 0, "heightAboveGround", 2),
    "10m_u_component_of_wind": (0, 2, 2, "heightAboveGround", 10),
    "10m_v_component_of_wind": (0, 2, 3, "heightAboveGround", 10),
    "mean_sea_level_pressure": (0, 3, 0, "meanSea", 0),
    "sea_surface_temperature": (10, 3, 0, "surface", 0),
    "total_precipitation": (0, 1, 52, "surface", 0),
    "temperature": (0, 0, 0, "isobaricInhPa", None),
    "u_component_of_wind": (0, 2, 2, "isobaricInhPa", None),
    "v_component_of_wind": (0, 2, 3, "isobaricInhPa", None),
    "geopotential": (0, 3, 4, "isobaricInhPa", None),
    "specific_humidity": (0, 1, 0, "isobaricInhPa", None),
}
"""Discipline, category, number, kind of level and level (GRIB2 tables 4.1 and 4.2)."""
