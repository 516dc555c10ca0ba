"""Filtering, smoothing and forecasting of a linear Gaussian process through `assimilate`.

The denoisers of its blankets are known in closed form, so what comes out of the entry point must be
what the Kalman filter, the Rauch-Tung-Striebel smoother and the Kalman forecast say. A deterministic
sampler maps a member's noise to the member by an affine function; regressing a few dozen members on
their own noise gives its constant (the posterior mean) and matrix (a root of the covariance)
without sampling error.
"""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from gaussian_process import (
    VAR1,
    Estimates,
    ExactDenoiser,
    LinearObservations,
    kalman_filter,
    rts_smoother,
)
from torch import Tensor

from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import (
    AssimilationSettings,
    EntrySettings,
    WarmStart,
    hours_since_epoch,
)
from model.domain.windows import WindowPlan, hourly
from model.guidance.jacobian import MMPSSettings
from model.samplers.control import MemberNoise
from model.samplers.sampling import SamplerSettings
from model.samplers.schedule import LogLinearSchedule

H = np.array([[1.0, 0.5]])
ERROR = np.array([0.3])
NOON = datetime(2021, 3, 4, 12, tzinfo=UTC)


class ExactModel:
    """A latent model whose latents are the states and whose denoiser is exact."""

    latent_shape = state_shape = (2, 1, 1)
    dtype, device = torch.float64, torch.device("cpu")
    schedule = LogLinearSchedule(1e-4, 1e4)

    def __init__(self, process: VAR1, size: int, stride: int) -> None:
        self.blanket_size, self.blanket_stride = size, stride
        self.denoise = ExactDenoiser(process.covariance(size))

    def encode(self, states: Tensor) -> Tensor:
        return states

    def decode(self, latents: Tensor, *, mask: bool = True) -> Tensor:
        return latents

    decode_tangent = decode_partly = decode
    prior_covariance = None


def settings(steps: int = 64, iterations: int = 24, tie: float = 1e-3) -> AssimilationSettings:
    return AssimilationSettings(
        sampler=SamplerSettings(name="xeab", steps=steps, order=3),
        guidance=MMPSSettings(iterations=iterations, tolerance=1e-10),
        tie_error_std=tie,
        batch_rows=1000,
    )


def posterior(result: Trajectory, plan: WindowPlan, before: int, after: int = 0) -> Estimates:
    """Mean and covariance of each latent state, from members and the noise they started from."""
    first = hours_since_epoch(plan.times[0]) - before
    hours = range(first, first + before + plan.length + after)
    noise = MemberNoise(result.seed, result.members, hours)
    shape = (len(result.members), len(hours), 2, 1, 1)
    start = noise(torch.empty(shape, dtype=torch.float64)).flatten(1).numpy()
    design = np.hstack([np.ones((len(start), 1)), start])
    x = result.latents.flatten(1).numpy()
    fitted, _, rank, _ = np.linalg.lstsq(design, x, rcond=None)
    assert rank == design.shape[1], "more members than noise numbers are needed"
    np.testing.assert_allclose(design @ fitted, x, atol=1e-6)  # it is affine
    root = fitted[1:].reshape(-1, plan.length, 2)
    cov = np.einsum("nti,ntj->tij", root, root)
    return Estimates(fitted[0].reshape(-1, 2), cov)


def observed(process: VAR1, length: int) -> tuple[list[np.ndarray | None], LinearObservations]:
    """Observations of a sampled truth, at all but every third state."""
    rng = np.random.default_rng(5)
    truth = process.sample(length, rng)
    states = [t for t in range(length) if t % 3 != 1]
    values = truth[states] @ H.T + ERROR * rng.normal(size=(len(states), 1))
    y: list[np.ndarray | None] = [None] * length
    for t, value in zip(states, values, strict=True):
        y[t] = value
    return y, LinearObservations(H, values, states, ERROR)


def run(model: ExactModel, observations, plan: WindowPlan, members: int, **kw) -> Trajectory:
    kw.setdefault("settings", settings())
    return assimilate(model, observations, plan, members, seed=11, **kw)


