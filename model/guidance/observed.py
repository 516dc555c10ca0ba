"""Condition blankets on observations of decoded states, on known latent states, or on both.

The states of all rows of a batch that some observation reads are decoded together, and only
those; then the operator of each blanket sees the states of all its members at once.

In a forecast the states up to its start are known: they are observations of the latent state with
a small error, so the same guidance applies, and no decoder is needed for them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.guidance.base import BlanketRows, Decode, Observed, ObservedBlankets
from model.guidance.chunks import Piece, SplitEquivalents, whole
from model.linear_decoder import ReadsColumns, TangentDecoder
from model.tiled_decoder import PartialDecoder

__all__ = [
    "DecodedObservations",
    "JointObservations",
    "ObservationsOfStates",
    "OperatorOfStates",
    "TiedStates",
]


class OperatorOfStates(ReadsColumns, Protocol):
    """An operator that can be applied to whole states, or only to the values that it reads.

    `observe(flat[..., columns])`, with `flat` the states as (*, T C Y X), is the same as the call.
    """

    def __call__(self, states: Tensor) -> Tensor:
        """Map states (*, T, C, Y, X) to model equivalents (*, N)."""


class ObservationsOfStates(Protocol):
    """Observations of a run of consecutive states, such as an `ObservationSet`.

    Attributes:
        values: With shape (N,).
        error_std: One standard deviation in the same units, with shape (N,).
        operator: From states (*, T, C, Y, X) to model equivalents (*, N).
    """

    @property
    def values(self) -> Tensor: ...

    @property
    def error_std(self) -> Tensor: ...

    @property
    def operator(self) -> OperatorOfStates: ...

    @property
    def time_support(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last state that each observation reads, each with shape (N,)."""

    def __len__(self) -> int: ...


def _observed_states(observations: ObservationsOfStates) -> Tensor:
    first, last = observations.time_support
    runs = {range(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)}
    return torch.tensor(sorted({state for run in runs for state in run}))


