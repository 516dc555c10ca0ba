"""The convolutional halves of an autoencoder: residual levels between space-to-depth steps.

Module names follow the released state dicts: `descent.<level>.<module>` in the encoder and
`ascent.<level>.<module>` in the decoder.

References:
    | Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models (Chen et al., 2024)
    | https://arxiv.org/abs/2410.10733
"""

import math
from collections.abc import Sequence

from azula.nn.layers import ConvNd, Patchify, Unpatchify
from torch import Tensor, nn

from model.nn.norm import ChannelNorm

__all__ = ["ConvDecoder", "ConvEncoder", "ResidualBlock"]


class ResidualBlock(nn.Module):
    r"""x + conv(SiLU(conv(norm(x)))).

    Arguments:
        channels: The number of channels C.
        kernel_size: Of both convolutions; odd. Padding is zero on all sides.
        ffn_factor: Width of the hidden convolution over C.
    """

    def __init__(self, channels: int, kernel_size: int = 3, ffn_factor: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        hidden = ffn_factor * channels
        self.norm = ChannelNorm()
        self.ffn = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size, padding=padding),
            nn.SiLU(),
            nn.Identity(),  # the release has a dropout here; its place keeps the names
            nn.Conv2d(hidden, channels, kernel_size, padding=padding),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the same shape."""
        return x + self.ffn(self.norm(x))


class ConvEncoder(nn.Module):
    """Images to latents, each level half the size of the one before.

    Arguments:
        in_channels: Channels of the images.
        out_channels: Channels of the latents.
        hid_channels: Width of each level, finest first.
        hid_blocks: Residual blocks of each level, finest first.
        kernel_size: Of all convolutions; odd.
        stride: Reduction between levels.
        pixel_shuffle: Space-to-depth followed by a convolution between levels, instead of a
            strided convolution.
        ffn_factor: See `ResidualBlock`.
        patch_size: Space-to-depth of the input before the first level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hid_channels: Sequence[int],
        hid_blocks: Sequence[int],
        kernel_size: int = 3,
        stride: int = 2,
        pixel_shuffle: bool = True,
        ffn_factor: int = 1,
        patch_size: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        pad = kernel_size // 2
        widths = list(hid_channels)
        self.patch = Patchify(patch_size) if math.prod(patch_size) > 1 else nn.Identity()
        self.descent = nn.ModuleList()
        for i, blocks in enumerate(hid_blocks):
            level = nn.ModuleList()
            if i == 0:
                first = math.prod(patch_size) * in_channels
                level.append(nn.Conv2d(first, widths[0], kernel_size, padding=pad))
            elif pixel_shuffle:
                fan = widths[i - 1] * stride**2
                down = ConvNd(
                    fan, widths[i], identity_init=True, kernel_size=kernel_size, padding=pad
                )
                level.append(nn.Sequential(Patchify((stride, stride)), down))
            else:
                level.append(
                    ConvNd(
                        widths[i - 1],
                        widths[i],
                        identity_init=True,
                        kernel_size=kernel_size,
                        padding=pad,
                        stride=stride,
                    )
                )
            level.extend(ResidualBlock(widths[i], kernel_size, ffn_factor) for _ in range(blocks))
            self.descent.append(level)
        self.descent[-1].append(
            ConvNd(
                widths[-1], out_channels, identity_init=True, kernel_size=kernel_size, padding=pad
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to latents (N, c, h, w)."""
        x = self.patch(x)
        for level in self.descent:
            for module in level:
                x = module(x)
        return x


class ConvDecoder(nn.Module):
    """Latents to images, mirroring `ConvEncoder` (same arguments, `in_channels` the latent's)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hid_channels: Sequence[int],
        hid_blocks: Sequence[int],
        kernel_size: int = 3,
        stride: int = 2,
        pixel_shuffle: bool = True,
        ffn_factor: int = 1,
        patch_size: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        pad = kernel_size // 2
        widths, counts = list(hid_channels)[::-1], list(hid_blocks)[::-1]
        self.unpatch = Unpatchify(patch_size) if math.prod(patch_size) > 1 else nn.Identity()
        self.ascent = nn.ModuleList()
        for i, blocks in enumerate(counts):
            level = nn.ModuleList()
            if i == 0:
                level.append(
                    ConvNd(
                        in_channels,
                        widths[0],
                        identity_init=True,
                        kernel_size=kernel_size,
                        padding=pad,
                    )
                )
            level.extend(ResidualBlock(widths[i], kernel_size, ffn_factor) for _ in range(blocks))
            if i + 1 < len(counts):
                level.append(_up(widths[i], widths[i + 1], kernel_size, stride, pixel_shuffle))
            else:
                last = math.prod(patch_size) * out_channels
                level.append(nn.Conv2d(widths[i], last, kernel_size, padding=pad))
            self.ascent.append(level)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (N, c, h, w) to images (N, C, H, W)."""
        for level in self.ascent:
            for module in level:
                z = module(z)
        return self.unpatch(z)


def _up(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, shuffle: bool
) -> nn.Module:
    out = out_channels * (stride**2 if shuffle else 1)
    conv = ConvNd(
        in_channels, out, identity_init=True, kernel_size=kernel_size, padding=kernel_size // 2
    )
    if shuffle:
        return nn.Sequential(conv, Unpatchify((stride, stride)))
    return nn.Sequential(nn.Upsample(scale_factor=stride, mode="nearest"), conv)
