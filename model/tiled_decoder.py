"""Decode only the points that observations read, with the same values as in a full decode.

The decoder is convolutional: a point depends on the latents within its receptive field alone.
The coarse levels of the decoder are evaluated whole. From the first level that is needed only in
part, tiles are evaluated (:mod:`model.nn.tiles`). Longitudes are wrapped in the latents, so a patch
at the date line reads the same columns as a full decode; the rows beyond the poles are the zeros of
the convolutions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from model.autoencoder import Autoencoder
from model.linear_decoder import ReadsColumns
from model.nn.convolution import Conv2d, ResidualBlock
from model.nn.frozen import fixed_convolution, fixed_residual, product_type
from model.nn.tiles import (
    Int,
    Mask,
    TiledBlock,
    TiledConvolution,
    TileSet,
    coarsened,
    cut,
    reached,
    select,
)

__all__ = ["DecodedPoints", "PartialDecoder", "needed_tiles"]

SIDE, COARSE_SIDE = 4, 2
"""Largest side of a tile in points, on the finest level and on the others. Smaller tiles compute fewer
points that are not needed, but a larger share of overlapping margins."""
MAX_TILED_SHARE = 0.95
"""Levels that need a larger share of their tiles, on average, are evaluated whole."""


@dataclass(frozen=True, eq=False)
class TiledLevel:
    """The part of one level of the decoder that is evaluated.

    Attributes:
        modules: Residual blocks, then a convolution or an upsampling by one.
        tile_sets: The tiles before and after each of their convolutions.
        side: Points of a tile.
        entry: Positions of the first set's tiles among the input tiles, with shape (n,).
        input_count: Number of input tiles, over all states.
    """

    modules: tuple[nn.Module, ...]
    tile_sets: tuple[TileSet, ...]
    side: int
    entry: Int
    input_count: int


@dataclass(frozen=True, eq=False)
class _Tables:
    """The positions of a level's tiles on a device: around each target and source, and kept."""

    entry: Tensor
    around: tuple[tuple[Tensor, Tensor], ...]
    kept: tuple[Tensor, ...]

    @classmethod
    def of(cls, level: TiledLevel, device: torch.device) -> "_Tables":
        def there(positions: Int) -> Tensor:
            return torch.from_numpy(positions.astype(np.int32)).to(device)

        tile_sets = level.tile_sets
        return cls(
            there(level.entry),
            tuple(
                (there(target.around(source)), there(source.around(target)))
                for source, target in zip(tile_sets, tile_sets[1:], strict=False)
            ),
            tuple(
                there(source.positions(target.numbers))
                for source, target in zip(tile_sets, tile_sets[2:], strict=False)
            ),
        )


