"""Precondition the training of a denoiser: differences as inputs, errors divided by their size.

The states of a blanket are nearly alike: a forecast depends on how they change from hour to hour, which
is a tenth of their size. An optimiser that scales each weight by its own gradients sees in every input
weight the gradient of what all states have in common, and learns slowly what tells them apart. So the
first layer learns the weights of one state and of scaled differences; the network is the same function of
the same states, and its weights are those of states again once training has ended.

Two fifths of the squared error of a six-hour forecast of appa-t31 lie along the twenty directions of a
latent column that hold precipitation, most of which nothing can predict. In a plain mean square this
noise hides the gradients of everything else. Where the covariance of the errors is known, the estimate of
least variance divides by it (generalised least squares, Aitken 1935), and the minimum stays where it was:
the conditional mean. The covariance is that of a network's own forecast errors: one set of directions for
all columns, and variances for each row of latitude.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lab.training.latent_years import LatentYears
from model.backbone import Backbone
from model.denoiser import BlanketDenoiser
from model.domain.errors import ConfigurationError
from model.unequal_noise import forecast_profile

__all__ = [
    "ErrorWeights",
    "InputDifferences",
    "learn_differences",
    "measure_error_weights",
    "restore_inputs",
]

REFERENCE = -7
"""The state that is kept: the last one known in a six-hour cycle."""
SCALE = 8.0
"""Factor that makes differences of an hour about as large as the states."""


class InputDifferences(nn.Module):
    """Map weights of differences to weights of states: a parametrisation of the first layer.

    Arguments:
        states: K, the states of a blanket; the input features are ordered (channel, state).
        channels: c, of a latent state.
        reference: Index of the state that is kept.
        scale: Of the differences.
    """

    differences: Tensor
    inverse: Tensor

    def __init__(
        self, states: int, channels: int, reference: int = REFERENCE, scale: float = SCALE
    ) -> None:
        super().__init__()
        self.channels = channels
        kept, alone = reference % states, torch.eye(states, dtype=torch.float64)
        steps = scale * alone.diff(dim=0)  # each state minus the one before it
        matrix = torch.cat([steps[:kept], alone[kept : kept + 1], steps[kept:]])
        self.register_buffer("differences", matrix.float(), persistent=False)
        self.register_buffer("inverse", torch.linalg.inv(matrix).float(), persistent=False)

    def forward(self, learned: Tensor) -> Tensor:
        """Return the weights of states, with the shape of `learned`: (width, inputs)."""
        return self._mapped(learned, self.differences)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is learned, from the weights of states."""
        return self._mapped(weight, self.inverse)

    def _mapped(self, weight: Tensor, matrix: Tensor) -> Tensor:
        count = self.channels * len(matrix)
        states = weight[:, :count].unflatten(1, (self.channels, -1)) @ matrix
        return torch.cat([states.flatten(1), weight[:, count:]], dim=1)


def learn_differences(backbone: Backbone) -> None:
    """Have the first layer of a backbone learn weights of differences.

    Its patches must hold whole blankets of single latent columns.
    """
    config = backbone.config
    if tuple(config.patch_size) != (config.blanket_size, 1, 1):
        raise ConfigurationError(
            f"Expected patches of whole blankets in single columns; got {config.patch_size}."
        )
    mapped = InputDifferences(config.blanket_size, config.in_channels)
    parametrize.register_parametrization(backbone.in_proj, "weight", mapped)


def restore_inputs(backbone: nn.Module) -> None:
    """Give the first layer of a backbone the weights of states again, as it is saved.

    Copies of it share the class that torch made for the learned weights, and cannot be used any more.
    """
    layer = cast(Backbone, backbone).in_proj
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


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
