"""Hold hourly latents of simulated truths: in memory or mapped from files, cut into blankets.

A file of latents is one flat float16 array with its description beside it (`FILE.json`: shape, first
hour, hours set apart), so that hours are read when they are drawn and nothing is decompressed twice.

    python -m lab.training.latent_years nature.zarr nature.f16 --apart 2003-05-01 2004-08-01

encodes the hours of a store of states; run again, it appends the hours added since.
"""

import argparse
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.training.datasets import StateStore
from model.checkpoints.bundle import load_checkpoint
from model.denoiser import reduced_precision
from model.domain.errors import InvalidInput
from model.domain.files import write_atomic
from model.domain.windows import HOUR
from model.latent_model import LatentModel
from model.nn.embedding import date_rows

__all__ = ["LatentYears", "encode_store", "read_latents", "save_latents"]


@dataclass(frozen=True)
class LatentYears:
    """Hourly latents of one or several truths.

    Attributes:
        latents: Standardised latents, float16, with shape (S, T, c, h, w).
        dates: Year, month, day and hour (UTC) of each hour, int64 with shape (T, 4).
        held_out: Hours of `dates` in which no blanket may start (validation and test periods).
    """

    latents: Tensor
    dates: Tensor
    held_out: tuple[range, ...] = ()

    def starts(self, blanket: int) -> Tensor:
        """Return the hours at which a blanket of training may start."""
        count = self.latents.shape[1] - blanket + 1
        free = torch.ones(max(count, 0), dtype=torch.bool)
        for hours in self.held_out:
            free[max(hours.start - blanket + 1, 0) : hours.stop] = False
        return free.nonzero().squeeze(-1)

    def blankets(self, seeds: Tensor, starts: Tensor, blanket: int) -> tuple[Tensor, Tensor]:
        """Return blankets (B, K, c, h, w), float32, and their dates (B, K, 4)."""
        index = starts[:, None] + torch.arange(blanket)
        x = self.latents[seeds[:, None].to(self.latents.device), index.to(self.latents.device)]
        return x.float(), self.dates[index].to(x.device)


def save_latents(path: Path, latents: NDArray[np.float16], first_hour: datetime) -> None:
    """Write latents (T, c, h, w) of one truth as a raw file with its description beside it.

    `first_hour` carries its time zone.
    """
    latents.tofile(path)
    _describe(path, latents.shape, first_hour, [])


def _about(path: Path) -> Path:
    """Return the file with the description of a file of latents."""
    return path.with_name(path.name + ".json")


def _describe(
    path: Path, shape: tuple[int, ...], first_hour: datetime, held_out: list[list[int]]
) -> None:
    values = {"shape": shape, "first_hour": first_hour.isoformat(), "apart": held_out}
    write_atomic(_about(path), json.dumps(values))


def read_latents(path: Path) -> LatentYears:
    """Map a file of latents; hours are read when they are drawn."""
    about = json.loads(_about(path).read_text())
    array = np.memmap(path, np.float16, mode="r+", shape=tuple(about["shape"]))
    first = datetime.fromisoformat(about["first_hour"])
    hours = [first + i * HOUR for i in range(len(array))]
    held_out = tuple(range(*pair) for pair in about.get("apart", []))
    return LatentYears(torch.from_numpy(array)[None], date_rows(hours), held_out)


@torch.no_grad()
def encode_store(
    store: StateStore, model: LatentModel, path: Path, held_out: tuple[datetime, ...] = ()
) -> int:
    """Encode the hours of a store that the file lacks, and append them.

    Arguments:
        store: Hourly states without gaps.
        model: Whose autoencoder encodes.
        path: The file; its description beside it is replaced when the hours are on disk.
        held_out: First hour set apart, and the hour after the last (UTC); empty for none.

    Returns:
        The number of hours that the file holds.

    Raises:
        InvalidInput: If hours of the store are missing.
    """
    hours = store.times.astype("datetime64[h]")
    if (np.diff(hours) != np.timedelta64(1, "h")).any():
        raise InvalidInput("Expected a store of consecutive hours; some are missing.")
    first = hours[0].astype(datetime).replace(tzinfo=UTC)
    about = _about(path)
    done = json.loads(about.read_text())["shape"][0] if about.exists() else 0
    bounds = [[round((t - first) / HOUR) for t in held_out]] if held_out else []
    with path.open("r+b" if path.exists() else "w+b") as file:
        size = 2 * int(np.prod(model.latent_shape))
        file.truncate(done * size)
        file.seek(0, 2)
        for start in range(done, len(hours), 96):
            states = torch.from_numpy(store.read(slice(start, min(start + 96, len(hours)))))
            with reduced_precision(states.device):
                latents = model.encode(states).half()
            file.write(latents.numpy().tobytes())
            done += len(latents)
            file.flush()
            _describe(path, (done, *model.latent_shape), first, bounds)
    return done


def main() -> None:
    """Encode a store with the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Encode the hours of a store to a file.")
    parser.add_argument("store", help="of states, in the layout of WeatherBench2")
    parser.add_argument("file", type=Path, help="float16 latents; run again to go on")
    parser.add_argument("--checkpoint", default="appa-t31", help="whose autoencoder encodes")
    parser.add_argument("--apart", nargs=2, type=datetime.fromisoformat, default=(), help="hours")
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint)
    held_out = tuple(time.replace(tzinfo=UTC) for time in arguments.apart)
    store = StateStore(arguments.store, tuple(model.channels))
    print(f"{encode_store(store, model, arguments.file, held_out)} hours in {arguments.file}")


if __name__ == "__main__":
    main()
