r"""Compute the spread and ranks of ensembles whose members may be antithetic pairs.

The calibrated members of an antithetic pair, which share their noise with opposite sign, are
:math:`\bar x \pm d`: their mean is the posterior mean, without sampling noise. Neither the
usual correction of the spread for small ensembles nor a flat rank histogram hold for them (with
two such members the truth lies between them every second time, not every third). With U of M
members unpaired, the variance of the ensemble mean around the posterior mean is
:math:`v = U / M^2` in units of the posterior variance, so that

.. math:: E \sum_i (x_i - \bar x)^2 = M (1 - v) \, \sigma^2 = (M - U / M) \, \sigma^2, \qquad
          E (\bar x - x)^2 = (1 + v) \, \sigma^2

With U = M, independent members, the divisor is M - 1 and the correction is that of Fortin et al.
(see `model.diagnostics.scores`); with U = 0, pairs alone, the divisor is M and there is no
correction. The members of a pair are not ranked together, and the distance between them says nothing
about that of two draws of the posterior.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AntitheticPairs", "noise_source"]


def noise_source(member: int, antithetic: bool = True) -> tuple[int, int]:
    """Return the number of the member whose noise a member shares, and the sign.

    The odd members of antithetic pairs have the noise of the even one before with the sign changed;
    all others have their own.
    """
    odd = member % 2 if antithetic else 0
    return member - odd, 1 - 2 * odd


@dataclass(frozen=True)
class AntitheticPairs:
    """How the members of an ensemble depend on each other.

    Attributes:
        pairs: Positions of members that share their noise, each member in one of them: (0, 1) for
            two of opposite noise, (0,) for one with noise of its own.
    """

    pairs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, numbers: Sequence[int], antithetic: bool) -> "AntitheticPairs":
        """Pair members by their numbers, or none of them.

        Arguments:
            numbers: Number of each member in its job.
            antithetic: Whether the noise of odd members is that of the even ones before.
        """
        positions: dict[int, list[int]] = {}
        for position, number in enumerate(numbers):
            key = noise_source(number)[0] if antithetic else position
            positions.setdefault(key, []).append(position)
        return cls(tuple(tuple(pair) for pair in positions.values()))

    @property
    def members(self) -> int:
        """The size of the ensemble, M."""
        return sum(len(pair) for pair in self.pairs)

    @property
    def unpaired(self) -> int:
        """How many members share their noise with no other, U."""
        return sum(len(pair) == 1 for pair in self.pairs)

    @property
    def antithetic(self) -> bool:
        """Whether any member shares its noise with another."""
        return self.unpaired < self.members

    @property
    def ddof(self) -> float:
        """U / M, to be subtracted from M in the divisor of a variance: 1 for independent members."""
        return self.unpaired / self.members

    @property
    def divisor(self) -> float:
        """M - U / M, the divisor of the sum of squares about the ensemble mean in the variance."""
        return self.members - self.ddof

    @property
    def inflation(self) -> float:
        """1 + v: expected square error of the ensemble mean over the variance of the members."""
        # In whole numbers, so that independent members have (M + 1) / M to the last bit.
        return (self.members**2 + self.unpaired) / self.members**2

    @property
    def independent(self) -> tuple[tuple[int, ...], ...]:
        """Sets of positions, independent within each: the first of all pairs, and the second if any."""
        first, second = (tuple(pair[i] for pair in self.pairs) for i in (0, -1))
        return (first,) if first == second else (first, second)

    @property
    def ranked(self) -> tuple[int, ...]:
        """Positions of independent members for a rank histogram, one of each pair."""
        return self.independent[0]

    def independent_pairs(self) -> Iterator[tuple[int, int]]:
        """Yield the positions of every two members that are independent of each other."""
        for one, other in combinations(self.pairs, 2):
            yield from ((i, j) for i in one for j in other)

    def square_departure(self, variance: Any, error_variance: Any = 0.0) -> Any:
        """Return the expected square of a value minus the ensemble mean, for a reliable ensemble.

        Its root over the root mean square found is the ratio of spread to skill, 1 when reliable:
        (1 + v) times the variance of the members, plus that of the value's own error.

        Arguments:
            variance: Of the members, an array, a tensor or a number.
            error_variance: Of the value's own error, likewise.
        """
        return self.inflation * variance + error_variance

    def variance(self, members: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the unbiased variance, float64; None for a single member.

        Arguments:
            members: With shape (M, *).

        Returns:
            With shape (*).
        """
        if self.members < 2:
            return None
        unbiased: NDArray[np.float64] = np.var(members, axis=0, dtype=np.float64, ddof=self.ddof)
        return unbiased

    def std(self, members: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the root of the unbiased `variance`."""
        variance = self.variance(members)
        return None if variance is None else np.sqrt(variance)
