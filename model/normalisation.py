"""Between physical states, standardised states, latents and standardised latents.

Standardisation divides by fixed statistics of the training data, one number per channel, so that
all networks see values of order one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.domain.errors import InvalidInput
from model.domain.variables import Channel

__all__ = ["LatentNormalisation", "StateNormalisation"]

_SST = "sea_surface_temperature"


class StateNormalisation(nn.Module):
    """Physical states in SI units to standardised ones and back.

    Arguments:
        mean: Mean of each channel in its unit, with shape (C,).
        std: Standard deviation of each channel, positive, with shape (C,).
        channels: Order of the channels.
        sea: Where the sea surface temperature is defined, bool with shape (Y, X), or None where
            unknown.

    Raises:
        InvalidInput: If the shapes do not match or a value is not finite and positive.
    """

    mean: Tensor
    std: Tensor
    missing: Tensor | None

    def __init__(
        self, mean: Tensor, std: Tensor, channels: Sequence[Channel], sea: Tensor | None = None
    ) -> None:
        super().__init__()
        _check(mean, std, len(channels), "state")
        self.register_buffer("mean", mean[:, None, None].detach().clone())
        self.register_buffer("std", std[:, None, None].detach().clone())
        missing = None
        if sea is not None and any(c.variable == _SST for c in channels):
            chosen = torch.tensor([c.variable == _SST for c in channels])
            missing = chosen[:, None, None] & ~sea.bool().cpu()
        self.register_buffer("missing", missing, persistent=False)

    def standardise(self, states: Tensor) -> Tensor:
        """Physical states (*, C, Y, X), NaN where undefined, to standardised ones; NaN becomes 0."""
        return torch.nan_to_num((states - self.mean) / self.std, nan=0.0)

    def physical(self, standardised: Tensor, *, mask: bool = False) -> Tensor:
        """Standardised states (*, C, Y, X) to SI units.

        Arguments:
            standardised: The states.
            mask: Whether the sea surface temperature becomes NaN on land (where the land is
                known). Off where gradients are wanted.
        """
        states = standardised * self.std + self.mean
        if mask and self.missing is not None:
            states = states.masked_fill(self.missing, float("nan"))
        return states


class LatentNormalisation(nn.Module):
    """Latents of the autoencoder to those the denoiser works in, and back.

    In the release those have mean 0 and variance 1; our own training scales channels by what they
    do to the decoded state (`model.training.latent_scale`), with a mean square of 1 over channels.

    Arguments:
        mean: Mean of each latent channel, with shape (c,).
        std: What each latent channel is divided by, positive, with shape (c,).
        noise: Standard deviation of the noise that the decoder was trained to bear; the square is
            added to the variance, as in the release.

    Raises:
        InvalidInput: If the shapes do not match or a value is not finite and positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        _check(mean, std, len(mean), "latent")
        self.register_buffer("mean", mean[:, None, None].detach().clone())
        self.register_buffer("std", (std.square() + noise**2).sqrt()[:, None, None].detach())

    def standardise(self, latents: Tensor) -> Tensor:
        """Latents (*, c, h, w) to standardised ones."""
        return (latents - self.mean) / self.std

    def restore(self, standardised: Tensor) -> Tensor:
        """Standardised latents (*, c, h, w) to those of the autoencoder."""
        return standardised * self.std + self.mean


def _check(mean: Tensor, std: Tensor, count: int, what: str) -> None:
    if mean.shape != (count,) or std.shape != (count,):
        raise InvalidInput(
            f"Expected a {what} mean and standard deviation with shape ({count},); got "
            f"{tuple(mean.shape)} and {tuple(std.shape)}."
        )
    bad = ~(mean.isfinite() & std.isfinite() & (std > 0))
    if bad.any():
        index = int(bad.nonzero()[0])
        raise InvalidInput(
            f"Expected finite {what} means and positive standard deviations; got "
            f"{float(mean[index])} and {float(std[index])} for channel {index}."
        )
