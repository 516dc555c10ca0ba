"""Bring a nature run to pressure levels, and store it in zarr while it grows.

Interpolation from sigma levels to pressure levels and to 2 m and 10 m follows operational practice.

Between model levels ln T is linear in ln p (a constant lapse rate is then exact, an isothermal
layer is its limit), wind is linear in ln p and specific humidity linear in p. Geopotential is the
hydrostatic integral of the virtual temperature along the same profile, upwards from the model's
orography, so thickness and mean virtual temperature agree by construction. Under the lowest
level and below the ground the temperature follows the 6.5 K/km lapse rate with the corrections
for high and for hot terrain of

    K. E. Trenberth, J. C. Berry, L. E. Buja, "Vertical Interpolation and Truncation of
    Model-Coordinate Data", NCAR/TN-396+STR, 1993, section 3 (ECMWF's scheme),

from which the reduction to mean sea level comes too; wind and humidity are kept constant.

SPEEDY (F. Molteni, "Atmospheric simulations using a GCM with simplified physical
parametrizations", Clim. Dyn. 20, 2003; ``suflux.f90``) has no surface layer of its own. It
carries the lowest level's temperature down to sigma 0.99 with the lapse rate measured between
sigma 0.835 and the lowest level where that layer is unstable, holds it in a stable layer, and
takes 95 % of the lowest level's wind. These are the values its surface fluxes use, so they are
the model's own air at 2 m and wind at 10 m.

Every function takes the array namespace first (``numpy`` or ``jax.numpy``): the nature run calls
them inside ``jit``, the tests with numpy alone. Vertical axis first and downwards (level 0 at the
top), any trailing shape ``(...)``; temperature in K, pressure in Pa, geopotential in m² s⁻².

The store is laid out like WeatherBench2's ERA5 stores, with their names, units and rounding of
variables: zarr format 2 with consolidated metadata, dimensions (time, level, latitude, longitude),
one chunk a day and variable. It may be read while it grows: days are written first, then the time
axis, then the consolidated metadata (one atomic rename), which alone says how far the store reaches.
A run killed at any point leaves a valid store; data beyond the listed times are overwritten.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import zarr
from numcodecs import Blosc

from model.domain.errors import InvalidInput
from model.domain.physics import GAS_CONSTANT_DRY, GRAVITY, STANDARD_LAPSE_RATE

__all__ = [
    "LEVELS",
    "NatureStore",
    "PressureFields",
    "STATIC",
    "SigmaFields",
    "VARIABLES",
    "VariableSpec",
    "WIND_FACTOR",
    "mean_sea_level_pressure",
    "surface_temperature",
    "temperature_2m",
    "to_pressure_levels",
    "virtual_temperature",
]

Array = Any
"""A numpy or a jax array; both follow the array namespace that is passed beside it."""

NATURE_RUN_VIRTUAL = 0.608
"""R_vapour / R_dry − 1, rounded as the recorded nature run has it.

