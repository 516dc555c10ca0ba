"""Correct a blanket of latent states with a spatio-temporal transformer, the denoiser's backbone.

A blanket is K consecutive latent states that are denoised together. The released backbone (Appa,
arXiv 2504.18720) cuts it into patches, adds positions and dates, and lets all tokens attend to
each other.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.domain.errors import ConfigurationError, InvalidInput
from model.nn.embedding import SineEncoding, date_features
from model.nn.transformer import ConstantCache, Rotation, TransformerBlock

__all__ = ["Backbone", "BackboneConfig"]


@dataclass(frozen=True)
class BackboneConfig:
    """Everything that determines the backbone's modules; names as in the released configs.

    Attributes:
        in_channels: c, channels of a latent state.
        blanket_size: K, states of a blanket.
        shape: (h, w), size of a latent state. Another size runs with the same weights.
        mod_features: Features of the noise-level embedding.
        hid_channels: Features of a token.
        hid_blocks: Number of transformer blocks.
        spatial: Axes of a blanket (time, latitude, longitude); must be 3.
        patch_size: States, rows and columns of a patch.
        window_size: Local attention; not supported, must be None.
        attention_heads: Heads of each block.
        qk_norm: Whether queries and keys are normalised.
        rope: Whether positions rotate queries and keys.
        ffn_factor: Width of the MLPs over `hid_channels`.
        dropout: Dropout rate inside the MLPs.
        noise_per_state: Whether the states of a blanket may carry different noise; the blocks are
            then modulated by a mixture of the embeddings of all levels.
        local_size: Rows and columns of tokens that each block mixes by a convolution beside its
            attention; odd, or 0 for none, as released.
    """

    in_channels: int
    blanket_size: int
    shape: tuple[int, int]
    mod_features: int = 256
    hid_channels: int = 1024
    hid_blocks: int = 16
    spatial: int = 3
    patch_size: tuple[int, int, int] = (2, 1, 1)
    window_size: tuple[int, int, int] | None = None
    attention_heads: int = 8
    qk_norm: bool = True
    rope: bool = True
    ffn_factor: int = 4
    dropout: float = 0.0
    noise_per_state: bool = False
    local_size: int = 0

    def __post_init__(self) -> None:
        for name in ("shape", "patch_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.window_size is not None:
            raise ConfigurationError(
                f"Expected window_size None: local attention is not carried; got {self.window_size}."
            )
        if self.spatial != 3 or len(self.patch_size) != 3:
            raise ConfigurationError(
                f"Expected a backbone over 3 axes (time, latitude, longitude); got spatial "
                f"{self.spatial} and patch {self.patch_size}."
            )
        if self.hid_channels % (2 * self.attention_heads):
            raise ConfigurationError(
                f"Expected hid_channels divisible by 2 x attention_heads; got {self.hid_channels} "
                f"and {self.attention_heads} heads."
            )
        self.tokens(self.shape)

    def tokens(self, shape: tuple[int, int]) -> tuple[int, int, int]:
        """Return tokens along time, latitude and longitude for latents of size (h, w).

        Raises:
            ConfigurationError: If the patches do not tile the blanket.
        """
        size = (self.blanket_size, *shape)
        if any(n % p for n, p in zip(size, self.patch_size, strict=True)):
            raise ConfigurationError(
                f"Expected a blanket (K, h, w) that patches {self.patch_size} tile; got {size}."
            )
        k, h, w = (n // p for n, p in zip(size, self.patch_size, strict=True))
        return k, h, w


class Backbone(nn.Module):
    """The transformer.

    Position embeddings and rotary angles are cached until the parameters they are computed from
    change; they are not part of the state dict.

    Arguments:
        config: The sizes.
        checkpointing: Whether the backward pass recomputes each block instead of keeping its
            activations: less memory, about a third more work.
    """

    def __init__(self, config: BackboneConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = checkpointing
        patch = math.prod(config.patch_size)
        width = config.hid_channels
        inputs = config.in_channels + 4 * config.blanket_size
        self.in_proj = nn.Linear(patch * inputs, width)
        self.out_proj = nn.Linear(width, patch * config.in_channels)
        self.positional_embedding = nn.Sequential(
            SineEncoding(width), nn.Flatten(-2), nn.Linear(config.spatial * width, width)
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.mod_features,
                config.spatial,
                config.attention_heads,
                config.qk_norm,
                config.rope,
                config.ffn_factor,
                config.dropout,
                config.local_size,
            )
            for _ in range(config.hid_blocks)
        )
        self.diffusion_time_encoder = SineEncoding(config.mod_features)
        if config.noise_per_state:
            self.noise_mixture = nn.Linear(
                config.blanket_size * config.mod_features, config.mod_features
            )
        self._constants = ConstantCache()

    def forward(self, x: Tensor, t: Tensor, date: Tensor) -> Tensor:
        """Arguments:
            x: Scaled noisy blankets, with shape (B, K, c, h, w).
            t: Noise time (10 ln sigma), with shape () or (B,), or (B, K) under
                `noise_per_state`.
            date: Year, month, day and hour (UTC) of each state, int64 with shape (B, K, 4).

        Returns:
            The raw prediction, with shape (B, K, c, h, w).

        Raises:
            InvalidInput: If the shapes do not fit the configuration or each other.
        """
        self._check(x, t, date)
        grid = self.config.tokens((x.shape[-2], x.shape[-1]))
        skip = self.embed(x, date)
        tokens = skip + self.positions(grid).to(skip.dtype)
        mod = self.modulation(t.to(x.dtype))
        for i, block in enumerate(self.blocks):
            inputs = tokens, mod, skip, self._rotation(i, grid), grid
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, *inputs, use_reentrant=False)
            else:
                tokens = block(*inputs)
        return self._unpatch(self.out_proj(tokens), grid)

    def embed(self, x: Tensor, date: Tensor) -> Tensor:
        """Return patches of states and dates, projected to tokens (B, L, C).

        The date channels are the same at every position of a blanket, so their share of the
        projection is one vector per blanket instead of 4 K more channels in every patch.
        """
        k, h, w = self.config.patch_size
        patches = rearrange(x, "b (t k) c (y h) (x w) -> b (t y x) (c k h w)", k=k, h=h, w=w)
        split = patches.shape[-1]
        weight = self.in_proj.weight
        dated = weight[:, split:].unflatten(-1, (-1, k * h * w)).sum(dim=-1)
        vector = nn.functional.linear(self.dates(date).to(x.dtype), dated, self.in_proj.bias)
        return nn.functional.linear(patches, weight[:, :split]) + vector[:, None]

    def modulation(self, t: Tensor) -> Tensor:
        """Return the modulation vectors of noise times (), (B,) or (B, K), with shape (B or 1, D)."""
        if not self.config.noise_per_state:
            encoded: Tensor = self.diffusion_time_encoder(t.reshape(-1))
            return encoded
        each = t if t.ndim == 2 else t.reshape(-1, 1).expand(-1, self.config.blanket_size)
        mixed: Tensor = self.noise_mixture(self.diffusion_time_encoder(each).flatten(1))
        return mixed

    def dates(self, date: Tensor) -> Tensor:
        """Return the 4 K date channels of each blanket, with shape (B, 4 K), float32."""
        return date_features(date)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Return the absolute position embedding of each token, with shape (L, C)."""
        linear = cast(nn.Linear, self.positional_embedding[-1])

        def make() -> Tensor:
            embedding: Tensor = self.positional_embedding(self.coordinates(grid))
            return embedding

        return self._constants.get(("positions", grid), (linear.weight, linear.bias), make)

    def coordinates(self, grid: tuple[int, int, int]) -> Tensor:
        """Return integer token coordinates along the 3 axes, with shape (L, 3)."""
        weight = self.in_proj.weight
        axes = [torch.arange(n, device=weight.device, dtype=weight.dtype) for n in grid]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)

    def compile_blocks(self, **options: object) -> None:
        """Compile each block with `torch.compile(**options)`; the blocks share one graph."""
        for block in self.blocks:
            block.compile(**options)

    def _rotation(self, index: int, grid: tuple[int, int, int]) -> Rotation | None:
        block = cast(TransformerBlock, self.blocks[index])
        if block.theta is None:
            return None
        return self._constants.get(
            ("rotation", index, grid),
            (block.theta,),
            lambda: block.rotation(self.coordinates(grid)),
        )

    def _unpatch(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        k, h, w = self.config.patch_size
        t, y, x = grid
        return rearrange(
            tokens,
            "b (t y x) (c k h w) -> b (t k) c (y h) (x w)",
            t=t,
            y=y,
            x=x,
            k=k,
            h=h,
            w=w,
        )

    def _check(self, x: Tensor, t: Tensor, date: Tensor) -> None:
        if t.ndim == 2 and not self.config.noise_per_state:
            raise InvalidInput(
                "Expected one noise level per blanket; got one per state, which this network was "
                "not trained for (noise_per_state)."
            )
        size, channels = self.config.blanket_size, self.config.in_channels
        if x.ndim != 5 or x.shape[1:3] != (size, channels):
            raise InvalidInput(
                f"Expected blankets with shape (B, {size}, {channels}, h, w); got {tuple(x.shape)}."
            )
        if date.shape != (x.shape[0], size, 4):
            raise InvalidInput(
                f"Expected dates with shape ({x.shape[0]}, {size}, 4); got {tuple(date.shape)}."
            )
