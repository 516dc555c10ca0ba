"""The entry point with a tiny random model: determinism, shapes, plans, refusals."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from checkpoint_parts import tiny_model
from torch import Tensor

from model.assimilate import assimilate
from model.assimilation_settings import AssimilationSettings, EntrySettings, WarmStart
from model.domain.errors import InvalidInput, JobCancelled, UnknownName
from model.domain.windows import WindowPlan, hourly
from model.guidance.jacobian import MMPSSettings, SDASettings
from model.latent_model import LatentModel
from model.samplers.sampling import SAMPLERS, SamplerSettings

NOON = datetime(2021, 3, 4, 12, tzinfo=UTC)
FAST = AssimilationSettings(
    sampler=SamplerSettings(name="xeab", steps=4),
    guidance=MMPSSettings(iterations=2),
    warm=EntrySettings(sigma=0.5, steps=2),
    batch_rows=100,
)


@pytest.fixture(scope="module")
def model() -> LatentModel:
    return tiny_model().double()


class GridPoints:
    """Every channel at a few cells of chosen states, in the protocol of `ObservationSet`."""

    def __init__(self, states: Tensor, which: list[int], error: Tensor) -> None:
        self.states, self.which, self.error = states, which, error  # (T, C, Y, X), (C,)
        self.channels = states.shape[1]

    def __len__(self) -> int:
        return len(self.which) * self.channels * 2

    def operator(self, states: Tensor) -> Tensor:
        return states[..., self.which, :, 2:4, 5].flatten(-3)

    @property
    def values(self) -> Tensor:
        return self.operator(self.states) + 0.5 * self.error_std

    @property
    def error_std(self) -> Tensor:
        return self.error[None, :, None].expand(len(self.which), -1, 2).flatten()

    @property
    def time_support(self) -> tuple[np.ndarray, np.ndarray]:
        time = np.repeat(np.array(self.which, dtype=np.int64), self.channels * 2)
        return time, time

    def select(self, mask: np.ndarray) -> "GridPoints":
        keep = mask.reshape(len(self.which), -1).all(axis=1)
        which = [t for t, k in zip(self.which, keep, strict=True) if k]
        return GridPoints(self.states, which, self.error)

    def for_blanket(self, start: int, stop: int) -> "GridPoints":
        which = [t - start for t in self.which if start <= t < stop]
        return GridPoints(self.states[start:stop], which, self.error)


def observe(model: LatentModel, length: int, which: list[int]) -> GridPoints:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(length, *model.latent_shape, generator=g).double()
    with torch.no_grad():
        states = model.decode(z, mask=False)
    return GridPoints(states, which, 0.1 * model.state_normalisation.std.flatten())


def test_filtering_gives_physical_states_of_the_written_times(model) -> None:
    plan = WindowPlan.filtering(NOON, 6, written=2)
    result = assimilate(model, observe(model, 6, [0, 3, 5]), plan, 3, 1, settings=FAST)
    assert result.states.shape == (3, 2, *model.state_shape)
    assert result.states.dtype == torch.float32
    assert result.times == (hourly(NOON, 1)[0].replace(hour=11), NOON)
    assert result.latents.shape == (3, 6, *model.latent_shape)
    assert result.members == (0, 1, 2) and result.seed == 1
    with torch.no_grad():
        states = model.decode(result.latents[:, -2:]).float()
    torch.testing.assert_close(result.states, states, equal_nan=True)


def test_guidance_brings_the_members_to_the_observations(model) -> None:
    plan = WindowPlan.filtering(NOON, 6, written=6)
    seen = observe(model, 6, [0, 2, 4])
    settings = replace(FAST, sampler=SamplerSettings(steps=8), guidance=MMPSSettings(iterations=12))

    def distance(observations: GridPoints | None) -> float:
        result = assimilate(model, observations, plan, 2, 1, settings=settings)
        with torch.no_grad():
            states = model.decode(result.latents, mask=False)
        misfit = (seen.operator(states) - seen.values) / seen.error_std
        return float(misfit.square().mean().sqrt())

    assert distance(seen) < 0.5 * distance(None)


def test_the_same_seed_gives_the_same_bits(model) -> None:
    plan, seen = WindowPlan.filtering(NOON, 6), observe(model, 6, [1, 5])
    first, second = (assimilate(model, seen, plan, 2, 7, settings=FAST) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    other = assimilate(model, seen, plan, 2, 8, settings=FAST)
    assert not torch.equal(first.latents, other.latents)


@pytest.mark.parametrize("sampler", ["xeab", "ddpm", "pc"])
def test_a_member_does_not_depend_on_sub_batches_or_on_other_members(model, sampler) -> None:
    plan, seen = WindowPlan.filtering(NOON, 8), observe(model, 8, [1, 5, 6])
    settings = replace(FAST, sampler=SamplerSettings(name=sampler, steps=3))

    def run(members: int, **kw) -> Tensor:
        chosen = replace(settings, batch_rows=kw.pop("rows", 100))
        return assimilate(model, seen, plan, members, 7, settings=chosen, **kw).latents

    whole = run(3)
    torch.testing.assert_close(run(3, rows=2), whole, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(run(1, first_member=2), whole[2:], rtol=1e-8, atol=1e-8)


def test_members_differ(model) -> None:
    plan = WindowPlan.reanalysis(NOON, 4)
    x = assimilate(model, None, plan, 2, 7, settings=FAST).latents
    assert not torch.allclose(x[0], x[1], atol=0.1)


@pytest.mark.parametrize("form", ["physical", "latent"])
def test_a_forecast_takes_its_background_in_either_form(model, form) -> None:
    plan = WindowPlan.forecast(NOON, past=2, lead_hours=4)
    latents = torch.randn(1, 2, *model.latent_shape).double().clamp(-1, 1)
    background = latents
    if form == "physical":
        with torch.no_grad():
            background = model.decode(latents)
    result = assimilate(model, None, plan, 2, 1, background=background, settings=FAST)
    assert result.states.shape[1] == 4
    with torch.no_grad():
        expected = latents if form == "latent" else model.encode(background)
    torch.testing.assert_close(result.latents[:, :2], expected.expand(2, -1, -1, -1, -1))


def test_an_autoregressive_forecast_does_as_many_steps_as_it_says(model) -> None:
    plan = WindowPlan.forecast(NOON, past=2, lead_hours=6, new_states_per_pass=2)
    calls: list[tuple[int, int]] = []
    background = torch.zeros(1, 2, *model.latent_shape)
    result = assimilate(
        model,
        None,
        plan,
        1,
        1,
        background=background,
        settings=FAST,
        on_step=lambda i, n: calls.append((i, n)),
    )
    assert calls == [(i, 12) for i in range(12)]
    assert result.states.shape[1] == 6


def test_on_step_may_cancel(model) -> None:
    def cancel(step: int, steps: int) -> None:
        if step == 2:
            raise JobCancelled("no longer wanted")

    with pytest.raises(JobCancelled):
        assimilate(model, None, WindowPlan.filtering(NOON, 4), 1, 1, settings=FAST, on_step=cancel)


def test_no_gradients_are_kept(model) -> None:
    plan = WindowPlan.filtering(NOON, 4)
    result = assimilate(model, observe(model, 4, [3]), plan, 1, 1, settings=FAST)
    assert not result.states.requires_grad and not result.latents.requires_grad


def test_the_fit_is_reported_at_every_noise_level(model) -> None:
    plan, told = WindowPlan.filtering(NOON, 4), []
    result = assimilate(
        model,
        observe(model, 4, [3]),
        plan,
        2,
        1,
        settings=FAST,
        diagnostics=lambda sigma, fit: told.append(sigma),
    )
    levels = [sigma for sigma, _ in result.fits]
    assert len(levels) == 4 and levels == sorted(levels, reverse=True) and told == levels
    assert all(fit.count == 2 * 2 * len(model.channels) for _, fit in result.fits)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_runs_through_the_entry_point(model, name) -> None:
    settings = replace(FAST, sampler=SamplerSettings(name=name, steps=3))
    result = assimilate(model, None, WindowPlan.filtering(NOON, 4), 1, 1, settings=settings)
    assert result.latents.isfinite().all()


def test_sda_runs_through_the_entry_point(model) -> None:
    settings = replace(FAST, guidance=SDASettings())
    seen = observe(model, 4, [3])
    result = assimilate(model, seen, WindowPlan.filtering(NOON, 4), 1, 1, settings=settings)
    assert result.latents.isfinite().all()


def test_a_warm_start_takes_its_few_steps_and_stays_near(model) -> None:
    plan = WindowPlan.filtering(NOON, 6)
    cold = assimilate(model, None, plan, 2, 1, settings=FAST)
    next_plan = WindowPlan.filtering(NOON.replace(hour=13), 6)
    steps: list[int] = []
    small = replace(FAST, warm=EntrySettings(sigma=0.01, steps=2))
    warm = assimilate(
        model,
        None,
        next_plan,
        2,
        2,
        settings=small,
        warm_start=cold.warm_start,
        on_step=lambda i, n: steps.append(n),
    )
    assert steps == [2, 2]
    torch.testing.assert_close(warm.latents[:, :5], cold.latents[:, 1:], rtol=0, atol=0.2)


def test_a_warm_start_without_overlap_is_refused(model) -> None:
    old = WarmStart(torch.zeros(1, 4, *model.latent_shape), datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidInput, match="Start cold"):
        assimilate(model, None, WindowPlan.filtering(NOON, 4), 1, 1, settings=FAST, warm_start=old)


def test_a_background_that_does_not_fit_the_plan_is_refused(model) -> None:
    plan = WindowPlan.forecast(NOON, past=2, lead_hours=2)
    with pytest.raises(InvalidInput, match="one state for each tied time"):
        assimilate(model, None, plan, 1, 1, settings=FAST)
    with pytest.raises(InvalidInput, match="one state for each tied time"):
        background = torch.zeros(1, 3, *model.latent_shape)
        assimilate(model, None, plan, 1, 1, background=background, settings=FAST)


def test_an_unknown_sampler_is_named_with_the_known_ones(model) -> None:
    settings = replace(FAST, sampler=SamplerSettings(name="magic", steps=3))
    with pytest.raises(UnknownName, match="Unknown sampler 'magic'. Known: ddim"):
        assimilate(model, None, WindowPlan.filtering(NOON, 4), 1, 1, settings=settings)
