"""Chains of cycles: each observation once, scores of their last day against direct computation."""

import math
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
import torch

from lab.osse.cases import observe_case
from lab.osse.cycled_skill import CycleSettings, score_cycles
from lab.osse.cycling import AnalysisChain, mean_settings
from lab.osse.skill import without_network
from lab.training.background_errors import BackgroundErrors, first_guess, fit_errors
from model.assimilate import assimilate, recommended_settings
from model.background import around_forecast
from model.diagnostics.scores import rmse
from model.domain.windows import HOUR, WindowPlan
from tests.model.osse.small_world import NETWORK, small_model, true_states
from tests.worker.pipeline.test_continuation import informed_model

START = datetime(2021, 3, 4, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def informed():
    return informed_model()


def chain_of(model, **options):
    options = {"network": NETWORK, "withhold": 0.0, **options}
    return AnalysisChain(model, partial(true_states, model), around_forecast(model), **options)


def test_a_chain_sees_the_observations_of_each_hour_once(informed):
    chain = chain_of(informed)
    chain.start(START)
    hours = list(chain.cycles(3))
    assert [h.end for h in hours] == [START + i * HOUR for i in (1, 2, 3)]
    per_hour = np.median([h.observations for h in hours])
    window = observe_case(informed, chain.truth_at, START, 4, 0, NETWORK, 0, 0.0)
    # The window begins half an hour before its first state, and soundings come now and then.
    assert 0 < per_hour < 0.5 * len(window.observations())


def test_without_new_information_the_background_is_kept(informed):
    chain = chain_of(informed)
    chain.start(START)
    before = chain.last
    (hour,) = chain.cycles(1)
    torch.testing.assert_close(hour.background[:3], before[1:])


def test_windows_overlap_where_a_cycle_continues_an_older_analysis():
    chain = chain_of(informed_model(hours=2), step=1, age=2)
    chain.start(START)
    cold, seen = chain.last, []
    for hour in chain.cycles(3):
        seen.append(hour.observations)
        if len(seen) == 1:
            first = chain.last
            torch.testing.assert_close(hour.background[:3], cold[1:])
        if len(seen) == 2:
            torch.testing.assert_close(hour.background[:2], cold[2:])
    torch.testing.assert_close(hour.background[:2], first[2:])
    per_hour = [len(chain._rows(START + (i - 1) * HOUR, START + i * HOUR)) for i in (1, 2, 3)]
    assert per_hour[0] >= seen[0] > 0.8 * per_hour[0]  # some lie outside of every grid cell
    assert seen[1] - seen[0] == pytest.approx(per_hour[1], rel=0.2)
    assert seen[2] - seen[1] == pytest.approx(per_hour[2] - per_hour[0], abs=0.2 * per_hour[0])


def test_an_hour_is_reported_in_the_same_way_in_every_window():
    chain = chain_of(informed_model(hours=2), step=1, age=2)
    short, long = chain._rows(START - HOUR, START), chain._rows(START - 2 * HOUR, START)
    assert 0 < len(short) < len(long)
    assert long.slice(len(long) - len(short)) == short


def test_the_mean_of_cheap_members_is_the_mean(informed):
    exact, cheap = chain_of(informed), chain_of(informed)
    cheap.settings = mean_settings(recommended_settings(informed))
    exact.start(START)
    cheap.start(START)
    cheap.last = exact.last
    one, other = next(exact.cycles(1)), next(cheap.cycles(1))
    torch.testing.assert_close(
        one.analysis.latents.mean(0), other.analysis.latents.mean(0), rtol=0, atol=1e-4
    )


def test_the_shortest_chain_is_one_cycle():
    model = informed_model(hours=2)
    truth = partial(true_states, model)
    asked = CycleSettings(days=1 / 24, members=2, past=2, network=NETWORK, withhold=0.0)
    ends = []
    score_cycles(model, truth, START, asked, lambda number, total: ends.append((number, total)))
    assert ends == [(1, 1)]


def test_cold_cycles_score_as_their_windows():
    model = small_model()
    truth = partial(true_states, model)
    asked = CycleSettings(days=0.25, members=2, past=2, network=NETWORK, withhold=0.0)
    skill = score_cycles(model, truth, START, asked)
    assert not skill.continued
    errors = []
    for hours in (3, 6):
        end = START + hours * HOUR
        case = observe_case(model, truth, end, 4, 0, NETWORK, 0, 0.0)
        done = assimilate(model, case.observations(), WindowPlan.filtering(end, 4), 2, 0)
        state, wanted = done.states.mean(0)[-1], truth(end, 1)[0]
        state = torch.where(torch.isnan(wanted), torch.nan, state)
        std = model.state_normalisation.std.flatten()
        errors.append(float((rmse(state, wanted, model.grid) / std).mean()))
    assert skill.filtering == pytest.approx(np.mean(errors), rel=1e-5)
    assert skill.cold == pytest.approx(errors[-1], rel=1e-5)


def test_continued_cycles_are_scored_every_third_hour(informed):
    truth = partial(true_states, informed)
    asked = CycleSettings(days=1.25, members=2, past=2, network=NETWORK, withhold=0.0)
    skill = score_cycles(informed, truth, START, asked)
    assert skill.continued
    assert len(skill.by_day) == 1
    assert 0 < skill.filtering < 10 and skill.cycle_seconds > 0


def test_the_network_makes_the_difference_that_it_makes():
    model = small_model()
    torch.nn.init.normal_(model.denoise.backbone.out_proj.weight)
    bare = without_network(model)
    x = torch.randn(1, 4, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    date = torch.tensor([[[2021, 3, 4, h] for h in range(4)]])
    sigma = torch.tensor(0.7)
    torch.testing.assert_close(bare.denoise(x, sigma, date), model.denoise.base(x, sigma, date))
    assert not torch.allclose(model.denoise(x, sigma, date), bare.denoise(x, sigma, date))


def test_fitted_errors_have_the_covariance_they_were_drawn_from(informed):
    prior = informed.background_errors
    wanted = first_guess(prior, 0.5)
    generator = torch.Generator().manual_seed(4)
    date = torch.tensor([[2021, 3, 4, h] for h in range(4)]).expand(4000, 4, 4)
    drawn = wanted.sample(date, generator)
    assert float(wanted.variance.max()) == pytest.approx(0.04 * 0.25 / 0.29)  # given noise of 1/4
    other = first_guess(prior, 2.0)
    fitted = fit_errors(other, BackgroundErrors(drawn.half(), date), weight=10)
    probe = torch.randn(3, 4, *prior.latent_shape, generator=generator)
    torch.testing.assert_close(
        fitted.covariance_times(probe), wanted.covariance_times(probe), rtol=0, atol=0.004
    )
    few = fit_errors(other, BackgroundErrors(drawn[:1].half(), date[:1]), weight=1e6)
    torch.testing.assert_close(few.variance, other.variance, rtol=1e-4, atol=1e-6)
    assert float(fitted.mean.abs().max()) == 0.0


@pytest.mark.parametrize(
    ("scale", "exponent", "limit", "expected"), [(0.25, 0.5, 1.0, 0.5), (4.0, 0.5, 1.0, 1.0)]
)
def test_a_guess_moves_part_of_the_way_to_the_errors_and_not_beyond_its_limit(
    informed, scale, exponent, limit, expected
):
    guess = first_guess(informed.background_errors, 0.5)
    date = torch.tensor([[2021, 3, 4, h] for h in range(4)]).expand(4000, 4, 4)
    drawn = math.sqrt(scale) * guess.sample(date, torch.Generator().manual_seed(4))
    fitted = fit_errors(guess, BackgroundErrors(drawn.half(), date), 1, exponent, limit)
    large = guess.variance > 1e-3
    ratio = fitted.variance[large] / guess.variance[large]
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=0.06, atol=0)
