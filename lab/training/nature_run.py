"""Simulate a truth to train on and to score against: the nature run of an OSSE.

``python -m lab.training.nature_run --output DIR.zarr --years 7 --start 2000-01-01 --seed 0``
spins a circulation model up and then writes its hourly states, on pressure levels, with the
names and units of ERA5. It is simulated weather under a climatological sea: a truth for
observing-system simulation experiments, never for real decisions.

The circulation model is jcm, SPEEDY physics at T31 with 8 levels. Orography, land-sea mask and the
climatologies of sea surface temperature, sea ice, snow and soil are those of jcm's own wheel
(``jcm/data/bc/t30/clim``), so nothing is fetched. One call of ``NatureModel.day`` is one compiled
program: 48 half-hour steps and, at each hour, diagnostics, interpolation to pressure levels and
rounding, so only finished float32 fields leave the device.

The run may be killed at any moment and started again with the same command: the model's complete
state is saved beside the store (``DIR.zarr.state.npz``) after each block of days, and a restart
continues bit for bit. A larger ``--years`` extends a finished run. Needs the ``training`` extra.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from importlib import resources
from pathlib import Path
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

from lab.training.nature_store import (
    LEVELS,
    VARIABLES,
    WIND_FACTOR,
    NatureStore,
    SigmaFields,
    mean_sea_level_pressure,
    surface_temperature,
    temperature_2m,
    to_pressure_levels,
)
from model.domain.errors import AppaError, CheckpointError, ConfigurationError
from model.domain.files import open_atomic

__all__ = [
    "NatureModel",
    "NatureRunConfig",
    "NatureRunProgress",
    "RunState",
    "STEP_SECONDS",
    "days_in",
    "north_first",
    "main",
    "run",
]

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
    """Build jcm once and step it a day at a time.

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
        self._day = jax.jit(partial(self.advance, hours=24))

    def _surface_geopotential(self) -> np.ndarray:
        """Return the dynamical core's own (spectrally truncated) ground, m² s⁻², (longitude, latitude)."""
        core = self.model.dycore
        modal = core._primitive.orography
        height = self.model.coords.horizontal.to_nodal(modal)
        metres = core._physics_specs.dimensionalize(height, units.meter).m
        ground: np.ndarray = np.asarray(metres) * core.constants.grav
        return ground

    @property
    def latitude(self) -> np.ndarray:
        """Gaussian latitudes, degrees, north to south."""
        degrees: np.ndarray = np.rad2deg(np.asarray(self.model.coords.horizontal.latitudes))[::-1]
        return degrees

    @property
    def longitude(self) -> np.ndarray:
        """Longitudes of the grid, degrees east from 0."""
        degrees: np.ndarray = np.rad2deg(np.asarray(self.model.coords.horizontal.longitudes))
        return degrees

    def static_fields(self) -> dict[str, np.ndarray]:
        """Return ground and mask, (latitude, longitude), north to south."""
        return {
            "geopotential_at_surface": north_first(np, self.surface_geopotential),
            "land_sea_mask": north_first(np, self.land),
        }

    def initial(self, seed: int) -> RunState:
        """Return a state of isothermal rest with a random surface pressure: another seed, another truth."""
        model = self.model
        model.bootstrap_state(model.initial_state(random_seed=seed))
        state: RunState = model.run_state
        return state

    def day(self, state: RunState) -> tuple[RunState, Fields]:
        """Advance 24 hours: return the new state and the fields at its 24 full hours.

        Fields are float32, (24, latitude, longitude) and (24, level, latitude, longitude).
        """
        result: tuple[RunState, Fields] = self._day(state, self.forcing)
        return result

    def advance(self, state: RunState, forcing: ForcingData, hours: int) -> tuple[RunState, Fields]:
        """Advance some hours as `day` does, without compiling: for `jax.vmap` over members."""
        step = self.model._get_op_split_step_fn(forcing)
        state = RunState(self._fix_mass(state.dynamics), state.physics, state.time, state.step)

        def hour(carry: RunState, _: None) -> tuple[RunState, Fields]:
            carry, rain = jax.lax.scan(lambda c, _: _step(step, c), carry, None, length=HOUR_STEPS)
            return carry, self.fields(carry, forcing, jnp.sum(rain, axis=0))

        advanced: tuple[RunState, Fields] = jax.lax.scan(hour, state, None, length=hours)
        return advanced

    def _fix_mass(self, dynamics: Any) -> Any:
        """Scale surface pressure by one factor so that the atmosphere keeps the Earth's mass."""
        sphere = self.model.coords.horizontal
        log_pressure = dynamics.log_surface_pressure
        pressure = jnp.exp(sphere.to_nodal(log_pressure)) * self.model.dycore.constants.p0
        mean = sphere.integrate(pressure) / sphere.integrate(jnp.ones_like(pressure))
        shift = jnp.log(MEAN_SURFACE_PRESSURE / mean)
        return dynamics.replace(log_surface_pressure=add_constant(log_pressure, shift))

    def fields(self, carry: RunState, forcing: ForcingData, rain: jax.Array) -> Fields:
        """Return every stored variable at one instant, rounded, (level, latitude, longitude).

        `rain` is that of the hour before, m, (longitude, latitude from the south).
        """
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
            name: _round(north_first(jnp, fields[name]).astype(jnp.float32), spec.quantum)
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
    """Take one time step; return also the water that fell in it, metres."""
    dynamics, physics = step(
        carry.dynamics, carry.physics, DateData(carry.time, carry.step, STEP_SECONDS)
    )
    # g m⁻² s⁻¹ of water, large-scale and convective; a gram per m² is 1e-6 m.
    rate = physics["_condensation"].precls + physics["_convection"].precnv
    time = carry.time + Timedelta(seconds=jnp.int32(STEP_SECONDS))
    return RunState(dynamics, physics, time, carry.step + 1), rate * (STEP_SECONDS * 1e-6)


