"""Names of IODA's ObsValue variables, to our variables at the surface and aloft."""

from collections.abc import Mapping

__all__ = ["IODA_VARIABLES"]

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
