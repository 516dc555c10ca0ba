"""Compare observations with states: build y, R and H of a table, and apply H to an ensemble.

States are decoded one member at a time: an ensemble of full-size states does not fit in memory.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.domain.ensembles import AntitheticPairs
from model.execution import Batching
from model.latent_model import LatentModel
from model.operators.observation_set import ObservationSet, build_observation_set

__all__ = ["Equivalents", "model_equivalents", "observation_set"]

Float = NDArray[np.float64]


def observation_set(
    table: pa.Table, model: LatentModel, times: Sequence[datetime]
) -> tuple[ObservationSet, pa.Table]:
    """Build y, R and H of the rows in use on states of a model at `times`.

    See `model.operators.observation_set.build_observation_set`.
    """
    return build_observation_set(table, model.grid, model.channels, times, model.statics)


@dataclass(frozen=True, eq=False)
class Equivalents:
    """Model equivalents of N observations.

    Attributes:
        rows: Rows of the observation table, ascending, with shape (N,).
        errors: Square root of the diagonal of R in SI units, what the states cannot represent
            included, with shape (N,).
        hofx: H(x) of each member in SI units, with shape (M, N).
        antithetic: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
    """

    rows: NDArray[np.int64]
    errors: Float
    hofx: Float
    antithetic: bool = False

    @property
    def members(self) -> int:
        """The size of the ensemble, M."""
        return len(self.hofx)

    @property
    def pairs(self) -> AntitheticPairs:
        """How the members depend on each other."""
        return AntitheticPairs.of(range(self.members), self.antithetic)

    def at(self, rows: NDArray[np.int64]) -> "Equivalents":
        """Return the equivalents at those of `rows` (ascending) that have any."""
        both, _, place = np.intersect1d(rows, self.rows, assume_unique=True, return_indices=True)
        return replace(self, rows=both, errors=self.errors[place], hofx=self.hofx[:, place])

    def errors_of(self, table_errors: Float) -> Float:
        """Return `table_errors`, one per row of the table, replaced by the assumed ones if any."""
        errors = table_errors.copy()
        errors[self.rows] = self.errors
        return errors


@torch.no_grad()
def model_equivalents(
    latents: Tensor,
    model: LatentModel,
    observations: ObservationSet,
    on_states: Callable[[int, Tensor], None] | None = None,
    *,
    hours: Collection[int] | None = None,
) -> Float:
    """Return H(x) of each member, with shape (M, N).

    Decoding takes most of the time, so only states that an observation or `on_states` reads are
    decoded.

    Arguments:
        latents: Standardised latents, with shape (M, T, c, h, w).
        model: Decodes them.
        observations: N observations of T states.
        on_states: Called with (member, its physical states (T, C, Y, X)) before they are discarded.
        hours: Indices of the states that `on_states` reads; others may be NaN. None for all.
    """
    hofx = np.empty((len(latents), len(observations)))
    operator = observations.to(model.dtype, model.device).operator if len(observations) else None
    wanted = np.zeros(latents.shape[1], dtype=bool)
    if on_states is not None:
        wanted[slice(None) if hours is None else sorted(hours)] = True
    if operator is not None:
        wanted[np.unique(operator.columns // math.prod(model.state_shape))] = True
    for member, trajectory in enumerate(latents):
        states = _decode(trajectory.to(model.device, model.dtype), model, wanted)
        if operator is not None:
            hofx[member] = operator(states).double().cpu().numpy()
        if on_states is not None:
            on_states(member, _mask(states, model))
    return hofx


def _decode(trajectory: Tensor, model: LatentModel, wanted: NDArray[np.bool_]) -> Tensor:
    """Decode the wanted ones (T,) of latents (T, c, h, w), in batches that fit into memory.

    Returns:
        Physical states of all hours, with shape (T, C, Y, X); NaN where they are not wanted.
    """
    chosen = trajectory[torch.from_numpy(wanted).to(trajectory.device)]
    if not len(chosen):
        return trajectory.new_full((len(trajectory), *model.state_shape), math.nan)
    batching = Batching(rows=len(chosen))
    decoded = batching(lambda rows: model.decode(chosen[rows], mask=False), len(chosen))
    if wanted.all():
        return decoded
    states = decoded.new_full((len(trajectory), *decoded.shape[1:]), math.nan)
    states[torch.from_numpy(wanted).to(states.device)] = decoded
    return states


def _mask(states: Tensor, model: LatentModel) -> Tensor:
    """Set the states to NaN where a variable is undefined, in place: they are large."""
    missing = model.state_normalisation.missing
    return states if missing is None else states.masked_fill_(missing, float("nan"))
