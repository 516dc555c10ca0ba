"""Define the vocabulary: variable ids, units, CF names, pressure levels and channel order.

The ids of state variables are the ERA5 names of WeatherBench2 stores, which the released
checkpoints use; observed-only variables are named in the same manner. Foreign names (BUFR keys,
IODA names, ODB varno) are translated in the decoders and nowhere else. All units are SI.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from model.domain.errors import InvalidInput
from model.domain.registry import Registry

__all__ = [
    "ATMOSPHERIC",
    "Channel",
    "LEVELS_ERA5_13",
    "LEVELS_T31",
    "SURFACE",
    "VARIABLES",
    "Variable",
    "channel_names",
    "channels",
    "parse_channel",
]

Kind = Literal["surface", "atmospheric", "observed"]


@dataclass(frozen=True)
class Variable:
    """One physical quantity.

    Attributes:
        id: The name used everywhere inside.
        short: The usual short name (ECMWF), used in NetCDF variable names and tables.
        units: SI units in CF spelling.
        standard_name: CF standard name.
        kind: `surface` and `atmospheric` variables are part of the state; `observed` ones are
            related to it by an observation operator only.
        height: Height above ground in metres where the quantity is defined at one, else None.
        nonnegative: Whether values below zero are unphysical and clipped when published.
        vertical: What an observed-only variable refers to: the surface, a pressure level or
            height, a layer, the whole column, or a channel of an instrument.
    """

    id: str
    short: str
    units: str
    standard_name: str
    kind: Kind
    height: float | None = None
    nonnegative: bool = False
    vertical: Literal["surface", "level", "layer", "column", "channel"] = "surface"

    @property
    def needs_level(self) -> bool:
        """Whether a value means nothing without its vertical coordinate."""
        return self.kind == "atmospheric" or self.vertical in ("level", "layer", "channel")


_ALL = (
    Variable("2m_temperature", "t2m", "K", "air_temperature", "surface", 2.0),
    Variable("10m_u_component_of_wind", "u10", "m s-1", "eastward_wind", "surface", 10.0),
    Variable("10m_v_component_of_wind", "v10", "m s-1", "northward_wind", "surface", 10.0),
    Variable("mean_sea_level_pressure", "msl", "Pa", "air_pressure_at_mean_sea_level", "surface"),
    Variable("sea_surface_temperature", "sst", "K", "sea_surface_temperature", "surface"),
    Variable(
        "total_precipitation",
        "tp",
        "m",
        "lwe_thickness_of_precipitation_amount",
        "surface",
        nonnegative=True,
    ),
    Variable("temperature", "t", "K", "air_temperature", "atmospheric"),
    Variable("u_component_of_wind", "u", "m s-1", "eastward_wind", "atmospheric"),
    Variable("v_component_of_wind", "v", "m s-1", "northward_wind", "atmospheric"),
    Variable("geopotential", "z", "m2 s-2", "geopotential", "atmospheric"),
    Variable("specific_humidity", "q", "1", "specific_humidity", "atmospheric", nonnegative=True),
    Variable("surface_pressure", "sp", "Pa", "surface_air_pressure", "observed"),
    Variable("2m_dewpoint_temperature", "d2m", "K", "dew_point_temperature", "observed", 2.0),
    Variable("2m_relative_humidity", "r2m", "1", "relative_humidity", "observed", 2.0, True),
    Variable("relative_humidity", "r", "1", "relative_humidity", "observed", None, True, "level"),
    Variable("10m_wind_speed", "si10", "m s-1", "wind_speed", "observed", 10.0, True),
    Variable("wind_speed", "ws", "m s-1", "wind_speed", "observed", None, True, "level"),
    Variable(
        "geopotential_thickness",
        "dz",
        "m2 s-2",
        "atmosphere_layer_thickness_expressed_as_geopotential_height_difference",
        "observed",
        vertical="layer",
    ),
    Variable(
        "total_column_water_vapour",
        "tcwv",
        "kg m-2",
        "atmosphere_mass_content_of_water_vapor",
        "observed",
        None,
        True,
        "column",
    ),
    Variable(
        "brightness_temperature",
        "tb",
        "K",
        "toa_brightness_temperature",
        "observed",
        vertical="channel",
    ),
)

VARIABLES: Registry[Variable] = Registry(
    "variable", "appa.variables", Variable, **{v.id: v for v in _ALL}
)
SURFACE: tuple[str, ...] = tuple(v.id for v in _ALL if v.kind == "surface")
ATMOSPHERIC: tuple[str, ...] = tuple(v.id for v in _ALL if v.kind == "atmospheric")
"""The state variables of the release; their order is that of its channels, so extensions, whose
channels a checkpoint's card names one by one, are not among them."""

LEVELS_ERA5_13: tuple[int, ...] = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
LEVELS_T31: tuple[int, ...] = (50, 100, 200, 300, 500, 700, 850, 925)


@dataclass(frozen=True)
class Channel:
    """One channel of a state: a variable, and its pressure level in hPa or None at the surface."""

    variable: str
    level: int | None = None

    @property
    def name(self) -> str:
        """`2m_temperature` or `temperature_500hPa`."""
        return self.variable if self.level is None else f"{self.variable}_{self.level}hPa"


def channels(
    levels: Sequence[int],
    surface: Iterable[str] = SURFACE,
    atmospheric: Iterable[str] = ATMOSPHERIC,
) -> tuple[Channel, ...]:
    """Channel order of the release: surface variables, then each variable on all levels.

    Arguments:
        levels: Pressure levels in hPa, from the top of the atmosphere down.
        surface: Ids of the surface variables.
        atmospheric: Ids of the variables on pressure levels.
    """
    return tuple(Channel(v) for v in surface) + tuple(
        Channel(v, level) for v in atmospheric for level in levels
    )


def channel_names(levels: Sequence[int]) -> tuple[str, ...]:
    """Names of `channels(levels)`."""
    return tuple(c.name for c in channels(levels))


def parse_channel(name: str) -> Channel:
    """The channel called `name`.

    Raises:
        InvalidInput: If `name` is neither a surface variable nor `<variable>_<level>hPa`.
    """
    kinds = {v.id: v.kind for v in VARIABLES.values()}
    if kinds.get(name) == "surface":
        return Channel(name)
    variable, _, level = name.removesuffix("hPa").rpartition("_")
    if name.endswith("hPa") and kinds.get(variable) == "atmospheric" and level.isdigit():
        return Channel(variable, int(level))
    known = {kind: ", ".join(v for v, k in kinds.items() if k == kind) for kind in kinds.values()}
    raise InvalidInput(
        f"Expected a surface variable ({known['surface']}) or '<variable>_<level>hPa' with one of "
        f"{known['atmospheric']}; got '{name}'.",
        channel=name,
    )
