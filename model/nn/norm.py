"""Standardisation over channels, as the released autoencoder does it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.nn.frozen_conv import plain_autograd

__all__ = ["ChannelNorm"]


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
        self.register_load_state_dict_post_hook(ChannelNorm._read_eps)

    def _read_eps(self, _: object) -> None:
        if not self.eps.is_meta:
            self._eps = float(self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """
        Arguments:
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
            y = _Standardise.apply(x, weight, eps)
        else:
            y = F.layer_norm(x, (count,), weight, eps=eps)
        return (y * scale if half else y).permute(0, 3, 1, 2)


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
        return _StandardiseAdjoint.apply(gradient, *ctx.saved_tensors, ctx.eps), None, None


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
        return torch.ops.aten.native_layer_norm_backward(
            gradient, x, weight.shape, mean, rstd, weight, None, [True, False, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        gradient, x, mean, rstd, weight = ctx.saved_tensors
        first = second = None
        if ctx.needs_input_grad[0]:
            first = _StandardiseAdjoint.apply(tangent, x, mean, rstd, weight, ctx.eps)
        if ctx.needs_input_grad[1] and _asked_for(ctx, 1):
            second = _curvature(tangent, gradient, x, weight[0], ctx.eps)
        return first, second, None, None, None, None


def _asked_for(ctx: Any, position: int) -> bool:
    """Whether the running backward pass wants the gradient of an input, not only knows it.

    `needs_input_grad` tells of the latter alone; the tangent-linear products of guidance ask for
    gradients in the cotangent, never in x.
    """
    node = ctx.next_functions[position][0]
    return node is not None and torch._C._will_engine_execute_node(node)


def _curvature(u: Tensor, g: Tensor, x: Tensor, scale: Tensor, eps: float) -> Tensor:
    r"""Derivative in x of :math:`\langle u, J(x)^\top g \rangle`.

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
