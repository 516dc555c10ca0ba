r"""Linearise the operators of guidance and solve its linear systems, in observation or state space.

Both products with a Jacobian are taken by reverse mode: the transpose's on the graph of one
forward evaluation, the Jacobian's own on the graph of the transpose's, which is linear in its
argument (the transpose of the transpose). Forward mode would evaluate the primal again for every
product, and is very slow through convolutions on a CPU. The graph costs nothing extra where a
product with the transpose is needed anyway: it is recorded with the first one. The layers of the
decoder take second derivatives at the cost of first ones (:mod:`model.nn.convolution`).

Guidance solves :math:`(R + H \Sigma H^\top) v = d` once per blanket and member at every noise
level. Vectors of different lengths travel in one batch, padded with zeros: with a zero right-hand
side and an operator that returns zero there, the padding stays exactly zero, and a row without
any observation has the solution 0.

`azula.linalg.solve` has GMRES and CG with a fixed number of iterations (the tests compare with
it). It lacks what follows, which is why there are solvers here: the coefficients of the solution
in the vectors the operator was given (the last adjoint of guidance is the same combination of
adjoints already computed), a stopping rule per row (so that the result of a row does not depend on
which rows share its batch), a preconditioner, and a residual.

The increment of a variational analysis, with a Gaussian of covariance
:math:`\Sigma = U \Lambda U^*` around a first guess and whitened observations with Jacobian J and
innovation d,

.. math:: (\Sigma^{-1} + J^\top J) \, \delta = J^\top d

is solved by conjugate gradients preconditioned with :math:`M = (\Sigma^{-1} + \kappa I)^{-1}`,
:math:`\kappa` a share of the mean information of the observations,
:math:`\mathrm{tr}(J^\top J)/n`. The remaining condition number reflects how unevenly the
observations are distributed. The same system in observation space,
:math:`(I + J \Sigma J^\top) v = d`, has the full range of :math:`\Lambda` as its condition
number: with 100 000 observations of 12 hourly states it was far from solved after 200
iterations, where 40 of these suffice. :math:`\Sigma^{-1}` is never applied: for the preconditioned
residual :math:`z = M r` it is :math:`\Sigma^{-1} z = r - \kappa z`, and for a search direction it
follows the recurrence of the directions. One iteration costs one product with M, J and
:math:`J^\top` each.

References:
    | GMRES: A Generalized Minimal Residual Algorithm for Solving Nonsymmetric Linear Systems
      (Saad and Schultz, 1986)
    | https://doi.org/10.1137/0907058
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.domain.registry import Registry
from model.nn.frozen import linearising, transposed_product

__all__ = [
    "Filter",
    "KrylovSolver",
    "LinearMap",
    "LinearSolution",
    "RecycledGuess",
    "SOLVERS",
    "StopRule",
    "Tangent",
    "cg",
    "gmres",
    "variational_increment",
]

LinearMap = Callable[[Tensor], Tensor]


class Tangent:
    """A map at a point: its value there, and products with its Jacobian J and the transpose.

    Arguments:
        f: From (B, *) to (B, N); differentiable twice.
        x: The point, with shape (B, *).

    Attributes:
        x: The point, without gradient.
        y: f(x), without gradient.
    """

    def __init__(self, f: LinearMap, x: Tensor) -> None:
        with torch.enable_grad(), linearising():
            self._x = x.detach().requires_grad_()
            self._y = f(self._x)
        self.x, self.y = self._x.detach(), self._y.detach()
        self._recorded: tuple[Tensor, Tensor] | None = None

    def vjp(self, w: Tensor) -> Tensor:
        """Return the product of the transpose of J with `w` (B, N), with the shape of `x`."""
        if self._recorded is None:
            return self._record(w)[1].detach()
        return transposed_product(self._y, self._x, w)

    def jvp(self, u: Tensor) -> Tensor:
        """Return the product of J with `u`, which has the shape of `x`; with shape (B, N)."""
        cotangent, adjoint = self._recorded or self._record(torch.zeros_like(self.y))
        return transposed_product(adjoint, cotangent, u)

    def _record(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the transpose's product with `w` on a graph that is kept."""
        with torch.enable_grad():
            cotangent = w.detach().clone().requires_grad_()
            adjoint = transposed_product(self._y, self._x, cotangent, create_graph=True)
        self._recorded = cotangent, adjoint
        return self._recorded


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


