r"""Convolutions, norms and activations whose tangent and adjoint cost no more than themselves.

Guidance applies the Jacobian of the decoder and its transpose several times at one point. PyTorch's
own double backward of a convolution runs two convolutions, and that of a layer norm a dozen passes,
because they also serve derivatives that nobody asks for here. With frozen weights the derivative of
a convolution is the convolution without bias, that of a layer norm is symmetric, and that of an
activation is a factor: each is a pair of linear maps, differentiated by swapping the pair.

`CheapTangents` swaps these in for the calls made while it is active; the networks do not know.
"""

__all__ = ["CheapTangents"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LinearMap = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A linear map given with its adjoint; its derivative is the same pair swapped."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, apply: LinearMap, adjoint: LinearMap) -> Tensor:
        ctx.maps = apply, adjoint
        return apply(v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        apply, adjoint = ctx.maps
        return _Linear.apply(g, adjoint, apply), None, None


class _Evaluated(torch.autograd.Function):
    """A function already evaluated at x, with its derivative there and the adjoint of that.

    What the derivative keeps is saved in autograd's way too, so that memory is accounted for.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, tangent: LinearMap, adjoint: LinearMap, *kept: Tensor
    ) -> Tensor:
        ctx.maps = tangent, adjoint
        ctx.save_for_backward(*kept)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        tangent, adjoint = ctx.maps
        nothing = (None,) * (len(ctx.saved_tensors) + 3)
        return _Linear.apply(g, adjoint, tangent), *nothing


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    value = torch.conv2d(x.detach(), weight, bias, stride, padding, dilation, groups)
    # Under autocast the product ran in another type; its derivatives do as well.
    frozen = weight.to(value.dtype)
    shape, dtype = x.shape, x.dtype

    def tangent(v: Tensor) -> Tensor:
        return torch.conv2d(v.to(value.dtype), frozen, None, stride, padding, dilation, groups)

    def adjoint(g: Tensor) -> Tensor:
        back = torch.nn.grad.conv2d_input(
            shape, frozen, g.to(value.dtype), stride, padding, dilation, groups
        )
        return back.to(dtype)

    return _Evaluated.apply(x, value, tangent, adjoint)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if weight is not None or bias is not None:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    shape = list(normalized_shape)
    at = x.detach()
    wide = at if at.dtype == torch.float64 else at.float()
    value, mean, scale = torch.native_layer_norm(wide, shape, None, None, eps)

    def derivative(g: Tensor) -> Tensor:
        """(g - mean(g) - y mean(g y)) / std: symmetric."""
        return torch.ops.aten.native_layer_norm_backward(
            g.to(wide.dtype), wide, shape, mean, scale, None, None, [True, False, False]
        )[0].to(g.dtype)

    return _Evaluated.apply(x, value, derivative, derivative, wide, mean, scale)


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    at = x.detach()
    value = F.silu(at)

    def derivative(g: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(g.to(at.dtype), at)

    return _Evaluated.apply(x, value, derivative, derivative, at)


class CheapTangents(TorchFunctionMode):
    """While active, convolutions, plain layer norms and SiLU differentiate cheaply, twice.

    Parameters must not require gradients: none are computed for them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None and _frozen(args, kwargs):
            return replacement(*args, **kwargs)
        return func(*args, **kwargs)


def _frozen(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    others = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
    wanted = torch.is_grad_enabled() and args[0].requires_grad
    return wanted and not any(v.requires_grad for v in others)


_REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    F.silu: _silu,
}
