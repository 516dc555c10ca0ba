"""Hold hourly latents of simulated truths: in memory or mapped from files, cut into blankets.

A file of latents is one flat float16 array with its description beside it (`FILE.json`: shape, first
hour, hours set apart), so that hours are read when they are drawn and nothing is decompressed twice.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.domain.files import write_atomic
from model.domain.windows import HOUR
from model.nn.embedding import date_rows

__all__ = ["LatentYears", "read_latents", "save_latents"]


@dataclass(frozen=True)
class LatentYears:
    """Hourly latents of one or several truths.

    Attributes:
        latents: Standardised latents, float16, with shape (S, T, c, h, w).
        dates: Year, month, day and hour (UTC) of each hour, int64 with shape (T, 4).
        apart: Hours of `dates` in which no blanket may start (validation and test periods).
    """

    latents: Tensor
    dates: Tensor
    apart: tuple[range, ...] = ()

    def starts(self, blanket: int) -> Tensor:
        """Return the hours at which a blanket of training may start."""
        count = self.latents.shape[1] - blanket + 1
        free = torch.ones(max(count, 0), dtype=torch.bool)
        for hours in self.apart:
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
    about = {"shape": latents.shape, "first_hour": first_hour.isoformat()}
    latents.tofile(path)
    write_atomic(path.with_name(path.name + ".json"), json.dumps(about))


def read_latents(path: Path) -> LatentYears:
    """Map the file of `save_latents`; hours are read when they are drawn."""
    about = json.loads(path.with_name(path.name + ".json").read_text())
    array = np.memmap(path, np.float16, mode="r+", shape=tuple(about["shape"]))
    first = datetime.fromisoformat(about["first_hour"])
    hours = [first + i * HOUR for i in range(len(array))]
    apart = tuple(range(*pair) for pair in about.get("apart", []))
    return LatentYears(torch.from_numpy(array)[None], date_rows(hours), apart)
