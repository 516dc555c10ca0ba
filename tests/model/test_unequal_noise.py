"""The prior under a noise level per state, against dense linear algebra on small sizes."""

import pytest
import torch

from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.unequal_noise import Conditioned
from tests.model.test_gaussian_prior import DATE, C, H, K, W, dense_of, draw, true_covariance

PROFILES = [(0.2, 0.5, 3.0), (0.05, 0.05, 50.0), (1.0, 1.0, 1.0), (8.0, 0.3, 0.1)]


@pytest.fixture(scope="module", params=["dense", "truncated"])
def prior(request: pytest.FixtureRequest) -> ZonalGaussianPrior:
    generator = torch.Generator().manual_seed(3)
    samples = draw(true_covariance(generator), 4_000, generator)
    dates = DATE.expand(len(samples), K, 4)
    modes, dense = (C * H, K * C * H) if request.param == "dense" else (3, 5)
    fitted = ZonalGaussianPrior(K, (C, H, W), modes=modes, dense=dense)
    return fit_zonal_gaussian(fitted, lambda: iter([(samples, dates)]))


@pytest.mark.parametrize("levels", PROFILES)
def test_the_mean_is_that_of_the_dense_gaussian(prior, levels):
    sigma = torch.tensor(levels)
    covariance = dense_of(prior)
    noise = sigma.double().square()[:, None].expand(K, C * H * W).flatten()
    x = torch.randn(2, K, C, H, W, generator=torch.Generator().manual_seed(1))
    date = DATE.expand(2, K, 4)
    mean = prior.climatology(date)
    gain = covariance @ torch.linalg.inv(covariance + noise.diag())
    expected = mean.flatten(1) + (x - mean).flatten(1).double() @ gain.T
    out = Conditioned(prior, sigma)(x, date).flatten(1)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("levels", PROFILES)
def test_scalings_are_the_variances_of_the_dense_gaussian(prior, levels):
    sigma = torch.tensor(levels)
    covariance = dense_of(prior)
    covariance = (covariance + covariance.T) / 2
    noise = sigma.double().square()[:, None].expand(K, C * H * W).flatten()
    left = torch.linalg.inv(torch.linalg.inv(covariance) + noise.reciprocal().diag())
    scale = Conditioned(prior, sigma).scalings()
    for name, expected in (
        ("c_out", left.diag().reshape(K, -1).mean(1).sqrt()),
        ("c_in", (covariance.diag() + noise).reshape(K, -1).mean(1).rsqrt()),
    ):
        found = getattr(scale, name).flatten()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0, msg=name)


def test_equal_levels_give_what_the_prior_gives(prior):
    x = torch.randn(2, K, C, H, W, generator=torch.Generator().manual_seed(2))
    date = DATE.expand(2, K, 4)
    expected = prior(x, torch.tensor(0.7), date)
    out = Conditioned(prior, torch.full((K,), 0.7))(x, date)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)


def test_rows_with_their_own_levels_get_their_own_profile(prior):
    x = torch.randn(3, K, C, H, W, generator=torch.Generator().manual_seed(4))
    date = DATE.expand(3, K, 4)
    sigma = torch.tensor([PROFILES[0], PROFILES[1], PROFILES[0]])
    out = prior(x, sigma, date)
    scale = prior.scalings(sigma.double()[..., None, None, None])
    for row in range(3):
        alone = Conditioned(prior, sigma[row])
        torch.testing.assert_close(out[row], alone(x[row : row + 1], date[row : row + 1])[0])
        torch.testing.assert_close(scale.c_out[row], alone.scalings().c_out[0])
