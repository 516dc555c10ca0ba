r"""What a guidance method is: a denoiser of blankets that also knows observations.

A blanket is K consecutive latent states. A batch of blankets has shape (B, K, c, h, w); row i is
blanket `rows.blanket[i]` of the trajectory of member `rows.member[i]`. Latents are standardised,
noise is added without scaling: :math:`x_t = x + \sigma_t \epsilon`.
"""

__all__ = [
    "BlanketRows",
    "CovarianceFilter",
    "Decode",
    "Denoise",
    "Guidance",
    "Observed",
    "ObservedBlankets",
    "Prior",
]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, K, c, h, w), sigma (), date (B, K, 4) int64) -> E[x | x_t] (B, K, c, h, w)."""

Decode = Callable[[Tensor], Tensor]
"""Standardised latents (P, c, h, w) -> states (P, C, Y, X) in the units of the operators."""

CovarianceFilter = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]
"""(x (B, K, c, h, w), sigma (), gain) -> U g(Λ) U* x, with U Λ U* the covariance of the state given
its noisy version; the gain maps variances (1, n) to factors (1 or B, n)."""


@dataclass(frozen=True)
class BlanketRows:
    """Which blanket of which member each row of a batch is.

    Attributes:
        blanket: Index of the blanket in the trajectory, with shape (B,).
        member: Index of the member in the ensemble, with shape (B,).
    """

    blanket: Tensor
    member: Tensor

    def __len__(self) -> int:
        return len(self.blanket)

    def __getitem__(self, part: slice) -> "BlanketRows":
        return BlanketRows(self.blanket[part], self.member[part])


@dataclass(frozen=True)
class Observed:
    """The observations of a batch of blankets, padded to the longest row.

    Attributes:
        values: Observed values, with shape (B, N), zero where padded; any units.
        error_std: Their error standard deviations in the same units, one where padded.
        present: True where there is an observation, with shape (B, N).
        predict: The model equivalents (B, N) of latent blankets (B, K, c, h, w), zero where
            padded; differentiable.
        parts: Name and number of columns of each kind of observation, in order.
    """

    values: Tensor
    error_std: Tensor
    present: Tensor
    predict: Callable[[Tensor], Tensor]
    parts: tuple[tuple[str, int], ...]


class ObservedBlankets(Protocol):
    """The observations of a trajectory, blanket by blanket."""

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        """The observations of these rows in the type and on the device of `like`; None if none."""


class Guidance(Protocol):
    """Denoises a batch of blankets given the observations it was made with."""

    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """
        Arguments:
            denoise: The prior's denoiser.
            x_t: Noisy blankets, with shape (B, K, c, h, w).
            sigma: The noise level, with shape ().
            date: Year, month, day, hour of each state, int64, with shape (B, K, 4).
            rows: Which blankets these are.

        Returns:
            E[x | x_t, y], without gradient, with the shape of `x_t`.
        """


class Prior:
    """No guidance: the denoiser alone."""

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        return denoise(x_t, sigma, date)
