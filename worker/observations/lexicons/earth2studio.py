"""Map the names of earth2studio's lexicon (`t2m`, `u10m`, `t500`, `u`) to our variables and back."""

import re

import numpy as np

SURFACE = {
    "t2m": "2m_temperature",
    "d2m": "2m_dewpoint_temperature",
    "r2m": "2m_relative_humidity",
    "u10m": "10m_u_component_of_wind",
    "v10m": "10m_v_component_of_wind",
    "ws10m": "10m_wind_speed",
    "sp": "surface_pressure",
    "msl": "mean_sea_level_pressure",
    "sst": "sea_surface_temperature",
    "tcwv": "total_column_water_vapour",
}
UPPER_AIR = {
    "t": "temperature",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "z": "geopotential",
    "q": "specific_humidity",
    "r": "relative_humidity",
    "ws": "wind_speed",
}
_PRESSURE_VARIABLES = {"pres": "surface_pressure"}
_AT_LEVEL = re.compile(r"([a-z]+)(\d{1,4})")


def split_name(name: str) -> tuple[str, float]:
    """Our variable and the level in hPa in an earth2studio name; the name itself if unknown."""
    if name in SURFACE:
        return SURFACE[name], np.nan
    if name in _PRESSURE_VARIABLES:
        return _PRESSURE_VARIABLES[name], np.nan
    if name in UPPER_AIR:
        return UPPER_AIR[name], np.nan
    found = _AT_LEVEL.fullmatch(name)
    if found and found[1] in UPPER_AIR:
        return UPPER_AIR[found[1]], float(found[2])
    return f"earth2studio:{name}", np.nan


SHORT_NAMES = {
    "2m_temperature": "t2m",
    "surface_pressure": "sp",
    "10m_u_component_of_wind": "u10m",
    "10m_v_component_of_wind": "v10m",
    "mean_sea_level_pressure": "msl",
    "sea_surface_temperature": "sst",
    "temperature": "t",
    "geopotential": "z",
    "u_component_of_wind": "u",
}
