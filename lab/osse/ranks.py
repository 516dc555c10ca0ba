r"""Rank withheld observations among the members, and judge the shape of the histogram.

Ranks are counted by kind of observation and station. Observations of one station are not
independent of one another, stations nearly are: with o_s of n_s values of station s in the
outermost two of B bins, the share is :math:`p = \sum o_s / \sum n_s`, and

.. math:: \mathrm{excess} = \frac{p}{2 / B} - 1, \qquad
    \mathrm{var}(p) = \frac{S}{S - 1} \frac{\sum_s (o_s - p n_s)^2}{(\sum_s n_s)^2}

(the cluster estimator of a ratio). The excess is 0 for a calibrated ensemble, positive for a U
shape (too little spread, or a bias), negative for a dome (too much), and at most B/2 - 1.

References:
    | Interpretation of rank histograms for verifying ensemble forecasts (Hamill, 2001)
    | https://doi.org/10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from lab.osse.scores import Ranks
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet

__all__ = [
    "BINS",
    "NETWORKS",
    "RankShape",
    "equivalents",
    "observation_kinds",
    "pooled_counts",
    "rank_shape",
    "rank_shapes",
    "ranks",
    "station_ranks",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

NETWORKS = {"synop": "surface", "ship": "surface", "temp": "sondes"}
"""Report type to the network it is counted in; others are not ranked."""


@torch.no_grad()
def equivalents(model: LatentModel, latents: Tensor, observations: ObservationSet) -> Float:
    """H of decoded members (M, T, c, h, w), with shape (M, N)."""
    # One member at a time: decoded trajectories are large.
    rows = [observations.operator(model.decode(z.to(model.device), mask=False)) for z in latents]
    return torch.stack(rows).double().cpu().numpy()


def ranks(members: Float, values: Float, errors: Float, rng: np.random.Generator) -> Int:
    """How many members, each perturbed with the observation error, lie below each value.

    Arguments:
        members: Model equivalents, with shape (M, N).
        values: Observations, with shape (N,).
        errors: One standard deviation of the values, with shape (N,).
        rng: Of the perturbations.

    Returns:
        0 to M, with shape (N,).
    """
    perturbed = members + errors * rng.standard_normal(members.shape)
    return (perturbed < values).sum(axis=0)


def observation_kinds(table: pa.Table) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """`network variable` and station of each row; the first is empty for other networks."""
    types, variables, stations = (
        table[name].cast(pa.string()).to_pylist()
        for name in ("report_type", "variable", "station_id")
    )
    kinds = [
        f"{NETWORKS[t]} {v}" if t in NETWORKS else "" for t, v in zip(types, variables, strict=True)
    ]
    return np.array(kinds, dtype=np.str_), np.array(stations, dtype=np.str_)


def station_ranks(
    found: Int, members: int, kinds: NDArray[np.str_], stations: NDArray[np.str_], weight: float
) -> Ranks:
    """Counts of the ranks 0 to `members` (N,) by kind (N,) and station (N,), each of a weight."""
    counted: Ranks = {}
    for kind in np.unique(kinds[kinds != ""]):
        chosen = kinds == kind
        names, number = np.unique(stations[chosen], return_inverse=True)
        counts = np.zeros((len(names), members + 1))
        np.add.at(counts, (number, found[chosen]), weight)
        counted[str(kind)] = {str(n): c.tolist() for n, c in zip(names, counts, strict=True)}
    return counted


BINS = 9
"""Bins of the printed histogram: the ranks of 8 members."""


class RankShape(BaseModel):
    """A rank histogram.

    Attributes:
        name: Which observations.
        values: How many.
        stations: Stations and starts they come from.
        bins: Share of the values in each of `BINS` bins.
        excess: Share of the outermost two bins over what is expected, minus 1.
        uncertainty: One standard error of `excess`; None with a single station.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    values: int
    stations: int
    bins: tuple[float, ...]
    excess: float
    uncertainty: float | None


def _rebinning(ranks: int) -> NDArray[np.float64]:
    """Share (ranks, BINS) of each rank's interval of [0, 1] in each bin: flat stays flat."""
    edges, bounds = np.arange(ranks + 1) / ranks, np.arange(BINS + 1) / BINS
    low = np.maximum(edges[:-1, None], bounds[None, :-1])
    high = np.minimum(edges[1:, None], bounds[None, 1:])
    return np.clip(high - low, 0.0, None) * ranks


def rank_shape(name: str, counts: NDArray[np.float64]) -> RankShape:
    """The shape of the ranks of M members.

    Arguments:
        name: Which observations.
        counts: How often each rank occurred at each station, with shape (S, M + 1).
    """
    bins = np.asarray(counts, dtype=np.float64) @ _rebinning(counts.shape[1])
    number, outer = bins.sum(axis=1), bins[:, 0] + bins[:, -1]
    total, stations = number.sum(), len(bins)
    share = outer.sum() / total
    uncertainty = None
    if stations > 1:
        residual = np.square(outer - share * number).sum() * stations / (stations - 1)
        uncertainty = float(np.sqrt(residual) / total * BINS / 2)
    return RankShape(
        name=name,
        values=round(total),
        stations=stations,
        bins=tuple((bins.sum(axis=0) / total).tolist()),
        excess=float(share * BINS / 2 - 1.0),
        uncertainty=uncertainty,
    )


def pooled_counts(starts: Iterable[Ranks], prefix: str) -> NDArray[np.float64] | None:
    """Counts (S, M + 1) of all kinds of observations whose name begins with `prefix`.

    The kinds of one station are added up; the same station at another start counts anew. None
    where there is none.
    """
    rows = []
    for ranks in starts:
        stations: dict[str, NDArray[np.float64]] = {}
        for name, found in ranks.items():
            if name.startswith(prefix):
                for station, counts in found.items():
                    values = np.asarray(counts, dtype=np.float64)
                    stations[station] = stations.get(station, np.zeros_like(values)) + values
        rows += stations.values()
    return np.stack(rows) if rows else None


def rank_shapes(starts: Iterable[Ranks]) -> tuple[RankShape, ...]:
    """All withheld observations, each network, and each variable of each."""
    ranks = list(starts)
    kinds = sorted({name for found in ranks for name in found})
    networks = sorted({name.split()[0] for name in kinds}, reverse=True)
    shapes = []
    wanted = [("all", ""), *((network, f"{network} ") for network in networks)]
    for name, prefix in [*wanted, *((kind, kind) for kind in kinds)]:
        counts = pooled_counts(ranks, prefix)
        if counts is not None:
            shapes.append(rank_shape(name, counts))
    return tuple(shapes)
