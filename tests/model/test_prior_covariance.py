"""Guidance with a closed-form covariance against the dense Gaussian posterior."""

import torch

from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.guidance.base import BlanketRows, Conditions, FitReport, Observed
from model.guidance.prior_covariance import (
    PriorCovariance,
    PriorCovarianceSettings,
    PriorStart,
    PriorStartSettings,
)
from model.samplers.control import MemberNoise

K, C, H, W = 3, 2, 2, 6
SIZE = K * C * H * W
DATE = torch.tensor([[2001, 3, 5, h] for h in range(K)])


class Linear:
    """y = A x with given errors."""

    def __init__(self, a: torch.Tensor, y: torch.Tensor, std: torch.Tensor) -> None:
        self.a, self.y, self.std = a, y, std

    def select(self, rows: BlanketRows, like: torch.Tensor) -> Observed:
        count = (len(rows), -1)
        return Observed(
            self.y.expand(*count).to(like),
            self.std.expand(*count).to(like),
            torch.ones(len(rows), len(self.y), dtype=torch.bool),
            lambda x: x.flatten(1) @ self.a.T.to(x),
            (("observations", len(self.y)),),
        )


def fitted(generator: torch.Generator) -> ZonalGaussianPrior:
    samples = torch.randn(500, K, C, H, W, generator=generator).cumsum(1).cumsum(-1)
    dates = DATE.expand(500, K, 4)
    prior = ZonalGaussianPrior(K, (C, H, W), modes=C * H, dense=K * C * H)
    return fit_zonal_gaussian(prior, lambda: iter([(samples, dates)]))


def observed(
    seed: int,
) -> tuple[torch.Generator, ZonalGaussianPrior, torch.Tensor, torch.Tensor, Conditions]:
    """A generator, a prior, observations y = A x with errors of 0.5, and the conditions."""
    generator = torch.Generator().manual_seed(seed)
    prior = fitted(generator)
    a = torch.randn(6, SIZE, generator=generator) / 3
    y, std = torch.randn(6, generator=generator) * 2, torch.full((6,), 0.5)
    conditions = Conditions(lambda decode: Linear(a, y, std), lambda z: z, lambda z: z)
    return generator, prior, a, y, conditions


