"""Build the convolutional halves of an autoencoder from residual blocks and channel norms.

Residual levels alternate with space-to-depth steps. Module names follow the released state
dicts: `descent.<level>.<module>` in the encoder, `ascent.<level>.<module>` in the decoder.

Products with the Jacobians of frozen layers are those of :mod:`model.nn.frozen`.

References:
    | Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models (Chen et al., 2024)
    | https://arxiv.org/abs/2410.10733
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from azula.nn.layers import ConvNd, Patchify, Unpatchify
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.nn.frozen import (
    FixedConvolution,
    FrozenBlock,
    fixed_convolution,
    fixed_residual,
    gradient_is_computed,
    is_linearising,
    plain_autograd,
    product_type,
)

__all__ = [
    "ChannelNorm",
    "Conv2d",
    "ConvDecoder",
    "ConvEncoder",
    "ResidualBlock",
]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, same parameters and values, with cheap second derivatives when frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if self._learns_depthwise(x):
            kind, bias = product_type(x), cast(Tensor, self.bias)
            mixed: Tensor = _Depthwise.apply(x.to(kind), self.weight.to(kind), bias.to(kind))  # type: ignore[no-untyped-call]
            return mixed
        if self.weight.requires_grad or self.stride != (1, 1) or not plain_autograd(x):
            return super().forward(x)
        kind = product_type(x)
        fixed = FixedConvolution(self.weight, _padding(self), kind, groups=self.groups)
        y: Tensor = fixed_convolution(x, fixed, self.bias)
        return y

    def _learns_depthwise(self, x: Tensor) -> bool:
        """Return whether the gradient of a depthwise kernel is being compiled for a processor."""
        if not torch.compiler.is_compiling():
            return False
        depthwise = self.groups == self.in_channels == self.out_channels and self.bias is not None
        simple = self.stride == self.dilation == (1, 1) and self.padding in (0, (0, 0))
        trained = self.weight.requires_grad and x.device.type == "cpu"
        return depthwise and simple and trained


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution without padding, with a fast gradient of its kernel when compiled.

    oneDNN takes 76 ms for the gradient of 384 kernels of 5 x 5 over 24 images of 12 x 24 in bfloat16
    on two cores, the sums below, which `torch.compile` fuses, 5 ms. Run one by one they take 158 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, columns = weight.shape[-2:]
        border = (columns - 1, columns - 1, rows - 1, rows - 1)
        image = F.conv2d(F.pad(gradient, border), weight.flip(2, 3), groups=len(weight))
        wide = torch.promote_types(weight.dtype, torch.float32)
        seen, back = (v.permute(0, 2, 3, 1).to(wide) for v in (x, gradient))
        height, width = gradient.shape[-2:]
        kernel = torch.stack(
            [
                (seen[:, i : i + height, j : j + width] * back).sum((0, 1, 2))
                for i in range(rows)
                for j in range(columns)
            ],
            dim=-1,
        )
        bias = back.sum((0, 1, 2))
        return image, kernel.reshape(weight.shape).to(weight.dtype), bias.to(weight.dtype)


class ChannelNorm(nn.Module):
    r"""Standardises an image over its channels at each grid point, without affine parameters.

    .. math:: y = \frac{x - \mathbb{E}[x]}{\sqrt{\mathbb{V}[x] + \epsilon}}

    with the **unbiased** variance (divided by C - 1). It is computed by the fused layer norm,
    whose variance is the biased one v_b: with :math:`r = (C - 1) / C`,
    :math:`(v_b / r + \epsilon)^{-1/2} = r^{1/2} (v_b + r \epsilon)^{-1/2}`.

    azula's `LayerNorm` has the same formula but no `eps` buffer, which the released state dicts
    list, and takes several passes over the image.

    Arguments:
        eps: Numerical stability term; kept as a float32 buffer, as in the release.
    """

    eps: Tensor

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.register_buffer("eps", torch.tensor(eps, dtype=torch.float32))
        # The layer norm takes a Python number; reading the buffer at each call would stall a GPU.
        self._eps = float(torch.tensor(eps, dtype=torch.float32, device="cpu"))
        self.register_load_state_dict_post_hook(ChannelNorm._read_eps)  # type: ignore[no-untyped-call]

    def _read_eps(self, _: object) -> None:
        if not self.eps.is_meta:
            self._eps = float(self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Arguments:
            x: Images, with shape (N, C, H, W), best in channels-last memory format.

        Returns:
            The standardised images, with the shape of `x`.
        """
        scale, eps, factor = self.scaled_eps(x)
        count = x.shape[1]
        x = x.permute(0, 2, 3, 1)
        weight = x.new_full((count,), scale)
        if plain_autograd(x):
            y = _Standardise.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        else:
            y = F.layer_norm(x, (count,), weight, eps=eps)
        image: Tensor = (y if factor == 1.0 else y * factor).permute(0, 3, 1, 2)
        return image

    def scaled_eps(self, x: Tensor) -> tuple[float, float, float]:
        """Return weight and eps of the fused norm of an image, and a factor on its result.

        The scale is the norm's weight, except in half precision, where rounding it would cost up to
        0.4 %: there it is the factor.
        """
        ratio = (x.shape[1] - 1) / x.shape[1]
        half = x.dtype in (torch.float16, torch.bfloat16)
        scale, eps = ratio**0.5, ratio * self._eps
        return (1.0, eps, scale) if half else (scale, eps, 1.0)