class KrylovSolver(Protocol):
    """Solve A x = b from zero."""

    def __call__(
        self,
        apply: LinearMap,
        b: Tensor,
        *,
        iterations: int,
        stop: StopRule | None = None,
        precondition: LinearMap | None = None,
    ) -> LinearSolution:
        """Arguments:
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
    """Return the new solution, but the old one in rows that are done."""
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
    """Solve by right-preconditioned GMRES without restart; A may be non-symmetric."""
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
    """Return the combination of directions with the smallest residual."""
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
    """Solve by preconditioned conjugate gradients; A must be symmetric positive."""
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


class RecycledGuess:
    """Combine a multiple of a guess with the solution of the remaining system.

    The best multiple of the guess g leaves the smallest residual, row by row. The solver for the rest
    sees A without the component along A g (`deflated`), which is the same as choosing the multiple
    last: the residual is the smallest of all combinations of the guess and the solver's directions.

    Arguments:
        apply: The system A; it is applied to the guess.
        guess: With shape (B, N).
        b: The right-hand side, with shape (B, N).

    Attributes:
        solution: The best multiple by itself.
    """

    def __init__(self, apply: LinearMap, guess: Tensor, b: Tensor) -> None:
        self._apply = apply
        self._guess = guess
        image = apply(guess.to(b)).double()
        size = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        self._size = size.clamp(min=torch.finfo(torch.float64).tiny)
        self._unit = image / self._size
        along = torch.linalg.vecdot(self._unit, b.double())[:, None]
        factor = along / self._size
        self.solution = LinearSolution(factor * guess, b - along * self._unit, factor)
        self._shares: list[Tensor] = []

    def deflated(self, v: Tensor) -> Tensor:
        """Return A v without its part along A g, from and to (B, N)."""
        image = self._apply(v).double()
        share = torch.linalg.vecdot(self._unit, image)[:, None]
        self._shares.append(share / self._size)
        rest: Tensor = (image - share * self._unit).to(v)
        return rest

    def combined(self, rest: LinearSolution) -> LinearSolution:
        """Return the solution, given that of the remaining system, whose vectors come second."""
        factor = self.solution.coefficients
        if self._shares:
            count = rest.coefficients.shape[1]
            shares = torch.cat(self._shares[:count], dim=1)
            factor = factor - (shares * rest.coefficients).sum(dim=1, keepdim=True)
        coefficients = torch.cat((factor, rest.coefficients), dim=1)
        return LinearSolution(factor * self._guess + rest.x, rest.residual, coefficients)


SOLVERS: Registry[KrylovSolver] = Registry("linear solver", gmres=gmres, cg=cg)


Map = Callable[[Tensor], Tensor]
Filter = Callable[[Tensor, Map], Tensor]
"""(x (B, *), gain) -> U g(Λ) U* x; the gain maps variances (1, n) to factors (1 or B, n)."""

SHARE = 0.01
"""κ over the mean information of the observations: the modes that need the preconditioner most
are large ones, which few observations already determine. Measured on 12 hourly T31 states and
108 000 observations: 40 iterations with 0.01, 100 with 0.1, and more with 1."""

FLOOR = 1e-3
"""Variance below which a first guess is damped, in units of a latent's."""


def variational_increment(
    spectral_filter: Filter,
    jvp: Map,
    vjp: Map,
    innovation: Tensor,
    *,
    iterations: int,
    tolerance: float,
    share: float = SHARE,
    first: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Solve for δ of the module's equation, for a batch of independent rows.

    Arguments:
        spectral_filter: Applies functions of the covariance.
        jvp: J, from (B, *) to (B, N).
        vjp: The transpose of J, from (B, N) to (B, *).
        innovation: In units of the observation error, zero where padded, with shape (B, N).
        iterations: At most.
        tolerance: Of the residual in the norm of M, relative to the right-hand side.
        share: κ over the mean information.
        first: A guess of δ, such as that of an hour ago; None for zero.

    Returns:
        δ with shape (B, *), and the number of iterations.
    """
    residual = vjp(innovation)
    axes = tuple(range(1, residual.ndim))
    row_kappa = (share * _information(jvp, residual)).clamp(min=1e-12).to(residual)
    kappa = row_kappa.reshape(-1, *(1 for _ in axes))

    def precondition(r: Tensor) -> Tensor:
        return spectral_filter(r, lambda v: v / (1.0 + row_kappa[:, None] * v))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() * b.double()).sum(axes, keepdim=True)

    z = precondition(residual)
    size = dot(residual, z)
    goal = tolerance**2 * size
    delta = torch.zeros_like(z)
    if first is not None:
        # δ = Σ u for about u = Σ⁻¹ `first`, so that Σ⁻¹ δ is known without rounding.
        inverse = spectral_filter(first, lambda v: 1.0 / (v + FLOOR))
        delta = spectral_filter(inverse, lambda v: v)
        residual = residual - inverse - vjp(jvp(delta))
        z = precondition(residual)
        size = dot(residual, z)
    direction = z
    weighted = residual - kappa * z
    for i in range(iterations):
        if bool((size <= goal).all()):
            return delta, i
        image = weighted + vjp(jvp(direction))
        curvature = dot(direction, image).clamp(min=1e-300)
        step = torch.where(size > goal, size / curvature, 0.0).to(z)
        delta = delta + step * direction
        residual = residual - step * image
        z = precondition(residual)
        last, size = size, dot(residual, z)
        ratio = (size / last.clamp(min=1e-300)).to(z)
        direction = z + ratio * direction
        weighted = residual - kappa * z + ratio * weighted
    return delta, iterations


def _information(jvp: Map, like: Tensor) -> Tensor:
    """Estimate tr(JᵀJ) / n of each row (B,) from one fixed random vector (Hutchinson's estimator)."""
    draw = torch.Generator().manual_seed(0)
    probe = torch.randn(like.shape[1:], generator=draw).to(like)
    size = probe.numel()
    return jvp(probe.expand(like.shape).contiguous()).square().sum(dim=1) / size
