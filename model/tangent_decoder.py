r"""The linear stand-in of the decoder, evaluated only at the state values that are observed.

An observation set reads a tenth of the values of a window: some channels, most hours only those of
the surface and of a sounder. Decoding just these, with the adjoint written out, costs a fifth of a
decode of whole states under automatic differentiation, which spends its time on filling zeros.
"""

__all__ = ["ReadsColumns", "TangentDecoder"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.linear_decoder import LinearDecoder, neighbours_at, neighbours_transposed

Int = NDArray[np.int64]


class ReadsColumns(Protocol):
    """An operator that reads few of the state values, such as a `CompositeOperator`."""

    state_shape: tuple[int, int, int, int]

    @property
    def columns(self) -> Int:
        """Flat indices in (T, C, Y, X) of the values that are read, ascending."""

    def observe(self, values: Tensor) -> Tensor:
        """From those values (*, U) to model equivalents (*, N)."""


class TangentDecoder:
    """Standardised latents to physical states by a linear map.

    Arguments:
        decoder: Gives the map to standardised states; asked at first use.
        mean: Mean of the states by channel, with shape (C,).
        std: Their standard deviation, with shape (C,).
    """

    def __init__(self, decoder: Callable[[], LinearDecoder], mean: Tensor, std: Tensor) -> None:
        self._fit = decoder
        self._mean = mean.reshape(-1)
        self._std = std.reshape(-1)
        self._parts: WeakKeyDictionary[Any, _Columns] = WeakKeyDictionary()

    @cached_property
    def _decoder(self) -> LinearDecoder:
        return self._fit()

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (*, c, h, w) to states (*, C, Y, X) in SI units."""
        states: Tensor = self._decoder(latents)
        return states * self._std[:, None, None] + self._mean[:, None, None]

    def at(self, latents: Tensor, operator: ReadsColumns) -> Tensor:
        """The state values that `operator` reads.

        Arguments:
            latents: Windows, with shape (B, T, c, h, w).
            operator: T of its states are those of the window.

        Returns:
            With shape (B, U), in the order of `operator.columns`; differentiable to any order.
        """
        if operator not in self._parts:
            self._parts[operator] = self._columns(operator, latents)
        part = self._parts[operator]
        values: Tensor = _Decode.apply(latents, part, None)
        return values + part.offset

    def _columns(self, operator: ReadsColumns, like: Tensor) -> "_Columns":
        """The rows of the map that each patch needs; patches with the same channels together."""
        length, channels, rows, columns = operator.state_shape
        p, q = self._decoder.patch
        flat, patches = operator.columns, (rows // p) * (columns // q)
        cell, plane = flat % (rows * columns), flat // (rows * columns)
        time, channel = plane // channels, plane % channels
        y, x = cell // columns, cell % columns
        place = time * patches + (y // p) * (columns // q) + x // q
        inside = (y % p) * q + x % q
        read = np.zeros((length * patches, channels), dtype=bool)
        read[place, channel] = True
        weight = self._decoder.weight.unflatten(0, (channels, p * q)) * self._std[:, None, None]
        bias = self._decoder.bias.unflatten(0, (channels, p * q)) * self._std[:, None]
        bias = (bias + self._mean[:, None]).to(like)
        used = np.flatnonzero(read.any(axis=1))
        sets, member = np.unique(read[used], axis=0, return_inverse=True)
        groups = []
        for number, wanted in enumerate(sets):
            chosen = used[member.reshape(-1) == number]
            mine = np.flatnonzero(np.isin(place, chosen))
            kept = np.flatnonzero(wanted)
            entry = np.searchsorted(kept, channel[mine]) * p * q + inside[mine]
            row = np.searchsorted(chosen, place[mine])
            groups.append(
                _Group(
                    torch.from_numpy(chosen).to(like.device),
                    weight[torch.from_numpy(kept)].flatten(0, 1).to(like),
                    torch.from_numpy(mine).to(like.device),
                    torch.from_numpy(row * len(kept) * p * q + entry).to(like.device),
                )
            )
        offset = bias[torch.from_numpy(channel), torch.from_numpy(inside)]
        return _Columns(tuple(groups), offset, len(flat), self._decoder.reach)


@dataclass(frozen=True, eq=False)
class _Group:
    """Patches of which the same channels are read.

    Attributes:
        places: Their indices in (T, h, w), with shape (R,).
        weight: From a latent column and its neighbours to those values, with shape (n, k c).
        position: Where each value goes among all, with shape (u,).
        source: Where it is in (R, n), with shape (u,).
    """

    places: Tensor
    weight: Tensor
    position: Tensor
    source: Tensor


@dataclass(frozen=True, eq=False)
class _Columns:
    """A map from latents (B, T, c, h, w) to chosen state values (B, U), and its transpose."""

    groups: tuple[_Group, ...]
    offset: Tensor
    size: int
    reach: int

    def forward(self, latents: Tensor) -> Tensor:
        values = latents.new_empty(len(latents), self.size)
        # Gathered at once: padding the latents again for each group would cost as much.
        places = torch.cat([g.places for g in self.groups])
        columns = neighbours_at(latents, self.reach, places)
        parts = columns.split([len(g.places) for g in self.groups], dim=1)
        for g, part in zip(self.groups, parts, strict=True):
            read = (part @ g.weight.T).flatten(1)
            values[:, g.position] = read.index_select(1, g.source)
        return values

    def transpose(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        length, c, h, w = shape
        count = len(values)
        columns = values.new_zeros(count, length * h * w, c * (2 * self.reach + 1) ** 2)
        for g in self.groups:
            buffer = values.new_zeros(count, len(g.places) * len(g.weight))
            buffer.index_copy_(1, g.source, values.index_select(1, g.position))
            columns[:, g.places] = buffer.view(count, len(g.places), -1) @ g.weight
        back = neighbours_transposed(columns.view(count * length, h, w, -1), self.reach)
        return back.unflatten(0, (count, length))


class _Decode(torch.autograd.Function):
    """The map or, given the shape (T, c, h, w) of latents, its transpose."""

    @staticmethod
    def forward(x: Tensor, part: _Columns, shape: tuple[int, ...] | None) -> Tensor:
        if shape is None:
            return part.forward(x)
        return part.transpose(x, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.part, shape = inputs
        ctx.other = tuple(x.shape[1:]) if shape is None else None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Decode.apply(gradient, ctx.part, ctx.other), None, None