def close(ours: Estimates, theirs: Estimates, atol: float) -> None:
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=atol)
    np.testing.assert_allclose(ours.cov, theirs.cov, atol=atol)


def part(estimates: Estimates, which: slice) -> Estimates:
    return Estimates(estimates.mean[which], estimates.cov[which])


def test_filtering_is_the_kalman_filter() -> None:
    process, length = VAR1.rotating(0.9), 10
    y, observations = observed(process, length)
    filtered, _ = kalman_filter(process, H, ERROR[:, None] ** 2, y)
    plan = WindowPlan.filtering(NOON, length)
    result = run(ExactModel(process, 10, 5), observations, plan, 24)
    assert result.times == (NOON,) and result.states.shape == (24, 1, 2, 1, 1)
    close(part(posterior(result, plan, 0), slice(-1, None)), part(filtered, slice(-1, None)), 2e-3)


def test_a_window_shorter_than_a_blanket_is_filled_before() -> None:
    process, length = VAR1.rotating(0.9), 5
    y, observations = observed(process, length)
    filtered, predicted = kalman_filter(process, H, ERROR[:, None] ** 2, y)
    plan = WindowPlan.filtering(NOON, length)
    result = run(ExactModel(process, 8, 4), observations, plan, 20)
    close(posterior(result, plan, 3), rts_smoother(process, filtered, predicted), 2e-3)


def test_reanalysis_is_the_smoother() -> None:
    process, length = VAR1.rotating(0.9), 10
    y, observations = observed(process, length)
    smoothed = rts_smoother(process, *kalman_filter(process, H, ERROR[:, None] ** 2, y))
    plan = WindowPlan.reanalysis(NOON, length)
    result = run(ExactModel(process, 10, 5), observations, plan, 24)
    close(posterior(result, plan, 0), smoothed, 2e-3)


@pytest.mark.parametrize(("mode", "atol"), [("symmetrical", 0.02), ("average", 0.15)])
def test_reanalysis_through_overlapping_blankets_is_close_to_the_smoother(mode, atol) -> None:
    # Blankets are local: what they neglect decays like memory ** distance to a blanket's end.
    # The symmetrical mode keeps states at least 4 from an end; the average has those at ends too.
    process, length = VAR1.rotating(0.4), 20
    y, observations = observed(process, length)
    smoothed = rts_smoother(process, *kalman_filter(process, H, ERROR[:, None] ** 2, y))
    plan = WindowPlan.reanalysis(NOON, length)
    model = ExactModel(process, 12, 4)
    s = AssimilationSettings(**{**vars(settings()), "mode": mode})
    result = run(model, observations, plan, 44, settings=s)
    close(posterior(result, plan, 0), smoothed, atol)


def test_blankets_that_do_not_fit_are_extended_away_from_the_observations() -> None:
    process, length = VAR1.rotating(0.4), 15
    y, observations = observed(process, length)
    filtered, _ = kalman_filter(process, H, ERROR[:, None] ** 2, y)
    plan = WindowPlan.filtering(NOON, length)
    result = run(ExactModel(process, 12, 4), observations, plan, 36)  # 16 states are covered
    close(part(posterior(result, plan, 1), slice(-1, None)), part(filtered, slice(-1, None)), 2e-2)


def forecast(process: VAR1, known: np.ndarray, lead: int) -> Estimates:
    mean, cov, means, covs = known, np.zeros((2, 2)), [], []
    for _ in range(lead):
        mean, cov = process.A @ mean, process.A @ cov @ process.A.T + process.Q
        means.append(mean)
        covs.append(cov)
    return Estimates(np.array(means), np.array(covs))


