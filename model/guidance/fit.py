"""How well each noise level fits the observations, in units of their error."""

__all__ = ["Fit", "FitReport", "OnFit"]

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from model.guidance.base import Observed


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
        """The fit of the first kind of observation present (tied states come last)."""
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
        """Root mean square post-fit innovation; about 1 where guidance has done its work."""
        return sqrt(self.after / max(self.count, 1))


OnFit = Callable[[float, Fit], None]


class FitReport:
    """Collects fits by noise level, over sub-batches and evaluations.

    Arguments:
        on_fit: Told the noise level and fit of every sub-batch.
    """

    def __init__(self, on_fit: OnFit | None = None) -> None:
        self._levels: dict[float, Fit] = {}
        self._on_fit = on_fit

    def add(self, sigma: float, fit: Fit) -> None:
        """Adds the fit of one sub-batch at a noise level."""
        known = self._levels.get(sigma)
        self._levels[sigma] = fit if known is None else known + fit
        if self._on_fit is not None:
            self._on_fit(sigma, fit)

    @property
    def levels(self) -> tuple[tuple[float, Fit], ...]:
        """(sigma, fit) in order of first use, from noisy to clean."""
        return tuple(self._levels.items())
