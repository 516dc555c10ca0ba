r"""Products with a fixed sparse matrix, differentiable to any order.

The adjoint of :math:`x \mapsto S x` is the product with :math:`S^\top`, kept as a second
compressed matrix, so that neither direction scatters into a dense array entry by entry.
"""

import warnings
from typing import Any

import torch
from scipy import sparse
from torch import Tensor

__all__ = ["SparseMatrix"]


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
        """The matrix or its transpose as a compressed tensor on the device of `like`."""
        key = (transposed, like.dtype, like.device)
        if key not in self._cache:
            part = self._parts[int(transposed)]
            self._cache[key] = _compressed(part, like)
        return self._cache[key]

    def __call__(self, x: Tensor) -> Tensor:
        """Products, from shape (*, columns) to (*, rows)."""
        flat: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self, False)
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
        return _Product.apply(gradient, ctx.matrix, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _Product.apply(tangent, ctx.matrix, ctx.transposed)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, matrix: SparseMatrix, transposed: bool
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        out = _Product.apply(x.flatten(0, 1), matrix, transposed)
        return out.unflatten(0, x.shape[:2]), 0
