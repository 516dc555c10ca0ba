"""Products with the Jacobians of frozen layers, at the least work and memory.

Guidance needs products with the Jacobian of the decoder, taken as the adjoint of the adjoint.
torch's double backward of a convolution then also computes the gradient of the weights, frozen
or not, which doubles the work, and splits a depthwise convolution into one per channel. A
convolution with fixed weights is linear, so the adjoint of its adjoint is the convolution itself,
and nothing else has to be computed or kept.

A residual block x + conv(SiLU(conv(norm(x)))) is linearised as a whole: the graphs keep only its
input, and the hidden image where that is small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "FixedConvolution",
    "FrozenBlock",
    "fixed_convolution",
    "fixed_residual",
    "gradient_is_computed",
    "is_linearising",
    "linearising",
    "plain_autograd",
    "product_type",
    "transposed_product",
]


def plain_autograd(x: Tensor) -> bool:
    """Return whether gradients of `x` are recorded by eager autograd, not by a transform or compiler."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and not torch.compiler.is_compiling()
        and torch._C._functorch.maybe_current_level() is None
    )


def product_type(x: Tensor) -> torch.dtype:
    """Return the type products of `x` run in: the adjoint runs outside the autocast and needs it."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Seed(torch.autograd.Function):
    """Zero, whose gradient with respect to `y` is `w`; differentiable in `w`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def transposed_product(y: Tensor, x: Tensor, w: Tensor, *, create_graph: bool = False) -> Tensor:
    """Multiply `w` by the transposed Jacobian of `y` with respect to `x`; the graph is kept.

    Equal to `torch.autograd.grad(y, x, w, retain_graph=True)` to the bit. That compares the shapes
    by torch's symbolic ones, which imports sympy: 33 MB and a second of processor at first use.

    Arguments:
        y: A tensor with a graph that leads to `x`.
        x: A tensor that requires gradients.
        w: The factor, with the shape of `y`.
        create_graph: Whether the product can be differentiated in `w`.

    Raises:
        ValueError: If `w` has another shape than `y`.
    """
    if w.shape != y.shape:
        raise ValueError(f"Expected a factor of shape {tuple(y.shape)}; got {tuple(w.shape)}.")
    with torch.enable_grad():
        seed = _Seed.apply(y, w)  # type: ignore[no-untyped-call]
    return torch.autograd.grad(seed, x, retain_graph=True, create_graph=create_graph)[0]


@dataclass(frozen=True)
class FixedConvolution:
    """A convolution with fixed weights, which a graph holds by reference: no cast copy is kept."""

    weight: Tensor
    padding: tuple[int, int]
    kind: torch.dtype
    groups: int = field(default=1, kw_only=True)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else bias.to(self.kind)
        weight = self.weight.to(self.kind)
        return F.conv2d(x.to(self.kind), weight, bias, padding=self.padding, groups=self.groups)

    def adjoint(self, gradient: Tensor, size: torch.Size, stride: tuple[int, ...]) -> Tensor:
        """Return the adjoint's product with `gradient`, for an input of this size and stride."""
        gradient, weight = gradient.to(self.kind), self.weight.to(self.kind)
        image = gradient.new_empty_strided(size, stride)
        one, zero = [1, 1], [0, 0]
        adjoint: Tensor = torch.ops.aten.convolution_backward(
            gradient, image, weight, None, one, self.padding, one, False, zero, self.groups,
            [True, False, False],
        )[0]  # fmt: skip
        return adjoint


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fixed: FixedConvolution, bias: Tensor | None) -> Tensor:
        ctx.fixed = fixed
        ctx.image = x.shape, x.stride(), x.dtype
        return fixed.forward(x, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Adjoint.apply(gradient, ctx.fixed, ctx.image), None, None  # type: ignore[no-untyped-call]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, fixed: FixedConvolution, image: tuple[Any, ...]
    ) -> Tensor:
        ctx.fixed = fixed
        size, stride, kind = image
        return fixed.adjoint(gradient, size, stride).to(kind)

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        product = _Convolution.apply(tangent, ctx.fixed, None)  # type: ignore[no-untyped-call]
        return product, None, None


def gradient_is_computed(ctx: Any, position: int) -> bool:
    """Return whether the running backward pass computes the gradient of an input.

    `needs_input_grad` only says that the input requires one; the tangent-linear products of guidance
    compute gradients in the cotangent, never in x.
    """
    node = ctx.next_functions[position][0]
    return node is not None and torch._C._will_engine_execute_node(node)


_LINEARISING: ContextVar[bool] = ContextVar("linearising", default=False)


@contextmanager
def linearising() -> Iterator[None]:
    """Evaluate frozen residual blocks for products with their Jacobian, at the least memory.

    A block then keeps its input for the graph and the graph of its adjoint together, where each
    layer by itself keeps several images for each. Where the image is large the hidden convolution
    is computed again in every product, for half as much work again; elsewhere it is kept.
    Second derivatives in the state are refused.
    """
    token = _LINEARISING.set(True)
    try:
        yield
    finally:
        _LINEARISING.reset(token)


