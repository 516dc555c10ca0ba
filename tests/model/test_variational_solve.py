"""The preconditioned increment against dense linear algebra."""

import pytest
import torch

from model.guidance.solvers import variational_increment


@pytest.fixture
def problem():
    """Two rows, 12 unknowns with variances over six decades, 8 observations (2 padded in row 1)."""
    torch.manual_seed(3)
    vectors, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    variance = torch.logspace(-3, 3, 12, dtype=torch.float64)
    jacobian = torch.randn(2, 8, 12, dtype=torch.float64)
    jacobian[1, 6:] = 0.0
    innovation = torch.randn(2, 8, dtype=torch.float64)
    innovation[1, 6:] = 0.0
    return vectors, variance, jacobian, innovation


def expected(vectors, variance, jacobian, innovation):
    inverse = vectors @ torch.diag(1 / variance) @ vectors.T
    system = inverse + jacobian.mT @ jacobian
    return torch.linalg.solve(system, (jacobian.mT @ innovation[..., None])[..., 0])


def solve(problem, **settings):
    vectors, variance, jacobian, innovation = problem
    return variational_increment(
        lambda x, gain: ((x @ vectors) * gain(variance[None])) @ vectors.T,
        lambda x: (jacobian @ x[..., None])[..., 0],
        lambda y: (jacobian.mT @ y[..., None])[..., 0],
        innovation,
        **settings,
    )


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_it_solves_the_normal_equations(problem, share):
    found, steps = solve(problem, iterations=100, tolerance=1e-12, share=share)
    torch.testing.assert_close(found, expected(*problem), rtol=1e-8, atol=1e-10)
    assert steps < 40


def test_rows_do_not_depend_on_each_other_once_solved(problem):
    vectors, variance, jacobian, innovation = problem
    alone, _ = solve(
        (vectors, variance, jacobian[1:], innovation[1:]), iterations=60, tolerance=1e-12
    )
    together, _ = solve(problem, iterations=60, tolerance=1e-12)
    torch.testing.assert_close(together[1:], alone, rtol=1e-8, atol=1e-10)


def test_no_innovation_no_increment(problem):
    vectors, variance, jacobian, innovation = problem
    found, steps = solve(
        (vectors, variance, jacobian, torch.zeros_like(innovation)), iterations=9, tolerance=1e-3
    )
    assert steps == 0
    assert found.abs().max() == 0


def test_uniform_observations_take_two_iterations():
    # Where J^T J is kappa times the identity, the preconditioner is the exact inverse.
    variance = torch.logspace(-3, 3, 12, dtype=torch.float64)
    identity = 5.0 * torch.eye(12, dtype=torch.float64)
    problem = (torch.eye(12).double(), variance, identity[None], torch.ones(1, 12).double())
    found, steps = solve(problem, iterations=50, tolerance=0.3, share=1.0)
    assert steps <= 2
    torch.testing.assert_close(found[0], 5.0 / (1 / variance + 25.0), rtol=0.3, atol=0)


def test_a_first_guess_saves_iterations_and_changes_nothing_else(problem):
    cold, steps = solve(problem, iterations=100, tolerance=1e-9)
    near = cold + 1e-4 * torch.randn(cold.shape, generator=torch.Generator().manual_seed(3)).to(
        cold
    )
    warm, fewer = solve(problem, iterations=100, tolerance=1e-9, first=near)
    torch.testing.assert_close(warm, expected(*problem), rtol=1e-6, atol=1e-8)
    assert fewer < steps
