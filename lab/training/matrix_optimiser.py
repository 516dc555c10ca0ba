"""Optimise matrices inside a network by orthogonalised momentum and everything else by AdamW.

Muon (https://kellerjordan.github.io/posts/muon, arXiv 2502.16982) makes all directions of a
matrix's update equally large. It is meant for hidden layers: embeddings, the projections into and
out of the network, biases and convolutions keep AdamW. Rates are those of AdamW, for updates are
scaled to its root mean square.
"""

from typing import Any

import torch
from torch import nn

__all__ = ["MatrixOptimiser"]


class MatrixOptimiser:
    """Muon and AdamW, stepped together.

    Arguments:
        module: The network; `blocks` in a parameter's name marks a hidden layer.
        learning_rate: Of the matrices of hidden layers.
        other_rate: Of everything else.
        weight_decay: Of both.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        other_rate: float,
        weight_decay: float = 0.01,
    ) -> None:
        hidden = {
            name: p
            for name, p in module.named_parameters()
            if p.ndim == 2 and "blocks." in name and min(p.shape) >= 16
        }
        rest = [p for name, p in module.named_parameters() if name not in hidden]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                hidden.values(),
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(rest, lr=other_rate, betas=(0.9, 0.95), weight_decay=weight_decay),
        )
        self.rates = learning_rate, other_rate

    def step(self, factor: float) -> None:
        """Update at `factor` times the learning rates and forget the gradients."""
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(states[str(i)])
