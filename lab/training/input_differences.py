"""Train a backbone on differences of successive states instead of the states themselves.

The states of a blanket are nearly alike: a forecast depends on how they change from hour to hour, which
is a tenth of their size. An optimiser that scales each weight by its own gradients sees in every input
weight the gradient of what all states have in common, and learns slowly what tells them apart. Here the
first layer learns the weights of one state and of scaled differences; the network is the same function of
the same states, and its weights are those of states again once training has ended.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from model.backbone import Backbone
from model.domain.errors import ConfigurationError

__all__ = ["InputDifferences", "learn_differences", "restore_inputs"]

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
    """Give the first layer of a backbone the weights of states again, as it is saved."""
    layer = cast(Backbone, backbone).in_proj
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