def north_first(xp: Any, field: Any) -> Any:
    """Turn (..., longitude, latitude from the south) → (..., latitude from the north, longitude)."""
    return xp.flip(xp.swapaxes(field, -1, -2), axis=-2)


def _round(field: jax.Array, quantum: float | None) -> jax.Array:
    """Round to a multiple of a power of two (trailing zero bits compress), or to 9 mantissa bits."""
    if quantum is not None:
        return jnp.round(field / quantum) * quantum
    bits = jax.lax.bitcast_convert_type(field, jnp.uint32)
    bits = (bits + jnp.uint32(0x1FFF)) & jnp.uint32(0xFFFFC000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


class ModelBlewUp(AppaError, FloatingPointError):
    """The circulation model produced values that are not finite."""

    code = "model_blew_up"


OnBlock = Callable[[int, int, dict[str, np.ndarray]], None]
"""Called with days done, days in all (spin-up counts as negative days) and the block's fields."""


@dataclass(frozen=True)
class NatureRunConfig:
    """Settings of one nature run.

    Attributes:
        output: The zarr store.
        start: Valid time of the first hour, UTC.
        days: Length after the spin-up.
        seed: Of the perturbation of the initial state; another seed is another truth.
        spin_up_days: Simulated before ``start`` and discarded.
        block_days: Days between two saved states.
    """

    output: Path
    start: datetime
    days: int
    seed: int = 0
    spin_up_days: int = 365
    block_days: int = 5

    @property
    def clock_start(self) -> datetime:
        """An hour early, so that each simulated day yields the hours 00 to 23 UTC."""
        return self.start - timedelta(days=self.spin_up_days, hours=1)

    @property
    def state_path(self) -> Path:
        """The saved state, beside the store."""
        return self.output.with_name(self.output.name + ".state.npz")

    def identity(self) -> dict[str, object]:
        """Return what a restart must share with the run it continues."""
        return {
            "start": self.start.isoformat(),
            "seed": self.seed,
            "spin_up_days": self.spin_up_days,
        }


def days_in(start: datetime, years: int) -> int:
    """Return days of ``years`` calendar years from ``start`` (leap days counted)."""
    return (start.replace(year=start.year + years) - start).days


def save_state(path: Path, day: int, state: RunState) -> None:
    """Save every leaf of the model state and the number of days done, atomically."""
    leaves: dict[str, Any] = {
        f"leaf_{i:04d}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))
    }
    with open_atomic(path) as file:
        np.savez(file, day=day, **leaves)


def load_state(path: Path, template: RunState) -> tuple[int, RunState]:
    """Return the saved day and state; ``template`` gives the structure."""
    leaves, structure = jax.tree.flatten(template)
    with np.load(path) as saved:
        if len(saved.files) != len(leaves) + 1:
            raise CheckpointError(
                f"Expected {len(leaves)} arrays in {path}, got {len(saved.files) - 1}: it was "
                "saved by another version of jcm. Start a new run, or install that version."
            )
        values = [saved[f"leaf_{i:04d}"] for i in range(len(leaves))]
        day = int(saved["day"])
    typed = [
        jax.numpy.asarray(value, jax.numpy.asarray(leaf).dtype)
        for value, leaf in zip(values, leaves, strict=True)
    ]
    return day, jax.tree.unflatten(structure, typed)


def _begin(config: NatureRunConfig, nature: NatureModel) -> tuple[NatureStore, int, RunState]:
    """Open or create the store; return it, the day to resume from and the state on that day."""
    store = NatureStore(config.output, config.start)
    state = nature.initial(config.seed)
    if not store.exists:
        store.create(nature.latitude, nature.longitude, nature.static_fields(), config.identity())
        return store, -config.spin_up_days, state
    found = {key: store.group.attrs.get(key) for key in config.identity()}
    if found != config.identity():
        raise ConfigurationError(
            f"{config.output} holds another run: expected {config.identity()}, got {found}. "
            "Choose another --output, or repeat the options it was started with."
        )
    if not config.state_path.exists():
        return store, -config.spin_up_days, state
    return store, *load_state(config.state_path, state)


def run(config: NatureRunConfig, on_block: OnBlock = lambda done, total, block: None) -> None:
    """Run or continue until ``config.days`` days are in the store.

    Writing (compression) happens in one background thread while the next block is computed; a
    state is saved only when its block is in the store.
    """
    nature = NatureModel(config.clock_start)
    store, day, state = _begin(config, nature)
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        while day < config.days:
            # Spin-up ends on a block boundary, so that no block straddles the start.
            end = min(day + config.block_days, 0 if day < 0 else config.days)
            state, block = _advance(nature, state, end - day)
            if pending is not None:
                pending.result()
            pending = writer.submit(_keep, config, store, day, end, state, block)
            day = end
            on_block(day, config.days, block)
        if pending is not None:
            pending.result()


def _advance(
    nature: NatureModel, state: RunState, days: int
) -> tuple[RunState, dict[str, np.ndarray]]:
    parts = []
    for _ in range(days):
        state, fields = nature.day(state)
        parts.append({name: np.asarray(values) for name, values in fields.items()})
    return state, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _keep(
    config: NatureRunConfig,
    store: NatureStore,
    first: int,
    end: int,
    state: RunState,
    block: dict[str, np.ndarray],
) -> None:
    """Write the block, then the state after it: the order makes a kill harmless."""
    if not np.isfinite(block["temperature"]).all():
        raise ModelBlewUp(
            f"The model blew up between day {first} and {end} of {config.output}. "
            "Choose another --seed."
        )
    if first >= 0:
        store.write(first, block)
    save_state(config.state_path, end, state)


class NatureRunProgress:
    """Print a line per block: date, speed, time left, and a few numbers that show a sane climate."""

    def __init__(self, start: datetime) -> None:
        self.start = start
        self.began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, block: dict[str, np.ndarray]) -> None:
        now = time.monotonic()
        # The first block holds the compilation and is left out of the rate.
        self.began = self.began or (now, done)
        rate = (done - self.began[1]) / max(now - self.began[0], 1e-9)
        left = f"{(total - done) / rate / 60:.0f} min left" if rate else "compiling"
        area = np.cos(np.deg2rad(np.linspace(87.16, -87.16, block["temperature"].shape[2])))
        area = area / area.mean()
        msl = block["mean_sea_level_pressure"] / 100
        rain = 24e3 * (block["total_precipitation"] * area[:, None]).mean()
        print(
            f"day {done}/{total} {(self.start + timedelta(days=done)):%Y-%m-%d} "
            f"{rate:.2f} days/s, {left} | "
            f"t2m {(block['2m_temperature'] * area[:, None]).mean():.2f} K, "
            f"msl {msl.min():.0f}..{msl.max():.0f} hPa, "
            f"wind {np.abs(block['u_component_of_wind']).max():.0f} m/s, rain {rain:.2f} mm/day",
            flush=True,
        )


def main() -> None:
    """Run the nature run named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="zarr store to write")
    parser.add_argument("--years", type=int, default=1, help="calendar years from the start")
    parser.add_argument("--days", type=int, help="days instead of years")
    parser.add_argument("--start", default="2000-01-01", help="first day, UTC (ISO date)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another truth")
    parser.add_argument("--spin-up-days", type=int, default=365, help="thrown away before start")
    parser.add_argument("--block-days", type=int, default=5, help="days between saved states")
    options = parser.parse_args()
    start = datetime.fromisoformat(options.start)
    days = options.days if options.days is not None else days_in(start, options.years)
    config = NatureRunConfig(
        options.output, start, days, options.seed, options.spin_up_days, options.block_days
    )
    run(config, NatureRunProgress(start))


if __name__ == "__main__":
    main()
