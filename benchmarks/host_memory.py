"""Host memory of writing a result: computed for any size, measured on a small one.

    python -m benchmarks.host_memory [--members 8] [--hours 24]

prints the peak for the default and the released configuration. Beside the states it counts what
is there all the time: latents and restart of all hours.
"""

import argparse
import json
import tempfile
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from model.domain.grids import Grid
from model.domain.observations import FEEDBACK_SCHEMA, empty_table
from model.domain.variables import channels
from worker.contract.jobs import JobRecord
from worker.contract.kinds import ReanalysisSpec
from worker.results.outputs.cf import write_netcdf_product, write_zarr_product
from worker.results.outputs.product import Product
from worker.results.outputs.states import StateFile

__all__ = ["peak_of_hour", "peak_of_reanalysis"]

RELEASED = 71, (721, 1440), 64 * 23 * 47
"""Channels, rows and columns of a state, and numbers in a latent one, of the released model."""
COPIES = 2.5
"""Of an hour of all members, with its mean and spread: exact, rounded, and what makes them."""
_GB = 1e9


def peak_of_hour(members: int, channel_count: int, shape: tuple[int, int]) -> float:
    """Return the bytes needed to convert, round and compare one hour of a result."""
    return COPIES * 4.0 * (members + 2) * channel_count * shape[0] * shape[1]


def peak_of_reanalysis(
    members: int, hours: int, channel_count: int, shape: tuple[int, int], latent: int
) -> float:
    """Return the bytes of host memory of a result whose states are decoded on a GPU.

    Arguments:
        members: Size of the ensemble.
        hours: States of its window.
        channel_count: Of a state.
        shape: Rows and columns.
        latent: Numbers in a latent state.
    """
    latents = 3 * 4.0 * members * hours * latent  # analysis, background, restart as it is written
    return latents + peak_of_hour(members, channel_count, shape)


SMALL = Grid("small", "gaussian", 48, 96)
LEVELS = (100, 300, 500, 700, 850)
START = datetime(2025, 1, 1, tzinfo=UTC)


def small_product(folder: Path, members: int, hours: int) -> Product:
    """Return a result of random numbers in a scratch file."""
    names = channels(LEVELS)
    states = StateFile(folder, (members, hours, len(names), *SMALL.shape))
    generator = np.random.default_rng(0)
    for member, hour in np.ndindex(members, hours):
        states[member, hour] = 280.0 + generator.standard_normal(states.shape[2:], np.float32)
    end = START + timedelta(hours=hours - 1)
    spec = ReanalysisSpec(start=START, end=end, members=members)
    return Product(
        job=JobRecord(id="j", spec=spec, analysis_id="a"),
        times=tuple(START + timedelta(hours=i) for i in range(hours)),
        states=states,
        background=None,
        grid=SMALL,
        channels=names,
        window=None,
        feedback=empty_table(FEEDBACK_SCHEMA),
    )


def measured(members: int, hours: int) -> dict[str, float]:
    """Return the bytes at the peak of writing a small result, by format."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        product = small_product(Path(name), members, hours)
        for form, write in (("netcdf", write_netcdf_product), ("zarr", write_zarr_product)):
            tracemalloc.start()
            write(product, Path(name))
            found[form] = float(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Host memory of writing a result.")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--hours", nargs="+", type=int, default=[6, 24, 72])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    count, shape, latent = RELEASED
    computed = [
        {"hours": h, "gb": peak_of_reanalysis(asked.members, h, count, shape, latent) / _GB}
        for h in asked.hours
    ]
    small = len(channels(LEVELS))
    bound = peak_of_hour(4, small, SMALL.shape) / 1e6
    rows = [
        {"hours": h, "computed_mb": bound} | {f"{k}_mb": v / 1e6 for k, v in measured(4, h).items()}
        for h in (1, 2, 8)
    ]
    if asked.json:
        print(json.dumps({"computed": computed, "measured": rows[1:]}))
        return
    print(f"computed, {asked.members} members, {count} channels, {shape[0]} x {shape[1]}:")
    for row in computed:
        print(f"  {row['hours']:3d} h   {row['gb']:5.1f} GB")
    print(f"measured, 4 members, {small} channels, 48 x 96 (computed {bound:.0f} MB):")
    for row in rows[1:]:
        print(
            f"  {row['hours']:3.0f} h   NetCDF {row['netcdf_mb']:.0f} MB, Zarr {row['zarr_mb']:.0f} MB"
        )


if __name__ == "__main__":
    main()
