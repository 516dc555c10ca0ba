"""The checkpoint that ships: its sizes, its code of states it was never trained on, its skill."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch

from lab.osse.cases import CASE_NAME, open_truth
from lab.osse.network import Network, simulate_observations
from lab.training.denoiser_skill import relative_errors
from model.assimilate import assimilate
from model.assimilation_settings import recommended_settings
from model.background import EXACT, propagate_errors, shifted_forecast
from model.checkpoints.bundle import load_checkpoint, resolve
from model.diagnostics.scores import rmse
from model.domain.windows import WindowPlan
from model.forecast import forecast_mean
from model.guidance.prior_covariance import PriorStartSettings
from model.latent_model import climatological_states
from model.nn.embedding import date_rows
from model.operators.observation_set import build_observation_set
from model.unequal_noise import forecast_profile

NAME = "appa-t31"


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(NAME)


@pytest.fixture(scope="module")
def truth(model):
    return open_truth(model, NAME)


def standardised(model, fields: torch.Tensor, truth: torch.Tensor) -> float:
    fields = torch.where(torch.isnan(truth), torch.nan, fields)
    error = rmse(fields, truth, model.grid) / model.state_normalisation.std.flatten().double()
    return float(error.mean())


def test_weights_and_truth_are_small_enough_to_ship(model):
    files = list(resolve(NAME).glob("*"))
    assert sum(f.stat().st_size for f in files) <= 80e6
    assert (resolve(NAME) / CASE_NAME).stat().st_size <= 15e6
    assert model.card.simulated


def test_the_truth_that_ships_lies_in_the_test_period(model, truth):
    first, last = truth.span
    ((start, end),) = model.card.provenance["test_periods"]
    assert start <= first.isoformat() < last.isoformat() <= end
    for begin, stop in model.card.provenance["training_periods"]:
        assert stop < start or end < begin


def test_the_autoencoder_keeps_states_it_has_not_seen(model, truth):
    states = truth(truth.span[0], 49)[::24]
    with torch.no_grad():
        restored = model.decode(model.encode(states))
    for state, again in zip(states, restored, strict=True):
        assert standardised(model, again, state) <= 0.10


@pytest.fixture(scope="module")
def blankets(model, truth):
    """Latents of three days that the denoiser was never trained on, and their dates."""
    starts = [truth.span[0] + timedelta(hours=h) for h in (0, 36, 72)]
    with torch.no_grad():
        latents = torch.stack([model.encode(truth(start, 24)) for start in starts])
    dates = [date_rows([start + timedelta(hours=i) for i in range(24)]) for start in starts]
    return latents, torch.stack(dates)


def test_the_network_denoises_better_than_the_closed_form(model, blankets):
    found = relative_errors(model.denoise, lambda: iter([blankets]))
    assert found[0.5] < 0.85 and found[1.0] < 0.85 and found[2.0] < 0.85


def test_the_network_forecasts_better_than_the_closed_form(model, blankets):
    """The last hours of a day from its first half."""
    latents, dates = blankets
    errors = {}
    for name, denoise in (("network", model.denoise), ("closed form", model.denoise.base)):
        ahead = [
            forecast_mean(denoise, x[None, :12], d, 0.1)[0]
            for x, d in zip(latents, dates, strict=True)
        ]
        errors[name] = float((torch.stack(ahead)[:, -1] - latents[:, -1]).square().mean().sqrt())
    assert errors["network"] < 0.87 * errors["closed form"]


def test_errors_grow_as_the_forecast_answers_to_them(model, blankets):
    x, date = blankets
    analysed, known = x[0, :18], 18
    propagation = propagate_errors(
        model.denoise, model.background_errors, analysed, date[0], 0.3, 1.5
    )
    draw = torch.Generator().manual_seed(2)
    delta, other = (torch.randn(x[:1].shape, generator=draw) for _ in range(2))
    grown, back = propagation.jvp(delta), propagation.vjp(other)
    torch.testing.assert_close((grown * other).sum(), (delta * back).sum(), rtol=1e-3, atol=1.0)

    # Along a direction whose new states follow from its analysed ones under P nothing but the
    # forecast's answer is left.
    whole = model.background_errors.filter(delta, torch.sqrt)
    given = model.background_errors.given(forecast_profile(24, known, EXACT))
    analysed_part = torch.cat([whole[:, :known], torch.zeros_like(whole[:, known:])], 1)
    follows = torch.cat([whole[:, :known], given.gain(analysed_part)[:, known:]], 1)
    answer = propagation.jvp(follows)[0, known:]
    step = 0.05
    ahead, behind = (
        shifted_forecast(model.denoise, analysed + sign * step * whole[0, :known], date[0], 0.3)
        for sign in (1, -1)
    )
    finite = (ahead - behind)[known:] / (2 * step)
    assert float((answer - finite).norm() / finite.norm()) < 0.05


def test_an_analysis_of_few_observations_beats_climatology_by_far(model, truth):
    end = truth.span[0] + timedelta(hours=23)
    times = [end - timedelta(hours=23 - i) for i in range(24)]
    states = truth(times[0], 24)
    table = simulate_observations(
        torch.nan_to_num(states, nan=273.0),
        model.grid,
        model.channels,
        times,
        seed=1,
        statics=model.statics,
        network=Network(stations=150, ships=30, sondes=60, scan_lines=4),
    )
    observations, _ = build_observation_set(table, model.grid, model.channels, times, model.statics)
    settings = replace(
        recommended_settings(model),
        # The deviations of a pair cancel in its mean, which alone is compared.
        prior_solve=PriorStartSettings(iterations=25, tolerance=0.01, member_iterations=5),
    )
    plan = WindowPlan.filtering(end, 24)
    analysis = assimilate(model, observations, plan, 2, 0, settings=settings)
    error = standardised(model, analysis.states.mean(0)[-1], states[-1])
    climate = standardised(model, climatological_states(model, [end])[0], states[-1])
    assert error < 0.85 * climate