LARGE_IMAGE = 1 << 17
"""Points of an image. Each level of the decoder does about the same work, but at half the memory
of the one before: only the two finest of the released one are above this."""


@dataclass(frozen=True)
class FrozenBlock:
    """Weights and settings of a frozen residual block."""

    first: FixedConvolution
    second: FixedConvolution
    first_bias: Tensor | None
    second_bias: Tensor | None
    norm: tuple[float, float, float]

    def standardised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the standardised image, and the means and inverse deviations of its points."""
        weight, eps, factor = self._norm(x)
        y, mean, rstd = torch.native_layer_norm(
            x.permute(0, 2, 3, 1), weight.shape, weight, None, eps
        )
        return (y if factor == 1.0 else y * factor).permute(0, 3, 1, 2), mean, rstd

    def standardised_adjoint(self, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """Return the product with the Jacobian of the standardisation, which is symmetric."""
        weight, _, factor = self._norm(x)
        g = g.to(x.dtype) if factor == 1.0 else factor * g.to(x.dtype)
        adjoint: Tensor = torch.ops.aten.native_layer_norm_backward(
            g.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1), weight.shape, mean, rstd, weight, None,
            [True, False, False],
        )[0]  # fmt: skip
        return adjoint.permute(0, 3, 1, 2)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input of the non-linearity, and the statistics of the standardisation."""
        z, mean, rstd = self.standardised(x)
        return self.first.forward(z, self.first_bias), mean, rstd

    def tangent(self, u: Tensor, x: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Return the Jacobian's product with `u`."""
        hidden, mean, rstd = kept or self.hidden(x)
        a = self.first.forward(self.standardised_adjoint(u, x, mean, rstd))
        return self.inside(u) + self.second.forward(torch.ops.aten.silu_backward(a, hidden))

    def adjoint(self, g: Tensor, x: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Return the transposed Jacobian's product with `g`."""
        hidden, mean, rstd = kept or self.hidden(x)
        a = self.second.adjoint(g, hidden.shape, hidden.stride())
        a = torch.ops.aten.silu_backward(a, hidden)
        del hidden
        a = self.first.adjoint(a, x.shape, x.stride())
        return self.outside(g) + self.standardised_adjoint(a, x, mean, rstd)

    def inside(self, x: Tensor) -> Tensor:
        """Return the part of an input that the output covers."""
        return x

    def outside(self, g: Tensor) -> Tensor:
        """Apply the adjoint of `inside` to a gradient; it has the shape of the output."""
        return g

    def keeps_hidden(self, x: Tensor) -> bool:
        """Return whether the graph keeps the hidden image rather than computing it again."""
        return x.shape[-2] * x.shape[-1] <= LARGE_IMAGE

    def _norm(self, x: Tensor) -> tuple[Tensor, float, float]:
        scale, eps, factor = self.norm
        return x.new_full((x.shape[1],), scale), eps, factor


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: FrozenBlock) -> Tensor:
        hidden, mean, rstd = layers.hidden(x)
        ctx.layers = layers
        ctx.save_for_backward(x, *((hidden, mean, rstd) if layers.keeps_hidden(x) else ()))
        return layers.inside(x) + layers.second.forward(F.silu(hidden), layers.second_bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _ResidualAdjoint.apply(gradient, ctx.layers, *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class _ResidualAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, layers: FrozenBlock, x: Tensor, *kept: Tensor
    ) -> Tensor:
        ctx.layers = layers
        ctx.save_for_backward(x, *kept)
        return layers.adjoint(gradient, x, kept)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        if ctx.needs_input_grad[2] and gradient_is_computed(ctx, 1):
            raise RuntimeError(
                "Expected derivatives of a linearised block in its cotangent alone; a second "
                "derivative in the state was asked for. Evaluate it outside `linearising()`."
            )
        product = _ResidualTangent.apply(u, ctx.layers, x.detach(), *kept)  # type: ignore[no-untyped-call]
        return product, None, None, *(None for _ in kept)


class _ResidualTangent(torch.autograd.Function):
    """The product with the Jacobian at a fixed state; its adjoint is that of the block."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, layers: FrozenBlock, x: Tensor, *kept: Tensor) -> Tensor:
        ctx.layers = layers
        ctx.save_for_backward(x, *kept)
        return layers.tangent(u, x, kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        product = _ResidualAdjoint.apply(gradient, ctx.layers, x, *kept)  # type: ignore[no-untyped-call]
        return product, None, None, *(None for _ in kept)


def is_linearising() -> bool:
    """Return whether `linearising()` is in force."""
    return _LINEARISING.get()


def fixed_convolution(x: Tensor, fixed: FixedConvolution, bias: Tensor | None) -> Tensor:
    """Return the convolution of (N, C, H, W), with cheap derivatives of any order in x."""
    y: Tensor = _Convolution.apply(x, fixed, bias)  # type: ignore[no-untyped-call]
    return y


def fixed_residual(x: Tensor, layers: FrozenBlock) -> Tensor:
    """Return the residual block of (N, C, H, W), with cheap products with its Jacobian."""
    y: Tensor = _Residual.apply(x, layers)  # type: ignore[no-untyped-call]
    return y