def needed_tiles(autoencoder: Autoencoder, read: Sequence[Mask]) -> tuple[list[TiledLevel], float]:
    """Return the levels that are evaluated in tiles, coarse to fine, and their share of the work.

    Arguments:
        autoencoder: The autoencoder whose decoder is used.
        read: Points wanted of the padded image of each state, each with shape (H, W).

    Returns:
        No levels, and a share of 1, where decoding whole states is at least as fast.
    """
    config, decoder = autoencoder.config, autoencoder.decoder
    frozen = not any(p.requires_grad for p in decoder.parameters())
    if not (frozen and config.pixel_shuffle):
        return [], 1.0
    points = [coarsened(mask, config.patch_size) for mask in read]
    found: list[TiledLevel] = []
    total = done = 0.0
    for number, modules in reversed(list(enumerate(decoder.levels()))):
        layers = [layer for module in modules for layer in _convolutions(module)]
        cells = float(config.stride) ** (2 * number)
        work = np.array([layer.weight.numel() * cells for layer in layers])
        shares = np.ones(len(layers))
        if len(found) == len(decoder.levels()) - 1 - number and number > 0:
            level = _level(autoencoder, number, points)
            if level is not None:
                shares = np.array(
                    [len(tile_set) / level.input_count for tile_set in level.tile_sets[1:]]
                )
                found.append(level)
                reach = len(layers) * (config.kernel_size // 2)
                points = [coarsened(reached(p, reach), (config.stride,) * 2) for p in points]
        total, done = total + work.sum(), done + float(work @ shares)
    return _connect(found[::-1], config.stride), done / total


def tile_side(autoencoder: Autoencoder, number: int) -> int:
    """Return the points of a tile of a level: a power of the stride, so that tiles nest."""
    fine = number == len(autoencoder.config.hid_blocks) - 1
    stride, side = autoencoder.config.stride, 1
    while side * stride <= (SIDE if fine else COARSE_SIDE):
        side *= stride
    return side


def _level(autoencoder: Autoencoder, number: int, points: Sequence[Mask]) -> TiledLevel | None:
    """Return the tiles needed for these points of a level; None if it is evaluated whole."""
    side, reach = tile_side(autoencoder, number), autoencoder.config.kernel_size // 2
    if reach > side or any(size % side for size in points[0].shape):
        return None
    modules = autoencoder.decoder.levels()[number]
    count = sum(len(_convolutions(module)) for module in modules)
    tile_sets = [TileSet.of(points, side)]
    for _ in range(count):
        points = [reached(p, reach) for p in points]
        tile_sets.append(TileSet.of(points, side))
    first = tile_sets[-1]
    whole = first.rows * first.columns * len(points)
    if sum(len(tile_set) for tile_set in tile_sets[:-1]) > MAX_TILED_SHARE * whole * count:
        return None
    return TiledLevel(tuple(modules), tuple(tile_sets[::-1]), side, first.numbers, whole)


def _convolutions(module: nn.Module) -> list[Conv2d]:
    return [m for m in module.modules() if isinstance(m, Conv2d)]


def _connect(levels: list[TiledLevel], stride: int) -> list[TiledLevel]:
    """Connect levels: find the input tiles of each among those of the level before, cut to size."""
    found = levels[:1]
    for before, level in zip(levels, levels[1:], strict=False):
        numbers = before.tile_sets[-1].parts(before.side * stride // level.side)
        order = np.argsort(numbers)
        entry = order[np.searchsorted(numbers, level.entry, sorter=order)]
        found.append(replace(level, entry=entry, input_count=len(numbers)))
    return found


def _evaluate(level: TiledLevel, tables: _Tables, tiles: Tensor) -> Tensor:
    """Return the output tiles of a level from its input tiles, both (m * n, C, t, t), m members."""
    x, k = select(tiles, level.input_count, tables.entry), 0
    for module in level.modules:
        around = tables.around[k:]
        first, *rest = _convolutions(module)
        if isinstance(module, ResidualBlock):
            kind = product_type(x)
            block = TiledBlock(
                _tiled(first, kind, around[0]),
                _tiled(rest[0], kind, around[1]),
                first.bias,
                rest[0].bias,
                module.norm.scaled_eps(x),
                tables.kept[k],
                len(level.tile_sets[k]),
            )
            x, k = fixed_residual(x, block), k + 2
            continue
        x = fixed_convolution(x, _tiled(first, product_type(x), around[0]), first.bias)
        x, k = (module[1](x) if isinstance(module, nn.Sequential) else x), k + 1
    return x


def _tiled(layer: Conv2d, kind: torch.dtype, around: tuple[Tensor, Tensor]) -> TiledConvolution:
    padding = cast(tuple[int, int], layer.padding)
    return TiledConvolution(layer.weight, padding, kind, *around)


class DecodedPoints:
    """The values of some points of some states, as a map from latents.

    Arguments:
        autoencoder: The autoencoder whose decoder is used.
        points: Flat indices in (s, C, Y, X) of the values.
        states: s.

    Attributes:
        channel: Channel of each value, with shape (u,).
        share: Work over that of decoding the whole states.
    """

    def __init__(self, autoencoder: Autoencoder, points: Int, states: int) -> None:
        self._autoencoder = autoencoder
        self._states = states
        config = autoencoder.config
        left, right, top, bottom = config.padding
        high, wide = config.shape
        plane, cell = np.divmod(points, high * wide)
        state, self.channel = np.divmod(plane, config.in_channels)
        y, x = cell // wide + top, cell % wide + left
        read = np.zeros((states, high + top + bottom, wide + left + right), dtype=bool)
        read[state, y, x] = True
        self._levels, self.share = needed_tiles(autoencoder, list(read))
        self._index = self._places(state, y, x) if self._levels else points
        self._tables: dict[torch.device, tuple[_Tables, ...]] = {}

    def __call__(self, latents: Tensor) -> Tensor:
        """Map latents (m, s, c, h, w) of the autoencoder to standardised values (m, u)."""
        latents_of_all = latents.flatten(0, 1)
        index = torch.from_numpy(self._index).to(latents.device)
        if not self._levels:
            states = self._autoencoder.decode(latents_of_all)
            return states.reshape(len(latents), -1).index_select(1, index)
        whole = len(self._autoencoder.decoder.levels()) - len(self._levels)
        tiles = self._autoencoder.decode_levels(latents_of_all, whole)
        for level, tables in zip(self._levels, self._on(latents.device), strict=True):
            tiles = _evaluate(level, tables, cut(tiles, level.side))
        tiles = cast(Tensor, self._autoencoder.decoder.unpatch(tiles))
        return tiles.permute(0, 2, 3, 1).reshape(len(latents), -1).index_select(1, index)

    def _places(self, state: Int, y: Int, x: Int) -> Int:
        """Return flat indices of the values in the last tiles (n, rows, columns, C)."""
        config, tile_set = self._autoencoder.config, self._levels[-1].tile_sets[-1]
        high, wide = (self._levels[-1].side * p for p in config.patch_size)
        number = (state * tile_set.rows + y // high) * tile_set.columns + x // wide
        inside = (tile_set.positions(number) * high + y % high) * wide + x % wide
        places: Int = inside * config.in_channels + self.channel
        return places

    def _on(self, device: torch.device) -> tuple[_Tables, ...]:
        if device not in self._tables:
            self._tables[device] = tuple(_Tables.of(level, device) for level in self._levels)
        return self._tables[device]


class PartialDecoder:
    """A decoder that can also decode only the values that an operator reads.

    Arguments:
        autoencoder: The autoencoder whose decoder is used.
        whole: From standardised latents (P, c, h, w) to physical states (P, C, Y, X).
        values: From standardised latents (m, s, c, h, w) and the points to physical values (m, u).
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        whole: Callable[[Tensor], Tensor],
        values: Callable[[DecodedPoints, Tensor], Tensor],
    ) -> None:
        self._autoencoder = autoencoder
        self._whole = whole
        self._values = values
        self._known: WeakKeyDictionary[ReadsColumns, dict[tuple[int, ...], DecodedPoints]]
        self._known = WeakKeyDictionary()

    def __call__(self, latents: Tensor) -> Tensor:
        """Map standardised latents (P, c, h, w) to physical states (P, C, Y, X)."""
        return self._whole(latents)

    def points(self, operator: ReadsColumns, states: tuple[int, ...], index: Int) -> DecodedPoints:
        """Return the points of a few states that an operator reads.

        Arguments:
            operator: The operator; results are cached for as long as it exists.
            states: Numbers of the states in the operator's window.
            index: Flat indices of the values in (s, C, Y, X) of these states.
        """
        known = self._known.setdefault(operator, {})
        if states not in known:
            known[states] = DecodedPoints(self._autoencoder, index, len(states))
        return known[states]

    def read(self, points: DecodedPoints, latents: Tensor) -> Tensor:
        """Return physical values (m, u) of the decoded states of latents (m, s, c, h, w)."""
        return self._values(points, latents)
