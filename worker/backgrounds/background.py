"""A background: the first guess of a window, as an ensemble of latent trajectories."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torch import Tensor

__all__ = ["Background", "pairs_info"]


@dataclass(frozen=True, eq=False)
class Background:
    """The first guess x_b.

    Attributes:
        times: Consecutive full hours (UTC); T of them.
        latents: Standardised latents, with shape (M, T, c, h, w).
        source: `previous_analysis`, `uploaded` or `climatology`.
        info: Where it comes from and how old it is; JSON-able.
        flags: What a reader of the result must know, such as `cold_start`.
        mirrored: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
    """

    times: tuple[datetime, ...]
    latents: Tensor
    source: str
    info: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    mirrored: bool = False

    @property
    def members(self) -> int:
        """M, the size of the ensemble."""
        return int(self.latents.shape[0])


def pairs_info(mirrored: bool) -> dict[str, Any]:
    """What `Background.info` says of pairs; nothing of independent members."""
    return {"mirrored": True} if mirrored else {}
