"""Convolution with frozen weights whose second derivatives cost what they must.

Guidance needs products with the Jacobian of the decoder, taken as the adjoint of the adjoint.
torch's double backward of a convolution then also computes the weights' gradient, frozen or not,
which doubles the work. A convolution with fixed weights is linear, so its adjoint's adjoint is the
convolution itself, and nothing else has to be computed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conv2d", "plain_autograd"]


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, same parameters and values, with cheap second derivatives when frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H', W')."""
        if self.weight.requires_grad or self.stride != (1, 1) or not plain_autograd(x):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            # The adjoint runs outside the autocast and needs all of one type.
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(kind), weight.to(kind), bias.to(kind)
        return _Convolution.apply(x, weight, bias, self.padding)


def plain_autograd(x: Tensor) -> bool:
    """Whether gradients of `x` are recorded by eager autograd, not by a transform or compiler."""
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
        return _Adjoint.apply(gradient, x, weight, ctx.padding), None, None, None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        one, zero = [1, 1], [0, 0]
        # `x` gives the shape alone: the adjoint does not depend on where it is taken.
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, None, one, padding, one, False, zero, 1, [True, False, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(tangent, weight, None, ctx.padding), None, None, None
