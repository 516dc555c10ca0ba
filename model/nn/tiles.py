r"""Evaluate convolutions only in those parts of an image that are read.

An image is cut into square tiles. Of each layer only the tiles are computed that a wanted point
depends on: from the points read backwards, every convolution adds its reach to the points needed
of the layer before (the receptive field). Before a convolution a tile is given the margin that it
shares with its neighbours; a neighbour that is not there, beyond the edge or not needed, counts as
zero, as in a zero-padded convolution. So every point read has the value that the whole image
would give it. The other points of a tile may lack neighbours; nothing that is read depends on
them.

The adjoint of a convolution is the convolution of the cotangent with the flipped and transposed
kernel, on the same tiles. So neither direction adds into shared points, and the sums are the same
in every run.

References:
    | SBNet: Sparse Blocks Network for Fast Inference (Ren et al., 2018)
    | https://arxiv.org/abs/1801.02108
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.nn.frozen import FixedConvolution, FrozenBlock

__all__ = [
    "TileSet",
    "TiledBlock",
    "TiledConvolution",
    "coarsened",
    "cut",
    "reached",
    "select",
]

Int = NDArray[np.int64]
Mask = NDArray[np.bool_]


def reached(points: Mask, reach: int) -> Mask:
    """Return which points of an image (H, W) a square kernel reads to compute these points."""
    found: Mask = points.copy()
    for _ in range(reach):
        rows, before = found.copy(), found
        np.logical_or(rows[1:], before[:-1], out=rows[1:])
        np.logical_or(rows[:-1], before[1:], out=rows[:-1])
        found = rows.copy()
        np.logical_or(found[:, 1:], rows[:, :-1], out=found[:, 1:])
        np.logical_or(found[:, :-1], rows[:, 1:], out=found[:, :-1])
    return found


def coarsened(points: Mask, factor: tuple[int, int]) -> Mask:
    """Return which blocks of p x q points hold any of these, from (H, W) to (H / p, W / q)."""
    (high, wide), (p, q) = points.shape, factor
    return np.asarray(points.reshape(high // p, p, wide // q, q).any(axis=(1, 3)))


@dataclass(frozen=True, eq=False)
class TileSet:
    """The tiles that are computed of images of equal size.

    Attributes:
        rows: Rows of tiles of each image.
        columns: Columns of tiles of each image.
        numbers: Of each tile, (image, row, column) as one index; ascending, with shape (n,).
    """

    rows: int
    columns: int
    numbers: Int

    @classmethod
    def of(cls, points: Sequence[Mask], side: int) -> "TileSet":
        """Return the tiles of `side` points that hold any of these, one mask (H, W) per image."""
        held = np.stack([coarsened(mask, (side, side)) for mask in points])
        return cls(held.shape[1], held.shape[2], np.flatnonzero(held))

    def __len__(self) -> int:
        return len(self.numbers)

    def positions(self, numbers: Int) -> Int:
        """Return the positions of these tiles in the set, -1 for those not in it."""
        if not len(self):
            return np.full(len(numbers), -1)
        place = np.minimum(np.searchsorted(self.numbers, numbers), len(self) - 1)
        return np.where(self.numbers[place] == numbers, place, -1)

    def around(self, source: "TileSet") -> Int:
        """Return positions in `source` of the 3 x 3 tiles around each, -1 for none; shape (9, n)."""
        row = self.numbers // self.columns % self.rows
        column = self.numbers % self.columns
        found = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                inside = (row + down >= 0) & (row + down < self.rows)
                inside &= (column + right >= 0) & (column + right < self.columns)
                place = source.positions(self.numbers + down * self.columns + right)
                found.append(np.where(inside, place, -1))
        return np.stack(found)

    def parts(self, parts: int) -> Int:
        """Return the numbers of the parts × parts tiles that each becomes on a finer image.

        In the order in which `cut` gives them, with shape (n * parts²,).
        """
        image, cell = np.divmod(self.numbers, self.rows * self.columns)
        row, column = np.divmod(cell, self.columns)
        fine = (image * self.rows * parts + row * parts) * self.columns * parts + column * parts
        i, j = np.divmod(np.arange(parts * parts), parts)
        found: Int = (fine[:, None] + i * self.columns * parts + j).reshape(-1)
        return found


def cut(images: Tensor, side: int) -> Tensor:
    """Return all tiles of images (n, C, H, W), row by row, with shape (n k, C, side, side)."""
    _, c, high, wide = images.shape
    x: Tensor = images.permute(0, 2, 3, 1).reshape(-1, high // side, side, wide // side, side, c)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(-1, c, side, side)


def select(tiles: Tensor, count: int, positions: Tensor) -> Tensor:
    """Return tiles of each of m members, from (m * count, C, t, t)."""
    chosen: Tensor = tiles.unflatten(0, (-1, count)).index_select(1, positions)
    return chosen.flatten(0, 1).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class TiledConvolution(FixedConvolution):
    """A zero-padded convolution with fixed weights from the tiles of one set to those of another.

    Attributes:
        forward_index: Positions among the sources of the 3 x 3 tiles around each target, with
            shape (9, n).
        adjoint_index: Positions among the targets of those around each source.
    """

    forward_index: Tensor
    adjoint_index: Tensor

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else bias.to(self.kind)
        image = self._with_margin(x.to(self.kind), self.forward_index, self.adjoint_index.shape[1])
        return F.conv2d(image, self.weight.to(self.kind), bias)

    def adjoint(self, gradient: Tensor, size: torch.Size, stride: tuple[int, ...]) -> Tensor:
        image = self._with_margin(
            gradient.to(self.kind), self.adjoint_index, self.forward_index.shape[1]
        )
        return F.conv2d(image, self.weight.to(self.kind).flip(2, 3).transpose(0, 1))

    def _with_margin(self, tiles: Tensor, around: Tensor, count: int) -> Tensor:
        """Return tiles (m * n, C, t + 2 r, t + 2 r) with margins of r points, from (m * count, C, t, t)."""
        c, side = tiles.shape[1:3]
        reach = self.padding[0]
        known = tiles.permute(0, 2, 3, 1).reshape(-1, count, side, side, c)
        shape = (known.shape[0], around.shape[1], side + 2 * reach, side + 2 * reach, c)
        image = known.new_empty(shape)
        # A margin above is the last rows of the tile above, and so on.
        inner = (slice(side - reach, side), slice(0, side), slice(0, reach))
        outer = (slice(0, reach), slice(reach, -reach or None), slice(side + reach, None))
        for k in range(9):
            i, j = divmod(k, 3)
            if reach == 0 and k != 4:
                continue
            part = known[:, :, inner[i], inner[j]].index_select(1, around[k].clamp(min=0))
            there = (around[k] >= 0)[:, None, None, None]
            image[:, :, outer[i], outer[j]] = torch.where(there, part, 0.0)
        return image.flatten(0, 1).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class TiledBlock(FrozenBlock):
    """A frozen residual block from the tiles of one set to those of a smaller one.

    Attributes:
        kept: Positions of the target tiles among the sources, with shape (n,).
        count: Number of sources.
    """

    kept: Tensor
    count: int

    def inside(self, x: Tensor) -> Tensor:
        return select(x, self.count, self.kept)

    def outside(self, g: Tensor) -> Tensor:
        c, t = g.shape[1:3]
        known = g.permute(0, 2, 3, 1).reshape(-1, len(self.kept), t, t, c)
        total = known.new_zeros(known.shape[0], self.count, t, t, c)
        return total.index_copy(1, self.kept.long(), known).flatten(0, 1).permute(0, 3, 1, 2)

    def keeps_hidden(self, x: Tensor) -> bool:
        return True  # only that of the tiles, which is small