@dataclass(frozen=True)
class _StateGroup:
    """The rows of a batch that are the same blanket, and the states they decode."""

    rows: Tensor
    observations: ObservationsOfStates
    states: Tensor

    def select(self, x: Tensor) -> Tensor:
        """Return the latents to decode, with shape (m * S, c, h, w)."""
        return x[self.rows][:, self.states.to(x.device)].flatten(0, 1)

    def equivalents(self, decoded: Tensor, size: int) -> Tensor:
        """Return H of the decoded states (m * S, C, Y, X), with shape (m, N)."""
        states = decoded.unflatten(0, (len(self.rows), len(self.states)))
        if len(self.states) < size:
            full = states.new_zeros(len(self.rows), size, *states.shape[2:])
            states = full.index_copy(1, self.states.to(states.device), states)
        return self.observations.operator(states)

    def columns(self) -> NDArray[np.int64] | None:
        """Return the state values that the operator reads, None if it only takes whole states."""
        try:
            return self.observations.operator.columns
        except AttributeError:
            return None

    def pieces(self, decode: Decode, rows: Tensor, limit: int) -> list[Piece]:
        """Return the decoding of these rows, at most `limit` states at once (or one of each row)."""
        columns = self.columns()
        if columns is None:
            return [
                Piece(
                    lambda z: decode(z.flatten(0, 1)),
                    rows,
                    self.states,
                    len(rows) * len(self.states),
                )
            ]
        state_values = math.prod(self.observations.operator.state_shape[1:])
        pieces = []
        for states in self.states.split(max(1, limit // len(rows))):
            inside = []
            for place, state in enumerate(states.tolist()):
                low, high = np.searchsorted(
                    columns, (state * state_values, (state + 1) * state_values)
                )
                inside.append(columns[low:high] + (place - state) * state_values)
            index = np.concatenate(inside)
            read, share = self._reader(decode, tuple(states.tolist()), index)
            pieces.append(Piece(read, rows, states, len(rows) * len(states), share))
        return pieces

    def _reader(
        self, decode: Decode, states: tuple[int, ...], index: NDArray[np.int64]
    ) -> tuple[Callable[[Tensor], Tensor], float]:
        """Return the map to the values at `index` of these states, and its share of the work."""
        if not isinstance(decode, PartialDecoder):
            return partial(_decoded_values, decode, torch.from_numpy(index)), 1.0
        points = decode.points(self.observations.operator, states, index)
        return partial(decode.read, points), points.share

    def joined(self, values: Sequence[Tensor], rows: Tensor, size: int) -> Tensor:
        """Return the model equivalents of these rows (m, N) from the values of their pieces."""
        if self.columns() is None:
            return replace(self, rows=rows).equivalents(values[0], size)
        return self.observations.operator.observe(torch.cat(list(values), dim=-1))


def _decoded_values(decode: Decode, index: Tensor, latents: Tensor) -> Tensor:
    """Return values (m, U) of the decoded states of latents (m, s, c, h, w)."""
    flat = decode(latents.flatten(0, 1)).reshape(len(latents), -1)
    return flat.index_select(1, index.to(flat.device))


def _split(
    groups: Sequence[_StateGroup], decode: Decode, like: Tensor, limit: int, size: int
) -> SplitEquivalents:
    """Return the model equivalents (B, N), shaped as `like`, of blankets of `size` states."""
    pieces: list[Piece] = []
    parts: list[tuple[_StateGroup, Tensor, slice]] = []
    for g in groups:
        for rows in g.rows.split(max(1, limit)):
            mine = g.pieces(decode, rows, limit)
            parts.append((g, rows, slice(len(pieces), len(pieces) + len(mine))))
            pieces += mine

    def join(values: Sequence[Tensor]) -> Tensor:
        total = like.new_zeros(like.shape)
        for g, rows, where in parts:
            y = g.joined(values[where], rows, size).to(like)
            y = torch.nn.functional.pad(y, (0, like.shape[1] - y.shape[1]))
            total = total.index_add(0, rows, y)
        return total

    return SplitEquivalents(tuple(pieces), join)


class DecodedObservations:
    """Observations of the states of a trajectory, blanket by blanket.

    Arguments:
        blankets: The observations of each blanket, indexed within it; None or empty where a
            blanket has none.
        decode: From latents to states.
        first: Number of the first blanket given; a rank gives its own ones only.
    """

    def __init__(
        self,
        blankets: Sequence[ObservationsOfStates | None],
        decode: Decode,
        first: int = 0,
    ) -> None:
        self._blankets = [
            (b, _observed_states(b)) if b is not None and len(b) else None for b in blankets
        ]
        self._decode = decode
        self._first = first

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        groups = []
        for blanket in torch.unique(rows.blanket).tolist():
            known = self._blankets[blanket - self._first]
            if known is not None:
                here = torch.nonzero(rows.blanket == blanket)[:, 0]
                groups.append(_StateGroup(here, *known))
        if not groups:
            return None
        width = max(len(g.observations) for g in groups)
        values = like.new_zeros(len(rows), width)
        error_std = like.new_ones(len(rows), width)
        present = torch.zeros(len(rows), width, dtype=torch.bool, device=like.device)
        for g in groups:
            n = len(g.observations)
            values[g.rows, :n] = g.observations.values.to(like)
            error_std[g.rows, :n] = g.observations.error_std.to(like)
            present[g.rows, :n] = True
        return Observed(
            values,
            error_std,
            present,
            lambda x: self._predict(groups, width, x),
            (("observations", width),),
            None
            if isinstance(self._decode, TangentDecoder)
            else lambda limit, size: _split(groups, self._decode, values, limit, size),
        )

    def _predict(self, groups: Sequence[_StateGroup], width: int, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x), width)
        for g, y in zip(groups, self._equivalents(groups, x), strict=True):
            y = torch.nn.functional.pad(y.to(x), (0, width - y.shape[1]))
            total = total.index_add(0, g.rows, y)
        return total

    def _equivalents(self, groups: Sequence[_StateGroup], x: Tensor) -> Iterator[Tensor]:
        """Yield the model equivalents (m, N) of each group."""
        if isinstance(self._decode, TangentDecoder):
            # Only the values that the operators read.
            for g in groups:
                operator = g.observations.operator
                yield operator.observe(self._decode.at(x[g.rows], operator))
            return
        decoded = self._decode(torch.cat([g.select(x) for g in groups]))
        start = 0
        for g in groups:
            stop = start + len(g.rows) * len(g.states)
            yield g.equivalents(decoded[start:stop], x.shape[1])
            start = stop


class TiedStates:
    """Known latent states of a trajectory.

    Arguments:
        latents: Standardised latents, with shape (M, T, c, h, w) or (1, T, c, h, w) for all
            members alike; any value where not tied.
        tied: Which of the T states are known, with shape (T,).
        starts: Index of the first state of each blanket.
        size: K, the number of states of a blanket.
        error_std: One standard deviation of the known latents.
        first: Number of the first blanket of `starts`.
    """

    def __init__(
        self,
        latents: Tensor,
        tied: Tensor,
        starts: Sequence[int],
        size: int,
        error_std: float = 0.05,
        first: int = 0,
    ) -> None:
        self._latents = latents
        self._tied = torch.stack([tied[s : s + size] for s in starts])
        self._starts = list(starts)
        self._size = size
        self._error_std = error_std
        self._first = first

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        blankets = [b - self._first for b in rows.blanket.tolist()]
        members = (rows.member % len(self._latents)).tolist()
        tied = self._tied[blankets]
        states = torch.nonzero(tied.any(dim=0))[:, 0].to(like.device)
        if not len(states):
            return None
        known = torch.stack(
            [
                self._latents[m, self._starts[b] : self._starts[b] + self._size]
                for b, m in zip(blankets, members, strict=True)
            ]
        ).to(like)
        keep = tied.to(like.device)[:, states, None, None, None]

        def predict(x: Tensor) -> Tensor:
            return torch.where(keep, x[:, states], 0.0).flatten(1)

        values = predict(known)
        return Observed(
            values,
            torch.full_like(values, self._error_std),
            keep.expand_as(known[:, states]).flatten(1),
            predict,
            (("tied states", values.shape[1]),),
        )


class JointObservations:
    """Several kinds of observation at once.

    Arguments:
        kinds: The kinds; the fit is reported for the first that is present.
    """

    def __init__(self, kinds: Sequence[ObservedBlankets]) -> None:
        self._kinds = tuple(kinds)

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        seen = [s for s in (kind.select(rows, like) for kind in self._kinds) if s is not None]
        if len(seen) < 2:
            return seen[0] if seen else None
        return Observed(
            torch.cat([s.values for s in seen], dim=1),
            torch.cat([s.error_std for s in seen], dim=1),
            torch.cat([s.present for s in seen], dim=1),
            lambda x: torch.cat([s.predict(x) for s in seen], dim=1),
            tuple(part for s in seen for part in s.parts),
            None
            if all(s.split is None for s in seen)
            else lambda limit, size: _side_by_side(seen, limit, size),
        )


def _side_by_side(seen: Sequence[Observed], limit: int, size: int) -> SplitEquivalents:
    """Return several kinds in pieces, side by side."""
    splits = [whole(s.predict) if s.split is None else s.split(limit, size) for s in seen]
    ends = list(accumulate(len(s.pieces) for s in splits))

    def join(values: Sequence[Tensor]) -> Tensor:
        parts = [values[end - len(s.pieces) : end] for s, end in zip(splits, ends, strict=True)]
        return torch.cat([s.join(p) for s, p in zip(splits, parts, strict=True)], dim=1)

    return SplitEquivalents(tuple(piece for s in splits for piece in s.pieces), join)
