"""Map ODB-2's numbers of variables, observation types and vertical coordinates to ours and back.

After ECMWF's ODB governance tables (https://apps.ecmwf.int/odbgov/varno/,
https://apps.ecmwf.int/odbgov/vertco_type/).
"""

from collections.abc import Mapping

__all__ = ["VARNO"]

SURFACE_VARIABLES: Mapping[int, str] = {
    39: "2m_temperature",
    40: "2m_dewpoint_temperature",
    41: "10m_u_component_of_wind",
    42: "10m_v_component_of_wind",
    58: "2m_relative_humidity",
    108: "mean_sea_level_pressure",
    110: "surface_pressure",
}
UPPER_AIR_VARIABLES: Mapping[int, str] = {
    1: "geopotential",
    2: "temperature",
    3: "u_component_of_wind",
    4: "v_component_of_wind",
    7: "specific_humidity",
    29: "relative_humidity",
    112: "wind_speed",
}
REPORT_TYPE_OF_OBSTYPE: Mapping[int, str] = {
    1: "synop", 2: "aircraft", 3: "amv", 4: "drifter", 5: "temp", 6: "pilot", 7: "satellite",
    9: "scatterometer",
}  # fmt: skip
REPORT_TYPE_OF_CODETYPE: Mapping[int, str] = {
    21: "ship",
    24: "ship",
    22: "ship",
    23: "ship",
    165: "drifter",
}


VARNO: Mapping[str, int] = {
    "2m_temperature": 39,
    "10m_u_component_of_wind": 41,
    "10m_v_component_of_wind": 42,
    "mean_sea_level_pressure": 108,
    "sea_surface_temperature": 11,
    "total_precipitation": 80,
    "temperature": 2,
    "u_component_of_wind": 3,
    "v_component_of_wind": 4,
    "geopotential": 1,
    "specific_humidity": 7,
    "surface_pressure": 110,
    "2m_dewpoint_temperature": 40,
    "2m_relative_humidity": 58,
    "relative_humidity": 29,
    "10m_wind_speed": 112,
    "wind_speed": 112,
    "geopotential_thickness": 57,
    "total_column_water_vapour": 9,
    "brightness_temperature": 119,
}
OBSTYPE: Mapping[str, int] = {
    "synop": 1,
    "ship": 1,
    "aircraft": 2,
    "amv": 3,
    "buoy": 4,
    "drifter": 4,
    "temp": 5,
    "dropsonde": 5,
    "pilot": 6,
    "profiler": 6,
    "satellite": 7,
    "scatterometer": 9,
    "gnss": 1,
}
VERTCO = {"pressure": 1, "layer": 1, "height": 2, "channel": 3}
