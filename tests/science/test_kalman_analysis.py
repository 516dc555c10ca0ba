"""MMPS on a Gaussian prior with a linear operator is the Kalman analysis."""

import numpy as np
import pytest
import torch
from azula.noise import VESchedule
from gaussian_process import ExactDenoiser, GivenLevel, LinearObservations
from torch import Tensor

from model.guidance.base import BlanketRows, FitReport
from model.guidance.jacobian import MMPS, MMPSSettings
from model.guidance.observed import DecodedObservations
from model.samplers.control import MemberNoise
from model.samplers.sampling import SamplerSettings, sample
from model.trajectory import Blankets, TrajectoryDenoiser

D, P = 8, 5


class Problem:
    """A prior N(0, B) of one state with 8 values, and 5 linear observations."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        root = rng.normal(size=(D, D)) / np.sqrt(D)
        self.prior = root @ root.T + 0.05 * np.eye(D)
        self.h = rng.normal(size=(P, D))
        self.error_std = rng.uniform(0.05, 0.5, size=P)
        truth = np.linalg.cholesky(self.prior) @ rng.normal(size=D)
        self.y = self.h @ truth + self.error_std * rng.normal(size=P)
        gain_of = self.prior @ self.h.T
        gain = gain_of @ np.linalg.inv(self.h @ gain_of + np.diag(self.error_std**2))
        self.mean, self.cov = gain @ self.y, self.prior - gain @ gain_of.T

    def observations(self) -> DecodedObservations:
        return DecodedObservations(
            [LinearObservations(self.h, self.y, [0], self.error_std)], lambda z: z
        )

    def denoiser(self, schedule, **settings) -> TrajectoryDenoiser:
        return TrajectoryDenoiser(
            ExactDenoiser(self.prior),
            schedule,
            torch.tensor([[2021, 1, 1, 0]]),
            Blankets(1, 1, 1),
            guidance=MMPS(self.observations(), MMPSSettings(iterations=P, **settings)),
        )


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def as_states(x: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(x).reshape(-1, 1, D, 1, 1)


@pytest.mark.parametrize("solver", ["gmres", "cg"])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 100.0])
def test_one_denoising_step_is_exact_at_every_noise_level(problem, solver, whiten, sigma) -> None:
    rng = np.random.default_rng(1)
    x_t = rng.normal(size=D) * sigma
    # E[x | x_t, y] by joining x_t and y into one observation vector of the prior.
    h = np.vstack([np.eye(D), problem.h])
    r = np.diag(np.concatenate([np.full(D, sigma**2), problem.error_std**2]))
    joint = problem.prior @ h.T @ np.linalg.inv(h @ problem.prior @ h.T + r)
    expected = joint @ np.concatenate([x_t, problem.y])
    denoiser = problem.denoiser(GivenLevel(), solver=solver, whiten=whiten)
    ours = denoiser(as_states(x_t), torch.tensor(sigma, dtype=torch.float64)).mean
    np.testing.assert_allclose(ours.flatten(), expected, rtol=1e-6, atol=1e-7)


def test_the_analysis_mean_is_the_kalman_mean(problem) -> None:
    denoiser = problem.denoiser(GivenLevel())
    noisy = torch.zeros(1, 1, D, 1, 1, dtype=torch.float64)
    mean = denoiser(noisy, torch.tensor(1e4, dtype=torch.float64)).mean
    np.testing.assert_allclose(mean.flatten(), problem.mean, atol=1e-4)


def test_sampled_members_have_the_kalman_mean_and_covariance(problem) -> None:
    members = 4096
    schedule = VESchedule(1e-4, 1e4)
    # Without a member's noise the flow carries the mean; DDIM is linear in its start.
    settings = SamplerSettings(name="xeab", steps=64, order=3)
    noise = MemberNoise(0, range(members), [0])
    start = 1e4 * noise(torch.empty(members, 1, D, 1, 1, dtype=torch.float64))
    start[0] = 0
    x = sample(problem.denoiser(schedule), start, settings, noise).flatten(1).numpy()
    np.testing.assert_allclose(x[0], problem.mean, atol=1e-4)
    spread = np.sqrt(np.diag(problem.cov))
    error = (x[1:].mean(axis=0) - problem.mean) / spread * np.sqrt(members)
    assert np.abs(error).max() < 4
    # Standard error of a covariance of N Gaussian members: sqrt((c_ij^2 + c_ii c_jj) / N).
    width = np.sqrt((problem.cov**2 + np.outer(spread, spread) ** 2) / members)
    assert (np.abs(np.cov(x[1:].T) - problem.cov) / width).max() < 4.5


def test_the_post_fit_innovation_is_reported_in_units_of_the_error(problem) -> None:
    report = FitReport()
    guide = MMPS(problem.observations(), MMPSSettings(iterations=P), report)
    rows = BlanketRows(torch.tensor([0]), torch.tensor([0]))
    zero = torch.zeros(1, 1, D, 1, 1, dtype=torch.float64)
    sigma = torch.tensor(1e4, dtype=torch.float64)
    date = torch.zeros(1, 1, 4, dtype=torch.int64)
    guide(ExactDenoiser(problem.prior), zero, sigma, date, rows)
    ((level, fit),) = report.levels
    before = problem.y / problem.error_std
    after = (problem.y - problem.h @ problem.mean) / problem.error_std
    assert level == 1e4 and fit.count == P
    assert fit.chi_before == pytest.approx(np.sqrt((before**2).mean()), rel=1e-6)
    assert fit.chi_after == pytest.approx(np.sqrt((after**2).mean()), rel=1e-6)


def test_iterations_stop_when_the_innovation_fits(problem) -> None:
    report = FitReport()
    settings = MMPSSettings(iterations=P, fit=2.0)
    guide = MMPS(problem.observations(), settings, report)
    rows = BlanketRows(torch.tensor([0]), torch.tensor([0]))
    zero = torch.zeros(1, 1, D, 1, 1, dtype=torch.float64)
    sigma = torch.tensor(1e4, dtype=torch.float64)
    guide(ExactDenoiser(problem.prior), zero, sigma, torch.zeros(1, 1, 4), rows)
    ((_, fit),) = report.levels
    assert fit.chi_after <= 2.0 and fit.iterations < P


def test_a_preconditioner_saves_iterations(problem) -> None:
    sigma = torch.tensor(1e4, dtype=torch.float64)
    whitened = problem.h / problem.error_std[:, None]
    inverse = np.linalg.inv(np.eye(P) + whitened @ problem.prior @ whitened.T)

    def precondition(seen, level):
        return lambda v: v @ torch.from_numpy(inverse)

    rows = BlanketRows(torch.tensor([0]), torch.tensor([0]))
    arguments = (
        ExactDenoiser(problem.prior),
        as_states(np.zeros(D)),
        sigma,
        torch.zeros(1, 1, 4),
        rows,
    )
    one = MMPSSettings(iterations=1)
    plain = MMPS(problem.observations(), one)(*arguments)
    quick = MMPS(problem.observations(), one, precondition=precondition)(*arguments)
    np.testing.assert_allclose(quick.flatten(), problem.mean, atol=1e-4)
    assert np.abs(plain.flatten().numpy() - problem.mean).max() > 1e-2


def test_recycled_solutions_sum_up_the_iterations_of_all_levels(problem) -> None:
    sigma = torch.tensor(1e4, dtype=torch.float64)
    rows = BlanketRows(torch.tensor([0]), torch.tensor([0]))
    arguments = (
        ExactDenoiser(problem.prior),
        as_states(np.zeros(D)),
        sigma,
        torch.zeros(1, 1, 4),
        rows,
    )

    def errors(recycle: bool) -> list[float]:
        guide = MMPS(problem.observations(), MMPSSettings(iterations=1, recycle=recycle))
        means = [guide(*arguments).flatten().numpy() for _ in range(12)]
        return [np.abs(mean - problem.mean).max() for mean in means]

    fresh, recycled = errors(False), errors(True)
    assert fresh[0] == fresh[-1] == recycled[0] > 1e-2
    assert recycled[-1] < 0.2 * recycled[0]


def test_a_recycled_solution_and_the_iterations_leave_the_smallest_residual_together(
    problem,
) -> None:
    whitened = problem.h / problem.error_std[:, None]
    y, rows = problem.y / problem.error_std, BlanketRows(torch.tensor([0]), torch.tensor([0]))
    x_t = np.random.default_rng(3).normal(size=D)
    guide = MMPS(problem.observations(), MMPSSettings(iterations=2))
    found = []
    for level in (3.0, 1.0):
        sigma = torch.tensor(level, dtype=torch.float64)
        noisy = as_states(level * x_t)
        mean = guide(ExactDenoiser(problem.prior), noisy, sigma, torch.zeros(1, 1, 4), rows)
        smooth = problem.prior @ np.linalg.inv(problem.prior + level**2 * np.eye(D))
        system = np.eye(P) + level**2 * whitened @ smooth @ whitened.T
        b = y - whitened @ smooth @ (level * x_t)
        lifted = level**2 * smooth @ whitened.T  # from a solution to the increment of the mean
        increment = mean.flatten().numpy() - smooth @ (level * x_t)
        found.append((np.linalg.lstsq(lifted, increment, rcond=None)[0], system, b))
    (guess, _, _), (solution, system, b) = found
    # The directions by hand: the guess, and two of a Krylov space without the guess's image.
    unit = system @ guess / np.linalg.norm(system @ guess)
    beside = (np.eye(P) - np.outer(unit, unit)) @ system
    residual = b - unit * (unit @ b)
    directions = np.stack([guess, residual, beside @ residual], axis=1)
    best = np.linalg.lstsq(system @ directions, b, rcond=None)[0]
    np.testing.assert_allclose(solution, directions @ best, rtol=1e-8)
    # By itself the best multiple of the guess would leave more, whatever is solved after it.
    factor = (unit @ b) / np.linalg.norm(system @ guess)
    krylov = np.stack([residual, system @ residual], axis=1)
    after = np.linalg.lstsq(system @ krylov, residual, rcond=None)[0]
    apart = factor * guess + krylov @ after
    left = [np.linalg.norm(b - system @ v) for v in (solution, apart)]
    assert left[0] < 0.9 * left[1]


def test_a_row_without_observations_is_the_prior(problem) -> None:
    observations = DecodedObservations(
        [LinearObservations(problem.h, problem.y, [0], problem.error_std), None], lambda z: z
    )
    rows = BlanketRows(torch.tensor([0, 1]), torch.tensor([0, 0]))
    x_t = torch.randn(2, 1, D, 1, 1, dtype=torch.float64)
    sigma, date = torch.tensor(1.0, dtype=torch.float64), torch.zeros(2, 1, 4)
    prior = ExactDenoiser(problem.prior)
    out = MMPS(observations, MMPSSettings(iterations=P))(prior, x_t, sigma, date, rows)
    torch.testing.assert_close(out[1:], prior(x_t[1:], sigma, date[1:]))
    assert not torch.allclose(out[:1], prior(x_t[:1], sigma, date[:1]))
