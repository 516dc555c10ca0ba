"""The circulation model behind the nature run: jcm, SPEEDY physics at T31 with 8 levels.

Orography, land-sea mask and the climatologies of sea surface temperature, sea ice, snow and soil
are those of jcm's own wheel (``jcm/data/bc/t30/clim``), so nothing is fetched. One call of
``NatureModel.day`` is one compiled program: 48 half-hour steps and, at each hour, diagnostics,
interpolation to pressure levels and rounding, so only finished float32 fields leave the device.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dinosaur.scales import units
from dinosaur.spherical_harmonic import add_constant
from jax_datetime import Timedelta
from jcm.date import DateData
from jcm.forcing import ForcingData
from jcm.model import Model, RunState
from jcm.physics.speedy.speedy_coords import get_speedy_coords
from jcm.physics_interface import verify_state
from jcm.terrain import TerrainData

from model.training.nature_variables import LEVELS, VARIABLES
from model.training.near_surface import WIND_FACTOR, temperature_2m
from model.training.pressure_levels import (
    SigmaFields,
    mean_sea_level_pressure,
    surface_temperature,
    to_pressure_levels,
)

__all__ = ["STEP_SECONDS", "NatureModel", "RunState"]

STEP_SECONDS = 1800
HOUR_STEPS = 3600 // STEP_SECONDS
MEAN_SURFACE_PRESSURE = 98550.0
"""Pa, global mean of the real atmosphere (K. E. Trenberth and L. Smith, "The Mass of the
Atmosphere: A Constraint on Global Analyses", J. Climate 18, 2005). jcm starts from 1000 hPa at
ground level and its spectral core lets the mass drift by some Pa a week."""

FREEZING_SEA = 271.46
"""K. Under ice the climatology gives the ice surface; ERA5 stores freezing sea water there."""

Fields = dict[str, jax.Array]


class NatureModel:
    """Builds jcm once and steps it a day at a time.

    Args:
        clock_start: The model's clock at the initial state, UTC.
    """

    def __init__(self, clock_start: datetime) -> None:
        climatology = resources.files("jcm") / "data/bc/t30/clim"
        coords = get_speedy_coords(layers=8, spectral_truncation=31)
        terrain = TerrainData.from_file(str(climatology / "terrain.nc"), coords)
        self.forcing = ForcingData.from_file(
            str(climatology / "forcing.nc"), coords=coords, align_mode="wrap_year"
        )
        self.model = Model(
            coords=coords,
            terrain=terrain,
            time_step=STEP_SECONDS / 60,
            start_time=clock_start.strftime("%Y-%m-%dT%H:%M:%S"),
        )
        self.sigma = np.asarray(coords.vertical.centers)
        self.land = np.asarray(terrain.fmask)
        self.surface_geopotential = self._surface_geopotential()
        self._day = jax.jit(partial(self._integrate, hours=24))

    def _surface_geopotential(self) -> np.ndarray:
        """The dynamical core's own (spectrally truncated) ground, m² s⁻², (longitude, latitude)."""
        core = self.model.dycore
        modal = core._primitive.orography
        height = self.model.coords.horizontal.to_nodal(modal)
        metres = core._physics_specs.dimensionalize(height, units.meter).m
        return np.asarray(metres) * core.constants.grav

    @property
    def latitude(self) -> np.ndarray:
        """Gaussian latitudes, degrees, north to south."""
        return np.rad2deg(np.asarray(self.model.coords.horizontal.latitudes))[::-1]

    @property
    def longitude(self) -> np.ndarray:
        """Degrees east from 0."""
        return np.rad2deg(np.asarray(self.model.coords.horizontal.longitudes))

    def static_fields(self) -> dict[str, np.ndarray]:
        """Ground and mask, (latitude, longitude), north to south."""
        return {
            "geopotential_at_surface": _north_first(np, self.surface_geopotential),
            "land_sea_mask": _north_first(np, self.land),
        }

    def initial(self, seed: int) -> RunState:
        """Isothermal rest with a random surface pressure: another seed, another truth."""
        model = self.model
        model.bootstrap_state(model.initial_state(random_seed=seed))
        state: RunState = model.run_state
        return state

    def day(self, state: RunState) -> tuple[RunState, Fields]:
        """24 hours on: the new state and the fields at its 24 full hours.

        Fields are float32, (24, latitude, longitude) and (24, level, latitude, longitude).
        """
        result: tuple[RunState, Fields] = self._day(state, self.forcing)
        return result

    def _integrate(
        self, state: RunState, forcing: ForcingData, hours: int
    ) -> tuple[RunState, Fields]:
        step = self.model._get_op_split_step_fn(forcing)
        state = RunState(self._fix_mass(state.dynamics), state.physics, state.time, state.step)

        def hour(carry: RunState, _: None) -> tuple[RunState, Fields]:
            carry, rain = jax.lax.scan(lambda c, _: _step(step, c), carry, None, length=HOUR_STEPS)
            return carry, self._fields(carry, forcing, jnp.sum(rain, axis=0))

        return jax.lax.scan(hour, state, None, length=hours)

    def _fix_mass(self, dynamics: Any) -> Any:
        """Scale surface pressure by one factor so that the atmosphere keeps the Earth's mass."""
        sphere = self.model.coords.horizontal
        log_pressure = dynamics.log_surface_pressure
        pressure = jnp.exp(sphere.to_nodal(log_pressure)) * self.model.dycore.constants.p0
        mean = sphere.integrate(pressure) / sphere.integrate(jnp.ones_like(pressure))
        shift = jnp.log(MEAN_SURFACE_PRESSURE / mean)
        return dynamics.replace(log_surface_pressure=add_constant(log_pressure, shift))

    def _fields(self, carry: RunState, forcing: ForcingData, rain: jax.Array) -> Fields:
        """Every stored variable at one instant, rounded, (level, latitude, longitude)."""
        grid = verify_state(self.model.dycore.to_physics_state(carry.dynamics))
        sigma = SigmaFields(
            temperature=grid.temperature,
            u=grid.u_wind,
            v=grid.v_wind,
            specific_humidity=grid.specific_humidity,
            surface_pressure=grid.normalized_surface_pressure * self.model.dycore.constants.p0,
            surface_geopotential=jnp.asarray(self.surface_geopotential, jnp.float32),
            sigma=self.sigma,
        )
        upper = to_pressure_levels(jnp, sigma, np.asarray(LEVELS) * 100.0)
        now = forcing.select(DateData(carry.time, carry.step, STEP_SECONDS))
        fields = {
            **_surface_fields(sigma),
            "sea_surface_temperature": jnp.where(
                self.land < 0.5, jnp.maximum(now.sea_surface_temperature, FREEZING_SEA), jnp.nan
            ),
            "total_precipitation": rain,
            "temperature": upper.temperature,
            "u_component_of_wind": upper.u,
            "v_component_of_wind": upper.v,
            "geopotential": upper.geopotential,
            "specific_humidity": jnp.maximum(upper.specific_humidity, 0.0),
        }
        return {
            name: _round(_north_first(jnp, fields[name]).astype(jnp.float32), spec.quantum)
            for name, spec in VARIABLES.items()
        }


def _surface_fields(sigma: SigmaFields) -> Fields:
    ground = surface_temperature(sigma.temperature[-1], sigma.sigma[-1])
    return {
        "2m_temperature": temperature_2m(jnp, sigma.temperature, sigma.sigma),
        "10m_u_component_of_wind": WIND_FACTOR * sigma.u[-1],
        "10m_v_component_of_wind": WIND_FACTOR * sigma.v[-1],
        "mean_sea_level_pressure": mean_sea_level_pressure(
            jnp, sigma.surface_pressure, ground, sigma.surface_geopotential
        ),
    }


def _step(
    step: Callable[[Any, Any, DateData], tuple[Any, Any]], carry: RunState
) -> tuple[RunState, jax.Array]:
    """One time step; also the water that fell in it, metres."""
    dynamics, physics = step(
        carry.dynamics, carry.physics, DateData(carry.time, carry.step, STEP_SECONDS)
    )
    # g m⁻² s⁻¹ of water, large-scale and convective; a gram per m² is 1e-6 m.
    rate = physics["_condensation"].precls + physics["_convection"].precnv
    time = carry.time + Timedelta(seconds=jnp.int32(STEP_SECONDS))
    return RunState(dynamics, physics, time, carry.step + 1), rate * (STEP_SECONDS * 1e-6)


def _north_first(xp: Any, field: Any) -> Any:
    """(..., longitude, latitude from the south) → (..., latitude from the north, longitude)."""
    return xp.flip(xp.swapaxes(field, -1, -2), axis=-2)


def _round(field: jax.Array, quantum: float | None) -> jax.Array:
    """To a multiple of a power of two (trailing zero bits compress), or to 9 mantissa bits."""
    if quantum is not None:
        return jnp.round(field / quantum) * quantum
    bits = jax.lax.bitcast_convert_type(field, jnp.uint32)
    bits = (bits + jnp.uint32(0x1FFF)) & jnp.uint32(0xFFFFC000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
