r"""Guide blankets through the Jacobian of the denoiser: moment matching (MMPS) and SDA.

With :math:`\hat{x} = d(x_t)`, :math:`\hat{y} = H(\hat{x})` and the covariance of the denoised
state :math:`\Sigma = \sigma_t^2 J^\top`, :math:`J = \partial \hat{x} / \partial x_t` (Tweedie),
moment-matching posterior sampling computes

.. math::
    (R + H \Sigma H^\top) \, v = y - \hat{y}, \qquad
    E[x \mid x_t, y] \approx \hat{x} + \sigma_t^2 J^\top H^\top v .

The system is solved in units of the observation error, where it reads
:math:`(I + R^{-1/2} H \Sigma H^\top R^{-1/2}) \tilde{v} = R^{-1/2} (y - \hat{y})`: few Krylov
iterations then reduce the innovation where observations are precise and many instead of where
numbers happen to be large.

Score-based data assimilation (SDA) is the cheap alternative,

.. math:: E[x \mid x_t, y] \approx \hat{x}
    + \sigma_t^2 J^\top H^\top (R + \Gamma_t)^{-1} (y - H(\hat{x}))

with one forward and one adjoint evaluation and no solve: the covariance of the denoised state
seen by the observations is replaced by a constant :math:`\Gamma_t`.

Everything follows from one forward evaluation of denoiser and operator each: :math:`H^\top v`,
:math:`H u` and :math:`J^\top w` by reverse mode on graphs that are kept
(:class:`model.guidance.solvers.Tangent`), or kept for as many states as memory allows
(:mod:`model.guidance.chunks`).

`azula.guidance.MMPSDenoiser` is the same method as MMPS without padded rows, stopping, report
and linearisation kept between iterations, and evaluates the primal again in every iteration.

References:
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
    | https://arxiv.org/abs/2405.13712
    | Score-based Data Assimilation (Rozet and Louppe, 2023)
    | https://arxiv.org/abs/2306.10574
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from model.execution import Chunks
from model.guidance.base import BlanketRows, Denoise, Fit, FitReport, Observed, ObservedBlankets
from model.guidance.chunks import ChunkedTangent, SplitEquivalents
from model.guidance.solvers import (
    SOLVERS,
    LinearMap,
    LinearSolution,
    RecycledGuess,
    StopRule,
    Tangent,
)
from model.nn.frozen import transposed_product

__all__ = ["Linearisation", "MMPS", "MMPSSettings", "Precondition", "SDA", "SDASettings"]


class Linearisation:
    """Linearise x_hat = denoise(x_t) and y_hat = observe(x_hat) around a noisy state.

    Arguments:
        denoise: The denoiser of blankets.
        observe: From (B, K, c, h, w) to (B, N); row i must depend on row i alone.
        x_t: Noisy blankets, with shape (B, K, c, h, w).
        sigma: The noise level, with shape ().
        date: With shape (B, K, 4).
        split: The same as `observe` in pieces; None to take it as it is.
        chunks: How many states are decoded at once; None to take `observe` as it is.

    Attributes:
        x_hat: With shape (B, K, c, h, w), without gradient.
        y_hat: With shape (B, N), without gradient.
    """

    def __init__(
        self,
        denoise: Denoise,
        observe: Callable[[Tensor], Tensor],
        x_t: Tensor,
        sigma: Tensor,
        date: Tensor,
        split: Callable[[int, int], SplitEquivalents] | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        def evaluate() -> None:
            with torch.enable_grad():
                self._x_t = x_t.detach().requires_grad_()
                self._x_hat = denoise(self._x_t, sigma, date)

        self._observed: Tangent | ChunkedTangent
        if split is None or chunks is None:
            evaluate()
            self._observed = Tangent(observe, self._x_hat)
        else:
            chunks.fit(evaluate, lambda: _one_piece(split, self._x_hat.detach()))
            parts = split(chunks.states or 1, x_t.shape[1])
            chunks.record(sum(piece.decoded for piece in parts.pieces))
            self._observed = ChunkedTangent(parts, self._x_hat, chunks.kept)
        self.x_hat, self.y_hat = self._observed.x, self._observed.y

    @classmethod
    def of(
        cls,
        denoise: Denoise,
        seen: Observed,
        unit: Tensor,
        x_t: Tensor,
        sigma: Tensor,
        date: Tensor,
        chunks: Chunks | None,
    ) -> "Linearisation":
        """Linearise the model equivalents of observations, divided by `unit` (B, N)."""
        split = seen.split

        def scaled(limit: int, size: int) -> SplitEquivalents:
            parts = cast(Callable[[int, int], SplitEquivalents], split)(limit, size)
            return replace(parts, join=lambda values: parts.join(values) / unit)

        return cls(
            denoise,
            lambda x: seen.predict(x) / unit,
            x_t,
            sigma,
            date,
            None if split is None else scaled,
            chunks,
        )

    def observe_vjp(self, v: Tensor) -> Tensor:
        """Return H^T v, from (B, N) to (B, K, c, h, w)."""
        return self._observed.vjp(v)

    def observe_jvp(self, u: Tensor) -> Tensor:
        """Return H u, from (B, K, c, h, w) to (B, N)."""
        return self._observed.jvp(u)

    def denoise_vjp(self, w: Tensor) -> Tensor:
        """Return J^T w, from and to (B, K, c, h, w)."""
        return transposed_product(self._x_hat, self._x_t, w)


def _one_piece(split: Callable[[int, int], SplitEquivalents], x: Tensor) -> tuple[object, int]:
    """Linearise the piece with the largest `share`; return it and its number of states."""
    pieces = [piece for piece in split(1, x.shape[1]).pieces if piece.decoded]
    if not pieces:
        return None, 1
    piece = max(pieces, key=lambda piece: piece.share)
    part = piece.take(x)
    tangent = Tangent(piece.read, part)
    tangent.jvp(torch.zeros_like(part))
    return tangent, piece.decoded


@dataclass(frozen=True)
class MMPSSettings:
    """Settings of the solver of the observation-space system.

    Attributes:
        solver: `gmres` (the Jacobian of a network is not quite symmetric) or `cg`.
        iterations: The largest number of solver iterations.
        tweedie: Take the covariance of the denoised state from Tweedie's formula; otherwise
            sigma^2 / (1 + sigma^2) times the identity, which needs no adjoint of the denoiser
            inside the solve but does not depend on the flow.
        whiten: Solve in units of the observation error. The released system does not.
        fit: Stop a row when the root mean square of its post-fit innovation, in units of the
            observation error, is not above this; None always runs all iterations.
        tolerance: Stop a row when its residual is below this fraction of the right-hand side.
        recycle: Start each solve from the best multiple of the row's solution at the noise level
            before, for one more product. The system changes little from level to level, so the
            iterations of all levels work on one solution. GMRES chooses the multiple anew with
            every iteration, for the smallest residual of both together. Not in the paper or the
            release.
    """

    solver: str = "gmres"
    iterations: int = 4
    tweedie: bool = True
    whiten: bool = True
    fit: float | None = None
    tolerance: float | None = None
    recycle: bool = True
    method: Literal["mmps"] = "mmps"


Precondition = Callable[[Observed, Tensor], LinearMap]
"""(observations of a batch, sigma ()) -> a map of (B, N), in the units the system is solved in."""


class _Gain:
    """The system R + H Sigma H^T at one point; it keeps the adjoints that it computes."""

    def __init__(
        self, point: Linearisation, variance: Tensor, sigma: Tensor, *, tweedie: bool
    ) -> None:
        self.point = point
        self.variance = variance
        self.sigma = sigma
        self.tweedie = tweedie
        self.adjoints: list[Tensor] = []

    def __call__(self, v: Tensor) -> Tensor:
        adjoint = self.point.observe_vjp(v)
        if self.tweedie:
            image = self.sigma**2 * self.point.denoise_vjp(adjoint)
            self.adjoints.append(image)
        else:
            image = self.sigma**2 / (1 + self.sigma**2) * adjoint
            self.adjoints.append(adjoint)
        return self.variance * v + self.point.observe_jvp(image)

    def increment(self, solution: LinearSolution) -> Tensor:
        """Return sigma^2 J^T H^T v: v combines vectors whose adjoints are known."""
        weights = solution.coefficients.to(self.adjoints[0])
        parts = (weights[:, j, None, None, None, None] * a for j, a in enumerate(self.adjoints))
        total = cast(Tensor, sum(parts))
        return total if self.tweedie else self.sigma**2 * self.point.denoise_vjp(total)


class MMPS:
    """MMPS guidance.

    Arguments:
        observations: The observations of the trajectory.
        settings: How to solve.
        report: Collects the fit to the observations at each noise level.
        precondition: Gives an approximation of the inverse of the system at a noise level.
        chunks: How many states are decoded and differentiated at once; None for all.
    """

    def __init__(
        self,
        observations: ObservedBlankets,
        settings: MMPSSettings | None = None,
        report: FitReport | None = None,
        precondition: Precondition | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        self.observations = observations
        self.settings = settings or MMPSSettings()
        self.report = report
        self.precondition = precondition
        self.chunks = chunks
        self._previous: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        seen = self.observations.select(rows, x_t)
        if seen is None:
            return denoise(x_t, sigma, date)
        unit = seen.error_std if self.settings.whiten else torch.ones_like(seen.error_std)
        point = Linearisation.of(denoise, seen, unit, x_t, sigma, date, self.chunks)
        gain = _Gain(
            point, (seen.error_std / unit) ** 2, sigma.to(x_t), tweedie=self.settings.tweedie
        )
        innovation = seen.values / unit - point.y_hat
        solution = self._solve(gain, innovation, seen, sigma, rows)
        if self.report is not None:
            before = innovation * unit / seen.error_std
            after = _post_fit(solution, gain.variance) * unit / seen.error_std
            steps = solution.coefficients.shape[1]
            self.report.add(float(sigma), Fit.of(seen, before, after, steps))
        return point.x_hat + gain.increment(solution)

    def _solve(
        self, gain: _Gain, innovation: Tensor, seen: Observed, sigma: Tensor, rows: BlanketRows
    ) -> LinearSolution:
        guess = self._recycled(rows, innovation)
        start = None if guess is None else RecycledGuess(gain, guess, innovation)
        b = innovation if start is None else start.solution.residual.to(innovation)
        # Conjugate gradients need the symmetric system: the multiple they start from stays.
        deflate = start is not None and self.settings.solver != "cg"
        solution = SOLVERS[self.settings.solver](
            cast(RecycledGuess, start).deflated if deflate else gain,
            b,
            iterations=self.settings.iterations,
            stop=self._stop(seen, b, gain.variance, start),
            precondition=None if self.precondition is None else self.precondition(seen, sigma),
        )
        if start is not None:
            solution = start.combined(solution)
        if self.settings.recycle:
            for i, key in enumerate(_keys(rows)):
                self._previous[key] = solution.x[i]
        return solution

    def _recycled(self, rows: BlanketRows, like: Tensor) -> Tensor | None:
        """Return the solutions of these rows at the noise level before, None if there are none."""
        keys = _keys(rows)
        if any(key not in self._previous for key in keys):
            return None
        known = [self._previous[key] for key in keys]
        width = like.shape[1]
        padded = [torch.nn.functional.pad(v, (0, max(0, width - len(v))))[:width] for v in known]
        return torch.stack(padded)

    def _stop(
        self, seen: Observed, b: Tensor, variance: Tensor, start: RecycledGuess | None
    ) -> StopRule | None:
        settings = self.settings
        if settings.fit is None and settings.tolerance is None:
            return None
        counts = seen.present.sum(dim=1).clamp(min=1)
        size = torch.linalg.vector_norm(b.double(), dim=1)

        def stop(solution: LinearSolution) -> Tensor:
            solution = solution if start is None else start.combined(solution)
            done: Tensor = size == 0
            if settings.fit is not None:
                left = _post_fit(solution, variance) / variance.sqrt()
                done = done | (left.square().sum(dim=1) <= counts * settings.fit**2)
            if settings.tolerance is not None:
                residual = torch.linalg.vector_norm(solution.residual, dim=1)
                done = done | (residual <= settings.tolerance * size)
            return done

        return stop


def _post_fit(solution: LinearSolution, variance: Tensor) -> Tensor:
    """Return y - H(x_hat + increment) to first order: R v + residual."""
    return variance * solution.x + solution.residual


def _keys(rows: BlanketRows) -> list[tuple[int, int]]:
    return list(zip(rows.blanket.tolist(), rows.member.tolist(), strict=True))


@dataclass(frozen=True)
class SDASettings:
    """How SDA widens the observation error variance R.

    Attributes:
        gamma: The assumed variance of the denoised state in observation space.
        relative: If true the widened variance is R (1 + gamma s), s = sigma^2 / (1 + sigma^2):
            `gamma` is the ratio of prior to observation error variance, whatever the units.
            Otherwise it is R + gamma s in squared units of the observation, as released, which
            makes sense for standardised observations only.
    """

    gamma: float = 100.0
    relative: bool = True
    method: Literal["sda"] = "sda"

    def widened(self, variance: Tensor, sigma: Tensor) -> Tensor:
        """Return the variance (B, N) that divides the innovation."""
        level = sigma**2 / (1 + sigma**2)
        if self.relative:
            return variance * (1 + self.gamma * level)
        return variance + self.gamma * level


class SDA:
    """SDA guidance.

    Arguments:
        observations: The observations of the trajectory.
        settings: The constant.
        report: Collects the fit to the observations at each noise level.
        chunks: How many states are decoded and differentiated at once; None for all.
    """

    def __init__(
        self,
        observations: ObservedBlankets,
        settings: SDASettings | None = None,
        report: FitReport | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        self.observations = observations
        self.settings = settings or SDASettings()
        self.report = report
        self.chunks = chunks

    @torch.no_grad()
    def __call__(
        self, denoise: Denoise, x_t: Tensor, sigma: Tensor, date: Tensor, rows: BlanketRows
    ) -> Tensor:
        seen = self.observations.select(rows, x_t)
        if seen is None:
            return denoise(x_t, sigma, date)
        one = torch.ones_like(seen.error_std)
        point = Linearisation.of(denoise, seen, one, x_t, sigma, date, self.chunks)
        innovation = seen.values - point.y_hat
        level = sigma.to(x_t)
        weighted = innovation / self.settings.widened(seen.error_std**2, level)
        if self.report is not None:
            before = innovation / seen.error_std
            self.report.add(float(sigma), Fit.of(seen, before, before, 0))
        return point.x_hat + level**2 * point.denoise_vjp(point.observe_vjp(weighted))
