"""Continuing from a background: two analyses in turn are one analysis of all observations."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from model.assimilate import assimilate, recommended_settings
from model.background import (
    BackgroundPrior,
    innovation_weights,
    propagate_errors,
    shifted_forecast,
)
from model.domain.errors import InvalidInput
from model.domain.windows import WindowPlan
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.base import BlanketRows
from model.guidance.prior_covariance import PriorStart, PriorStartSettings
from model.unequal_noise import UNKNOWN
from tests.model.checkpoint_parts import tiny_model
from tests.model.test_prior_covariance import DATE, SIZE, C, H, K, Linear, W, observed

SIGMA = 0.8


def errors_after(prior: ZonalGaussianPrior, sigma: float) -> ZonalGaussianPrior:
    """Of the mean given all latents with white noise: the posterior covariance is known."""
    errors = ZonalGaussianPrior(K, (C, H, W), prior.modes.shape[2], prior.dense_index.shape[1])
    errors.load_state_dict(prior.state_dict())
    errors.mean.zero_()
    for variance in (errors.variance, errors.dense_variance, errors.rest_variance):
        variance.copy_(variance * sigma**2 / (variance + sigma**2))
    return errors


def dense(prior: ZonalGaussianPrior) -> torch.Tensor:
    eye = torch.eye(SIZE).reshape(-1, K, C, H, W)
    covariance = prior.covariance_times(eye).flatten(1).double()
    return (covariance + covariance.T) / 2


def test_two_analyses_in_turn_are_one_of_all_observations():
    generator, prior, a, y, conditions = observed(3)
    x_t = 2 * torch.randn(1, K, C, H, W, generator=generator)
    background = prior(x_t, torch.tensor(SIGMA), DATE[None])[0]
    settings = PriorStartSettings(iterations=60, tolerance=1e-6, member_iterations=1)
    second = PriorStart(
        BackgroundPrior(background, errors_after(prior, SIGMA)), conditions, 0, (0, 1), settings
    )
    rows = BlanketRows(torch.zeros(2, dtype=torch.long), torch.arange(2))
    white = torch.randn(1, K, C, H, W, generator=generator)
    pair = second(lambda *_: white, torch.cat([white, -white]), torch.tensor(1.0), DATE[None], rows)

    covariance, mean = dense(prior), prior.climatology(DATE[None]).flatten().double()
    h = torch.cat([torch.eye(SIZE), a]).double()
    values = torch.cat([x_t.flatten(), y]).double()
    noise = torch.cat([torch.full((SIZE,), SIGMA**2), torch.full((len(y),), 0.25)]).double()
    gain = covariance @ h.T @ torch.linalg.inv(h @ covariance @ h.T + noise.diag())
    expected = mean + gain @ (values - h @ mean)
    torch.testing.assert_close(pair.mean(0).flatten().double(), expected, rtol=0, atol=2e-3)


def test_weights_of_innovations_are_the_transposed_gain():
    generator, prior, a, y, conditions = observed(9)
    there = torch.randn(4, SIZE, generator=generator) / 3
    sensitivity = torch.randn(1, 4, generator=generator)
    errors = errors_after(prior, SIGMA)
    one = BlanketRows(*torch.zeros(2, 1, dtype=torch.long))
    x = torch.randn(1, K, C, H, W, generator=generator)
    used = conditions.observations().select(one, x)
    verified = Linear(there, torch.zeros(4), torch.full((4,), 0.2)).select(one, x)
    exact = PriorStartSettings(member_iterations=80, member_tolerance=1e-7)
    found = innovation_weights(errors, used, verified, x, sensitivity, exact)

    p, h, h_v = dense(errors), a.double() / 0.5, there.double() / 0.2
    gain = p @ h.T @ torch.linalg.inv(h @ p @ h.T + torch.eye(len(y)))
    torch.testing.assert_close(
        found[0].double(), gain.T @ h_v.T @ sensitivity[0].double(), rtol=2e-3, atol=2e-3
    )


def test_the_forecast_is_the_regression_on_what_was_analysed():
    generator, prior, *_ = observed(4)
    analysed = torch.randn(2, C, H, W, generator=generator)
    found = shifted_forecast(prior, analysed, DATE, 0.3)
    assert torch.equal(found[:2], analysed)
    covariance, mean = dense(prior), prior.climatology(DATE[None]).flatten().double()
    known = slice(0, 2 * C * H * W)
    past = covariance[known, known] + 0.09 * torch.eye(known.stop)
    departure = analysed.flatten().double() - mean[known]
    expected = mean[known.stop :] + covariance[known.stop :, known] @ torch.linalg.solve(
        past, departure
    )
    torch.testing.assert_close(found[2:].flatten().double(), expected, rtol=0, atol=2e-2)


def test_the_mean_is_that_of_errors_that_grew_with_the_flow():
    generator, prior, a, y, conditions = observed(5)
    known, remainder, sigma = 2, 0.7, 0.3
    analysed = torch.randn(known, C, H, W, generator=generator)
    errors = errors_after(prior, SIGMA)

    def bent(x_t: torch.Tensor, levels: torch.Tensor, date: torch.Tensor) -> torch.Tensor:
        mean = prior(x_t, levels, date)
        return mean + 0.4 * torch.tanh(mean * x_t.roll(1, -1)[:, :1])

    background = shifted_forecast(bent, analysed, DATE, sigma)
    propagation = propagate_errors(bent, errors, analysed, DATE, sigma, remainder)
    torch.testing.assert_close(propagation.background, background)
    settings = PriorStartSettings(tolerance=1e-6, propagated_iterations=80, member_iterations=1)
    around = BackgroundPrior(background, errors, propagation)
    start = PriorStart(around, conditions, 0, (0, 1), settings, transform=propagation)
    rows = BlanketRows(torch.zeros(2, dtype=torch.long), torch.arange(2))
    white = torch.randn(1, K, C, H, W, generator=generator)
    given = (lambda *_: white, torch.cat([white, -white]), torch.tensor(1.0), DATE[None], rows)
    pair = start(*given)
    narrow = PriorStart(around, conditions, 0, (0, 1), settings, transform=propagation, spread=0.5)(
        *given
    )
    torch.testing.assert_close(narrow.mean(0), pair.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow[0] - narrow[1], 0.5 * (pair[0] - pair[1]), rtol=0, atol=1e-5)

    part = known * C * H * W
    covariance = dense(errors)
    regression = covariance[part:, :part] @ torch.linalg.inv(covariance[:part, :part])

    levels = torch.tensor([[sigma, sigma, UNKNOWN]])

    def forecast(states: torch.Tensor) -> torch.Tensor:
        blanket = torch.cat([states, torch.zeros(K - known, C, H, W)])[None]
        return bent(blanket, levels, DATE[None])[0, known:]

    torch.testing.assert_close(forecast(analysed), background[known:])
    tangent = torch.autograd.functional.jacobian(forecast, analysed)
    growth = torch.eye(SIZE).double()
    growth[part:, part:] *= remainder
    growth[part:, :part] = tangent.reshape(SIZE - part, part).double() - remainder * regression
    grown, h = growth @ covariance @ growth.T, a.double()
    gain = grown @ h.T @ torch.linalg.inv(h @ grown @ h.T + 0.25 * torch.eye(len(y)))
    mean = background.flatten().double()
    expected = mean + gain @ (y.double() - h @ mean)
    torch.testing.assert_close(pair.mean(0).flatten().double(), expected, rtol=0, atol=1e-2)
    static = covariance @ h.T @ torch.linalg.inv(h @ covariance @ h.T + 0.25 * torch.eye(len(y)))
    unlike = mean + static @ (y.double() - h @ mean)
    assert float((unlike - expected).abs().max()) > 0.1  # the flow matters here


@pytest.fixture(scope="module")
def continued():
    model = tiny_model(based=True)
    size = model.blanket_size
    background = torch.randn(size, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    errors = ZonalGaussianPrior(size, model.latent_shape, 3, 2)
    return model, BackgroundPrior(background, errors)


def test_without_observations_members_lie_around_the_background(continued):
    model, prior = continued
    plan = WindowPlan.filtering(datetime(2021, 3, 4, 3, tzinfo=UTC), model.blanket_size)
    done = assimilate(model, None, plan, 4, 0, prior=prior)
    torch.testing.assert_close(done.latents.mean(0), prior.background, rtol=0, atol=1e-5)
    deviations = done.latents - prior.background
    assert 0.8 < float(deviations.square().mean()) < 1.2  # the errors' variance is 1


def test_members_deviate_by_less_where_the_covariance_is_larger_than_errors_are(continued):
    model, prior = continued
    plan = WindowPlan.filtering(datetime(2021, 3, 4, 3, tzinfo=UTC), model.blanket_size)
    whole = assimilate(model, None, plan, 4, 0, prior=prior).latents
    narrow = assimilate(model, None, plan, 4, 0, prior=replace(prior, spread=0.8)).latents
    torch.testing.assert_close(narrow.mean(0), whole.mean(0), rtol=0, atol=1e-5)
    off = [members - members.mean(0) for members in (whole, narrow)]
    torch.testing.assert_close(off[1], 0.8 * off[0], rtol=0, atol=1e-5)


def test_a_window_that_is_no_blanket_is_refused(continued):
    model, prior = continued
    plan = WindowPlan.filtering(datetime(2021, 3, 4, 3, tzinfo=UTC), model.blanket_size + 1)
    with pytest.raises(InvalidInput, match="Start cold"):
        assimilate(model, None, plan, 2, 0, prior=prior, settings=recommended_settings(model))
