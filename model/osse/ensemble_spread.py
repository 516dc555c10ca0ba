r"""Spread and ranks of ensembles whose members come in pairs of opposite noise.

Calibrated members of a *mirrored* pair are :math:`\bar x \pm d`: their mean is the posterior mean,
without sampling noise. Neither the usual correction of the spread for small ensembles nor a flat
rank histogram hold for them (with two such members the truth lies between them every second time,
not every third). With U of M members without a twin the variance of the ensemble mean around the
posterior mean is :math:`v = U / M^2` in units of the posterior variance, so that

.. math:: E \sum_i (x_i - \bar x)^2 = M (1 - v) \, \sigma^2, \qquad
          E (\bar x - x)^2 = (1 + v) \, \sigma^2

of which U = M is the correction of Fortin et al. (see `model.diagnostics.scores`). Ranks are
counted twice, each time among one member of every pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from model.assimilate import Trajectory
from model.diagnostics.scores import spread_skill
from model.domain.grids import Grid
from model.noise import mirror

__all__ = ["Twins", "spread_over_error", "twins"]


@dataclass(frozen=True)
class Twins:
    """How the members of an ensemble depend on each other.

    Attributes:
        alone: U, members without a twin.
        independent: Positions of members that are independent of each other, once or twice.
    """

    alone: int
    independent: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, numbers: Sequence[int], mirrored: bool) -> "Twins":
        """Of members by their numbers."""
        if not mirrored:
            return cls(len(numbers), (tuple(range(len(numbers))),))
        pairs: dict[int, list[int]] = {}
        for position, number in enumerate(numbers):
            pairs.setdefault(mirror(number)[0], []).append(position)
        alone = sum(len(p) == 1 for p in pairs.values())
        first, second = (tuple(p[i] for p in pairs.values()) for i in (0, -1))
        return cls(alone, (first,) if first == second else (first, second))


def twins(analysis: Trajectory) -> Twins:
    """Of an analysis."""
    return Twins.of(analysis.members, analysis.settings.mirrored)


def spread_over_error(members: Tensor, truth: Tensor, grid: Grid, pairs: Twins) -> Tensor:
    """1 for a calibrated ensemble of any size, with shape (C,).

    Arguments:
        members: With shape (M, C, Y, X).
        truth: With shape (C, Y, X); NaN cells are left out.
        grid: The grid.
        pairs: How the members depend on each other.
    """
    m = len(members)
    v = pairs.alone / m**2
    usual = spread_skill(members, truth, grid).ratio
    return usual * ((m - 1) * (1 + v) / ((m + 1) * (1 - v))) ** 0.5
