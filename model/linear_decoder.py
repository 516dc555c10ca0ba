"""A linear stand-in for the decoder: each latent column to its patch of the state.

Guidance needs the derivative of the decoder many times per noise level, but only to say in which
direction and about how far to go: the innovation itself always comes from the true decoder. A
least-squares fit, one matrix for all patches, costs a fiftieth of the derivative of the
convolutions.
"""

from collections.abc import Iterable

import torch
from einops import rearrange
from torch import Tensor, nn

__all__ = ["LinearDecoder", "fit_linear_decoder"]


class LinearDecoder(nn.Module):
    """Standardised latents (*, c, h, w) to standardised states (*, C, Y, X).

    Arguments:
        latent_channels: c.
        state_channels: C.
        patch: Rows and columns of the state per latent column.
    """

    def __init__(self, latent_channels: int, state_channels: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        size = state_channels * patch[0] * patch[1]
        self.register_buffer("weight", torch.zeros(size, latent_channels))
        self.register_buffer("bias", torch.zeros(size))

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        lead = latents.shape[:-3]
        columns = rearrange(latents.flatten(0, -4), "n c h w -> n h w c")
        patches = nn.functional.linear(columns, self.weight.to(columns), self.bias.to(columns))
        p, q = self.patch
        states = rearrange(patches, "n h w (c p q) -> n c (h p) (w q)", p=p, q=q)
        return states.reshape(*lead, *states.shape[1:])


@torch.no_grad()
def fit_linear_decoder(
    decoder: LinearDecoder, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float = 1e-4
) -> LinearDecoder:
    """Least squares from latents (N, c, h, w) to decoded states (N, C, Y, X)."""
    p, q = decoder.patch
    size, c = decoder.weight.shape
    gram = torch.zeros(c + 1, c + 1, dtype=torch.float64)
    moment = torch.zeros(c + 1, size, dtype=torch.float64)
    count = 0
    for latents, states in pairs:
        x = rearrange(latents, "n c h w -> (n h w) c").double()
        x = torch.cat((x, torch.ones(len(x), 1, dtype=torch.float64)), dim=1)
        y = rearrange(states, "n c (h p) (w q) -> (n h w) (c p q)", p=p, q=q).double()
        gram += x.T @ x
        moment += x.T @ y
        count += len(x)
    solution = torch.linalg.solve(gram + ridge * count * torch.eye(c + 1).double(), moment)
    decoder.weight.copy_(solution[:-1].T)
    decoder.bias.copy_(solution[-1])
    return decoder
