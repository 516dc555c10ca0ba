r"""Estimate the impact of each network on the error at the withheld stations.

With departures :math:`e_b = y_w - H_w x_b` and :math:`e_a = y_w - H_w x_a` at withheld values, in units of
their assumed errors, the analysis reduces the squared error by

.. math:: J = e_b^\top e_b - e_a^\top e_a = (e_a + e_b)^\top (H_w x_a - H_w x_b)

and :math:`H_w (x_a - x_b) = \sum_i k_i d_i` is a sum over the innovations d of the values that were
assimilated. Their gains follow from the members of the analysis (E. Kalnay et al., "A simpler formulation of
forecast sensitivity to observations", Tellus A 64, 2012, equation 6):

.. math:: k_i = \rho_{wi} \operatorname{cov}_a(H_w x, H_i x) / \sigma_i^2

with the localisation :math:`\rho` of Gaspari and Cohn at the distance between the two, because
covariances from few members are only noise at large distances. This is an estimate of the linear part
of the analysis from few members, meaningful when summed over the thousands of values of a network;
`appa deny` determines the same by a data denial experiment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model.diagnostics.ensembles import gaspari_cohn
from model.diagnostics.equivalents import Equivalents
from model.domain.grids import unit_vectors
from model.domain.physics import EARTH_RADIUS
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    is_one_of,
    not_rejected,
)

__all__ = ["IMPACT", "Impact", "estimate_impact"]

Float = NDArray[np.float64]

IMPACT = "impact"
"""Statistic of the verification series: share of the withheld square error removed by a network."""
HALF_WIDTH = 1.5e6
"""Horizontal localisation: half the radius beyond which there is no influence, m."""
HALF_DEPTH = 1.0
"""Vertical localisation: the same in the logarithm of pressure."""
SURFACE_PRESSURE = 1.0e5
"""Pressure in Pa assumed for the distance of values without a pressure."""
MAX_WITHHELD = 2000
"""Maximum number of withheld values used; if there are more, evenly spaced ones."""
_AT_ONCE = 100


@dataclass(frozen=True)
class Impact:
    """Impact of the values of one network.

    Attributes:
        network: Report type.
        share: Share of the square error of the background at withheld values that they removed;
            negative if they increased it.
        count: Number of values assimilated.
    """

    network: str
    share: float
    count: int


@dataclass(frozen=True)
class _Places:
    vectors: Float
    depth: Float

    @classmethod
    def of(cls, table: pa.Table, rows: NDArray[np.int64]) -> "_Places":
        part = table.take(rows)
        vectors = unit_vectors(float_column(part, "lat"), float_column(part, "lon"))
        kind, names = category_codes(part, "vertical_kind")
        aloft = kind == (names.index("pressure") if "pressure" in names else -2)
        pressure = np.where(aloft, float_column(part, "vertical"), SURFACE_PRESSURE)
        known = np.isfinite(pressure) & (pressure > 0)
        return cls(vectors, np.log(np.where(known, pressure, SURFACE_PRESSURE)))


def estimate_impact(
    feedback: pa.Table, analysis: Equivalents, new: BoolArray
) -> tuple[Impact, ...]:
    """Return the impact of each network, the most beneficial first.

    Arguments:
        feedback: A table of `FEEDBACK_SCHEMA`.
        analysis: H(x_a) at rows of the feedback, of at least two members.
        new: Rows that were not assimilated into the background; only these count.

    Returns:
        Empty if nothing was withheld, or if there is a single member and thus no covariance.
    """
    withheld = is_one_of(feedback, "rejected_by", ["withheld"]) & new
    used = not_rejected(feedback) & new
    known = np.isfinite(float_column(feedback, "background_departure"))[analysis.rows]
    target = analysis.rows[known & withheld[analysis.rows]]
    rows = analysis.rows[known & used[analysis.rows]]
    if not len(target) or not len(rows) or analysis.members < 2:
        return ()
    target = target[:: -(-len(target) // MAX_WITHHELD)]
    before, later = (float_column(feedback, f"{of}_departure") for of in ("background", "analysis"))
    after, seen = analysis.at(target), analysis.at(rows)
    e_b, e_a = before[target] / after.errors, later[target] / after.errors
    innovation = before[rows] / seen.errors
    divisor = np.sqrt(analysis.pairs.divisor)
    own = (seen.hofx - seen.hofx.mean(0)) / (seen.errors * divisor)
    there = (after.hofx - after.hofx.mean(0)) / (after.errors * divisor)
    gained = np.zeros(len(rows))
    for w, i, share in _near(_Places.of(feedback, target), _Places.of(feedback, rows)):
        gain = share * np.einsum("mp,mp->p", there[:, w], own[:, i])
        np.add.at(gained, i, (e_a + e_b)[w] * gain)
    gained *= innovation / max(float(e_b @ e_b), 1e-12)
    network, names = category_codes(feedback.take(rows), "report_type")
    found = [
        Impact(name, float(gained[network == n].sum()), int((network == n).sum()))
        for n, name in enumerate(names)
        if (network == n).any()
    ]
    return tuple(sorted(found, key=lambda one: -one.share))


def _near(
    target: _Places, seen: _Places
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Float]]:
    """Yield pairs of places within the localisation radius, with the weight at their distance."""
    tree = cKDTree(seen.vectors)
    reach = 2 * HALF_WIDTH / EARTH_RADIUS
    for first in range(0, len(target.vectors), _AT_ONCE):
        numbers = np.arange(first, min(first + _AT_ONCE, len(target.vectors)))
        lists = tree.query_ball_point(target.vectors[numbers], reach)
        counts = [len(one) for one in lists]
        i = np.fromiter(chain.from_iterable(lists), np.int64, sum(counts))
        w = np.repeat(numbers, counts)
        chord = np.linalg.norm(target.vectors[w] - seen.vectors[i], axis=1)
        deep = np.abs(target.depth[w] - seen.depth[i])
        share = gaspari_cohn(chord * (EARTH_RADIUS / HALF_WIDTH)) * gaspari_cohn(deep / HALF_DEPTH)
        yield w[share > 0], i[share > 0], share[share > 0]
