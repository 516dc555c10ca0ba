"""Training of the denoiser: what it draws against the closed form, and how it goes on."""

import json
import math
import time
from copy import copy, deepcopy
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest
import torch

from lab.training.background_errors import attach_background_errors, first_guess
from lab.training.denoiser_batches import AnalysisErrors, Batches, ReusedBatches, draw_profile
from lab.training.denoiser_skill import evaluate, evaluate_forecast
from lab.training.export import adopt_session
from lab.training.gpu_session import Session, load_weights, run, save_weights, train
from lab.training.latent_years import LatentYears, read_latents, save_latents
from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.domain.errors import CheckpointError, ConfigurationError
from model.domain.windows import HOUR
from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.nn.embedding import date_rows
from model.unequal_noise import UNKNOWN, forecast_profile
from tests.model.checkpoint_parts import tiny_model

FIRST = datetime(2001, 1, 1, tzinfo=UTC)
K = 4


@pytest.fixture(scope="module")
def model():
    """A tiny model whose prior was fitted to latents that travel and decay."""
    model = tiny_model(based=True)
    prior = model.denoise.base
    x, date = sampled(model.latent_shape, 600)
    fit_zonal_gaussian(prior, lambda: iter([(x, date)]), shrinkage=0.0)
    return model


def sampled(shape, count):
    """Independent blankets (count, K, c, h, w) of an autoregression that moves eastward."""
    random = torch.Generator().manual_seed(0)
    state = torch.randn(count, *shape, generator=random)
    states = []
    for _ in range(K):
        states.append(state)
        state = 0.9 * state.roll(1, -1) + 0.43 * torch.randn(state.shape, generator=random)
    hours = date_rows([FIRST + i * HOUR for i in range(K)])
    return torch.stack(states, 1), hours.expand(count, K, 4)


def drawn_from(prior: ZonalGaussianPrior, count: int) -> LatentYears:
    """Truths of one blanket each, drawn from the closed form itself."""
    date = date_rows([FIRST + i * HOUR for i in range(K)])
    x = prior.sample(date.expand(count, K, 4), torch.Generator().manual_seed(1))
    return LatentYears(x, date)


