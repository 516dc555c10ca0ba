"""Krylov solvers against dense solves, azula's solvers and the reference's arrays."""

import azula.linalg.solve as azula
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.guidance.solvers import SOLVERS, cg, gmres


@pytest.fixture(scope="module")
def system() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(4, 12, 12, generator=g, dtype=torch.float64)
    return a @ a.mT + torch.eye(12, dtype=torch.float64), torch.randn(
        4, 12, generator=g, dtype=torch.float64
    )


def times(a: Tensor):
    return lambda v: (a.to(v) @ v[..., None])[..., 0]


@pytest.mark.parametrize("name", list(SOLVERS))
def test_enough_iterations_solve_the_system(system, name) -> None:
    a, b = system
    solution = SOLVERS[name](times(a), b, iterations=20)
    torch.testing.assert_close(solution.x, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution.residual, torch.zeros_like(b), rtol=0, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_few_iterations_agree_with_azula(system, iterations) -> None:
    a, b = system
    skew = a + torch.triu(torch.ones_like(a), 1)
    ours = gmres(times(skew), b, iterations=iterations).x
    theirs = azula.gmres(times(skew), b, iterations=iterations)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    ours = cg(times(a), b, iterations=iterations).x
    theirs = azula.cg(times(a), b, iterations=iterations)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["nonsym", "spd"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 6, 24])
def test_gmres_matches_the_reference(parity_dir, kind, iterations) -> None:
    arrays = load_file(parity_dir / "golden_f64.safetensors")
    apply, b, x0 = times(arrays[f"gmres.{kind}"]), arrays["gmres.b"], arrays["gmres.x0"]
    name = f"gmres.{kind}.it{iterations}"
    torch.testing.assert_close(
        gmres(apply, b, iterations=iterations).x, arrays[name], rtol=1e-9, atol=1e-12
    )
    moved = x0 + gmres(apply, b - apply(x0), iterations=iterations).x
    torch.testing.assert_close(moved, arrays[f"{name}.x0"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["nonsym", "spd"])
def test_float32_operators_match_the_reference(parity_dir, kind) -> None:
    single = load_file(parity_dir / "golden.safetensors")
    double = load_file(parity_dir / "golden_f64.safetensors")
    a, b = double[f"gmres.{kind}"].float(), double["gmres.b"].float()
    ours = gmres(times(a), b, iterations=3).x.float()
    torch.testing.assert_close(ours, single[f"gmres.{kind}.f32.it3"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_padding_and_empty_rows_stay_zero(system, name) -> None:
    a, b = system
    keep = torch.ones_like(b, dtype=torch.bool)
    keep[1, 5:] = False
    keep[2] = False

    def apply(v: Tensor) -> Tensor:
        return torch.where(keep, times(a)(torch.where(keep, v, 0.0)), v)

    solution = SOLVERS[name](apply, torch.where(keep, b, 0.0), iterations=20)
    assert solution.x[~keep].abs().max() == 0
    short = torch.linalg.solve(a[1, :5, :5], b[1, :5])
    torch.testing.assert_close(solution.x[1, :5], short, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_solution_combines_the_vectors_the_operator_saw(system, name) -> None:
    a, b = system
    seen: list[Tensor] = []

    def apply(v: Tensor) -> Tensor:
        seen.append(v)
        return times(a)(v)

    solution = SOLVERS[name](apply, b, iterations=5)
    combined = sum(solution.coefficients[:, j, None] * v for j, v in enumerate(seen))
    torch.testing.assert_close(combined, solution.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solution.residual, b - times(a)(solution.x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_row_stops_the_same_alone_or_beside_others(system, name) -> None:
    a, b = system

    def run(rows: slice) -> Tensor:
        size = torch.linalg.vector_norm(b[rows], dim=1)
        return SOLVERS[name](
            times(a[rows]),
            b[rows],
            iterations=12,
            stop=lambda s: torch.linalg.vector_norm(s.residual, dim=1) <= 0.1 * size,
        ).x

    together = run(slice(0, 4))
    alone = torch.cat([run(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    exact = torch.linalg.solve(a, b)
    assert not torch.allclose(together, exact, rtol=1e-6)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_exact_inverse_as_preconditioner_solves_in_one_iteration(system, name) -> None:
    a, b = system
    inverse = torch.linalg.inv(a)
    solution = SOLVERS[name](times(a), b, iterations=1, precondition=times(inverse))
    torch.testing.assert_close(solution.x, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-9)
