"""Identity on chosen latent states, for states tied to a background in latent space."""

import torch
from torch import Tensor

__all__ = ["LatentIdentity"]


class LatentIdentity:
    """Picks whole latent states out of a latent trajectory.

    Unlike the other operators it reads latents, not decoded states. It satisfies the same
    protocol otherwise: linear, differentiable, from (*, T, ...) to (*, N).

    Arguments:
        times: Which of the T latent states are tied, ascending.
    """

    linear = True

    def __init__(self, times: tuple[int, ...]) -> None:
        self.times = times

    def __call__(self, latents: Tensor) -> Tensor:
        """From latents (*, T, c, h, w) to the tied ones in one vector (*, N), time slowest."""
        index = torch.tensor(self.times, dtype=torch.long, device=latents.device)
        return latents.index_select(-4, index).flatten(-4)

    def for_blanket(self, start: int, stop: int) -> "LatentIdentity":
        """The tied states of the blanket [start, stop), numbered from `start`."""
        return LatentIdentity(tuple(t - start for t in self.times if start <= t < stop))
