"""List what other weather models take as input: fields, levels, grid and times.

From their public documentation:

* AIFS Single: Lang et al., 2024, https://arxiv.org/abs/2406.01465, and the notebook of
  https://huggingface.co/ecmwf/aifs-single-1.0.
* GraphCast, the operational version of 13 levels without precipitation: Lam et al., 2023,
  https://doi.org/10.1126/science.adi2336, and https://github.com/google-deepmind/graphcast.
* FourCastNet 3: Bonev et al., 2025, https://arxiv.org/abs/2507.12144, with the names of earth2studio.
* Pangu-Weather: Bi et al., 2023, https://doi.org/10.1038/s41586-023-06185-3, and
  https://github.com/198808xc/Pangu-Weather.
* Aurora at 0.25 degrees: Bodnar et al., 2025, https://doi.org/10.1038/s41586-025-09005-y, and
  https://microsoft.github.io/aurora.

All take 13 pressure levels on 0.25 degrees, apart from AIFS, which takes the points of N320.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import eccodes
import numpy as np
from numpy.typing import NDArray

from model.domain.errors import UnknownName
from model.domain.grids import Grid
from model.domain.variables import LEVELS_ERA5_13

__all__ = ["MODELS", "DownstreamModel", "Input", "Quantity", "ReducedGrid", "model_named"]

QUARTER_DEGREE = Grid("0p25", "regular", 721, 1440)


@dataclass(frozen=True)
class Quantity:
    """A quantity that external files may hold.

    Attributes:
        id: Id in our vocabulary, or a name in its style.
        names: Names in external NetCDF files, and short names of GRIB.
        units: SI units.
        layers: Other short names of GRIB, each with the level at which it is this quantity.
        constant: Whether it does not change in time.
    """

    id: str
    names: tuple[str, ...]
    units: str
    layers: tuple[tuple[str, int], ...] = ()
    constant: bool = False


QUANTITIES: dict[str, Quantity] = {
    q.id: q
    for q in (
        Quantity("2m_temperature", ("t2m", "2t"), "K"),
        Quantity("10m_u_component_of_wind", ("u10", "10u"), "m s-1"),
        Quantity("10m_v_component_of_wind", ("v10", "10v"), "m s-1"),
        Quantity("mean_sea_level_pressure", ("msl", "prmsl"), "Pa"),
        Quantity("temperature", ("t",), "K"),
        Quantity("u_component_of_wind", ("u",), "m s-1"),
        Quantity("v_component_of_wind", ("v",), "m s-1"),
        Quantity("geopotential", ("z", "gh"), "m2 s-2"),
        Quantity("specific_humidity", ("q",), "1"),
        Quantity("vertical_velocity", ("w",), "Pa s-1"),
        Quantity("100m_u_component_of_wind", ("u100", "100u"), "m s-1"),
        Quantity("100m_v_component_of_wind", ("v100", "100v"), "m s-1"),
        Quantity("2m_dewpoint_temperature", ("d2m", "2d"), "K"),
        Quantity("skin_temperature", ("skt",), "K"),
        Quantity("surface_pressure", ("sp",), "Pa"),
        Quantity("total_column_water", ("tcw",), "kg m-2"),
        Quantity("total_column_water_vapour", ("tcwv", "pwat"), "kg m-2"),
        Quantity("soil_temperature_level_1", ("stl1",), "K", (("sot", 1),)),
        Quantity("soil_temperature_level_2", ("stl2",), "K", (("sot", 2),)),
        Quantity("volumetric_soil_water_layer_1", ("swvl1",), "m3 m-3", (("vsw", 1),)),
        Quantity("volumetric_soil_water_layer_2", ("swvl2",), "m3 m-3", (("vsw", 2),)),
        Quantity("geopotential_at_surface", ("z", "orog"), "m2 s-2", constant=True),
        Quantity("land_sea_mask", ("lsm",), "1", constant=True),
        Quantity("soil_type", ("slt",), "1", constant=True),
        Quantity("slope_of_sub_gridscale_orography", ("slor",), "1", constant=True),
        Quantity("standard_deviation_of_orography", ("sdor",), "m", constant=True),
    )
}


@dataclass(frozen=True)
class Input:
    """A horizontal field that a model takes as input.

    Attributes:
        quantity: The quantity.
        level: hPa, None at the surface.
        array: Name of the array that holds it in the exported file.
        index: Its index in that array, between time and grid.
    """

    quantity: Quantity
    level: int | None
    array: str
    index: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the field, with its level: `vertical_velocity_500hPa` or `skin_temperature`."""
        return self.quantity.id if self.level is None else f"{self.quantity.id}_{self.level}hPa"


