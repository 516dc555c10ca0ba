"""Layers with their own derivatives: against finite differences, and against torch's."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.nn.convolution import ChannelNorm, Conv2d
from model.nn.frozen import transposed_product


def image(*shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.requires_grad_()


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_first_and_second_derivatives_of_the_norm(eps):
    norm = ChannelNorm(eps)
    x = image(2, 5, 3, 2)
    assert gradcheck(norm, (x,))
    assert gradgradcheck(norm, (x,))


def test_third_derivatives_of_the_norm_are_there():
    norm = ChannelNorm(0.1)
    x = image(1, 4, 1, 1)

    def curvature(x):
        (g,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)[0]

    assert gradcheck(curvature, (x,))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("frozen", [True, False])
def test_first_and_second_derivatives_of_the_convolution(kernel, frozen):
    torch.manual_seed(0)
    conv = Conv2d(3, 2, kernel, padding=kernel // 2).double().requires_grad_(not frozen)
    x = image(2, 3, 4, 5)
    assert gradcheck(conv, (x,))
    assert gradgradcheck(conv, (x,))
    assert torch.equal(conv(x), nn.Conv2d.forward(conv, x))


def test_weights_that_learn_get_their_gradient():
    torch.manual_seed(0)
    conv = Conv2d(3, 2, 3, padding=1)
    conv(torch.randn(1, 3, 4, 4, requires_grad=True)).sum().backward()
    assert conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_transposed_products_are_gradients_to_the_bit(memory):
    torch.manual_seed(0)
    config = AutoencoderConfig(3, 2, (9, 14), 4, hid_channels=(4, 6, 8), hid_blocks=(1, 1, 1))
    model = Autoencoder(config, channels_last=memory == torch.channels_last).requires_grad_(False)
    z = torch.randn(2, *config.latent_shape).requires_grad_()
    u = torch.randn_like(z)
    y = model.decode(z)
    w = torch.randn_like(y).requires_grad_()
    with torch.no_grad():  # as guidance does
        assert torch.equal(transposed_product(y, z, w), torch.autograd.grad(y, z, w, True)[0])
    (wanted,) = torch.autograd.grad(y, z, w, create_graph=True)
    adjoint = transposed_product(y, z, w, create_graph=True)
    assert torch.equal(adjoint, wanted)
    pushed = torch.autograd.grad(wanted, w, u, True)[0]
    assert torch.equal(transposed_product(adjoint, w, u), pushed)
    assert pushed.abs().max() > 0
    with pytest.raises(ValueError, match="shape"):
        transposed_product(y, z, w[:1])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_adjoint_of_the_adjoint_is_the_tangent_linear_decoder(memory):
    torch.manual_seed(0)
    config = AutoencoderConfig(3, 2, (9, 14), 4, hid_channels=(4, 6, 8), hid_blocks=(1, 1, 1))
    model = Autoencoder(config, channels_last=memory == torch.channels_last).double()
    model.requires_grad_(False)
    z, u = image(2, *config.latent_shape), torch.randn(2, *config.latent_shape).double()
    y = model.decode(z)
    v = torch.zeros_like(y).requires_grad_()
    (adjoint,) = torch.autograd.grad(y, z, v, create_graph=True)
    (tangent,) = torch.autograd.grad(adjoint, v, u)
    _, forward = torch.func.jvp(model.decode, (z.detach(),), (u,))
    assert torch.allclose(tangent, forward, rtol=1e-10, atol=1e-12)
    step = 1e-6
    difference = (model.decode(z + step * u) - model.decode(z - step * u)) / (2 * step)
    assert torch.allclose(tangent, difference, atol=1e-7)


def test_derivatives_under_autocast_have_the_type_of_the_input():
    torch.manual_seed(0)
    conv = Conv2d(3, 2, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    v = torch.ones_like(y).requires_grad_()
    (adjoint,) = torch.autograd.grad(y, x, v, create_graph=True)
    (tangent,) = torch.autograd.grad(adjoint, v, torch.ones_like(x))
    assert (y.dtype, adjoint.dtype, tangent.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
    exact = conv(x) - conv.bias[:, None, None]
    linear = nn.Conv2d.forward(conv, torch.ones_like(x)) - conv.bias[:, None, None]
    assert torch.allclose(tangent.float(), linear, atol=0.03)
    assert torch.allclose(y.float() - conv.bias[:, None, None], exact, atol=0.05)


def test_the_norm_in_bfloat16_stays_close_with_its_derivatives():
    norm, x = ChannelNorm(), image(2, 16, 4, 5)
    v, u = torch.randn_like(x), torch.randn_like(x)

    def all_of(x, v, u):
        x = x.detach().requires_grad_()
        y, w = norm(x), v.clone().requires_grad_()
        (adjoint,) = torch.autograd.grad(y, x, w, create_graph=True)
        return y, adjoint, torch.autograd.grad(adjoint, w, u)[0]

    exact = all_of(x, v, u)
    rough = all_of(*(a.detach().bfloat16() for a in (x, v, u)))
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.double()).square().mean().sqrt() < 0.02 * a.square().mean().sqrt()
