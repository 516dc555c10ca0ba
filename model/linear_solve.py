r"""Krylov solvers for batches of observation-space systems.

Guidance solves :math:`(R + H \Sigma H^\top) v = d` once per blanket and member at every noise
level. Vectors of different lengths travel in one batch, padded with zeros: with a zero right-hand
side and an operator that returns zero there, the padding stays exactly zero, and a row without any
observation has the solution 0.

`azula.linalg.solve` has GMRES and CG with a fixed number of iterations (the tests compare with
it). It lacks what follows, which is why there are solvers here: the coefficients of the solution
in the vectors the operator was given (the last adjoint of guidance is the same combination of
adjoints already computed), a stopping rule for each row of its own (so that a row's result does
not depend on which rows share its batch), a preconditioner, and a residual.

References:
    | GMRES: A Generalized Minimal Residual Algorithm for Solving Nonsymmetric Linear Systems
      (Saad and Schultz, 1986)
    | https://doi.org/10.1137/0907058
"""

__all__ = ["SOLVERS", "LinearMap", "LinearSolution", "Solver", "StopRule", "cg", "gmres"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.domain.registry import Registry

LinearMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearSolution:
    """The solution of a batch of linear systems A x = b.

    Attributes:
        x: The solution, float64, with shape (B, N).
        residual: b - A x by recursion, float64, with shape (B, N).
        coefficients: x = sum over j of coefficients[:, j] * p_j, where p_j is the j-th vector the
            operator was called with; float64, with shape (B, J).
    """

    x: Tensor
    residual: Tensor
    coefficients: Tensor


StopRule = Callable[[LinearSolution], Tensor]
"""True for each row (B,) that needs no further iteration."""


class Solver(Protocol):
    """Solves A x = b from zero."""

    def __call__(
        self,
        apply: LinearMap,
        b: Tensor,
        *,
        iterations: int,
        stop: StopRule | None = None,
        precondition: LinearMap | None = None,
    ) -> LinearSolution:
        """
        Arguments:
            apply: The operator A, from (B, N) to (B, N), in the type of `b`.
            b: The right-hand sides, with shape (B, N); zero where padded.
            iterations: The largest number of applications of A.
            stop: Asked after each iteration; a row that stops keeps its solution.
            precondition: An approximation of the inverse of A.

        Returns:
            The solution; the Krylov recursion runs in float64 whatever the type of `b`.
        """


def _unit(w: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(w, dim=-1)
    inverse = torch.where(norm > 0, 1 / norm.clamp(min=torch.finfo(w.dtype).tiny), 0.0)
    return w * inverse[:, None], norm


def _keep_stopped(new: LinearSolution, old: LinearSolution, done: Tensor) -> LinearSolution:
    """The new solution, but the old one in rows that are done."""
    grown = torch.zeros_like(new.coefficients)
    grown[:, : old.coefficients.shape[1]] = old.coefficients
    done = done[:, None]
    return LinearSolution(
        x=torch.where(done, old.x, new.x),
        residual=torch.where(done, old.residual, new.residual),
        coefficients=torch.where(done, grown, new.coefficients),
    )


def _zero_start(b: Tensor) -> LinearSolution:
    return LinearSolution(torch.zeros_like(b), b, b.new_zeros(b.shape[0], 0))


def gmres(
    apply: LinearMap,
    b: Tensor,
    *,
    iterations: int,
    stop: StopRule | None = None,
    precondition: LinearMap | None = None,
) -> LinearSolution:
    """Right-preconditioned GMRES, without restart; A may be non-symmetric. See :class:`Solver`."""
    wide = b.double()
    first, beta = _unit(wide)
    basis = [first]
    directions: list[Tensor] = []
    h = wide.new_zeros(b.shape[0], iterations + 1, iterations)
    solution = _zero_start(wide)
    done = torch.zeros(b.shape[0], dtype=torch.bool, device=b.device)
    for j in range(iterations):
        directions.append(basis[j] if precondition is None else precondition(basis[j]))
        w = apply(directions[j].to(b.dtype)).double()
        size = torch.linalg.vector_norm(w, dim=-1)
        # Gram-Schmidt twice: one pass loses orthogonality when observations are very precise.
        for _ in range(2):
            for i, v in enumerate(basis):
                projection = torch.linalg.vecdot(w, v)
                w = w - projection[:, None] * v
                h[:, i, j] += projection
        v, norm = _unit(w)
        broken = norm <= 1e-14 * size  # the Krylov space is exhausted: the solution is exact
        basis.append(torch.where(broken[:, None], 0.0, v))
        h[:, j + 1, j] = torch.where(broken, 0.0, norm)
        if stop is not None or j == iterations - 1:
            new = _least_squares(h[:, : j + 2, : j + 1], beta, basis, directions)
            solution = _keep_stopped(new, solution, done)
        if stop is not None:
            done = done | stop(solution)
            if bool(done.all()):
                break
    return solution


def _least_squares(
    h: Tensor, beta: Tensor, basis: list[Tensor], directions: list[Tensor]
) -> LinearSolution:
    """The combination of directions with the smallest residual."""
    target = h.new_zeros(h.shape[:2])
    target[:, 0] = beta
    y = (torch.linalg.pinv(h) @ target[..., None])[..., 0]
    left = target - (h @ y[..., None])[..., 0]
    return LinearSolution(
        x=sum(y[:, j, None] * z for j, z in enumerate(directions)),
        residual=sum(left[:, j, None] * v for j, v in enumerate(basis)),
        coefficients=y,
    )


def cg(
    apply: LinearMap,
    b: Tensor,
    *,
    iterations: int,
    stop: StopRule | None = None,
    precondition: LinearMap | None = None,
) -> LinearSolution:
    """Preconditioned conjugate gradients; A must be symmetric positive. See :class:`Solver`."""
    tiny = torch.finfo(torch.float64).tiny
    solution = _zero_start(b.double())
    done = torch.zeros(b.shape[0], dtype=torch.bool, device=b.device)
    r = solution.residual
    z = r if precondition is None else precondition(r)
    p, rz = z, torch.linalg.vecdot(r, z)
    for _ in range(iterations):
        image = apply(p.to(b.dtype)).double()
        alpha = rz / torch.linalg.vecdot(p, image).clamp(min=tiny)
        # A row without observations has rz = 0; 0 / tiny is the 0 it needs.
        r = r - alpha[:, None] * image
        coefficients = torch.cat((solution.coefficients, alpha[:, None]), dim=1)
        new = LinearSolution(solution.x + alpha[:, None] * p, r, coefficients)
        solution = _keep_stopped(new, solution, done)
        if stop is not None:
            done = done | stop(solution)
            if bool(done.all()):
                break
        z = r if precondition is None else precondition(r)
        rz, before = torch.linalg.vecdot(r, z), rz
        p = z + (rz / before.clamp(min=tiny))[:, None] * p
    return solution


SOLVERS: Registry[Solver] = Registry("linear solver", gmres=gmres, cg=cg)
