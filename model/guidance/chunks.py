r"""Linearise the model equivalents of many states within a memory budget.

Decoding a state and keeping what its derivatives need takes most of the memory of guidance, and
grows with the number of observed states. The model equivalents are therefore computed in two
stages, :math:`H(x) = J(G_1(x_1), \ldots, G_n(x_n))`: each *piece* :math:`G_i` decodes a few
states and keeps the values that observations read; the *join* J, cheap and small, applies the
operators to these. Products with the Jacobian follow by the chain rule,

.. math:: \mathbf{H} u = \mathbf{J} (\mathbf{G}_1 u_1, \ldots), \qquad
    \mathbf{H}^\top w = (\mathbf{G}_1^\top (\mathbf{J}^\top w)_1, \ldots),

piece by piece. The graphs of as many pieces are kept as the budget allows, which costs least; the
others are linearised again for every product and then released. Full states exist for one piece
at a time. The choice does not change the numbers beyond rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.guidance.solvers import Tangent

__all__ = ["ChunkedTangent", "Piece", "SplitEquivalents", "whole"]


@dataclass(frozen=True)
class Piece:
    """The values that observations read of a few states.

    Attributes:
        read: From latents (m, s, c, h, w) to values of any shape; differentiable twice.
        rows: Which m rows of a batch it reads, None for all.
        states: Which s states of a blanket it reads, None for all.
        decoded: How many states it decodes: m s, or 0 where no decoder is needed.
        share: Work of the piece over that of decoding its states completely.
    """

    read: Callable[[Tensor], Tensor]
    rows: Tensor | None
    states: Tensor | None
    decoded: int
    share: float = 1.0

    def take(self, x: Tensor) -> Tensor:
        """Return the latents it reads of (B, K, c, h, w)."""
        x = x if self.rows is None else x[self.rows.to(x.device)]
        return x if self.states is None else x[:, self.states.to(x.device)]

    def put(self, total: Tensor, part: Tensor) -> None:
        """Add a part shaped as the result of `take` to (B, K, c, h, w), in place; its adjoint."""
        if self.rows is None:
            total += part
            return
        rows = self.rows.to(total.device)
        if self.states is None:
            total.index_add_(0, rows, part)
            return
        whole_rows = torch.zeros_like(total[rows])
        whole_rows[:, self.states.to(total.device)] = part
        total.index_add_(0, rows, whole_rows)


@dataclass(frozen=True)
class SplitEquivalents:
    """Model equivalents computed in two stages: pieces apart, then their join.

    Attributes:
        pieces: The first stage.
        join: The second, from the values of all pieces to model equivalents (B, N); differentiable
            twice.
    """

    pieces: tuple[Piece, ...]
    join: Callable[[Sequence[Tensor]], Tensor]


def whole(predict: Callable[[Tensor], Tensor]) -> SplitEquivalents:
    """Return model equivalents that need no decoder as a single piece."""
    return SplitEquivalents((Piece(predict, None, None, 0),), lambda values: values[0])


class ChunkedTangent:
    """The same as `Tangent`, piece by piece.

    Arguments:
        split: The map, from (B, K, c, h, w) to (B, N).
        x: The point, with shape (B, K, c, h, w).
        kept: Number of decoded states whose graph may be kept.

    Attributes:
        x: The point, without gradient.
        y: The model equivalents there, without gradient.
    """

    def __init__(self, split: SplitEquivalents, x: Tensor, kept: int) -> None:
        self.x = x.detach()
        self._pieces = split.pieces
        self._tangents: list[Tangent | None] = []
        values = []
        for piece in split.pieces:
            if piece.decoded <= kept:
                kept -= piece.decoded
                tangent = Tangent(piece.read, piece.take(self.x))
                self._tangents.append(tangent)
                values.append(tangent.y)
            else:
                self._tangents.append(None)
                with torch.no_grad():
                    values.append(piece.read(piece.take(self.x)))
        shapes = [value.shape for value in values]
        self._sizes = [value.numel() for value in values]

        def join(flat: Tensor) -> Tensor:
            parts = flat.split(self._sizes)
            return split.join([p.view(s) for p, s in zip(parts, shapes, strict=True)])

        self._shapes = shapes
        self._join = Tangent(join, torch.cat([value.flatten() for value in values]))
        self.y = self._join.y

    def vjp(self, w: Tensor) -> Tensor:
        """Return the product of the transpose of the Jacobian with `w` (B, N), shaped as `x`."""
        total = torch.zeros_like(self.x)
        parts = self._join.vjp(w).split(self._sizes)
        for i, (piece, part) in enumerate(zip(self._pieces, parts, strict=True)):
            piece.put(total, self._tangent(i).vjp(part.view(self._shapes[i])))
        return total

    def jvp(self, u: Tensor) -> Tensor:
        """Return the product of the Jacobian with `u`, which has the shape of `x`; (B, N)."""
        parts = [self._tangent(i).jvp(p.take(u)).flatten() for i, p in enumerate(self._pieces)]
        return self._join.jvp(torch.cat(parts))

    def _tangent(self, index: int) -> Tangent:
        """Return a piece's linearisation; one that is not kept lives as long as the caller needs it."""
        piece = self._pieces[index]
        return self._tangents[index] or Tangent(piece.read, piece.take(self.x))
