"""Simulate a truth to train on and to score against: the nature run of an OSSE.

``python -m model.training.nature_run --output DIR.zarr --years 7 --start 2000-01-01 --seed 0``
spins a circulation model up and then writes its hourly states, on pressure levels, with the
names and units of ERA5. It is simulated weather under a climatological sea: a truth for
observing-system simulation experiments, never for real decisions.

The run may be killed at any moment and started again with the same command: the model's complete
state is saved beside the store (``DIR.zarr.state.npz``) after each block of days, and a restart
continues bit for bit. A larger ``--years`` extends a finished run. Needs the ``training`` extra.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import jax
import numpy as np

from model.domain.errors import AppaError, CheckpointError, ConfigurationError
from model.training.nature_model import NatureModel, RunState
from model.training.nature_store import NatureStore

__all__ = ["NatureRunConfig", "Progress", "days_in", "main", "run"]


class ModelBlewUp(AppaError, FloatingPointError):
    """The circulation model produced values that are not finite."""

    code = "model_blew_up"


OnBlock = Callable[[int, int, dict[str, np.ndarray]], None]
"""Called with days done, days in all (spin-up counts as negative days) and the block's fields."""


@dataclass(frozen=True)
class NatureRunConfig:
    """What makes one nature run.

    Attributes:
        output: The zarr store.
        start: Valid time of the first hour, UTC.
        days: Length after the spin-up.
        seed: Of the perturbation of the initial state; another seed is another truth.
        spin_up_days: Simulated before ``start`` and thrown away.
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
        """What a restart must share with the run it continues."""
        return {
            "start": self.start.isoformat(),
            "seed": self.seed,
            "spin_up_days": self.spin_up_days,
        }


def days_in(start: datetime, years: int) -> int:
    """Days of ``years`` calendar years from ``start`` (leap days counted)."""
    return (start.replace(year=start.year + years) - start).days


def save_state(path: Path, day: int, state: RunState) -> None:
    """Every leaf of the model state, and the number of days done, in one atomic step."""
    leaves = {f"leaf_{i:04d}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, day=day, **leaves)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_state(path: Path, template: RunState) -> tuple[int, RunState]:
    """The saved day and state; ``template`` gives the structure."""
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
    """Open or make the store; the day to go on from and the state there."""
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


class Progress:
    """Prints a line a block: date, speed, time left, and a few numbers to trust it by."""

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
    """Command line."""
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
    run(config, Progress(start))


if __name__ == "__main__":
    main()
