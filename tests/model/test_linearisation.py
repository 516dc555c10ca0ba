"""The linearisation of guidance against finite differences and as a pair of adjoints."""

import pytest
import torch
from checkpoint_parts import tiny_model
from torch import Tensor

from model.guidance.jacobian import Linearisation
from model.latent_model import LatentModel

G = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def model() -> LatentModel:
    return tiny_model().double()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float64)


def observe_with(model: LatentModel):
    return lambda x: model.decode_standardised(x)[..., ::3, ::4].square().flatten(1)


@pytest.fixture
def point(model) -> Linearisation:
    x_t = normal(2, 4, *model.latent_shape)
    date = torch.tensor([[[2021, 3, 4, hour] for hour in range(4)]] * 2)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    return Linearisation(model.denoise, observe_with(model), x_t, sigma, date)


def test_the_tangent_agrees_with_finite_differences(model, point) -> None:
    observe, u, step = observe_with(model), normal(*point.x_hat.shape), 1e-6
    with torch.no_grad():
        ahead, behind = observe(point.x_hat + step * u), observe(point.x_hat - step * u)
    slope = (ahead - behind) / (2 * step)
    torch.testing.assert_close(point.observe_jvp(u), slope, rtol=1e-6, atol=1e-7)


def test_tangent_and_adjoint_belong_together(point) -> None:
    for _ in range(2):  # the first adjoint is recorded, later ones are not
        u, v = normal(*point.x_hat.shape), normal(*point.y_hat.shape)
        forth = (point.observe_jvp(u) * v).sum()
        back = (point.observe_vjp(v) * u).sum()
        torch.testing.assert_close(forth, back, rtol=1e-10, atol=1e-10)


def test_the_denoiser_is_evaluated_once(model) -> None:
    calls = []

    def denoise(x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        calls.append(len(x_t))
        return x_t * 0.5

    x_t = normal(1, 4, *model.latent_shape)
    point = Linearisation(
        denoise, observe_with(model), x_t, torch.tensor(1.0), torch.zeros(1, 4, 4)
    )
    for _ in range(3):
        point.denoise_vjp(point.observe_vjp(torch.ones_like(point.y_hat)))
        point.observe_jvp(x_t)
    assert calls == [1]
    torch.testing.assert_close(point.denoise_vjp(x_t), 0.5 * x_t)
