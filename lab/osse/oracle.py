"""Measure how much information the observations hold, by a perfect-model ensemble filter.

``python -m lab.osse.oracle NATURE.zarr --days 10`` cycles an ensemble of the very circulation model that
made the truth, every hour, by a local ensemble transform Kalman filter (`lab.osse.letkf`) from the same
simulated observations as every other method, and scores it in the same way. No forecast can be better than
that of the truth's own model: this is the bound that a learned one is measured against.

Members begin as states of another truth, five days apart around the season, so that the first
background is no better than climatology. Increments are added to winds, temperature, humidity and surface
pressure on the model's own levels. Needs jcm, of the ``training`` extra.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import torch
from dinosaur.spherical_harmonic import uv_nodal_to_vor_div_modal, vor_div_to_uv_nodal
from jax_datetime import Timedelta
from torch import Tensor

from lab.osse.cases import ReadTruth, observe_hour, open_truth
from lab.osse.letkf import LETKF, LocalObservations
from lab.osse.network import Network
from lab.osse.scores import standardised_rmse
from lab.osse.summary import channel_groups
from lab.training.nature_run import Fields, NatureModel, RunState, north_first
from lab.training.nature_store import LEVELS
from model.checkpoints.bundle import load_checkpoint
from model.diagnostics.equivalents import observation_set
from model.domain.files import write_atomic
from model.domain.variables import Channel
from model.domain.windows import HOUR
from model.latent_model import LatentModel

__all__ = ["NatureEnsemble", "OracleCycle", "climatological_members", "cycle", "observe"]

SURFACE_PRESSURE = 1.0e5
"""Pa; places the levels of the model and observations at the ground, for localisation alone."""
GROWTH_DAYS = 5
"""Days between the states of another truth that members begin as."""


class NatureEnsemble:
    """Members of the circulation model: one hour ahead, and with increments.

    Arguments:
        nature: The model.
        channels: Those of the states that are observed and scored.
        states: Members.
    """

    def __init__(
        self, nature: NatureModel, channels: tuple[Channel, ...], states: list[RunState]
    ) -> None:
        self.nature, self.channels = nature, channels
        self.members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        self.size = len(states)
        levels = nature.sigma * SURFACE_PRESSURE
        self.pressure = np.append(levels, SURFACE_PRESSURE)
        self.level = np.append(np.tile(np.arange(len(levels)), 4), len(levels))
        self._hour = jax.jit(jax.vmap(self._advance))
        self._changed = jax.jit(jax.vmap(self._add))
        self._rain: jax.Array | None = None

    def advance(self) -> tuple[Tensor, Tensor]:
        """Advance an hour.

        Returns:
            States that observations read, with shape (M, C, Y, X), and the analysed fields: winds,
            temperature, humidity by level and the logarithm of surface pressure, (M, D, Y, X).
        """
        self.members, seen, analysed, self._rain = self._hour(self.members)
        return _tensor(seen), _tensor(analysed)

    def add(self, increments: Tensor) -> Tensor:
        """Add increments (M, D, Y, X) to the analysed fields; return the states (M, C, Y, X)."""
        self.members, seen = self._changed(self.members, increments.numpy(), self._rain)
        return _tensor(seen)

    def forecast(self, hours: int) -> Tensor:
        """Return the states after a forecast without observations, with shape (M, C, Y, X)."""
        states, seen = self.members, None
        for _ in range(hours):
            states, seen, _, _ = self._hour(states)
        return _tensor(seen)

    def _advance(self, state: RunState) -> tuple[RunState, jax.Array, jax.Array, jax.Array]:
        nature = self.nature
        state, fields = nature.advance(state, nature.forcing, hours=1)
        last = {name: values[0] for name, values in fields.items()}
        return state, self._stack(last), self._grid(state), last["total_precipitation"]

    def _stack(self, fields: Fields) -> jax.Array:
        rows = [
            fields[c.variable] if c.level is None else fields[c.variable][LEVELS.index(c.level)]
            for c in self.channels
        ]
        return jnp.stack(rows)

    def _grid(self, state: RunState) -> jax.Array:
        """Return winds, temperature, humidity and surface pressure on the grid, (D, Y, X)."""
        core, sphere = state.dynamics, self.nature.model.coords.horizontal
        u, v = vor_div_to_uv_nodal(sphere, core.vorticity, core.divergence)
        rest = (core.temperature_variation, core.tracers["specific_humidity"])
        parts = [u, v, *map(sphere.to_nodal, rest), sphere.to_nodal(core.log_surface_pressure)]
        analysed: jax.Array = north_first(jnp, jnp.concatenate(parts))
        return analysed

    def _add(
        self, state: RunState, increments: jax.Array, rain: jax.Array
    ) -> tuple[RunState, jax.Array]:
        core, sphere = state.dynamics, self.nature.model.coords.horizontal
        # The inverse of `north_first`: flip latitudes and swap the axes.
        grid = jnp.swapaxes(jnp.flip(increments, axis=-2), -1, -2)
        u, v, temperature, humidity = jnp.split(grid[:-1], 4)
        vorticity, divergence = uv_nodal_to_vor_div_modal(sphere, u, v)
        # dinosaur's pair is no exact inverse; one correction makes it one.
        left = vor_div_to_uv_nodal(sphere, vorticity, divergence)
        more = uv_nodal_to_vor_div_modal(sphere, u - left[0], v - left[1])
        tracers = dict(core.tracers)
        tracers["specific_humidity"] = tracers["specific_humidity"] + sphere.to_modal(humidity)
        core = core.replace(
            vorticity=core.vorticity + vorticity + more[0],
            divergence=core.divergence + divergence + more[1],
            temperature_variation=core.temperature_variation + sphere.to_modal(temperature),
            log_surface_pressure=core.log_surface_pressure + sphere.to_modal(grid[-1:]),
            tracers=tracers,
        )
        changed = RunState(core, state.physics, state.time, state.step)
        fell = jnp.swapaxes(jnp.flip(rain, axis=-2), -1, -2)
        return changed, self._stack(self.nature.fields(changed, self.nature.forcing, fell))


def _tensor(array: jax.Array | None) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def climatological_members(
    nature: NatureModel, start: datetime, count: int, seed: int, spin_up_days: int = 90
) -> list[RunState]:
    """Return states of another truth around a season, all dated `start`.

    Arguments:
        nature: The model, whose clock starts `spin_up_days` and half the spread of the members
            before `start`.
        start: Time (UTC) that the members get.
        count: How many.
        seed: Of the other truth.
        spin_up_days: Days simulated before the first of them and discarded.
    """
    day = jax.jit(partial(nature.advance, hours=24))
    state = nature.initial(seed)
    found: list[RunState] = []
    for number in range(1, spin_up_days + GROWTH_DAYS * count + 1):
        state, _ = day(state, nature.forcing)
        if number > spin_up_days and (number - spin_up_days) % GROWTH_DAYS == 0:
            found.append(state)
    middle = found[count // 2]
    days = round((start - _clock(nature, middle)).total_seconds() / 86400)
    moved = middle.time + Timedelta(days=days)
    steps = middle.step + days * 48
    return [RunState(s.dynamics, s.physics, moved, steps) for s in found]


def _clock(nature: NatureModel, state: RunState) -> datetime:
    return datetime.fromisoformat(str(state.time.to_datetime64())).replace(tzinfo=UTC)


def observe(
    model: LatentModel,
    truth_at: ReadTruth,
    end: datetime,
    fields: tuple[Tensor, Tensor],
    seed: int,
    withhold: float = 0.1,
) -> LocalObservations:
    """Simulate observations of the hour that ends at `end`, and their equivalents in the members.

    Arguments:
        model: Gives grid and channels.
        truth_at: Reads the truth.
        end: UTC.
        fields: Members an hour before and at `end`, each with shape (M, C, Y, X).
        seed: Of observation errors; the same as in a `lab.osse.cycling.AnalysisChain` with this seed.
        withhold: Share of the stations that is left out.
    """
    table = observe_hour(model, truth_at, end, Network(), seed, withhold)
    seen, used = observation_set(table, model, [end - HOUR, end])
    both = torch.nan_to_num(torch.stack(fields, dim=1), nan=273.0)
    # Without representativeness errors: this model has no autoencoder.
    error = seen.error_std
    lat, lon = (used[name].to_numpy()[seen.rows] for name in ("lat", "lon"))
    kinds = np.array(used["vertical_kind"].cast(pa.string()).to_pylist())[seen.rows]
    pressure = np.where(
        kinds == "pressure", used["vertical"].to_numpy(zero_copy_only=False)[seen.rows], np.nan
    )
    return LocalObservations(
        seen.operator(both) / error,
        seen.values / error,
        lat,
        lon,
        np.where(np.isfinite(pressure), pressure, SURFACE_PRESSURE),
    )


@dataclass(frozen=True)
class OracleCycle:
    """One hourly cycle.

    Attributes:
        end: Analysis time (UTC).
        analysis: States of the members, with shape (M, C, Y, X).
        seconds: Wall clock of forecast and analysis.
    """

    end: datetime
    analysis: Tensor
    seconds: float


def cycle(
    model: LatentModel,
    truth_at: ReadTruth,
    ensemble: NatureEnsemble,
    start: datetime,
    hours: int,
    seed: int = 0,
    filter: LETKF | None = None,
) -> Iterator[OracleCycle]:
    """Cycle every hour from `start` (UTC), the time of the members."""
    filter = filter or LETKF(model.grid, ensemble.pressure)
    level = torch.from_numpy(ensemble.level)
    before: Tensor | None = None
    for number in range(1, hours + 1):
        end, begin = start + number * HOUR, time.perf_counter()
        fields, states = ensemble.advance()
        seen = observe(model, truth_at, end, (fields if before is None else before, fields), seed)
        analysed = filter.analyse(states, level, seen)
        before = ensemble.add(analysed - states)
        yield OracleCycle(end, before, time.perf_counter() - begin)


def main() -> None:
    """Print the errors of the oracle day by day."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nature", help="store of states, the truth")
    parser.add_argument("--start", default="2003-09-10T05:00", help="UTC")
    parser.add_argument("--days", type=float, default=10.0)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--seed", type=int, default=7, help="of the truth that members begin as")
    parser.add_argument("--half-width", type=float, default=2.0e6, help="m")
    parser.add_argument("--half-depth", type=float, default=1.0, help="of ln p")
    parser.add_argument("--relaxation", type=float, default=0.9)
    parser.add_argument("--spin-up-days", type=int, default=90)
    parser.add_argument("--checkpoint", default="appa-t31", help="gives channels and scales")
    parser.add_argument("--output", type=Path, help="figures as JSON lines")
    asked = parser.parse_args()
    start = datetime.fromisoformat(asked.start).replace(tzinfo=UTC)
    model = load_checkpoint(asked.checkpoint)
    truth = open_truth(model, asked.checkpoint, asked.nature)
    groups = channel_groups(model.channels)
    before = asked.spin_up_days + GROWTH_DAYS * (asked.members // 2 + 1)
    nature = NatureModel(start - timedelta(days=before))
    members = climatological_members(nature, start, asked.members, asked.seed, asked.spin_up_days)
    ensemble = NatureEnsemble(nature, model.channels, members)
    options = {name: getattr(asked, name) for name in ("half_width", "half_depth", "relaxation")}
    letkf = LETKF(model.grid, ensemble.pressure, **options)
    lines = []
    for one in cycle(model, truth, ensemble, start, round(24 * asked.days), 0, letkf):
        hour = round((one.end - start) / HOUR)
        if hour % 24 and hour not in (1, 3, 6, 12):
            continue
        error = standardised_rmse(model, one.analysis.mean(0), truth(one.end, 1)[0])
        line = {"hours": hour, "error": float(error.mean()), "seconds": one.seconds}
        line |= {name: float(error[groups[name]].mean()) for name in ("wind", "humidity")}
        if hour % 24 == 0:
            forecast_error = standardised_rmse(
                model, ensemble.forecast(24).mean(0), truth(one.end + 24 * HOUR, 1)[0]
            )
            line["forecast_24h"] = float(forecast_error.mean())
        lines.append(json.dumps({k: round(v, 4) for k, v in line.items()}))
        print(lines[-1], flush=True)
    if asked.output:
        write_atomic(asked.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
