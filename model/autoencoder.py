"""Encode standardised states on a latitude-longitude grid to small latents, and decode them.

The released autoencoder (Appa, arXiv 2504.18720) pads the poles with zeros and wraps the
longitude, then descends through levels of convolutional residual blocks. A saturation keeps the
latents bounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.domain.errors import ConfigurationError, InvalidInput
from model.domain.registry import Registry
from model.nn.convolution import ConvDecoder, ConvEncoder, ResidualBlock

__all__ = ["Autoencoder", "AutoencoderConfig", "SATURATIONS", "Saturation"]

Saturation = Callable[[Tensor, float], Tensor]
"""Maps latents (N, C, H, W) and a bound to latents of the same shape."""


def _none(z: Tensor, bound: float) -> Tensor:
    return z


def _softclip(z: Tensor, bound: float) -> Tensor:
    return z / (1 + z.abs() / bound)


def _softclip2(z: Tensor, bound: float) -> Tensor:
    return z * torch.rsqrt(1 + (z / bound).square())


def _tanh(z: Tensor, bound: float) -> Tensor:
    return bound * torch.tanh(z / bound)


def _asinh(z: Tensor, bound: float) -> Tensor:
    return torch.asinh(z)


def _rmsnorm(z: Tensor, bound: float) -> Tensor:
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-5)


SATURATIONS: Registry[Saturation] = Registry(
    "saturation",
    none=_none,
    softclip=_softclip,
    softclip2=_softclip2,
    tanh=_tanh,
    asinh=_asinh,
    rmsnorm=_rmsnorm,
)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that determines the autoencoder's modules; names as in the released configs.

    Attributes:
        in_channels: C, channels of a state.
        lat_channels: c, channels of a latent.
        shape: (H, W), rows and columns of the grid.
        resize: f, the ratio of grid to latent size; the padded grid is a multiple of it.
        saturation: Name in `SATURATIONS`; None or "none" for no saturation.
        saturation_bound: Largest latent value of the bounded saturations.
        noise_level: Standard deviation of the noise added to latents in training.
        hid_channels: Width of each level, finest first.
        hid_blocks: Residual blocks of each level, finest first.
        kernel_size: Of all convolutions; odd.
        stride: Reduction between levels.
        pixel_shuffle: Space-to-depth between levels instead of strided convolutions.
        ffn_factor: Width of the hidden convolution in residual blocks over the level's width.
        patch_size: Space-to-depth of the input.
        periodic: Circular padding inside the convolutions; not supported, must be False.
        halo: None keeps the columns wrapped around the longitude as part of the latent, as the
            release does. A number of latent columns is wrapped around on each side while encoding
            and decoding and cut off again, so that latents cover the sphere once and their
            statistics do not depend on longitude.
    """

    in_channels: int
    lat_channels: int
    shape: tuple[int, int]
    resize: int = 32
    saturation: str | None = "softclip2"
    saturation_bound: float = 5.0
    noise_level: float = 0.0
    hid_channels: tuple[int, ...] = (64, 128, 256, 512, 768, 1024)
    hid_blocks: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    kernel_size: int = 3
    stride: int = 2
    pixel_shuffle: bool = True
    ffn_factor: int = 1
    patch_size: tuple[int, int] = (1, 1)
    periodic: bool = False
    halo: int | None = None

    def __post_init__(self) -> None:
        for name in ("shape", "hid_channels", "hid_blocks", "patch_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.periodic:
            raise ConfigurationError(
                "Expected an autoencoder with periodic=False: circular padding across the poles is "
                "not carried."
            )
        if len(self.hid_channels) != len(self.hid_blocks):
            raise ConfigurationError(
                f"Expected as many hid_channels as hid_blocks; got {len(self.hid_channels)} and "
                f"{len(self.hid_blocks)}."
            )
        if self.halo is not None and self.shape[1] % self.resize:
            raise ConfigurationError(
                f"Expected columns divisible by resize when a halo is cut off; got {self.shape[1]} "
                f"columns and resize {self.resize}."
            )
        depth = self.stride ** (len(self.hid_blocks) - 1)
        if any(depth * p != self.resize for p in self.patch_size):
            raise ConfigurationError(
                f"Expected resize = stride^(levels - 1) x patch; got resize {self.resize} with stride "
                f"{self.stride}, {len(self.hid_blocks)} levels and patch {self.patch_size}."
            )

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Columns wrapped left and right, rows of zeros added above and below."""
        high, wide = self.shape
        wrapped = 1 if self.halo is None else self.halo
        rows, columns = -high % self.resize, -wide % self.resize + 2 * wrapped * self.resize
        left, top = columns // 2, rows // 2
        return left, columns - left, top, rows - top

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one latent state."""
        left, right, top, bottom = self.padding
        high, wide = self.shape[0] + top + bottom, self.shape[1] + left + right
        wide -= 2 * (self.halo or 0) * self.resize
        return self.lat_channels, high // self.resize, wide // self.resize


class Autoencoder(nn.Module):
    """Encoder and decoder.

    Arguments:
        config: The sizes.
        channels_last: Whether convolutions run in channels-last memory format (faster on CPU and
            GPU; the numbers agree within rounding).
    """

    def __init__(self, config: AutoencoderConfig, *, channels_last: bool = True) -> None:
        super().__init__()
        self.config = config
        self.channels_last = channels_last
        common: dict[str, Any] = {
            "hid_channels": config.hid_channels,
            "hid_blocks": config.hid_blocks,
            "kernel_size": config.kernel_size,
            "stride": config.stride,
            "pixel_shuffle": config.pixel_shuffle,
            "ffn_factor": config.ffn_factor,
            "patch_size": config.patch_size,
        }
        self.encoder = ConvEncoder(config.in_channels, config.lat_channels, **common)
        self.decoder = ConvDecoder(config.lat_channels, config.in_channels, **common)
        self._saturate = SATURATIONS[config.saturation or "none"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one latent state."""
        return self.config.latent_shape

    def recompute_blocks(self, recompute: bool = True) -> None:
        """Turn activation checkpointing of the residual blocks on, or off with `recompute=False`."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.checkpointing = recompute

    def pad(self, x: Tensor) -> Tensor:
        """Pad states (N, C, H, W) to a multiple of the resize factor.

        Longitudes are wrapped, at least one latent cell on each side; rows of zeros are added
        beyond the poles.
        """
        left, right, top, bottom = self.config.padding
        x = F.pad(x, (left, right, 0, 0), mode="circular")
        return F.pad(x, (0, 0, top, bottom))

    def crop(self, x: Tensor) -> Tensor:
        """Remove what `pad` added, with shape (N, C, H, W)."""
        left, _, top, _ = self.config.padding
        high, wide = self.config.shape
        return x[..., top : top + high, left : left + wide]

    def saturate(self, z: Tensor) -> Tensor:
        """Bound latents (N, c, h, w) by the saturation."""
        return self._saturate(z, self.config.saturation_bound)

    def encode(self, x: Tensor) -> Tensor:
        """Arguments:
            x: Standardised states without NaN, with shape (*, C, H, W).

        Returns:
            Saturated latents, with shape (*, c, h, w).

        Raises:
            InvalidInput: If the last three dimensions are not (C, H, W).
        """
        flat, lead = self._flatten(x, (self.config.in_channels, *self.config.shape), "states")
        z = self.saturate(self.encoder(self._layout(self.pad(flat))))
        if self.config.halo:
            z = z[..., self.config.halo : -self.config.halo]
        return z.reshape(*lead, *z.shape[1:])

    def decode(
        self, z: Tensor, *, noisy: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Arguments:
            z: Latents, with shape (*, c, h, w).
            noisy: Whether to add the configured latent noise, as in training.
            generator: Source of that noise.

        Returns:
            Standardised states, with shape (*, C, H, W).

        Raises:
            InvalidInput: If the last three dimensions are not (c, h, w).
        """
        flat, lead = self._flatten(z, self.latent_shape, "latents")
        if noisy and self.config.noise_level > 0:
            noise = torch.empty_like(flat).normal_(generator=generator)
            flat = flat + self.config.noise_level * noise
        x = self.crop(self.decoder(self._wrapped(flat)))
        return x.reshape(*lead, *x.shape[1:])

    def decode_levels(self, z: Tensor, count: int) -> Tensor:
        """Apply the first `count` levels of the decoder to latents (N, c, h, w).

        Returns:
            The padded image that is the input of the next level, with shape (N, C, H, W).
        """
        x = self._wrapped(z)
        for level in self.decoder.levels()[:count]:
            for module in level:
                x = module(x)
        return x

    def _wrapped(self, z: Tensor) -> Tensor:
        if self.config.halo:
            z = F.pad(z, (self.config.halo, self.config.halo, 0, 0), mode="circular")
        return self._layout(z)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Encode, add the training noise and decode: the reconstruction and the latents."""
        z = self.encode(x)
        return self.decode(z, noisy=True, generator=generator), z

    def _layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    @staticmethod
    def _flatten(x: Tensor, shape: tuple[int, int, int], what: str) -> tuple[Tensor, torch.Size]:
        if tuple(x.shape[-3:]) != shape:
            raise InvalidInput(
                f"Expected {what} with shape (*, {', '.join(map(str, shape))}); got "
                f"{tuple(x.shape)}."
            )
        lead = x.shape[:-3]
        return x.reshape(math.prod(lead), *shape), lead
