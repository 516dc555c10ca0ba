"""The precision of the heavy products: float32, or bfloat16 with float32 sums and statistics."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

__all__ = ["Precision", "reduced_precision"]

Precision = Literal["float32", "bfloat16"]
"""`float32` leaves the type of the parameters alone; `bfloat16` runs products in bfloat16."""


def reduced_precision(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """A context in which products and convolutions on `device` run in `precision`.

    `float32` leaves the surroundings as they are, so that a training loop's own autocast holds.
    """
    if precision == "float32":
        return nullcontext()
    # The cache of cast weights would keep stale copies alive across nested guidance passes.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
