"""H(x) of an ensemble at rows of the feedback, with the errors that the analysis assumed there."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.ensemble_spread import Twins

__all__ = ["Equivalents"]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Equivalents:
    """Model equivalents of N observations.

    Attributes:
        rows: Rows of the feedback table, ascending, with shape (N,).
        errors: Square root of the diagonal of R in SI units, what the states cannot represent
            included, with shape (N,).
        hofx: H(x) of each member in SI units, with shape (M, N).
        mirrored: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
    """

    rows: NDArray[np.int64]
    errors: Float
    hofx: Float
    mirrored: bool = False

    @property
    def members(self) -> int:
        """M."""
        return len(self.hofx)

    @property
    def twins(self) -> Twins:
        """How the members depend on each other."""
        return Twins.of(range(self.members), self.mirrored)

    def at(self, rows: NDArray[np.int64]) -> "Equivalents":
        """The equivalents at those of `rows` (ascending) that have any."""
        both, _, place = np.intersect1d(rows, self.rows, assume_unique=True, return_indices=True)
        return replace(self, rows=both, errors=self.errors[place], hofx=self.hofx[:, place])

    def errors_of(self, table_errors: Float) -> Float:
        """`table_errors` (rows of the table,) with the errors assumed where there are any."""
        errors = table_errors.copy()
        errors[self.rows] = self.errors
        return errors