def dense_posterior(
    prior: ZonalGaussianPrior, a: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance given observations y = A x with errors of 0.5, by dense algebra."""
    eye = torch.eye(SIZE).reshape(-1, K, C, H, W)
    covariance = prior.covariance_times(eye).flatten(1).double()
    mean = prior.climatology(DATE[None]).flatten().double()
    h = a.double()
    gain = covariance @ h.T @ torch.linalg.inv(h @ covariance @ h.T + 0.25 * torch.eye(len(y)))
    return mean + gain @ (y.double() - h @ mean), covariance - gain @ h @ covariance


def test_it_is_the_exact_posterior_mean_of_a_gaussian_prior():
    generator = torch.Generator().manual_seed(0)
    prior = fitted(generator)
    a = torch.randn(7, SIZE, generator=generator) / 3
    y = torch.randn(7, generator=generator) * 3
    std = torch.rand(7, generator=generator) + 0.3
    x_t = torch.randn(2, K, C, H, W, generator=generator) * 2
    sigma, date = torch.tensor(0.8), DATE.expand(2, K, 4)
    seen, report = Linear(a, y, std), FitReport()
    settings = PriorCovarianceSettings(iterations=30, tolerance=1e-6)
    guide = PriorCovariance(seen, seen, prior.conditional_filter, settings, report)
    rows = BlanketRows(torch.zeros(2, dtype=torch.long), torch.arange(2))
    out = guide(prior, x_t, sigma, date, rows)

    eye = torch.eye(SIZE).reshape(-1, K, C, H, W)
    covariance = prior.covariance_times(eye).flatten(1).double()
    mean = prior.climatology(date).flatten(1).double()
    both = torch.cat((torch.eye(SIZE).double(), a.double()))
    noise = torch.cat((torch.full((SIZE,), 0.64), std.square())).double()
    for i in range(2):
        data = torch.cat((x_t[i].flatten(), y)).double()
        gain = (
            covariance @ both.T @ torch.linalg.inv(both @ covariance @ both.T + torch.diag(noise))
        )
        expected = mean[i] + gain @ (data - both @ mean[i])
        torch.testing.assert_close(out[i].flatten().double(), expected, rtol=0, atol=2e-3)
    ((level, fit),) = report.levels
    left = (y - out.flatten(1) @ a.T) / std
    assert level == float(sigma)
    torch.testing.assert_close(
        torch.tensor(fit.chi_after).double(),
        left.square().mean().sqrt().double(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_gauss_newton_settles_on_a_bent_operator():
    class Bent(Linear):
        def select(self, rows, like):
            seen = super().select(rows, like)
            return Observed(
                seen.values,
                seen.error_std,
                seen.present,
                lambda x: (lambda v: v + 0.1 * v**2)(x.flatten(1) @ self.a.T),
                seen.parts,
            )

    generator = torch.Generator().manual_seed(1)
    prior = fitted(generator)
    a = torch.randn(4, SIZE, generator=generator) / 5
    seen = Bent(a, torch.tensor([1.0, 2.0, 0.5, 1.5]), torch.full((4,), 0.05))
    x_t = torch.randn(1, K, C, H, W, generator=generator)
    rows = BlanketRows(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    chi = []
    for steps in (1, 4):
        settings = PriorCovarianceSettings(iterations=30, steps=steps, tolerance=1e-6)
        guide = PriorCovariance(seen, seen, prior.conditional_filter, settings)
        out = guide(prior, x_t, torch.tensor(1.0), DATE[None], rows)
        view = seen.select(rows, x_t)
        chi.append(float(((view.values - view.predict(out)) / view.error_std).square().mean()))
    assert chi[1] < 0.5 * chi[0]
    assert chi[1] < 1


def test_a_start_from_the_prior_draws_the_gaussian_posterior():
    generator, prior, a, y, conditions = observed(2)
    members = 6000
    settings = PriorStartSettings(
        iterations=20, tolerance=1e-6, member_iterations=20, member_tolerance=1e-6, antithetic=False
    )
    start = PriorStart(prior, conditions, 7, tuple(range(members)), settings)
    white = torch.randn(members, K, C, H, W, generator=generator)
    rows = BlanketRows(torch.zeros(members, dtype=torch.long), torch.arange(members))
    date = DATE.expand(members, K, 4)
    drawn = start(prior, white, torch.ones(()), date, rows).flatten(1).double()

    expected, posterior = dense_posterior(prior, a, y)
    deviation = posterior.diagonal().clamp(min=1e-6).sqrt()
    assert ((drawn.mean(0) - expected) / deviation).abs().max() < 4.5 / members**0.5
    error = (torch.cov(drawn.T) - posterior).norm() / posterior.norm()
    assert error < 0.1
    # The same member is the same whatever is drawn beside it.
    alone = start(prior, white[5:6], torch.ones(()), date[:1], rows[5:6])
    torch.testing.assert_close(alone.flatten(1).double(), drawn[5:6], rtol=0, atol=1e-3)


def test_mirrored_members_draw_the_posterior_and_their_mean_is_its_mean():
    generator, prior, a, y, conditions = observed(3)
    members = 3000
    settings = PriorStartSettings(
        iterations=20, tolerance=1e-6, member_iterations=20, member_tolerance=1e-6
    )
    start = PriorStart(prior, conditions, 7, tuple(range(members)), settings)
    noise = MemberNoise(5, range(members), range(K), antithetic=True)
    white = noise(torch.zeros(members, K, C, H, W))
    torch.testing.assert_close(white[1], -white[0])
    rows = BlanketRows(torch.zeros(members, dtype=torch.long), torch.arange(members))
    date = DATE.expand(members, K, 4)
    drawn = start(prior, white, torch.ones(()), date, rows).flatten(1).double()

    expected, posterior = dense_posterior(prior, a, y)
    # Two members suffice for the mean; the covariance needs all the pairs.
    torch.testing.assert_close(drawn[:2].mean(0), expected, rtol=0, atol=2e-3)
    error = (torch.cov(drawn.T) - posterior).norm() / posterior.norm()
    assert error < 0.12
    alone = start(prior, white[5:6], torch.ones(()), date[:1], rows[5:6])
    torch.testing.assert_close(alone.flatten(1).double(), drawn[5:6], rtol=0, atol=1e-3)


def test_an_earlier_mean_as_first_guess_leads_to_the_same_members():
    generator, prior, _, _, conditions = observed(4)
    settings = PriorStartSettings(iterations=40, tolerance=1e-6, steps=1)
    white = MemberNoise(5, range(2), range(K), antithetic=True)(torch.zeros(2, K, C, H, W))
    rows = BlanketRows(torch.full((2,), 3), torch.arange(2))
    drawn = []
    for guess in (None, torch.randn(1, K, C, H, W, generator=generator)):
        start = PriorStart(prior, conditions, 7, (0, 1), settings, guess, first=3)
        drawn.append(start(prior, white, torch.ones(()), DATE.expand(2, K, 4), rows))
    torch.testing.assert_close(drawn[1], drawn[0], rtol=0, atol=2e-3)
