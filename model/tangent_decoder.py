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

from model.linear_decoder import LinearDecoder

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
        """The rows of the map that each state needs; states with the same channels together."""
        length, channels, rows, columns = operator.state_shape
        p, q = self._decoder.patch
        flat = operator.columns
        cell, plane = flat % (rows * columns), flat // (rows * columns)
        time, channel = plane // channels, plane % channels
        y, x = cell // columns, cell % columns
        column = (y // p) * (columns // q) + x // q
        inside = (y % p) * q + x % q
        read = np.zeros((length, channels), dtype=bool)
        read[time, channel] = True
        weight = self._decoder.weight.unflatten(0, (channels, p * q)) * self._std[:, None, None]
        bias = self._decoder.bias.unflatten(0, (channels, p * q)) * self._std[:, None]
        bias = (bias + self._mean[:, None]).to(like)
        groups = []
        for wanted in np.unique(read[read.any(axis=1)], axis=0):
            states = np.flatnonzero((read == wanted).all(axis=1))
            mine = np.isin(time, states)
            state = np.searchsorted(states, time[mine])
            kept = np.flatnonzero(wanted)
            entry = np.searchsorted(kept, channel[mine]) * p * q + inside[mine]
            place = state * (rows // p) * (columns // q) + column[mine]
            groups.append(
                _Group(
                    torch.from_numpy(states).to(like.device),
                    weight[torch.from_numpy(kept)].flatten(0, 1).to(like),
                    torch.from_numpy(np.flatnonzero(mine)).to(like.device),
                    torch.from_numpy(place * len(kept) * p * q + entry).to(like.device),
                )
            )
        offset = bias[torch.from_numpy(channel), torch.from_numpy(inside)]
        return _Columns(tuple(groups), offset, len(flat))


@dataclass(frozen=True, eq=False)
class _Group:
    """States of which the same channels are read.

    Attributes:
        states: Their indices, with shape (S,).
        weight: From a latent column to those values of its patch, with shape (n, c).
        position: Where each value goes among all, with shape (u,).
        source: Where it is in (S, h w, n), with shape (u,).
    """

    states: Tensor
    weight: Tensor
    position: Tensor
    source: Tensor


@dataclass(frozen=True, eq=False)
class _Columns:
    """A map from latents (B, T, c, h, w) to chosen state values (B, U), and its transpose."""

    groups: tuple[_Group, ...]
    offset: Tensor
    size: int

    def forward(self, latents: Tensor) -> Tensor:
        values = latents.new_empty(len(latents), self.size)
        columns = latents.flatten(3).transpose(2, 3)
        for g in self.groups:
            part = columns[:, g.states] @ g.weight.T
            values[:, g.position] = part.flatten(1).index_select(1, g.source)
        return values

    def transpose(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        c, h, w = shape
        length = 1 + max(int(g.states.max()) for g in self.groups)
        out = values.new_zeros(len(values), length, c, h * w)
        for g in self.groups:
            buffer = values.new_zeros(len(values), len(g.states) * h * w * len(g.weight))
            buffer.index_copy_(1, g.source, values.index_select(1, g.position))
            part = buffer.view(len(values), len(g.states), h * w, -1) @ g.weight
            out[:, g.states] = part.transpose(2, 3)
        return out.unflatten(3, (h, w))


class _Decode(torch.autograd.Function):
    """The map or, given the shape (T, c, h, w) of latents, its transpose."""

    @staticmethod
    def forward(x: Tensor, part: _Columns, shape: tuple[int, ...] | None) -> Tensor:
        if shape is None:
            return part.forward(x)
        out = part.transpose(x, shape[1:])
        return torch.nn.functional.pad(out, (0, 0, 0, 0, 0, 0, 0, shape[0] - out.shape[1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.part, shape = inputs
        ctx.other = tuple(x.shape[1:]) if shape is None else None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Decode.apply(gradient, ctx.part, ctx.other), None, None
