"""Count the ranks of withheld observations by kind of observation and station, and pool them."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lab.osse.scores import Ranks
from model.diagnostics.ensembles import RankShape, rank_shape

__all__ = [
    "NETWORKS",
    "observation_kinds",
    "pooled_counts",
    "rank_shapes",
    "station_ranks",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

NETWORKS = {"synop": "surface", "ship": "surface", "temp": "sondes"}
"""Report type to the network it is counted in; others are not ranked."""


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