class _Standardise(torch.autograd.Function):
    """The layer norm, with a cheap adjoint of the adjoint.

    The Jacobian of a standardisation is symmetric, so the adjoint of the adjoint is the adjoint.
    torch forms it from elementary operations, along with the derivatives in x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, None, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _StandardiseAdjoint.apply(gradient, *ctx.saved_tensors, ctx.eps), None, None  # type: ignore[no-untyped-call]


class _StandardiseAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(gradient, x, mean, rstd, weight)
        ctx.eps = eps
        adjoint: Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient, x, weight.shape, mean, rstd, weight, None, [True, False, False]
        )[0]
        return adjoint

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        gradient, x, mean, rstd, weight = ctx.saved_tensors
        first = second = None
        if ctx.needs_input_grad[0]:
            first = _StandardiseAdjoint.apply(tangent, x, mean, rstd, weight, ctx.eps)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1] and gradient_is_computed(ctx, 1):
            second = _curvature(tangent, gradient, x, weight[0], ctx.eps)
        return first, second, None, None, None, None


def _curvature(u: Tensor, g: Tensor, x: Tensor, scale: Tensor, eps: float) -> Tensor:
    r"""Return the derivative in x of :math:`\langle u, J(x)^\top g \rangle`.

    With z the standardised x, s the inverse standard deviation and the projection
    :math:`P v = v - \bar{v} - z \, \overline{z v}`, :math:`J = w s P` where w is the scale. In x,
    :math:`\mathrm{d}s = - s^2 \, \overline{z \, \mathrm{d}x}` and
    :math:`\mathrm{d}z = s P \, \mathrm{d}x`.
    """

    def mean(v: Tensor) -> Tensor:
        return v.mean(-1, keepdim=True)

    centred = x - mean(x)
    s = torch.rsqrt(mean(centred.square()) + eps)
    z = centred * s
    a, b = mean(z * u), mean(z * g)
    inner = mean(u * g) - mean(u) * mean(g) - a * b
    projected = [v - mean(v) - z * m for v, m in ((g, b), (u, a))]
    return -scale * s.square() * (z * inner + a * projected[0] + b * projected[1])


class ResidualBlock(nn.Module):
    r"""x + conv(SiLU(conv(norm(x)))).

    Arguments:
        channels: The number of channels C.
        kernel_size: Of both convolutions; odd. Padding is zero on all sides.
        ffn_factor: Width of the hidden convolution over C.

    Attributes:
        checkpointing: Whether the backward pass recomputes the block instead of storing it.
    """

    checkpointing = False

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
        """Map (N, C, H, W) to the same shape."""
        first, second = cast(Conv2d, self.ffn[0]), cast(Conv2d, self.ffn[3])
        frozen = not (first.weight.requires_grad or second.weight.requires_grad)
        if is_linearising() and frozen and plain_autograd(x):
            kind = product_type(x)
            block = FrozenBlock(
                FixedConvolution(first.weight, _padding(first), kind),
                FixedConvolution(second.weight, _padding(second), kind),
                first.bias,
                second.bias,
                self.norm.scaled_eps(x),
            )
            return fixed_residual(x, block)
        if self.checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._plain, x, use_reentrant=False)
            return again
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.ffn(self.norm(x))
        return y


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    return cast(tuple[int, int], layer.padding)


class ConvEncoder(nn.Module):
    """Map images to latents, each level half the size of the one before.

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
        level.append(_conv(widths[-1], out_channels, kernel_size, identity=True))

    def levels(self) -> list[list[nn.Module]]:
        """Return the modules of each level, from full to least resolution."""
        return [list(cast(nn.ModuleList, level)) for level in self.descent]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to latents (N, c, h, w)."""
        x = self.patch(x)
        for level in self.levels():
            for module in level:
                x = module(x)
        return x


class ConvDecoder(nn.Module):
    """Map latents to images, mirroring `ConvEncoder` (same arguments, `in_channels` the latent's)."""

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

    def levels(self) -> list[list[nn.Module]]:
        """Return the modules of each level, from least to full resolution."""
        return [list(cast(nn.ModuleList, level)) for level in self.ascent]

    def forward(self, z: Tensor) -> Tensor:
        """Map latents (N, c, h, w) to images (N, C, H, W)."""
        for level in self.levels():
            for module in level:
                z = module(z)
        image: Tensor = self.unpatch(z)
        return image


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    identity: bool = False,
    stride: int = 1,
) -> Conv2d:
    """Return a zero-padded convolution; where wanted it starts near the identity, by azula's rule."""
    sizes: dict[str, Any] = {
        "kernel_size": kernel_size,
        "padding": kernel_size // 2,
        "stride": stride,
    }
    conv = Conv2d(in_channels, out_channels, **sizes)
    if identity and not conv.weight.is_meta:  # on the meta device there are no values to set
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