def test_targets_have_the_size_that_the_closed_form_leaves(model):
    prior = model.denoise.base
    batches = Batches(
        drawn_from(prior, 400),
        prior,
        blankets=64,
        levels=2,
        sigma=(0.1, 5.0),
        unequal=0.5,
        device="cpu",
    )
    squares = torch.stack([batches.draw(step).target.square() for step in range(40)])
    unequal, equal = squares.flatten(0, 0).split(64, dim=1)
    # Blankets that follow the prior leave just its conditional variance: 1 in these units.
    assert float(equal.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(unequal.mean()) == pytest.approx(1.0, abs=0.03)


def test_a_batch_depends_on_its_step_alone(model):
    prior = model.denoise.base
    options = {"blankets": 4, "levels": 2, "sigma": (0.1, 5.0), "unequal": 0.0, "device": "cpu"}
    data = drawn_from(prior, 8)
    first, again = (Batches(data, prior, **options).draw(7) for _ in range(2))
    torch.testing.assert_close(first.seen, again.seen)
    assert not torch.equal(first.x, Batches(data, prior, **options).draw(8).x)


@pytest.mark.parametrize("uses", [2, 3])
def test_reused_batches_come_back_with_others_between(model, uses):
    prior = model.denoise.base
    options = {"blankets": 1, "levels": 1, "sigma": (0.1, 5.0), "unequal": 0.0, "device": "cpu"}
    reused = ReusedBatches(Batches(drawn_from(prior, 8), prior, **options), uses, apart=4)
    drawn = [reused.draw(step) for step in range(60)]
    steps: dict[int, list[int]] = {}
    for step, batch in enumerate(drawn):
        steps.setdefault(id(batch), []).append(step)
    assert {len(found) for found in steps.values()} <= set(range(1, uses + 1))
    # One step in `uses` draws a new batch, and so do the first ones.
    assert len(steps) == pytest.approx(60 / uses, abs=4)
    for found in steps.values():
        assert all(b - a >= 4 for a, b in zip(found, found[1:], strict=False))


def test_profiles_are_forecasts_rolling_or_stretches():
    random = torch.Generator().manual_seed(0)
    profiles = [draw_profile(24, random) for _ in range(300)]
    assert not any(profile.analysed for profile in profiles)
    levels = torch.stack([profile.sigma for profile in profiles])
    assert (levels > 0).all()
    assert (levels <= UNKNOWN).all()
    forecast = (levels == UNKNOWN).any(1)
    # Nine in ten, and one in twenty; three sigma of 300 draws are 0.05 and 0.04.
    assert 0.85 < forecast.float().mean() < 0.95
    known = torch.tensor([profile.known for profile in profiles])[forecast]
    assert known.min() >= 3
    assert known.max() <= 21
    # Cycles know 12 states, those that continue a younger analysis 18.
    for count, share in ((12, 0.7), (18, 0.15)):
        assert share - 0.08 < (known == count).float().mean() < share + 0.08
    rolling = (levels.diff(dim=1) >= 0).all(1) & ~forecast
    assert 0.01 < rolling.float().mean() < 0.09


def test_a_forecast_is_judged_by_what_follows_the_known_states():
    random = torch.Generator().manual_seed(0)
    profiles = [draw_profile(24, random, analysed=0.5) for _ in range(300)]
    forecasts = [p for p in profiles if p.known < 24]
    analysed = [p for p in forecasts if p.analysed]
    # Three in five of about 270; three sigma are 0.09.
    assert 0.5 < len(analysed) / len(forecasts) < 0.7
    for profile in analysed:
        assert (profile.sigma[: profile.known] == 0.5).all()
    for profile in profiles:
        assert float(profile.weight.sum()) == pytest.approx(24)
    for profile in forecasts:
        known, unknown = profile.weight[: profile.known], profile.weight[profile.known :]
        torch.testing.assert_close(known * 10, unknown[:1].expand_as(known))


def analysed(prior: ZonalGaussianPrior, count: int, seed: int):
    """Draw truths, and conditional means of them given white noise of 0.7, with the errors' Gaussian."""
    x, date = drawn_from(prior, count).latents, drawn_from(prior, 1).dates.expand(count, K, 4)
    noise = 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    means = prior(x + noise, torch.tensor(0.7), date)
    return x, x - means, date, first_guess(prior, 0.7)


def test_what_is_drawn_of_analyses_is_a_conditional_mean(model):
    prior = model.denoise.base
    x, missed, date, errors = analysed(prior, 400, 0)
    drawn = AnalysisErrors(prior, errors, x, missed, date, 0.5)
    # Independent truths: none of what the samples missed is theirs.
    truth, dates = prior.sample(date, torch.Generator().manual_seed(2)), date
    shown = truth + drawn.draw(truth, dates, torch.Generator().manual_seed(3))
    anomaly, off = shown - prior.climatology(dates), truth - shown
    # The scale is uniform in 0.65-1.05; the variance that is missed goes with its square.
    expected = missed.square().mean() * (1.05**3 - 0.65**3) / (3 * 0.4)
    assert float(off.square().mean()) == pytest.approx(float(expected), rel=0.1)
    # What a conditional mean misses is uncorrelated with it; truth plus noise would give -1 here.
    assert abs(float((off * anomaly).mean() / off.square().mean())) < 0.2


def test_a_batch_shows_analyses_and_asks_for_the_truth(model):
    prior = model.denoise.base
    errors = AnalysisErrors(prior, first_guess(prior, 0.7), *analysed(prior, 50, 0)[:3], 0.5)
    errors.draw = lambda x, date, random: torch.full_like(x, -0.4)
    options = {"blankets": 64, "levels": 1, "sigma": (0.1, 5.0), "unequal": 1.0, "device": "cpu"}
    data = drawn_from(prior, 8)

    def means(errors):
        """Means over the first state of what is asked of forecasts, by whether they are analysed."""
        batches, found = Batches(data, prior, **options, errors=errors), {True: [], False: []}
        for batch in map(batches.draw, range(6)):
            said = (batch.noise_time[:, 0] - 10 * math.log(0.5)).abs() < 1e-4
            for row in (batch.weight[:, 0, 0, 0, 0] < 1).nonzero()[:, 0]:
                found[bool(said[row])].append(float(batch.target[row, 0].mean()))
        return found

    found = means(errors)
    # White noise averages out over a state; states that lie 0.4 too low are asked to rise.
    assert len(found[True]) >= 16
    assert torch.tensor(found[True]).mean() > 0.3
    assert abs(torch.tensor(found[False]).mean()) < 0.1
    assert not means(None)[True]


def test_a_session_goes_on_where_it_ended(model, tmp_path):
    settings = Session(minutes=1, batch=2, width=16, depth=1, warmup=2, steps=3)
    data = drawn_from(model.denoise.base, 8)
    for total in (3, 6):
        denoiser = train(settings, model, data, tmp_path, math.inf, print)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert (state["step"], state["seen"]) == (total, 4 * total)
    save_weights(tmp_path, denoiser.backbone.state_dict(), {"note": 1})
    weights, about = load_weights(tmp_path)
    assert about == {"note": 1}
    for name, value in denoiser.backbone.state_dict().items():
        torch.testing.assert_close(weights[name].float(), value, rtol=1e-3, atol=1e-3)


def test_a_resumed_session_weights_errors_by_their_size(model, tmp_path):
    settings = Session(minutes=1, batch=2, width=16, depth=1, warmup=2, steps=3)
    data = drawn_from(model.denoise.base, 40)
    trained = {}
    for weighted in (False, True):
        folder = tmp_path / str(weighted)
        folder.mkdir()
        deadline = time.monotonic() + 60
        train(settings, model, data, folder, deadline, print)
        resumed = replace(settings, weighted=weighted)
        denoiser = train(resumed, model, data, folder, deadline, print)
        trained[weighted] = denoiser.backbone.out_proj.weight.detach()
    assert all(bool(weight.isfinite().all()) for weight in trained.values())
    assert not torch.equal(trained[False], trained[True])


def test_a_bundle_adopts_the_denoiser_of_a_session(model, tmp_path):
    settings = Session(minutes=1, batch=2, width=16, depth=1, warmup=2, steps=3)
    denoiser = train(settings, model, drawn_from(model.denoise.base, 8), tmp_path, math.inf, print)
    about = {
        "settings": asdict(settings),
        "backbone": asdict(settings.backbone(model)),
        "steps": 3,
        "samples": 12,
        "relative_error": {"1.0": 0.9},
    }
    save_weights(tmp_path, denoiser.backbone.state_dict(), about)
    save_checkpoint(model, tmp_path / "before")
    adopt_session(str(tmp_path / "before"), tmp_path, tmp_path / "after")
    adopted = load_checkpoint(tmp_path / "after")
    x, date = sampled(model.latent_shape, 2)
    for sigma in (torch.full((2,), 0.5), torch.linspace(0.1, 3.0, K).expand(2, K)):
        expected = denoiser(x, sigma, date)
        torch.testing.assert_close(adopted.denoise(x, sigma, date), expected, rtol=0.02, atol=0.02)
    assert adopted.card.provenance["denoiser"]["samples"] == 12
    adopt_session(str(tmp_path / "after"), tmp_path, tmp_path / "same", share=0.25)
    same = load_checkpoint(tmp_path / "same")
    for name, weights in same.denoise.backbone.state_dict().items():
        torch.testing.assert_close(weights, adopted.denoise.backbone.state_dict()[name])
    other = load_checkpoint(tmp_path / "after")
    with torch.no_grad():
        other.denoise.backbone.out_proj.bias.add_(1.0)
    save_checkpoint(other, tmp_path / "other", stored="float16")
    adopt_session(str(tmp_path / "other"), tmp_path, tmp_path / "mean", share=0.25)
    mean = load_checkpoint(tmp_path / "mean").denoise.backbone.out_proj.bias
    expected = adopted.denoise.backbone.out_proj.bias + 0.75
    torch.testing.assert_close(mean, expected, rtol=0, atol=2e-3)
    assert adopted.card.backbone.noise_per_state
    decoded = adopted.decode(x[:, 0]), model.decode(x[:, 0])
    torch.testing.assert_close(*decoded, rtol=1e-3, atol=1e-2, equal_nan=True)


def test_a_session_begins_with_the_network_of_a_bundle(model, tmp_path):
    settings = Session(minutes=1, batch=2, width=16, depth=1, warmup=2, steps=3)
    data = drawn_from(model.denoise.base, 8)
    trained = deepcopy(model)
    trained.denoise = train(settings, model, data, tmp_path, math.inf, print)
    tuned = replace(settings, tune=True)
    x, date = sampled(model.latent_shape, 2)
    sigma = torch.linspace(0.1, 3.0, K).expand(2, K)

    (tmp_path / "same").mkdir()
    begun = train(tuned, trained, data, tmp_path / "same", 0.0, print)  # no step
    torch.testing.assert_close(begun(x, sigma, date), trained.denoise(x, sigma, date))
    (tmp_path / "on").mkdir()
    weighted = replace(tuned, weighted=True)  # by the errors of the network that it begins with
    after = train(weighted, trained, data, tmp_path / "on", math.inf, print)
    assert not torch.equal(after.backbone.out_proj.weight, begun.backbone.out_proj.weight)
    with pytest.raises(ConfigurationError, match="hid_channels differ"):
        train(replace(tuned, width=32), trained, data, tmp_path / "on", math.inf, print)


def test_an_untrained_correction_scores_as_the_closed_form(model, tmp_path):
    settings = Session(minutes=1, batch=2, width=16, depth=1)
    data = drawn_from(model.denoise.base, 8)
    denoiser = train(settings, model, data, tmp_path, 0.0, print)
    starts = torch.zeros(6, dtype=torch.int64)
    assert all(v == pytest.approx(1.0) for v in evaluate(denoiser, data, starts, K).values())
    for learned, closed in evaluate_forecast(denoiser, data, starts, known=2).values():
        assert learned == pytest.approx(closed)


def test_forecasts_of_the_closed_form_err_by_its_own_variance(model, tmp_path):
    prior = model.denoise.base
    denoiser = train(
        Session(minutes=1, width=16, depth=1), model, drawn_from(prior, 2), tmp_path, 0.0, print
    )
    data = drawn_from(prior, 600)
    sums = {}
    for seed in range(600):
        found = evaluate_forecast(denoiser, data, torch.zeros(1, dtype=torch.int64), 2, seed=seed)
        for lead, (_, closed) in found.items():
            sums[lead] = sums.get(lead, 0.0) + closed**2 / 600
    expected = prior.given(forecast_profile(K, 2, 0.1)).scalings().c_out.flatten()
    for lead, square in sums.items():
        assert square**0.5 == pytest.approx(float(expected[1 + lead]), rel=0.03)


def test_latents_are_mapped_as_written_and_keep_hours_apart(tmp_path):
    latents = torch.randn(10, 2, 3, 4).half().numpy()
    save_latents(tmp_path / "z.f16", latents, FIRST)
    years = read_latents(tmp_path / "z.f16")
    x, date = years.blankets(torch.zeros(1, dtype=torch.int64), torch.tensor([3]), K)
    torch.testing.assert_close(x[0], torch.from_numpy(latents[3:7]).float())
    assert date[0, 0].tolist() == [2001, 1, 1, 3]
    apart = LatentYears(years.latents, years.dates, (range(5, 7),))
    assert apart.starts(K).tolist() == [0, 1]


def test_a_session_learns_from_what_backgrounds_erred_by(model, tmp_path):
    c, h, w = model.latent_shape
    latents = torch.randn(40, c, h, w, generator=torch.Generator().manual_seed(0))
    save_latents(tmp_path / "z.f16", latents.half().numpy(), FIRST)
    years = read_latents(tmp_path / "z.f16")
    x, date = years.blankets(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 9, 20]), K)
    torch.save({"values": (0.5 * x).half(), "date": date, "sigma": 0.4}, tmp_path / "errors.pt")
    given = tmp_path / "z.f16", [tmp_path / "errors.pt"]

    settings = Session(minutes=1, batch=2, width=16, depth=1, warmup=2, steps=3)
    save_checkpoint(model, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="errors of its backgrounds"):
        run(settings, tmp_path / "refused", str(tmp_path / "plain"), *given)

    knowing = copy(model)
    attach_background_errors(knowing, first_guess(model.denoise.base, 0.7), 0.4, 2)
    save_checkpoint(knowing, tmp_path / "knowing")
    about = run(settings, tmp_path / "session", str(tmp_path / "knowing"), *given)
    assert about["steps"] == 3
    assert load_weights(tmp_path / "session")[1] == json.loads(json.dumps(about))
