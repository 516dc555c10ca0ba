"""The zonal Gaussian prior against dense linear algebra on small sizes."""

import pytest
import torch

from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian, mean_features

K, C, H, W = 3, 2, 2, 6
DATE = torch.tensor([[2001, 3, 5, h] for h in range(K)])


def true_covariance(generator: torch.Generator) -> torch.Tensor:
    """A covariance over (K, C, H, W) that does not change when longitude is rotated."""
    a = torch.randn(K * C * H * W, K * C * H * W, generator=generator, dtype=torch.float64)
    covariance = (a @ a.T / a.shape[0]).reshape(K, C, H, W, K, C, H, W)
    rolled = [covariance.roll((s, s), (3, 7)) for s in range(W)]
    return torch.stack(rolled).mean(0).reshape(a.shape)


def draw(covariance: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    root = torch.linalg.cholesky(covariance)
    white = torch.randn(count, len(root), generator=generator, dtype=torch.float64)
    return (white @ root.T).reshape(count, K, C, H, W).float()


@pytest.fixture(scope="module")
def fitted() -> tuple[ZonalGaussianPrior, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    covariance = true_covariance(generator)
    samples = draw(covariance, 60_000, generator)
    dates = DATE.expand(len(samples), K, 4)
    prior = ZonalGaussianPrior(K, (C, H, W), modes=C * H, dense=K * C * H)
    return fit_zonal_gaussian(prior, lambda: iter([(samples, dates)]), shrinkage=0.0), covariance


def dense_of(prior: ZonalGaussianPrior) -> torch.Tensor:
    eye = torch.eye(K * C * H * W).reshape(-1, K, C, H, W)
    return prior.covariance_times(eye).flatten(1).double()


def test_fit_recovers_the_true_covariance(fitted):
    prior, covariance = fitted
    error = (dense_of(prior) - covariance).norm() / covariance.norm()
    assert error < 0.02  # 60 000 samples


def test_denoising_is_the_dense_gaussian_posterior_mean(fitted):
    prior, _ = fitted
    covariance = dense_of(prior)
    x = torch.randn(2, K, C, H, W, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.3, 2.0])
    mean = prior.climatology(DATE.expand(2, K, 4))
    out = prior(x, sigma, DATE.expand(2, K, 4))
    for i in range(2):
        noisy = covariance + sigma[i].double() ** 2 * torch.eye(len(covariance))
        delta = (x[i] - mean[i]).flatten().double()
        expected = mean[i].flatten() + covariance @ torch.linalg.solve(noisy, delta)
        torch.testing.assert_close(out[i].flatten().double(), expected, rtol=0, atol=2e-4)


def test_posterior_covariance_is_the_dense_one(fitted):
    prior, _ = fitted
    covariance = dense_of(prior)
    sigma = torch.tensor(0.7)
    eye = torch.eye(len(covariance))
    expected = torch.linalg.inv(torch.linalg.inv(covariance) + eye.double() / 0.49)
    out = prior.covariance_times(eye.reshape(-1, K, C, H, W), sigma).flatten(1).double()
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-3)


def test_a_truncated_prior_is_still_a_covariance():
    generator = torch.Generator().manual_seed(2)
    samples = draw(true_covariance(generator), 4_000, generator)
    dates = DATE.expand(len(samples), K, 4)
    prior = ZonalGaussianPrior(K, (C, H, W), modes=3, dense=4)
    fit_zonal_gaussian(prior, lambda: iter([(samples, dates)]))
    dense = dense_of(prior)
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-4)
    assert torch.linalg.eigvalsh((dense + dense.T) / 2).min() > 0
    # Truncation keeps the total variance: what is left out is spread evenly, not lost.
    anomaly = samples - samples.mean(0)
    total = anomaly.square().sum() / len(samples)
    assert float(dense.trace()) == pytest.approx(float(total), rel=0.02)


def test_mean_follows_season_and_hour():
    date = torch.tensor([[2001, 1, 1, 0], [2001, 7, 2, 12]])
    features = mean_features(date)
    assert features.shape == (2, 9)
    torch.testing.assert_close(features[0, [0, 2, 6]], torch.ones(3, dtype=torch.float64))
    assert features[1, 2] == pytest.approx(-1.0, abs=1e-3)
    assert features[1, 6] == pytest.approx(-1.0, abs=1e-6)


def test_scalings_are_the_mean_spectrum_of_the_dense_covariance(fitted):
    prior, _ = fitted
    covariance = dense_of(prior)
    variance = torch.linalg.eigvalsh((covariance + covariance.T) / 2)
    for sigma in (0.2, 3.0):
        scale = prior.scalings(torch.tensor(sigma, dtype=torch.float64).reshape(1, 1, 1, 1, 1))
        left = (variance * sigma**2 / (variance + sigma**2)).mean()
        assert float(scale.c_out) == pytest.approx(float(left.sqrt()), rel=1e-4)
        total = variance.mean() + sigma**2
        assert float(scale.c_in) == pytest.approx(float(total.rsqrt()), rel=1e-4)
        seen = (variance**2 / (variance + sigma**2)).mean()
        assert float(scale.c_estimate) == pytest.approx(float(seen.rsqrt()), rel=1e-3)
