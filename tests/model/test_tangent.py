"""Cheap tangents against PyTorch's own derivatives and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.guidance.linearisation import Linearisation
from model.guidance.tangent import CheapTangents

G = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 4, 3, 3, generator=G, dtype=torch.float64)
BIAS = torch.randn(6, generator=G, dtype=torch.float64)

FUNCTIONS = {
    "convolution": lambda x: F.conv2d(x, WEIGHT, BIAS, padding=1),
    "strided convolution": lambda x: F.conv2d(x, WEIGHT, stride=2, padding=1),
    "layer norm": lambda x: F.layer_norm(x, (5,), eps=1e-3),
    "affine layer norm": lambda x: F.layer_norm(x, (5,), torch.arange(5.0).double(), eps=1e-3),
    "silu": F.silu,
    "a residual block": lambda x: (
        x + F.conv2d(F.silu(F.layer_norm(x, (5,))), WEIGHT[:4], padding=1)
    ),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 6, 5, generator=G, dtype=torch.float64)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_values_and_both_derivatives_are_those_of_torch(name, x) -> None:
    f = FUNCTIONS[name]
    y, u = torch.func.jvp(f, (x,), (torch.ones_like(x),))
    w = torch.randn_like(y)
    (adjoint,) = torch.func.vjp(f, x)[1](w)
    leaf = x.clone().requires_grad_()
    with CheapTangents():
        ours = f(leaf)
    torch.testing.assert_close(ours.detach(), y)
    cotangent = w.clone().requires_grad_()
    (back,) = torch.autograd.grad(ours, leaf, cotangent, create_graph=True)
    torch.testing.assert_close(back.detach(), adjoint)
    (forth,) = torch.autograd.grad(back, cotangent, torch.ones_like(x))
    torch.testing.assert_close(forth, u)


@pytest.mark.parametrize("name", ["convolution", "silu", "a residual block"])
def test_tangents_agree_with_finite_differences(name, x) -> None:
    blankets = x[:, None]

    def observe(z: Tensor) -> Tensor:
        return FUNCTIONS[name](z[:, 0]).flatten(1)

    point = Linearisation(
        lambda x_t, sigma, date: x_t, observe, blankets, torch.tensor(1.0), torch.zeros(2, 1, 4)
    )
    u = torch.randn(blankets.shape, generator=G, dtype=torch.float64)
    step = 1e-6
    slope = (observe(blankets + step * u) - observe(blankets - step * u)) / (2 * step)
    torch.testing.assert_close(point.observe_jvp(u), slope, rtol=1e-6, atol=1e-7)


def test_trainable_weights_keep_their_gradients(x) -> None:
    weight = WEIGHT.clone().requires_grad_()
    leaf = x.clone().requires_grad_()
    with CheapTangents():
        y = F.conv2d(leaf, weight, padding=1)
    assert torch.autograd.grad(y.sum(), weight)[0].abs().max() > 0


def test_bfloat16_products_keep_float32_gradients(x) -> None:
    leaf = x.float().requires_grad_()
    with CheapTangents(), torch.autocast("cpu", torch.bfloat16):
        y = F.conv2d(leaf, WEIGHT.float(), padding=1)
    assert y.dtype == torch.bfloat16
    (back,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    exact = torch.nn.grad.conv2d_input(x.shape, WEIGHT, torch.ones(y.shape).double(), padding=1)
    assert back.dtype == torch.float32
    torch.testing.assert_close(back.double(), exact, rtol=0.05, atol=0.2)
