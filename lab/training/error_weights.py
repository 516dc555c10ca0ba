"""Weight the errors of a training loss by their size: generalised least squares.

Two fifths of the squared error of a six-hour forecast of appa-t31 lie along the twenty directions of a
latent column that hold precipitation, most of which nothing can predict. In a plain mean square this
noise hides the gradients of everything else. Where the covariance of the errors is known, the estimate of
least variance divides by it (Aitken 1935), and the minimum stays where it was: the conditional mean.

The covariance is that of a network's own forecast errors: one set of directions for all columns, and
variances for each row of latitude.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.training.latent_years import LatentYears
from model.denoiser import BlanketDenoiser
from model.unequal_noise import forecast_profile

__all__ = ["ErrorWeights", "measure_error_weights"]

FLOOR = 0.02
"""Smallest variance, over the mean one, that a weight is taken from."""


@dataclass(frozen=True)
class ErrorWeights:
    """Directions of a latent column and the factor on the error along each, by row.

    Attributes:
        directions: Orthonormal columns, with shape (c, c).
        factors: With shape (h, c).
    """

    directions: Tensor
    factors: Tensor

    @classmethod
    def of(cls, errors: Tensor) -> "ErrorWeights":
        """Return the weights for errors like those given, with shape (N, c, h, w).

        All weighted errors have the same variance, but for `FLOOR`, and the same total as before.
        """
        columns = errors.permute(0, 2, 3, 1)
        flat = columns.reshape(-1, columns.shape[-1]).double()
        directions = torch.linalg.eigh(flat.T @ flat).eigenvectors.to(errors)
        variance = (columns @ directions).square().mean((0, 2))
        factors = variance.clamp(min=FLOOR * float(variance.mean())).rsqrt()
        factors *= (variance.sum() / (factors.square() * variance).sum()).sqrt()
        return cls(directions, factors)

    def __call__(self, errors: Tensor) -> Tensor:
        """Return weighted errors along the directions, with the shape of `errors` (*, c, h, w)."""
        weighted = (errors.movedim(-3, -1) @ self.directions) * self.factors[:, None]
        return weighted.movedim(-1, -3)


@torch.no_grad()
def measure_error_weights(
    denoiser: BlanketDenoiser,
    data: LatentYears,
    known: int,
    sigma: float,
    blankets: int = 96,
) -> ErrorWeights:
    """Return the weights for a network's errors in the unknown states of forecasts.

    Arguments:
        denoiser: The network.
        data: Latents; blankets are drawn from the last truth's hours of training.
        known: Known states of the forecasts.
        sigma: Noise level of the known states.
        blankets: Number of forecasts.
    """
    random = torch.Generator().manual_seed(1)
    size = int(denoiser.backbone.config.blanket_size)  # type: ignore[union-attr,arg-type]
    device = next(denoiser.parameters()).device
    starts = data.starts(size)
    chosen = starts[torch.randint(len(starts), (blankets,), generator=random)]
    profile = forecast_profile(size, known, sigma).to(device)
    errors = []
    for part in chosen.split(8):
        truth = torch.full_like(part, len(data.latents) - 1)
        x, date = (v.to(device) for v in data.blankets(truth, part, size))
        noise = torch.randn(x.shape, generator=random).to(device)
        x_t = x + profile.reshape(1, -1, 1, 1, 1) * noise
        estimate = denoiser(x_t, profile.expand(len(x), -1), date)
        errors.append((estimate - x)[:, known:].flatten(0, 1).float())
    return ErrorWeights.of(torch.cat(errors))
