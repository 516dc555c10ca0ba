r"""Define guidance, the denoising of blankets conditioned on observations, and its fit to them.

A blanket is K consecutive latent states. A batch of blankets has shape (B, K, c, h, w); row i is
blanket `rows.blanket[i]` of the trajectory of member `rows.member[i]`. Latents are standardised,
noise is added without scaling: :math:`x_t = x + \sigma_t \epsilon`. The fit of each noise level
to the observations is reported in units of their error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from model.execution import Chunks
from model.guidance.chunks import SplitEquivalents

__all__ = [
    "BlanketRows",
    "Conditions",
    "CovarianceFilter",
    "Decode",
    "Denoise",
    "Fit",
    "FitReport",
    "Guidance",
    "Observed",
    "ObservedBlankets",
    "OnFit",
    "Unguided",
]

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
        split: `split(limit, size)` is the same as `predict` in pieces that decode at most `limit`
            states at once, of blankets of `size` states; None where `predict` decodes nothing, or
            cheaply.
    """

    values: Tensor
    error_std: Tensor
    present: Tensor
    predict: Callable[[Tensor], Tensor]
    parts: tuple[tuple[str, int], ...]
    split: Callable[[int, int], SplitEquivalents] | None = None


class ObservedBlankets(Protocol):
    """The observations of a trajectory, blanket by blanket."""

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        """Return the observations of these rows in the type and on the device of `like`; None if none."""


class Guidance(Protocol):
    """Denoise a batch of blankets given the observations it was made with."""

    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        """Arguments:
            denoise: The prior's denoiser.
            x_t: Noisy blankets, with shape (B, K, c, h, w).
            sigma: The noise level, with shape ().
            date: Year, month, day, hour of each state, int64, with shape (B, K, 4).
            rows: Which blankets these are.

        Returns:
            E[x | x_t, y], without gradient, with the shape of `x_t`.
        """


class Unguided:
    """Apply the denoiser alone, without any observations."""

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        return denoise(x_t, sigma, date)


@dataclass(frozen=True)
class Fit:
    """Sums over observations of squared innovations in units of the observation error.

    Attributes:
        count: Number of observations (each once for every blanket and member that uses it).
        before: Sum of squares of y - H(x_hat) of the prior.
        after: Sum of squares after guidance, to first order.
        iterations: Solver iterations, the largest of the rows.
    """

    count: int
    before: float
    after: float
    iterations: int

    @classmethod
    def of(cls, seen: Observed, before: Tensor, after: Tensor, iterations: int) -> "Fit":
        """Return the fit of the first kind of observation present (tied states come last)."""
        columns = slice(0, seen.parts[0][1])
        return cls(
            int(seen.present[:, columns].sum()),
            float(before[:, columns].double().square().sum()),
            float(after[:, columns].double().square().sum()),
            iterations,
        )

    def __add__(self, other: "Fit") -> "Fit":
        return Fit(
            self.count + other.count,
            self.before + other.before,
            self.after + other.after,
            max(self.iterations, other.iterations),
        )

    @property
    def chi_before(self) -> float:
        """Root mean square innovation of the prior in units of the observation error."""
        return sqrt(self.before / max(self.count, 1))

    @property
    def chi_after(self) -> float:
        """Root mean square post-fit innovation; about 1 where observations fit within their errors."""
        return sqrt(self.after / max(self.count, 1))


OnFit = Callable[[float, Fit], None]
"""Called with the noise level and the fit of a sub-batch."""


class FitReport:
    """Collect fits by noise level, over sub-batches and evaluations.

    Arguments:
        on_fit: Called with the noise level and fit of every sub-batch.
    """

    def __init__(self, on_fit: OnFit | None = None) -> None:
        self._levels: dict[float, Fit] = {}
        self._on_fit = on_fit

    def add(self, sigma: float, fit: Fit) -> None:
        """Add the fit of one sub-batch at a noise level."""
        known = self._levels.get(sigma)
        self._levels[sigma] = fit if known is None else known + fit
        if self._on_fit is not None:
            self._on_fit(sigma, fit)

    @property
    def levels(self) -> tuple[tuple[float, Fit], ...]:
        """(sigma, fit) in order of first use, from noisy to clean."""
        return tuple(self._levels.items())


@dataclass(frozen=True)
class Conditions:
    """What a pass is conditioned on, and the parts of the model that guidance uses.

    Attributes:
        build_observations: Builds the observations and tied states, given a decoder for them.
        decode: The model's decoder.
        tangent: An approximation of the decoder that is cheap to differentiate.
        covariance: Of a closed-form prior given a noisy state; None if the model has none.
        report: Collects the fit to the observations.
        chunks: How many states are decoded and differentiated at once; None for all.
    """

    build_observations: Callable[[Decode], ObservedBlankets]
    decode: Decode
    tangent: Decode
    covariance: CovarianceFilter | None = None
    report: FitReport | None = None
    chunks: Chunks | None = None

    def observations(self) -> ObservedBlankets:
        """Build the observations and tied states with the model's own decoder."""
        return self.build_observations(self.decode)