def test_a_forecast_from_known_states_is_the_kalman_forecast() -> None:
    process, past, lead = VAR1.rotating(0.9), 3, 5
    known = process.sample(past, np.random.default_rng(2))
    plan = WindowPlan.forecast(NOON, past=past, lead_hours=lead)
    background = torch.from_numpy(known).reshape(1, past, 2, 1, 1)
    result = run(ExactModel(process, 8, 4), None, plan, 20, background=background)
    assert result.times == hourly(plan.times[past], lead)
    ours = part(posterior(result, plan, 0), slice(past, None))
    close(ours, forecast(process, known[-1], lead), 5e-3)


def test_an_autoregressive_forecast_has_the_spread_of_the_kalman_forecast() -> None:
    # Later passes are conditioned on each member's own earlier states: the map is still affine,
    # but in the noise of all passes, so mean and variance are checked over many members.
    process, past, lead, members = VAR1.rotating(0.9), 2, 6, 400
    known = process.sample(past, np.random.default_rng(2))
    plan = WindowPlan.forecast(NOON, past=past, lead_hours=lead, new_states_per_pass=2)
    background = torch.from_numpy(known).reshape(1, past, 2, 1, 1)
    steps: list[tuple[int, int]] = []
    result = run(
        ExactModel(process, 4, 2),
        None,
        plan,
        members,
        background=background,
        settings=settings(steps=32, iterations=8),
        on_step=lambda i, n: steps.append((i, n)),
    )
    assert steps == [(i, 96) for i in range(96)]
    expected = forecast(process, known[-1], lead)
    x = result.latents[:, past:, :, 0, 0].numpy()
    spread = np.sqrt(np.diagonal(expected.cov, axis1=1, axis2=2))
    error = (x.mean(axis=0) - expected.mean) / spread * np.sqrt(members)
    assert np.abs(error).max() < 4
    ratio = x.var(axis=0, ddof=1) / spread**2
    assert np.abs(ratio - 1).max() < 4.5 * np.sqrt(2 / members)


def test_known_states_and_observations_together_are_the_kalman_filter_from_a_known_start() -> None:
    process, length = VAR1.rotating(0.9), 8
    y, observations = observed(process, length)
    known = process.sample(1, np.random.default_rng(9))
    mean, cov = known[0], np.zeros((2, 2))
    for t in range(1, length):
        mean, cov = process.A @ mean, process.A @ cov @ process.A.T + process.Q
        if y[t] is not None:
            gain = cov @ H.T @ np.linalg.inv(H @ cov @ H.T + ERROR**2)
            mean, cov = mean + gain @ (y[t] - H @ mean), (np.eye(2) - gain @ H) @ cov
    flags = (True, *(False,) * (length - 1))
    times = hourly(NOON, length)
    plan = WindowPlan(times, (False, *(True,) * (length - 1)), flags, tuple(not f for f in flags))
    background = torch.from_numpy(known).reshape(1, 1, 2, 1, 1)
    model = ExactModel(process, 8, 4)
    result = run(model, observations, plan, 20, background=background)
    ours = posterior(result, plan, 0)
    np.testing.assert_allclose(ours.mean[-1], mean, atol=5e-3)
    np.testing.assert_allclose(ours.cov[-1], cov, atol=5e-3)


def test_a_warm_start_comes_the_closer_to_the_filter_the_noisier_it_starts() -> None:
    process, length = VAR1.rotating(0.9), 8
    y, observations = observed(process, length)
    filtered, _ = kalman_filter(process, H, ERROR[:, None] ** 2, y)
    plan = WindowPlan.filtering(NOON, length)
    model = ExactModel(process, length, 4)
    # The trajectory of an earlier cycle that was far off.
    earlier = WarmStart(torch.full((1, length, 2, 1, 1), 3.0).double(), plan.times[0])
    errors = []
    for sigma in (0.3, 3.0, 30.0):
        warm = replace(settings(), warm=EntrySettings(sigma=sigma, steps=32))
        result = run(model, observations, plan, 20, settings=warm, warm_start=earlier)
        ours = posterior(result, plan, 0)
        errors.append(np.abs(ours.mean[-1] - filtered.mean[-1]).max())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    # The flow from sigma to 0 shrinks an error by about spread / sigma, and the spread is below 1.
    assert errors[2] < 4 / 30
