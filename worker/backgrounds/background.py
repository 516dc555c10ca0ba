"""A background: the first guess of a window, as an ensemble of latent trajectories."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torch import Tensor

__all__ = ["Background"]


@dataclass(frozen=True, eq=False)
class Background:
    """The first guess x_b.

    Attributes:
        times: Consecutive full hours (UTC); T of them.
        latents: Standardised latents, with shape (M, T, c, h, w).
        source: `previous_analysis` or `climatology`.
        info: Where it comes from and how old it is; JSON-able.
        flags: What a reader of the result must know, such as `cold_start`.
    """

    times: tuple[datetime, ...]
    latents: Tensor
    source: str
    info: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def members(self) -> int:
        """M, the size of the ensemble."""
        return int(self.latents.shape[0])
