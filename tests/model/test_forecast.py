"""Forecasts by a denoiser with a noise level per state, against dense linear algebra."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from model.assimilate import assimilate, recommended_settings
from model.denoiser import BlanketDenoiser
from model.domain.windows import HOUR, WindowPlan
from model.forecast import forecast_deviations
from model.nn.embedding import date_rows
from tests.model.checkpoint_parts import tiny_model
from tests.model.test_background import dense
from tests.model.test_prior_covariance import C, H, K, W, observed

NOON = datetime(2021, 3, 4, 12, tzinfo=UTC)


def test_deviations_have_the_conditional_covariance():
    generator, prior, *_ = observed(5)
    known, sigma, draws = K - 1, 0.3, 6000
    white, noise = torch.randn(2, draws, K, C, H, W, generator=generator)
    found = forecast_deviations(prior, known, sigma, white, noise).flatten(1).double()
    covariance = dense(prior)
    past = slice(0, known * C * H * W)
    known_part = covariance[past, past] + sigma**2 * torch.eye(past.stop)
    cross = covariance[past.stop :, past]
    expected = covariance[past.stop :, past.stop :] - cross @ torch.linalg.solve(
        known_part, cross.T
    )
    sampled = found.T @ found / draws
    size = expected.diag().sqrt()
    torch.testing.assert_close(
        sampled / (size[:, None] * size), expected / (size[:, None] * size), rtol=0, atol=0.07
    )


class _Nothing(torch.nn.Module):
    def forward(self, x, time, date):
        return torch.zeros_like(x)


@pytest.fixture(scope="module")
def model():
    """A model that takes a level per state and whose network corrects nothing."""
    model = tiny_model(based=True)
    per_state = replace(model.card.backbone, noise_per_state=True)
    model.card = model.card.model_copy(update={"backbone": per_state})
    model.denoise = BlanketDenoiser(_Nothing(), model.denoise.base)
    return model


def test_the_mean_of_a_pair_is_the_regression_of_each_block_on_the_last(model):
    settings = recommended_settings(model)
    size, shape = model.blanket_size, model.latent_shape
    past = torch.randn(2, size // 2, *shape, generator=torch.Generator().manual_seed(2))
    plan = WindowPlan.forecast(NOON, past=size // 2, lead_hours=size // 2 + 1)
    steps = []
    found = assimilate(
        model,
        None,
        plan,
        2,
        7,
        background=past,
        settings=settings,
        on_step=lambda step, total: steps.append((step, total)),
    )
    prior = model.denoise.base
    half = (size // 2) * math.prod(shape)
    blankets = torch.eye(2 * half).reshape(-1, size, *shape)
    covariance = prior.covariance_times(blankets).flatten(1).double()
    gain = covariance[half:, :half] @ torch.linalg.inv(
        covariance[:half, :half] + settings.tie_error_std**2 * torch.eye(half)
    )
    state = past.mean(0)
    for block in range(2):
        first = block * (size // 2)
        dates = date_rows([plan.times[0] + (first + i) * HOUR for i in range(size)])
        mean = prior.climatology(dates[None])[0].flatten().double()
        following = mean[half:] + gain @ (state.flatten().double() - mean[:half])
        state = following.reshape(size // 2, *shape).float()
        drawn = found.latents.mean(0)[first + size // 2 : first + size]
        torch.testing.assert_close(drawn, state[: len(drawn)], rtol=0, atol=5e-3)
    assert [step for step, _ in steps] == [0, 1]
    assert found.latents.std(0)[size // 2 :].mean() > 0.1
