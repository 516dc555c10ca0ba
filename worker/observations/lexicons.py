"""Map names of external vocabularies to ours and back: IODA, ODB, GRIB, earth2studio, PrepBUFR.

One table for each vocabulary lists the external names of every variable, and both directions are
derived from it: a new variable needs one entry in `model/domain/variables.py` and one line in each
table here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from model.domain.variables import VARIABLES

__all__ = [
    "CODETYPE",
    "EARTH2STUDIO",
    "GRIB",
    "GRIB2_CODES",
    "IODA",
    "IODA_NAMES",
    "Lexicon",
    "OBSTYPE",
    "ODB",
    "PREPBUFR_ERRORS",
    "PREPBUFR_MARINE",
    "PREPBUFR_TYPES",
    "REPORT_TYPE_OF_CODETYPE",
    "REPORT_TYPE_OF_OBSTYPE",
    "SURFACE_LEVELS",
    "VARNO",
    "VERTCO",
    "split_name",
]

Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Lexicon(Generic[Name]):
    """Names of one external vocabulary.

    Two variables may share a name if only one of them needs a level: `airTemperature` is the 2 m
    temperature where a row has no level, and the temperature where it has one.

    Attributes:
        names: External names by variable id; the first is written, all are read.
        ambiguous: Names written but not read from files of other producers, where they may mean
            something else, such as precipitation over an unknown period.
    """

    names: Mapping[str, tuple[Name, ...]]
    ambiguous: frozenset[Name] = frozenset()

    @cached_property
    def written(self) -> dict[str, Name]:
        """Return the name to write, by variable id."""
        return {variable: names[0] for variable, names in self.names.items()}

    @cached_property
    def own(self) -> dict[Name, str]:
        """Return the variable id by the name this service writes; for a shared name the one aloft."""
        order = sorted(self.names, key=lambda variable: VARIABLES[variable].needs_level)
        return {self.names[variable][0]: variable for variable in order}

    @cached_property
    def surface(self) -> dict[Name, str]:
        """Return the variable id by name, of variables without a level."""
        return self._read(needs_level=False)

    @cached_property
    def aloft(self) -> dict[Name, str]:
        """Return the variable id by name, of variables that need a level."""
        return self._read(needs_level=True)

    def _read(self, *, needs_level: bool) -> dict[Name, str]:
        return {
            name: variable
            for variable, names in self.names.items()
            for name in names
            if VARIABLES[variable].needs_level == needs_level and name not in self.ambiguous
        }


# -- IODA: JCSDA jedi-docs, inside/conventions/objects_and_layouts.md, camelCase and snake_case

IODA = Lexicon(
    {
        "2m_temperature": ("airTemperatureAt2M", "airTemperature", "air_temperature"),
        "10m_u_component_of_wind": ("windEastwardAt10M", "windEastward", "eastward_wind"),
        "10m_v_component_of_wind": ("windNorthwardAt10M", "windNorthward", "northward_wind"),
        "mean_sea_level_pressure": ("pressureReducedToMeanSeaLevel",),
        "sea_surface_temperature": ("seaSurfaceTemperature", "sea_surface_temperature"),
        "total_precipitation": ("totalPrecipitation",),
        "temperature": ("airTemperature", "air_temperature"),
        "u_component_of_wind": ("windEastward", "eastward_wind"),
        "v_component_of_wind": ("windNorthward", "northward_wind"),
        "geopotential": ("geopotential", "geopotentialHeight"),
        "specific_humidity": ("specificHumidity", "specific_humidity"),
        "surface_pressure": ("stationPressure", "surfacePressure", "surface_pressure"),
        "2m_dewpoint_temperature": (
            "dewPointTemperatureAt2M", "dewPointTemperature", "dewpointTemperature",
        ),
        "2m_relative_humidity": (
            "relativeHumidityAt2M", "relativeHumidity", "relative_humidity",
        ),
        "relative_humidity": ("relativeHumidity", "relative_humidity"),
        "10m_wind_speed": ("windSpeedAt10M", "windSpeed", "wind_speed"),
        "wind_speed": ("windSpeed", "wind_speed"),
        "geopotential_thickness": ("geopotentialThickness",),
        "total_column_water_vapour": ("precipitableWater",),
        "brightness_temperature": ("brightnessTemperature",),
    },
    ambiguous=frozenset({"totalPrecipitation", "geopotentialThickness", "brightnessTemperature"}),
)  # fmt: skip
IODA_NAMES: Mapping[str, str] = IODA.written


# -- ODB: https://apps.ecmwf.int/odbgov/ (varno, obstype, codetype, vertco_type)

ODB = Lexicon(
    {
        "2m_temperature": (39,),
        "10m_u_component_of_wind": (41,),
        "10m_v_component_of_wind": (42,),
        "mean_sea_level_pressure": (108,),
        "sea_surface_temperature": (11,),
        "total_precipitation": (80,),
        "temperature": (2,),
        "u_component_of_wind": (3,),
        "v_component_of_wind": (4,),
        "geopotential": (1,),
        "specific_humidity": (7,),
        "surface_pressure": (110,),
        "2m_dewpoint_temperature": (40,),
        "2m_relative_humidity": (58,),
        "relative_humidity": (29,),
        "10m_wind_speed": (112,),
        "wind_speed": (112,),
        "geopotential_thickness": (57,),
        "total_column_water_vapour": (9,),
        "brightness_temperature": (119,),
    },
    # 11 is the temperature of any surface, 80 rain over various times, 119 not bias-corrected.
    ambiguous=frozenset({11, 57, 80, 119}),
)
VARNO: Mapping[str, int] = ODB.written

_OBSTYPES: Mapping[int, tuple[str, ...]] = {
    1: ("synop", "ship", "gnss"),
    2: ("aircraft",),
    3: ("amv",),
    4: ("drifter", "buoy"),
    5: ("temp", "dropsonde"),
    6: ("pilot", "profiler"),
    7: ("satellite",),
    9: ("scatterometer",),
}
"""Report types written under each number; the first is read."""
OBSTYPE: Mapping[str, int] = {name: n for n, names in _OBSTYPES.items() for name in names}
REPORT_TYPE_OF_OBSTYPE: Mapping[int, str] = {n: names[0] for n, names in _OBSTYPES.items()}

_CODETYPES: Mapping[str, tuple[int, ...]] = {
    "synop": (14,),
    "ship": (21, 22, 23, 24),
    "aircraft": (144,),
    "temp": (35,),
    "drifter": (165,),
}
"""Code types of report types that the observation type leaves open; the first is written."""
CODETYPE: Mapping[str, int] = {name: numbers[0] for name, numbers in _CODETYPES.items()}
REPORT_TYPE_OF_CODETYPE: Mapping[int, str] = {
    number: name for name, numbers in _CODETYPES.items() for number in numbers
}

VERTCO: Mapping[str, int] = {"pressure": 1, "layer": 1, "height": 2, "channel": 3}
"""Type of the vertical coordinate, by vertical kind."""


# -- GRIB: short names of ecCodes, and code tables 0.0, 4.1, 4.2 and 4.5 of GRIB 2

Code = tuple[int, int, int, str, int | None]

_GRIB: Mapping[str, tuple[tuple[str, ...], Code | None]] = {
    "2m_temperature": (("2t",), (0, 0, 0, "heightAboveGround", 2)),
    "10m_u_component_of_wind": (("10u",), (0, 2, 2, "heightAboveGround", 10)),
    "10m_v_component_of_wind": (("10v",), (0, 2, 3, "heightAboveGround", 10)),
    "mean_sea_level_pressure": (("msl", "prmsl", "mslet"), (0, 3, 0, "meanSea", 0)),
    "sea_surface_temperature": (("sst",), (10, 3, 0, "surface", 0)),
    "total_precipitation": (("tp",), (0, 1, 52, "surface", 0)),
    "temperature": (("t",), (0, 0, 0, "isobaricInhPa", None)),
    "u_component_of_wind": (("u",), (0, 2, 2, "isobaricInhPa", None)),
    "v_component_of_wind": (("v",), (0, 2, 3, "isobaricInhPa", None)),
    "geopotential": (("z", "gh"), (0, 3, 4, "isobaricInhPa", None)),
    "specific_humidity": (("q",), (0, 1, 0, "isobaricInhPa", None)),
    "surface_pressure": (("sp",), None),
    "2m_dewpoint_temperature": (("2d",), None),
    "2m_relative_humidity": (("2r",), None),
    "relative_humidity": (("r",), None),
    "10m_wind_speed": (("10si",), None),
    "wind_speed": (("ws",), None),
    "total_column_water_vapour": (("tcwv", "pwat"), None),
}
"""Short names, and discipline, category, number, kind of level and level where written."""

GRIB = Lexicon({variable: names for variable, (names, _) in _GRIB.items()})
GRIB2_CODES: Mapping[str, Code] = {
    variable: code for variable, (_, code) in _GRIB.items() if code is not None
}
SURFACE_LEVELS = frozenset(
    {
        "surface", "heightAboveGround", "meanSea", "entireAtmosphere", "atmosphereSingleLayer",
        "atmosphere",
    }
)  # fmt: skip
"""Types of level at which names of variables without a level are read."""


# -- earth2studio: earth2studio/lexicon/base.py, levels in hPa appended (`t500`)

EARTH2STUDIO = Lexicon(
    {
        "2m_temperature": ("t2m",),
        "10m_u_component_of_wind": ("u10m",),
        "10m_v_component_of_wind": ("v10m",),
        "mean_sea_level_pressure": ("msl",),
        "sea_surface_temperature": ("sst",),
        "temperature": ("t",),
        "u_component_of_wind": ("u",),
        "v_component_of_wind": ("v",),
        "geopotential": ("z",),
        "specific_humidity": ("q",),
        "surface_pressure": ("sp", "pres"),
        "2m_dewpoint_temperature": ("d2m",),
        "2m_relative_humidity": ("r2m",),
        "relative_humidity": ("r",),
        "10m_wind_speed": ("ws10m",),
        "wind_speed": ("ws",),
        "total_column_water_vapour": ("tcwv",),
    }
)
_AT_LEVEL = re.compile(r"([a-z]+)(\d{1,4})")


def split_name(name: str) -> tuple[str, float]:
    """Return the variable and level in hPa that an earth2studio name stands for.

    The level is NaN where the name has none; an unknown name becomes `earth2studio:<name>`.
    """
    if variable := EARTH2STUDIO.surface.get(name) or EARTH2STUDIO.aloft.get(name):
        return variable, np.nan
    parts = _AT_LEVEL.fullmatch(name)
    if parts and parts[1] in EARTH2STUDIO.aloft:
        return EARTH2STUDIO.aloft[parts[1]], float(parts[2])
    return f"earth2studio:{name}", np.nan


# -- PrepBUFR: report types of NCEP, "PREPBUFR processing", tables 2 and 4, and dump report types

_AIRCRAFT = (130, 131, 133, 134, 135, 230, 231, 233, 234, 235)
PREPBUFR_TYPES: Mapping[int, str] = {
    **dict.fromkeys((120, 220), "temp"),
    **dict.fromkeys((221,), "pilot"),
    **dict.fromkeys((132, 182, 232), "dropsonde"),
    **dict.fromkeys((223, 224, 227, 228, 229), "profiler"),
    **dict.fromkeys(_AIRCRAFT, "aircraft"),
    **dict.fromkeys(range(240, 261), "amv"),
    **dict.fromkeys((180, 194, 280, 294), "ship"),
    **dict.fromkeys((282,), "buoy"),
    **dict.fromkeys((181, 187, 188, 192, 193, 195, 281, 287, 288, 292, 293, 295), "synop"),
    **dict.fromkeys((183, 284), "synop"),
    **dict.fromkeys((285, 286, 289, 290, 291, 296), "scatterometer"),
    153: "gnss",
}
"""Network by report type: 1xx mass, 2xx wind; 183 and 284 are land or sea, by kind of message.

Excluded, because they are not independent measurements: bogus and synthetic data (110 to 112,
191, 210), satellite retrievals (150 to 175 but 153), RASS virtual temperatures (126) and SSM/I
speeds with a direction of the model (283).
"""
PREPBUFR_MARINE: Mapping[int, str] = {
    522: "ship", 523: "ship", 531: "buoy", 532: "buoy", 534: "buoy", 561: "buoy", 562: "drifter",
}  # fmt: skip
"""Network of marine reports by type of the dump (T29): ships, coastal platforms, buoys."""
PREPBUFR_ERRORS: Mapping[str, str] = {
    "surface_pressure": "POE",
    "temperature": "TOE",
    "2m_temperature": "TOE",
    "specific_humidity": "QOE",
    "u_component_of_wind": "WOE",
    "v_component_of_wind": "WOE",
    "10m_u_component_of_wind": "WOE",
    "10m_v_component_of_wind": "WOE",
    "sea_surface_temperature": "SSTOE",
    "total_column_water_vapour": "PWE",
}
"""Mnemonic of the observation error, by variable; that of humidity is of relative humidity."""
