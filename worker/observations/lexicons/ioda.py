"""Map IODA's variable names to ours and back.

Names after JCSDA jedi-docs, `inside/conventions/objects_and_layouts.md`, in the camelCase and
the older snake_case spelling.
"""

from collections.abc import Mapping

__all__ = ["IODA_NAMES", "IODA_VARIABLES"]

IODA_VARIABLES: Mapping[str, tuple[str, str]] = {
    # IODA name: (at the surface, aloft); empty where it means nothing
    "airTemperature": ("2m_temperature", "temperature"),
    "air_temperature": ("2m_temperature", "temperature"),
    "airTemperatureAt2M": ("2m_temperature", ""),
    "dewPointTemperature": ("2m_dewpoint_temperature", ""),
    "dewpointTemperature": ("2m_dewpoint_temperature", ""),
    "dewPointTemperatureAt2M": ("2m_dewpoint_temperature", ""),
    "relativeHumidity": ("2m_relative_humidity", "relative_humidity"),
    "relative_humidity": ("2m_relative_humidity", "relative_humidity"),
    "specificHumidity": ("", "specific_humidity"),
    "specific_humidity": ("", "specific_humidity"),
    "windEastward": ("10m_u_component_of_wind", "u_component_of_wind"),
    "eastward_wind": ("10m_u_component_of_wind", "u_component_of_wind"),
    "windNorthward": ("10m_v_component_of_wind", "v_component_of_wind"),
    "northward_wind": ("10m_v_component_of_wind", "v_component_of_wind"),
    "windEastwardAt10M": ("10m_u_component_of_wind", ""),
    "windNorthwardAt10M": ("10m_v_component_of_wind", ""),
    "windSpeed": ("10m_wind_speed", "wind_speed"),
    "windSpeedAt10M": ("10m_wind_speed", ""),
    "wind_speed": ("10m_wind_speed", "wind_speed"),
    "stationPressure": ("surface_pressure", ""),
    "surfacePressure": ("surface_pressure", ""),
    "surface_pressure": ("surface_pressure", ""),
    "pressureReducedToMeanSeaLevel": ("mean_sea_level_pressure", ""),
    "seaSurfaceTemperature": ("sea_surface_temperature", ""),
    "sea_surface_temperature": ("sea_surface_temperature", ""),
    "geopotential": ("", "geopotential"),
    "geopotentialHeight": ("", "geopotential"),
    "precipitableWater": ("total_column_water_vapour", ""),
}


IODA_NAMES: Mapping[str, str] = {
    "2m_temperature": "airTemperatureAt2M",
    "10m_u_component_of_wind": "windEastwardAt10M",
    "10m_v_component_of_wind": "windNorthwardAt10M",
    "mean_sea_level_pressure": "pressureReducedToMeanSeaLevel",
    "sea_surface_temperature": "seaSurfaceTemperature",
    "total_precipitation": "totalPrecipitation",
    "temperature": "airTemperature",
    "u_component_of_wind": "windEastward",
    "v_component_of_wind": "windNorthward",
    "geopotential": "geopotential",
    "specific_humidity": "specificHumidity",
    "surface_pressure": "stationPressure",
    "2m_dewpoint_temperature": "dewPointTemperatureAt2M",
    "2m_relative_humidity": "relativeHumidityAt2M",
    "relative_humidity": "relativeHumidity",
    "10m_wind_speed": "windSpeedAt10M",
    "wind_speed": "windSpeed",
    "geopotential_thickness": "geopotentialThickness",
    "total_column_water_vapour": "precipitableWater",
    "brightness_temperature": "brightnessTemperature",
}