A resumed nature run must continue bit for bit, so this is not `physics.VIRTUAL`.
"""

EXPONENT = GAS_CONSTANT_DRY * STANDARD_LAPSE_RATE / GRAVITY
"""T ∝ p^EXPONENT in a layer of the standard lapse rate."""


@dataclass(frozen=True)
class SigmaFields:
    """One instant on the model's full sigma levels, top first.

    ``temperature``, ``u``, ``v``, ``specific_humidity`` are (level, ...), in K, m/s and kg/kg;
    ``surface_pressure`` (...) in Pa; ``surface_geopotential`` (...) in m² s⁻²; ``sigma`` (level,),
    pressure over surface pressure at the full levels, increasing.
    """

    temperature: Array
    u: Array
    v: Array
    specific_humidity: Array
    surface_pressure: Array
    surface_geopotential: Array
    sigma: Array


@dataclass(frozen=True)
class PressureFields:
    """The same instant on pressure levels, (pressure level, ...), same units."""

    temperature: Array
    u: Array
    v: Array
    geopotential: Array
    specific_humidity: Array


def virtual_temperature(temperature: Array, specific_humidity: Array) -> Array:
    """Return the temperature of dry air of the same density and pressure, K."""
    return temperature * (1.0 + NATURE_RUN_VIRTUAL * specific_humidity)


def surface_temperature(temperature: Array, sigma: Array) -> Array:
    """Return the temperature at the model's ground: the lowest level's, down the standard lapse rate, K."""
    return temperature / sigma**EXPONENT


def _sea_level_lapse(xp: ModuleType, surface: Array, geopotential: Array) -> tuple[Array, Array]:
    """Return T* and the exponent d ln T / d ln p of the reduction to sea level (Trenberth, eqs. 11–14).

    Cold ground is warmed half way to 255 K; where the sea-level value would pass 290.5 K the
    lapse rate is cut, so that hot and high deserts do not get a deep low.
    """
    sea_level = surface + STANDARD_LAPSE_RATE * geopotential / GRAVITY
    hot = sea_level > 290.5
    very_hot = hot & (surface > 290.5)
    flat = xp.abs(geopotential) < 1.0
    safe = xp.where(flat, 1.0, geopotential)
    cut = xp.where(flat, EXPONENT, GAS_CONSTANT_DRY * (290.5 - surface) / safe)
    exponent = xp.where(very_hot, 0.0, xp.where(hot, cut, EXPONENT))
    warmed = xp.where(surface < 255.0, 0.5 * (255.0 + surface), surface)
    return xp.where(very_hot, 0.5 * (290.5 + surface), warmed), exponent


def mean_sea_level_pressure(
    xp: ModuleType, surface_pressure: Array, surface: Array, geopotential: Array
) -> Array:
    """Return the pressure reduced to sea level, Pa.

    ``surface`` is the temperature at the ground (K), ``geopotential`` the ground's (m² s⁻²).
    """
    warm, exponent = _sea_level_lapse(xp, surface, geopotential)
    x = geopotential / (GAS_CONSTANT_DRY * warm)
    y = exponent * x
    # ln(1 + y)/y by its series, as in the reference: y stays below 0.15 on Earth.
    return surface_pressure * xp.exp(x * (1.0 - y / 2.0 + y**2 / 3.0 - y**3 / 4.0))


def _underground_exponent(xp: ModuleType, surface: Array, geopotential: Array) -> Array:
    """Return d ln T / d ln p below the ground (Trenberth, eqs. 15–17): less under high plateaus."""
    height = geopotential / GRAVITY
    sea_level = surface + STANDARD_LAPSE_RATE * height
    capped = xp.minimum(sea_level, 298.0)
    share = xp.clip((height - 2000.0) / 500.0, 0.0, 1.0)
    limited = (1.0 - share) * sea_level + share * capped
    safe = xp.where(height > 2000.0, geopotential, 1.0)
    lapse = GAS_CONSTANT_DRY * xp.maximum(limited - surface, 0.0) / safe
    return xp.where(height > 2000.0, lapse, EXPONENT)


def _log_mean(t1: Array, t2: Array) -> Array:
    """Return the mean of a temperature whose logarithm is linear, (t1 − t2)/ln(t1/t2), by its series.

    ∫ T d ln p over a layer is this times Δ ln p. With x = (t1 − t2)/(t1 + t2) it is
    mean · x / artanh x; the terms kept are exact to 1e-7 for |x| < 0.15.
    """
    x2 = ((t1 - t2) / (t1 + t2)) ** 2
    return 0.5 * (t1 + t2) * (1.0 - x2 / 3.0 - 4.0 * x2**2 / 45.0)


def _hydrostatic(xp: ModuleType, virtual: Array, ln_p: Array, bottom: Array) -> Array:
    """Return the geopotential at the points of a profile whose last point is the ground, (point, ...)."""
    thickness = GAS_CONSTANT_DRY * _log_mean(virtual[1:], virtual[:-1]) * (ln_p[1:] - ln_p[:-1])
    # Summed upwards: point k is the ground plus every layer under k.
    above = xp.cumsum(thickness[::-1], axis=0)[::-1]
    return xp.concatenate([bottom + above, bottom[None]], axis=0)


def _profile(xp: ModuleType, fields: SigmaFields) -> tuple[Array, Array, Array, Array]:
    """Return ln p, ln T, q at the full levels and the ground, and geopotential there; (level+1, ...)."""
    shape = (-1,) + (1,) * fields.surface_pressure.ndim
    ln_sigma = xp.log(xp.asarray(fields.sigma)).reshape(shape)
    ln_ps = xp.log(fields.surface_pressure)
    ground = surface_temperature(fields.temperature[-1], fields.sigma[-1])
    ln_p = xp.concatenate([ln_sigma + ln_ps, ln_ps[None]], axis=0)
    temperature = xp.concatenate([fields.temperature, ground[None]], axis=0)
    humidity = xp.concatenate([fields.specific_humidity, fields.specific_humidity[-1:]], axis=0)
    virtual = virtual_temperature(temperature, humidity)
    geopotential = _hydrostatic(xp, virtual, ln_p, fields.surface_geopotential)
    return ln_p, xp.log(temperature), humidity, geopotential


def to_pressure_levels(xp: ModuleType, fields: SigmaFields, pressure: Array) -> PressureFields:
    """Interpolate one instant to ``pressure`` (Pa, (pressure level,), any order).

    Above the top full level values are extrapolated with the topmost layer's slope; choose levels
    below it.
    """
    ln_p, ln_t, humidity, phi = _profile(xp, fields)
    wind_u = xp.concatenate([fields.u, fields.u[-1:]], axis=0)
    wind_v = xp.concatenate([fields.v, fields.v[-1:]], axis=0)
    target = xp.log(xp.asarray(pressure)).reshape((-1,) + (1,) * (ln_p.ndim - 1))
    target = xp.broadcast_to(target, target.shape[:1] + ln_p.shape[1:])
    # The layer of each target: number of profile points above it, less one.
    upper = xp.sum(ln_p[:, None] < target[None], axis=0) - 1
    upper = xp.clip(upper, 0, ln_p.shape[0] - 2)

    def at(profile: Array, offset: int) -> Array:
        return xp.take_along_axis(profile, upper + offset, axis=0)

    top, bottom = at(ln_p, 0), at(ln_p, 1)
    # Held at the ground below it: wind and humidity stay, temperature is extended further down.
    weight = xp.minimum((target - top) / (bottom - top), 1.0)

    def linear(profile: Array, w: Array) -> Array:
        return (1.0 - w) * at(profile, 0) + w * at(profile, 1)

    p_top, p_bottom = xp.exp(top), xp.exp(bottom)
    in_p = xp.clip((xp.exp(target) - p_top) / (p_bottom - p_top), 0.0, 1.0)
    q = linear(humidity, in_p)
    above = xp.exp(linear(ln_t, weight))
    layer = _log_mean(
        virtual_temperature(above, q), virtual_temperature(xp.exp(at(ln_t, 1)), at(humidity, 1))
    )
    free = at(phi, 1) + GAS_CONSTANT_DRY * layer * (bottom - xp.minimum(target, bottom))

    ground = xp.exp(ln_t[-1])
    depth = xp.maximum(target - ln_p[-1], 0.0)
    y = _underground_exponent(xp, ground, fields.surface_geopotential) * depth
    buried = target > ln_p[-1]
    below = virtual_temperature(ground, fields.specific_humidity[-1])
    # The mean of exp over [0, y] is (exp(y) − 1)/y, by its series (y < 0.2).
    under = GAS_CONSTANT_DRY * below * depth * (1.0 + y / 2.0 + y**2 / 6.0 + y**3 / 24.0)
    return PressureFields(
        temperature=xp.where(buried, ground * xp.exp(y), above),
        u=linear(wind_u, weight),
        v=linear(wind_v, weight),
        geopotential=xp.where(buried, fields.surface_geopotential - under, free),
        specific_humidity=q,
    )


WIND_FACTOR = 0.95
"""Near-surface wind over lowest-level wind (SPEEDY ``fwind0``)."""

REFERENCE_SIGMA = 0.835
SURFACE_SIGMA = 0.99


def temperature_2m(xp: ModuleType, temperature: Array, sigma: Array) -> Array:
    """Return the screen temperature (...), K, of the profile ``temperature`` (level, ...) on ``sigma``.

    The last level but one must be SPEEDY's reference sigma (0.835), as on its 8 levels.
    """
    if abs(float(sigma[-2]) - REFERENCE_SIGMA) > 1e-3:
        raise InvalidInput(
            f"Expected the last level but one at sigma {REFERENCE_SIGMA}; got {float(sigma[-2])}. "
            "Use SPEEDY's 8 levels."
        )
    lowest, reference = temperature[-1], temperature[-2]
    slope = (lowest - reference) / (xp.log(sigma[-1]) - xp.log(sigma[-2]))
    extended = lowest + slope * (xp.log(xp.asarray(SURFACE_SIGMA)) - xp.log(sigma[-1]))
    return xp.where(lowest > reference, extended, lowest)


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


HOURS = 24
EPOCH = datetime(1900, 1, 1)
TITLE = "SIMULATED atmosphere, not observed: hourly nature run of a circulation model"
SOURCE = "jcm SPEEDY T31 nature run (simulated, not for real decisions)"


class NatureStore:
    """One store on a local disk.

    Args:
        path: Folder of the store; made where it does not exist.
        start: Valid time of the first hour, UTC.
    """

    def __init__(self, path: Path, start: datetime) -> None:
        self.path = path
        self.first_hour = int((start - EPOCH).total_seconds()) // 3600
        self.group = zarr.open_group(str(path), mode="a", zarr_format=2)

    @property
    def exists(self) -> bool:
        """Whether ``create`` has run to its end."""
        return (self.path / ".zmetadata").exists()

    def create(
        self,
        latitude: np.ndarray,
        longitude: np.ndarray,
        static: dict[str, np.ndarray],
        attributes: dict[str, Any],
    ) -> None:
        """Write coordinates, static fields (latitude, longitude) and empty variables."""
        grid = (latitude.size, longitude.size)
        self.group.attrs.update({"title": TITLE, "source": SOURCE, **attributes})
        self._coordinate("latitude", latitude, "degrees_north")
        self._coordinate("longitude", longitude, "degrees_east")
        self._coordinate("level", np.asarray(LEVELS, np.int64), "hPa")
        self._coordinate("time", np.zeros(0, np.int64), "hours since 1900-01-01 00:00:00")
        self.group["time"].attrs["calendar"] = "proleptic_gregorian"
        for name, spec in STATIC.items():
            array = self._array(name, grid, grid, ["latitude", "longitude"])
            array.attrs.update(units=spec.units, standard_name=spec.standard_name)
            array[:] = static[name].astype(np.float32)
        for name, spec in VARIABLES.items():
            levels = (len(LEVELS),) if spec.levels else ()
            names = ["time", *(["level"] if spec.levels else []), "latitude", "longitude"]
            array = self._array(name, (0, *levels, *grid), (HOURS, *levels, *grid), names)
            array.attrs.update(
                units=spec.units,
                standard_name=spec.standard_name,
                long_name=name.replace("_", " "),
                comment="simulated",
            )
        self.group["total_precipitation"].attrs["cell_methods"] = "time: sum (interval: 1 hour)"
        zarr.consolidate_metadata(str(self.path), zarr_format=2)

    def _array(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], names: list[str]
    ) -> "zarr.Array[Any]":
        return self.group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype="float32",
            fill_value=float("nan"),
            compressors=Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE),
            attributes={"_ARRAY_DIMENSIONS": names},
            overwrite=True,
        )

    def _coordinate(self, name: str, values: np.ndarray, units: str) -> None:
        array = self.group.create_array(
            name,
            shape=values.shape,
            chunks=(max(values.size, 100_000),),
            dtype=values.dtype,
            # No fill value: readers would take a coordinate equal to it (0° east) as missing.
            fill_value=None,
            attributes={"_ARRAY_DIMENSIONS": [name], "units": units, "standard_name": name},
            overwrite=True,
        )
        array[:] = values

    def write(self, day: int, block: dict[str, np.ndarray]) -> None:
        """Put whole days at ``day`` (days since the start), then make them visible.

        ``block`` holds (24 · days, ...) float32 arrays.
        """
        first = day * HOURS
        end = first + len(block["temperature"])
        for name, values in block.items():
            array = cast("zarr.Array[Any]", self.group[name])
            if array.shape[0] < end:
                array.resize((end, *array.shape[1:]))
            array[first:end] = values
        time = cast("zarr.Array[Any]", self.group["time"])
        if time.shape[0] < end:
            time.resize((end,))
        time[first:end] = self.first_hour + np.arange(first, end)
        zarr.consolidate_metadata(str(self.path), zarr_format=2)
