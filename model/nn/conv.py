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

from model.nn.frozen_conv import Conv2d
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
        hidden = ffn_factor * channels
        self.norm = ChannelNorm()
        self.ffn = nn.Sequential(
            _conv(channels, hidden, kernel_size),
            nn.SiLU(),
            nn.Identity(),  # the release has a dropout here; its place keeps the names
            _conv(hidden, channels, kernel_size),
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
        widths = list(hid_channels)
        self.patch = Patchify(patch_size) if math.prod(patch_size) > 1 else nn.Identity()
        self.descent = nn.ModuleList()
        for i, blocks in enumerate(hid_blocks):
            level = nn.ModuleList()
            if i == 0:
                level.append(_conv(math.prod(patch_size) * in_channels, widths[0], kernel_size))
            else:
                level.append(_down(widths[i - 1], widths[i], kernel_size, stride, pixel_shuffle))
            level.extend(ResidualBlock(widths[i], kernel_size, ffn_factor) for _ in range(blocks))
            self.descent.append(level)
        self.descent[-1].append(_conv(widths[-1], out_channels, kernel_size, identity=True))

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
        widths, counts = list(hid_channels)[::-1], list(hid_blocks)[::-1]
        self.unpatch = Unpatchify(patch_size) if math.prod(patch_size) > 1 else nn.Identity()
        self.ascent = nn.ModuleList()
        for i, blocks in enumerate(counts):
            level = nn.ModuleList()
            if i == 0:
                level.append(_conv(in_channels, widths[0], kernel_size, identity=True))
            level.extend(ResidualBlock(widths[i], kernel_size, ffn_factor) for _ in range(blocks))
            if i + 1 < len(counts):
                level.append(_up(widths[i], widths[i + 1], kernel_size, stride, pixel_shuffle))
            else:
                last = math.prod(patch_size) * out_channels
                level.append(_conv(widths[i], last, kernel_size))
            self.ascent.append(level)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (N, c, h, w) to images (N, C, H, W)."""
        for level in self.ascent:
            for module in level:
                z = module(z)
        return self.unpatch(z)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    identity: bool = False,
    stride: int = 1,
) -> Conv2d:
    """A zero-padded convolution; where wanted it starts near the identity, by azula's rule."""
    sizes = {"kernel_size": kernel_size, "padding": kernel_size // 2, "stride": stride}
    conv = Conv2d(in_channels, out_channels, **sizes)
    if identity:
        start = ConvNd(in_channels, out_channels, identity_init=True, **sizes)
        conv.load_state_dict(start.state_dict(), assign=True)
    return conv


def _down(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, shuffle: bool
) -> nn.Module:
    if shuffle:
        conv = _conv(in_channels * stride**2, out_channels, kernel_size, identity=True)
        return nn.Sequential(Patchify((stride, stride)), conv)
    return _conv(in_channels, out_channels, kernel_size, identity=True, stride=stride)


def _up(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, shuffle: bool
) -> nn.Module:
    if shuffle:
        conv = _conv(in_channels, out_channels * stride**2, kernel_size, identity=True)
        return nn.Sequential(conv, Unpatchify((stride, stride)))
    conv = _conv(in_channels, out_channels, kernel_size, identity=True)
    return nn.Sequential(nn.Upsample(scale_factor=stride, mode="nearest"), conv)