@dataclass(frozen=True)
class ReducedGrid:
    """The points of a reduced Gaussian grid of ECMWF.

    Attributes:
        name: Such as `n320`.
        sample: A GRIB sample of ecCodes on this grid.
    """

    name: str
    sample: str

    @cached_property
    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return latitudes and longitudes in degrees, north to south and eastward from 0."""
        handle = eccodes.codes_grib_new_from_samples(self.sample)
        try:
            lat = eccodes.codes_get_array(handle, "latitudes")
            lon = eccodes.codes_get_array(handle, "longitudes")
        finally:
            eccodes.codes_release(handle)
        return np.asarray(lat), np.asarray(lon)


@dataclass(frozen=True)
class DownstreamModel:
    """A model that starts from analyses.

    Attributes:
        name: Name on the command line.
        title: Name for people.
        form: Format of the file: `npz`, `npy`, `graphcast`, `fcn3` or `aurora`.
        grid: Grid of the fields; rows north to south.
        hours: Times of the fields in hours relative to the analysis.
        inputs: Fields, in order.
        levels: Levels in hPa, in the order of the model.
    """

    name: str
    title: str
    form: str
    grid: Grid | ReducedGrid
    hours: tuple[int, ...]
    inputs: tuple[Input, ...]
    levels: tuple[int, ...] = LEVELS_ERA5_13


def _surface(names: dict[str, str]) -> Iterator[Input]:
    """Yield fields without a level, each an array of its own, from {name of the array: quantity}."""
    for array, quantity in names.items():
        yield Input(QUANTITIES[quantity], None, array)


def _columns(names: dict[str, str], levels: Sequence[int] = LEVELS_ERA5_13) -> Iterator[Input]:
    """Yield fields on levels, one array for each quantity."""
    for array, quantity in names.items():
        for k, level in enumerate(levels):
            yield Input(QUANTITIES[quantity], level, array, (k,))


_WIND = {"u": "u_component_of_wind", "v": "v_component_of_wind"}
_PLAIN = {
    "2t": "2m_temperature",
    "10u": "10m_u_component_of_wind",
    "10v": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
}


def _aifs() -> Iterator[Input]:
    surface = {
        **_PLAIN,
        "2d": "2m_dewpoint_temperature",
        "skt": "skin_temperature",
        "sp": "surface_pressure",
        "tcw": "total_column_water",
        "lsm": "land_sea_mask",
        "z": "geopotential_at_surface",
        "slor": "slope_of_sub_gridscale_orography",
        "sdor": "standard_deviation_of_orography",
        "stl1": "soil_temperature_level_1",
        "stl2": "soil_temperature_level_2",
        "swvl1": "volumetric_soil_water_layer_1",
        "swvl2": "volumetric_soil_water_layer_2",
    }
    yield from _surface(surface)
    aloft = {"q": "specific_humidity", "t": "temperature", **_WIND}
    aloft |= {"w": "vertical_velocity", "z": "geopotential"}
    for short, quantity in aloft.items():
        for level in LEVELS_ERA5_13:
            yield Input(QUANTITIES[quantity], level, f"{short}_{level}")


def _graphcast() -> Iterator[Input]:
    own = (
        "2m_temperature",
        "mean_sea_level_pressure",
        *(f"10m_{x}_component_of_wind" for x in "vu"),
    )
    static = ("geopotential_at_surface", "land_sea_mask")
    yield from _surface({name: name for name in (*own, *static)})
    aloft = ("temperature", "geopotential", *_WIND.values())
    yield from _columns({name: name for name in (*aloft, "vertical_velocity", "specific_humidity")})


def _fcn3() -> Iterator[Input]:
    surface = (
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
        "100m_u_component_of_wind",
        "100m_v_component_of_wind",
        "2m_temperature",
        "mean_sea_level_pressure",
        "total_column_water_vapour",
    )
    for i, quantity in enumerate(surface):
        yield Input(QUANTITIES[quantity], None, "input", (i,))
    aloft = (*_WIND.values(), "geopotential", "temperature", "specific_humidity")
    for v, quantity in enumerate(aloft):
        for k, level in enumerate(LEVELS_ERA5_13):
            place = len(surface) + v * len(LEVELS_ERA5_13) + k
            yield Input(QUANTITIES[quantity], level, "input", (place,))


def _pangu() -> Iterator[Input]:
    for i, short in enumerate(("msl", "10u", "10v", "2t")):
        yield Input(QUANTITIES[_PLAIN[short]], None, "input_surface", (i,))
    aloft = ("geopotential", "specific_humidity", "temperature", *_WIND.values())
    for v, quantity in enumerate(aloft):
        for k, level in enumerate(reversed(LEVELS_ERA5_13)):
            yield Input(QUANTITIES[quantity], level, "input_upper", (v, k))


def _aurora() -> Iterator[Input]:
    yield from _surface({f"surf_{short}": quantity for short, quantity in _PLAIN.items()})
    static = {"z": "geopotential_at_surface", "slt": "soil_type", "lsm": "land_sea_mask"}
    yield from _surface({f"static_{short}": quantity for short, quantity in static.items()})
    aloft = {"t": "temperature", **_WIND, "q": "specific_humidity", "z": "geopotential"}
    yield from _columns({f"atmos_{short}": quantity for short, quantity in aloft.items()})


_N320 = ReducedGrid("n320", "reduced_gg_pl_320_grib2")
_BEFORE = (-6, 0)

MODELS: dict[str, DownstreamModel] = {
    m.name: m
    for m in (
        DownstreamModel("aifs", "AIFS Single 1.0", "npz", _N320, _BEFORE, tuple(_aifs())),
        DownstreamModel(
            "graphcast",
            "GraphCast operational, 13 levels",
            "graphcast",
            QUARTER_DEGREE,
            _BEFORE,
            tuple(_graphcast()),
        ),
        DownstreamModel("fcn3", "FourCastNet 3", "fcn3", QUARTER_DEGREE, (0,), tuple(_fcn3())),
        DownstreamModel(
            "pangu",
            "Pangu-Weather",
            "npy",
            QUARTER_DEGREE,
            (0,),
            tuple(_pangu()),
            LEVELS_ERA5_13[::-1],
        ),
        DownstreamModel(
            "aurora", "Aurora 0.25°", "aurora", QUARTER_DEGREE, _BEFORE, tuple(_aurora())
        ),
    )
}


def model_named(name: str) -> DownstreamModel:
    """Return the model of this name.

    Raises:
        UnknownName: If there is none; lists the known ones.
    """
    if name not in MODELS:
        raise UnknownName(
            f"Expected a model, one of {', '.join(MODELS)}; got '{name}'.", known=list(MODELS)
        )
    return MODELS[name]
