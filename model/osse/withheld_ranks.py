"""Ranks of withheld observations among the members, by kind of observation and station."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet
from model.osse.start_skill import Ranks

__all__ = [
    "NETWORKS",
    "equivalents",
    "observation_kinds",
    "ranks",
    "station_ranks",
    "withheld_rows",
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


def withheld_rows(table: pa.Table) -> pa.Table:
    """The rows that were withheld, as if they had not been."""
    rejected = pc.equal(table["rejected_by"].cast(pa.string()), "withheld")
    rows = table.filter(pc.fill_null(rejected, False))
    place = rows.schema.get_field_index("rejected_by")
    field = rows.schema.field(place)
    return rows.set_column(place, field, pa.nulls(rows.num_rows, field.type))
