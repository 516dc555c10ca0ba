r"""Apply the operators of a whole observation set: one sparse product, then each family's function.

The product with the fixed sparse matrix is differentiable to any order. The adjoint of
:math:`x \mapsto S x` is the product with :math:`S^\top`, kept as a second compressed matrix, so
that neither direction scatters into a dense array entry by entry.

Representativeness error is the part of observed values that the model's states cannot represent. A
latent model only reproduces what its autoencoder keeps. The residual of its reconstruction, :math:`s`
(one standard deviation by channel and row), is an error of the observation operator and belongs
into R beside the instrument's, :math:`\sigma^2 = \sigma_o^2 + \sigma_r^2`, with

.. math:: \sigma_r = |H(\bar{x} + s) - H(\bar{x})|

which for a direct observation is the residual of its own variable interpolated to its place.
(Janjić et al., "On the representation error in data assimilation", QJRMS 144, 2018.)
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from model.domain.errors import InvalidInput
from model.operators.base import OperatorFamily, Stencil, expand_stencils

__all__ = [
    "CompositeOperator",
    "FamilyBlock",
    "SparseMatrix",
    "reconstruction_residual",
    "representativeness_std",
    "residual_of_pairs",
]


class SparseMatrix:
    """A sparse matrix that multiplies batches of vectors; device and dtype come from the input.

    Arguments:
        matrix: With shape (rows, columns), float64.
    """

    def __init__(self, matrix: sparse.csr_array) -> None:
        self.shape = matrix.shape
        self._parts = (matrix, matrix.T.tocsr())
        self._cache: dict[tuple[bool, torch.dtype, torch.device], Tensor] = {}

    def tensor(self, transposed: bool, like: Tensor) -> Tensor:
        """Return the matrix or its transpose as a compressed tensor on the device of `like`."""
        key = (transposed, like.dtype, like.device)
        if key not in self._cache:
            part = self._parts[int(transposed)]
            self._cache[key] = _compressed(part, like)
        return self._cache[key]

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply with the matrix, from shape (*, columns) to (*, rows)."""
        flat: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self, False)  # type: ignore[no-untyped-call]
        return flat.reshape(*x.shape[:-1], self.shape[0])


def _compressed(matrix: sparse.csr_array, like: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch announces on first use that compressed tensors are in beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype("int64")),
            torch.from_numpy(matrix.indices.astype("int64")),
            torch.from_numpy(matrix.data).to(like.dtype),
            size=matrix.shape,
            device=like.device,
            check_invariants=False,
        )


class _Product(torch.autograd.Function):
    """(B, columns) -> (B, rows), or the reverse when transposed."""

    @staticmethod
    def forward(x: Tensor, matrix: SparseMatrix, transposed: bool) -> Tensor:
        # The dense product wants columns side by side; contiguous keeps gradients' strides plain.
        return (matrix.tensor(transposed, x) @ x.T.contiguous()).T.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.matrix, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.matrix, not ctx.transposed), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        product: Tensor = _Product.apply(tangent, ctx.matrix, ctx.transposed)  # type: ignore[no-untyped-call]
        return product

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, matrix: SparseMatrix, transposed: bool
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        out = _Product.apply(x.flatten(0, 1), matrix, transposed)  # type: ignore[no-untyped-call]
        return out.unflatten(0, x.shape[:2]), 0


Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FamilyBlock:
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

    def take(self, chosen: NDArray[np.bool_], position: Int, hours: int = 0) -> "FamilyBlock":
        """Return the chosen ones (n,), at new positions, on states numbered from `hours`."""
        if chosen.all():
            stencil = self.stencil
        else:
            stencil = self.stencil.take(chosen)
        if hours:
            stencil = stencil.shifted(hours)
        parameters = {name: value[chosen] for name, value in self.parameters.items()}
        return FamilyBlock(self.family, position[chosen], stencil, parameters)


class CompositeOperator:
    """Apply the operators of all families with one sparse product.

    The sparse matrix is put together on first use. Half-precision states are observed in float32.

    Arguments:
        blocks: Their positions together are 0 … N - 1.
        state_shape: (T, C, Y, X).
    """

    def __init__(
        self, blocks: Sequence[FamilyBlock], state_shape: tuple[int, int, int, int]
    ) -> None:
        self.blocks = tuple(b for b in blocks if len(b.position))
        self.state_shape = state_shape
        self._tensors: dict[tuple[int, str, torch.dtype, torch.device], Tensor] = {}

    @property
    def linear(self) -> bool:
        """Whether the operators of all families are affine."""
        return all(block.family.linear for block in self.blocks)

    @cached_property
    def _matrix(self) -> tuple[SparseMatrix, Int, Int]:
        _, channels, rows, columns = self.state_shape
        matrix, used = expand_stencils([b.stencil for b in self.blocks], channels, rows * columns)
        order = np.concatenate([b.position for b in self.blocks])
        return SparseMatrix(matrix), used, np.argsort(order, kind="stable")

    @property
    def columns(self) -> Int:
        """Flat indices in (T, C, Y, X) of the state values that are read at all, ascending."""
        return self._matrix[1] if self.blocks else np.empty(0, dtype=np.int64)

    def __call__(self, states: Tensor) -> Tensor:
        """Map physical states (*, T, C, Y, X) in SI units to model equivalents (*, N)."""
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
        """Map the state values at :attr:`columns` (*, U) to model equivalents (*, N)."""
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


def reconstruction_residual(states: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the standard deviation of the residual of each channel and row.

    Arguments:
        states: With shape (N, C, Y, X), spread over the seasons; NaN cells are left out.
        reconstructed: With the same shape.

    Returns:
        With shape (C, Y), in the channels' units.
    """
    return residual_of_pairs([(states, reconstructed)])


def residual_of_pairs(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the `reconstruction_residual` of states given in batches, one in memory at a time."""
    total: Tensor | None = None
    count: Tensor | None = None
    like = torch.empty(0)
    for states, reconstructed in pairs:
        square = (reconstructed - states).double().square()
        valid = ~square.isnan()
        parts = torch.where(valid, square, 0.0).sum(dim=(0, 3)), valid.sum(dim=(0, 3))
        total = parts[0] if total is None else total + parts[0]
        count = parts[1] if count is None else count + parts[1]
        like = states
    if total is None or count is None:
        raise InvalidInput("Expected at least one state to compare with its reconstruction.")
    return (total / count.clamp(min=1)).sqrt().to(like)


@torch.no_grad()
def representativeness_std(
    operator: CompositeOperator, typical: Tensor, residual: Tensor
) -> Tensor:
    """Return one standard deviation for each observation, with shape (N,), float64.

    Arguments:
        operator: H.
        typical: A typical value of each channel, with shape (C,).
        residual: See `reconstruction_residual`, with shape (C, Y).
    """
    _, channels, rows, columns = operator.state_shape
    # Only the cells that H reads are filled in, not a whole trajectory.
    plane, cell = np.divmod(operator.columns, rows * columns)
    channel = torch.from_numpy(plane % channels)
    lower = typical.double()[channel]
    upper = lower + residual.double()[channel, torch.from_numpy(cell // columns)]
    below, above = operator.observe(torch.stack((lower, upper)))
    std: Tensor = (above - below).abs()
    return std
