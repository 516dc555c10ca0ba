"""The operator of a whole observation set: one sparse product, then each family's function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.domain.errors import InvalidInput
from model.operators.base import OperatorFamily
from model.operators.product import SparseMatrix
from model.operators.stencil import Stencil, assemble

__all__ = ["Block", "CompositeOperator"]

Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """Observations of one family.

    Attributes:
        family: Their family.
        position: Where each stands in the output, with shape (n,).
        stencil: Their stencils.
        parameters: Parameters of the pointwise function, each with shape (n,).
    """

    family: OperatorFamily
    position: Int
    stencil: Stencil
    parameters: Mapping[str, NDArray[np.float64]]

    def take(self, chosen: NDArray[np.bool_], position: Int, hours: int = 0) -> "Block":
        """The chosen ones (n,), at new positions, on states numbered from `hours`."""
        if chosen.all():
            stencil = self.stencil
        else:
            stencil = self.stencil.take(chosen)
        if hours:
            stencil = stencil.shifted(hours)
        parameters = {name: value[chosen] for name, value in self.parameters.items()}
        return Block(self.family, position[chosen], stencil, parameters)


class CompositeOperator:
    """Satisfies :class:`model.operators.base.ObservationOperator`.

    The sparse matrix is put together on first use. Half-precision states are observed in float32.

    Arguments:
        blocks: Their positions together are 0 … N - 1.
        state_shape: (T, C, Y, X).
    """

    def __init__(self, blocks: Sequence[Block], state_shape: tuple[int, int, int, int]) -> None:
        self.blocks = tuple(b for b in blocks if len(b.position))
        self.state_shape = state_shape
        self._tensors: dict[tuple[int, str, torch.dtype, torch.device], Tensor] = {}

    @property
    def linear(self) -> bool:
        """Whether all families are affine."""
        return all(block.family.linear for block in self.blocks)

    @cached_property
    def _matrix(self) -> tuple[SparseMatrix, Int, Int]:
        _, channels, rows, columns = self.state_shape
        matrix, used = assemble([b.stencil for b in self.blocks], channels, rows * columns)
        order = np.concatenate([b.position for b in self.blocks])
        return SparseMatrix(matrix), used, np.argsort(order, kind="stable")

    @property
    def columns(self) -> Int:
        """Flat indices in (T, C, Y, X) of the state values that are read at all, ascending."""
        return self._matrix[1] if self.blocks else np.empty(0, dtype=np.int64)

    def __call__(self, states: Tensor) -> Tensor:
        """From physical states (*, T, C, Y, X) in SI units to model equivalents (*, N)."""
        if tuple(states.shape[-4:]) != self.state_shape:
            raise InvalidInput(
                f"Expected states with shape (*, T, C, Y, X) = (*, {self.state_shape}); got "
                f"{tuple(states.shape)}."
            )
        flat = states.flatten(-4)
        if not self.blocks:
            return flat[..., :0]
        return self.observe(flat.index_select(-1, self._index("columns", self._matrix[1], flat)))

    def observe(self, values: Tensor) -> Tensor:
        """From the state values at :attr:`columns` (*, U) to model equivalents (*, N)."""
        if values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        matrix, _, order = self._matrix
        ingredients = matrix(values)
        start, parts = 0, []
        for number, block in enumerate(self.blocks):
            count, k = len(block.position), block.stencil.ingredients
            part = ingredients[..., start : start + count * k].unflatten(-1, (count, k))
            parts.append(block.family.combine(part, self._parameters(number, values)))
            start += count * k
        return torch.cat(parts, dim=-1).index_select(-1, self._index("order", order, values))

    def _parameters(self, number: int, like: Tensor) -> dict[str, Tensor]:
        tensors = {}
        for name, value in self.blocks[number].parameters.items():
            key = (number, name, like.dtype, like.device)
            if key not in self._tensors:
                self._tensors[key] = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            tensors[name] = self._tensors[key]
        return tensors

    def _index(self, name: str, index: Int, like: Tensor) -> Tensor:
        key = (-1, name, torch.int64, like.device)
        if key not in self._tensors:
            self._tensors[key] = torch.as_tensor(index, device=like.device)
        return self._tensors[key]
