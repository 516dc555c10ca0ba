"""Build the convolutional halves of an autoencoder from residual blocks and channel norms.

Residual levels alternate with space-to-depth steps. Module names follow the released state
dicts: `descent.<level>.<module>` in the encoder, `ascent.<level>.<module>` in the decoder.

Guidance needs products with the Jacobian of the decoder, taken as the adjoint of the adjoint.
torch's double backward of a convolution then also computes the gradient of the weights, frozen
or not, which doubles the work. A convolution with fixed weights is linear, so the adjoint of its
adjoint is the convolution itself, and nothing else has to be computed.

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

__all__ = ["ChannelNorm", "Conv2d", "ConvDecoder", "ConvEncoder", "ResidualBlock", "plain_autograd"]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, same parameters and values, with cheap second derivatives when frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if self.weight.requires_grad or self.stride != (1, 1) or not plain_autograd(x):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            # The adjoint runs outside the autocast and needs all of one type.
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(kind), weight.to(kind)
            bias = None if bias is None else bias.to(kind)
        y: Tensor = _Convolution.apply(x, weight, bias, self.padding)  # type: ignore[no-untyped-call]
        return y


def plain_autograd(x: Tensor) -> bool:
    """Return whether gradients of `x` are recorded by eager autograd, not by a transform or compiler."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and not torch.compiler.is_compiling()
        and torch._C._functorch.maybe_current_level() is None
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _Adjoint.apply(gradient, x, weight, ctx.padding), None, None, None  # type: ignore[no-untyped-call]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        one, zero = [1, 1], [0, 0]
        # `x` gives the shape alone: the adjoint does not depend on where it is taken.
        adjoint: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, one, padding, one, False, zero, 1, [True, False, False]
        )[0]
        return adjoint

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(tangent, weight, None, ctx.padding), None, None, None  # type: ignore[no-untyped-call]


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
        count = x.shape[1]
        ratio = (count - 1) / count
        scale, eps = ratio**0.5, ratio * self._eps
        x = x.permute(0, 2, 3, 1)
        # Scaled in the same pass, but a scale of half precision would be off by up to 0.4 %.
        half = x.dtype in (torch.float16, torch.bfloat16)
        weight = x.new_full((count,), 1.0 if half else scale)
        if plain_autograd(x):
            y = _Standardise.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        else:
            y = F.layer_norm(x, (count,), weight, eps=eps)
        image: Tensor = (y * scale if half else y).permute(0, 3, 1, 2)
        return image


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
        if ctx.needs_input_grad[1] and _asked_for(ctx, 1):
            second = _curvature(tangent, gradient, x, weight[0], ctx.eps)
        return first, second, None, None, None, None


def _asked_for(ctx: Any, position: int) -> bool:
    """Return whether the running backward pass wants the gradient of an input, not only knows it.

    `needs_input_grad` covers the latter alone; the tangent-linear products of guidance ask for
    gradients in the cotangent, never in x.
    """
    node = ctx.next_functions[position][0]
    return node is not None and torch._C._will_engine_execute_node(node)


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
        """Map (N, C, H, W) to the same shape."""
        y: Tensor = x + self.ffn(self.norm(x))
        return y


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
