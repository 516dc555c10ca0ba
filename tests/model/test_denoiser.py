"""The preconditioned denoiser against Gaussian closed forms."""

import pytest
import torch
from azula.denoise import GaussianDenoiser
from azula.linalg.covariance import DiagonalCovariance
from azula.sample import DDIMSampler
from torch import nn

from model.backbone import Backbone, BackboneConfig
from model.denoiser import AzulaDenoiser, BlanketDenoiser, Scalings, denoiser_loss
from model.samplers.schedule import LogLinearSchedule, RectifiedSchedule

SHAPE = (4, 3, 2, 6)
CONFIG = BackboneConfig(3, 4, (2, 6), 8, 16, 2, attention_heads=2)
DATE = torch.tensor([[[2021, 3, 4, h] for h in range(4)]])


class Zero(nn.Module):
    def forward(self, x, t, date):
        return torch.zeros_like(x)


class Echo(nn.Module):
    """Records what the backbone is given and returns its input."""

    def forward(self, x, t, date):
        self.seen = x, t
        return x


class DiagonalBase(nn.Module):
    """The denoiser of x ~ N(mean, variance) with one variance for each channel."""

    def __init__(self, mean, variance):
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("variance", variance.reshape(-1, 1, 1))

    def forward(self, x_t, sigma, date):
        level = sigma.reshape(-1, 1, 1, 1, 1).square()
        return self.mean + self.variance / (self.variance + level) * (x_t - self.mean)

    def scalings(self, sigma):
        total = self.variance + sigma.square()
        return Scalings(total.rsqrt(), sigma * (self.variance / total).sqrt())


def noisy(batch=2):
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.randn(batch, *SHAPE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("sigma", [1e-3, 0.7, 1e3])
def test_without_a_correction_it_is_the_standard_normal_denoiser(sigma):
    level = torch.tensor(sigma, dtype=torch.float64)
    x_t = noisy()
    got = BlanketDenoiser(Zero())(x_t, level, DATE)
    schedule = LogLinearSchedule(sigma, 2 * sigma)
    normal = GaussianDenoiser(
        torch.zeros(SHAPE, dtype=torch.float64),
        DiagonalCovariance(torch.ones(SHAPE, dtype=torch.float64)),
        schedule,
    )
    expected = normal(x_t, torch.zeros((), dtype=torch.float64)).mean
    assert torch.allclose(got, expected, rtol=1e-9)


def test_the_backbone_sees_unit_variance_and_ten_ln_sigma():
    echo = Echo()
    sigma = torch.tensor([3.0, 0.25], dtype=torch.float64)
    x_t = noisy()
    got = BlanketDenoiser(echo)(x_t, sigma, DATE.expand(2, -1, -1))
    seen, time = echo.seen
    assert torch.allclose(time, 10 * sigma.log())
    assert torch.allclose(seen[0], x_t[0] / 10**0.5)
    # The echoed input comes back times c_out c_in = sigma / (sigma² + 1).
    column = sigma.reshape(2, 1, 1, 1, 1)
    assert torch.allclose(got, (1 + column) / (column**2 + 1) * x_t)


def test_one_level_for_all_or_one_each():
    torch.manual_seed(0)
    denoise = BlanketDenoiser(Backbone(CONFIG)).double()
    x_t, sigma = noisy(), torch.tensor([3.0, 0.25], dtype=torch.float64)
    both = denoise(x_t, sigma, DATE.expand(2, -1, -1))
    for i in range(2):
        assert torch.allclose(denoise(x_t[i : i + 1], sigma[i], DATE)[0], both[i])


def test_another_base_gives_its_posterior_mean_and_scalings():
    mean = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    variance = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    denoise = BlanketDenoiser(Zero(), DiagonalBase(mean, variance))
    sigma = torch.tensor([3.0, 0.25], dtype=torch.float64)
    got = denoise(noisy(), sigma, DATE.expand(2, -1, -1))
    # Precision-weighted mean of prior and x_t.
    weight, prior = sigma.reshape(2, 1, 1, 1, 1) ** -2, 1 / variance.reshape(3, 1, 1)
    expected = (weight * noisy() + prior * mean.reshape(3, 1, 1)) / (weight + prior)
    assert torch.allclose(got, expected)
    assert torch.allclose(denoise.scalings(sigma).c_out ** -2, weight + prior)


@pytest.mark.parametrize("based", [False, True])
def test_loss_of_the_exact_posterior_mean_is_one(based):
    # The posterior variance is c_out², so the weighted squared error has mean 1.
    mean = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    variance = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600, *SHAPE, dtype=torch.float64, generator=generator)
    base = None
    if based:
        base = DiagonalBase(mean, variance)
        x = mean.reshape(3, 1, 1) + variance.sqrt().reshape(3, 1, 1) * x
    denoise = BlanketDenoiser(Zero(), base)
    sigma = torch.logspace(-2, 2, 600, dtype=torch.float64)
    loss = denoiser_loss(denoise, x, sigma, DATE.expand(600, -1, -1), generator=generator)
    # 86 400 squares of unit normals: standard error sqrt(2 / 86400) = 0.0048.
    assert abs(loss.item() - 1) < 0.02


def test_azulas_sampler_follows_the_probability_flow_of_the_normal_prior():
    schedule = RectifiedSchedule(1e-3, 1e3)
    denoiser = AzulaDenoiser(BlanketDenoiser(Zero()), schedule, DATE)
    sampler = DDIMSampler(denoiser, steps=2000, silent=True)
    x_1 = schedule.sigma_max * noisy().float() / 5
    x_0 = sampler(x_1)
    # dx/dsigma = sigma x / (sigma² + 1), so |x| shrinks like sqrt(sigma² + 1).
    expected = x_1 * ((1 + 1e-6) / (1 + 1e6)) ** 0.5
    assert torch.allclose(x_0, expected, rtol=0.02)


def test_bfloat16_products_stay_close_and_return_the_type_of_the_input():
    torch.manual_seed(0)
    full = BlanketDenoiser(Backbone(CONFIG)).eval().requires_grad_(False)
    fast = BlanketDenoiser(full.backbone, precision="bfloat16")
    x_t, sigma = noisy().float(), torch.tensor(0.8)
    date = DATE.expand(2, -1, -1)
    exact, got = full(x_t, sigma, date), fast(x_t, sigma, date)
    assert got.dtype == torch.float32
    # bfloat16 has 8 bits: relative errors of some 2^-8 in the correction, which is of order 1.
    assert 0 < (got - exact).abs().max() < 0.1


def test_gradients_reach_the_input_and_the_base():
    base = DiagonalBase(torch.zeros(3), torch.ones(3)).double()
    denoise = BlanketDenoiser(Backbone(CONFIG), base).double()
    x_t = noisy(1).requires_grad_()
    denoise(x_t, torch.tensor(1.0, dtype=torch.float64), DATE).sum().backward()
    assert x_t.grad.abs().min() > 0


def test_float32_leaves_an_autocast_of_the_surroundings_on():
    class Asks(nn.Module):
        def forward(self, x, t, date):
            self.on = torch.is_autocast_enabled("cpu")
            return x

    asks = Asks()
    with torch.autocast("cpu", torch.bfloat16):
        BlanketDenoiser(asks)(noisy(1), torch.tensor(1.0), DATE)
    assert asks.on
