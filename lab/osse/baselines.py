r"""Compute and score what an assimilation must beat: climatology, persistence, optimal interpolation.

Climatology is the mean of each place and channel, following the season. Optimal interpolation of
the observations of one hour has a localised climatological covariance,

.. math:: x_a = x_b + (\rho \circ B) H^\top \left(H (\rho \circ B) H^\top + R\right)^{-1}
          (y - H(x_b))

with x_b the climatology, B the sample covariance of M climatological anomalies and :math:`\rho`
the correlation function of Gaspari and Cohn (QJRMS 125, 1999, equation 4.10). The system of all
observations is solved by Cholesky factorisation, so this is for a few ten thousand at most.

Windowed optimal interpolation is the exact analysis of a window under a Gaussian prior. With a
prior :math:`\mathcal{N}(\mu, \Sigma)` over blankets of latents and the observations of all their
times, in units of the observation error (:math:`f = R^{-1/2} H \circ \mathrm{decode}`,
:math:`J = f'(x)`), the analysis :math:`x_a = \mu + \delta` solves

.. math:: (\Sigma^{-1} + J^\top J) \, \delta = J^\top \left(R^{-1/2} y - f(x) + J (x - \mu)\right)

by preconditioned conjugate gradients (`model.guidance.solvers`); a nonlinear decoder or operator
takes a few outer (Gauss-Newton) iterations around the last analysis. Members of the posterior
come from the same system with a prior sample for :math:`\mu` and perturbed observations, which is
exact for linear f (J. M. Bardsley et al., "Randomize-then-optimize", SIAM J. Sci. Comput. 36,
2014).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.osse.cases import ObservedCase
from lab.osse.scores import Method, StartScorer
from model.diagnostics.ensembles import gaspari_cohn
from model.diagnostics.equivalents import observation_set
from model.domain.errors import ConfigurationError
from model.domain.grids import Grid, unit_vectors
from model.domain.physics import EARTH_RADIUS
from model.gaussian_prior import ZonalGaussianPrior
from model.guidance.prior_covariance import GaussianPrior
from model.guidance.solvers import Tangent, variational_increment
from model.latent_model import LatentModel, climatological_states
from model.nn.embedding import date_rows
from model.operators.observation_set import ObservationSet

__all__ = [
    "Climatology",
    "SampledPrior",
    "WindowedAnalysis",
    "fit_climatology",
    "one_hour_analysis",
    "optimal_interpolation",
    "prior_anomalies",
    "score_interpolation",
    "score_persistence",
    "score_windowed",
    "season_features",
    "windowed_analysis",
]

YEAR = 365.2425
"""Days."""


def season_features(times: NDArray[np.datetime64]) -> Tensor:
    """Return 1 and two harmonics of the year at times (n,), with shape (n, 5), float64."""
    days = (times - np.datetime64("2000-01-01")) / np.timedelta64(1, "D")
    phase = torch.from_numpy(2.0 * np.pi * np.asarray(days, dtype=np.float64) / YEAR)
    columns = [torch.ones_like(phase)]
    for k in (1, 2):
        columns += [torch.cos(k * phase), torch.sin(k * phase)]
    return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class Climatology:
    """Mean state as a function of the season.

    Attributes:
        coefficients: Of `season_features`, with shape (5, C, Y, X), physical units.
    """

    coefficients: Tensor

    def at(self, times: NDArray[np.datetime64]) -> Tensor:
        """Return the mean states (n, C, Y, X) at times (n,)."""
        features = season_features(times).to(self.coefficients)
        states: Tensor = torch.tensordot(features, self.coefficients, dims=1)
        return states


def fit_climatology(sample: Iterable[tuple[Tensor, NDArray[np.datetime64]]]) -> Climatology:
    """Fit a climatology by least squares to batches of states (n, C, Y, X) and their times (n,).

    Cells that are NaN in any state stay NaN.
    """
    gram, moment = torch.zeros(5, 5, dtype=torch.float64), None
    for states, times in sample:
        features = season_features(times)
        gram += features.T @ features
        part = torch.tensordot(features.T, states.double(), dims=1)
        moment = part if moment is None else moment + part
    if moment is None:
        raise ValueError("Expected at least one batch of states for a climatology; got none.")
    # A sample that does not span the year leaves harmonics undetermined; the least norm is taken.
    inverse = torch.linalg.pinv(gram, hermitian=True, rtol=1e-6)
    return Climatology(torch.tensordot(inverse, moment, dims=1).float())


Map = Callable[[Tensor], Tensor]


class SampledPrior(GaussianPrior, Protocol):
    """A Gaussian over blankets (B, K, c, h, w) that can be drawn from; see `model.gaussian_prior`."""

    def sample(self, date: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw blankets at dates (B, K, 4)."""


@dataclass(frozen=True)
class WindowedAnalysis:
    """An analysis of a window.

    Attributes:
        latents: Posterior mean, or members, with shape (B, K, c, h, w).
        iterations: Conjugate gradient iterations in all.
        fit: Root mean square of observation minus analysis in units of the observation error.
    """

    latents: Tensor
    iterations: int
    fit: float


@torch.no_grad()
def windowed_analysis(
    prior: SampledPrior,
    decode: Map,
    observations: ObservationSet,
    date: Tensor,
    *,
    members: int = 0,
    generator: torch.Generator | None = None,
    outer: int = 1,
    iterations: int = 60,
    tolerance: float = 1e-2,
) -> WindowedAnalysis:
    """Return the posterior mean or members of a window.

    Arguments:
        prior: Over blankets of K states.
        decode: From latents (n, c, h, w) to physical states (n, C, Y, X), differentiable.
        observations: On trajectories of K states; their errors should include representativeness
            errors, see :meth:`ObservationSet.with_representativeness`.
        date: Year, month, day, hour of the states, with shape (K, 4).
        members: How many members to draw; 0 gives the posterior mean.
        generator: Source of the draws.
        outer: Gauss-Newton iterations; 1 suffices when decoder and operators are linear.
        iterations: Of each conjugate gradient solve, at most.
        tolerance: Of each solve, relative.
    """
    dates = date.expand(max(members, 1), *date.shape)
    mean = prior.sample(dates, generator) if members else prior.climatology(dates)
    if not len(observations):
        return WindowedAnalysis(mean, 0, 0.0)
    unit = observations.error_std
    target = (observations.values / unit).expand(len(dates), -1)
    if members:
        target = target + torch.randn(target.shape, generator=generator).to(target)

    def observe(x: Tensor) -> Tensor:
        states = decode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return observations.operator(states) / unit

    x, total = mean, 0
    for _ in range(outer):
        point = Tangent(observe, x)
        right = target - point.y + point.jvp(x - mean)
        increment, steps = variational_increment(
            prior.filter, point.jvp, point.vjp, right, iterations=iterations, tolerance=tolerance
        )
        x, total = mean + increment, total + steps
    left = observations.values / unit - observe(x)
    return WindowedAnalysis(x, total, float(left.square().mean().sqrt()))


Float = NDArray[np.float64]


ROWS = 1024
"""Rows of the localisation that are computed at a time."""


def _localisation(a: Tensor, b: Tensor, half_width: float) -> Tensor:
    """Return weights (n, m) between points (n, 3) and (m, 3); half the support in m."""
    chord = (2.0 - 2.0 * (a @ b.T)).clamp(min=0.0).sqrt()
    return torch.from_numpy(gaspari_cohn(chord.mul_(EARTH_RADIUS / half_width).numpy()))


@torch.no_grad()
def optimal_interpolation(
    background: Tensor,
    anomalies: Tensor,
    observations: ObservationSet,
    lat: Float,
    lon: Float,
    grid: Grid,
    half_width: float = 3.0e6,
) -> Tensor:
    """Return the analysis of one state.

    Arguments:
        background: With shape (C, Y, X), physical.
        anomalies: M departures from climatology, with shape (M, C, Y, X), without NaN.
        observations: Observations on a trajectory of one state.
        lat: Degrees north of the observations, with shape (N,).
        lon: Degrees east of the observations, with shape (N,).
        grid: The grid.
        half_width: Half the support of the localisation in m.

    Returns:
        With shape (C, Y, X).
    """
    count = len(anomalies)
    error = observations.error_std
    equivalent = observations.operator(background[None])
    perturbed = torch.stack([observations.operator((background + a)[None]) for a in anomalies])
    spread = (perturbed - equivalent) / (error * (count - 1) ** 0.5)
    places = torch.from_numpy(unit_vectors(lat, lon)).float()
    system = spread.T @ spread
    for rows in torch.arange(len(places)).split(ROWS):
        system[rows[0] : rows[-1] + 1] *= _localisation(places[rows], places, half_width)
    system.diagonal().add_(1.0)
    innovation = (observations.values - equivalent) / error
    factor = torch.linalg.cholesky(system)
    weights = torch.cholesky_solve(innovation[:, None], factor)[:, 0]
    latitude, longitude = np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    cells = torch.from_numpy(unit_vectors(latitude.ravel(), longitude.ravel())).float()
    weighted = (spread * weights).T / (count - 1) ** 0.5
    share = torch.cat([_localisation(c, places, half_width) @ weighted for c in cells.split(ROWS)])
    share = share.T.reshape(count, 1, *grid.shape)
    return background + (anomalies * share).sum(dim=0)


@torch.no_grad()
def prior_anomalies(
    prior: SampledPrior,
    decode: Callable[[Tensor], Tensor],
    date: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw climatological anomalies from a prior, in place of a sample of climatological states.

    Arguments:
        prior: Over blankets of K states.
        decode: From latents (n, c, h, w) to physical states (n, C, Y, X).
        date: Year, month, day, hour of K states, with shape (K, 4); the first and the last of
            each blanket are taken.
        count: M, how many.
        generator: Source of the draws.

    Returns:
        With shape (M, C, Y, X).
    """
    ends = [0, -1] if len(date) > 1 else [0]
    mean = decode(prior.climatology(date[None])[0, ends])
    parts = []
    for rows in torch.arange(-(-count // len(ends))).split(16):
        drawn = prior.sample(date.expand(len(rows), *date.shape), generator)
        parts += [decode(drawn[:, end]) - mean[i] for i, end in enumerate(ends)]
    return torch.cat(parts)[:count]


def one_hour_analysis(
    model: LatentModel,
    table: pa.Table,
    end: datetime,
    background: Tensor,
    dates: Tensor,
    members: int = 400,
) -> Tensor:
    """Return the state (C, Y, X) at `end` from observations within half an hour of it.

    Arguments:
        model: A checkpoint with a closed-form prior, which gives the climatological covariance.
        table: Observations.
        end: Analysis time, UTC.
        background: Climatology at that time, with shape (C, Y, X).
        dates: Year, month, day, hour of the K states up to `end`, with shape (K, 4).
        members: Climatological states behind the covariance.
    """
    prior = model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior):
        raise ConfigurationError(
            "Expected a checkpoint with a closed-form prior for optimal interpolation; this one "
            "has none."
        )
    middle = np.datetime64(end.astimezone(UTC).replace(tzinfo=None))
    near = np.abs(table["time"].to_numpy() - middle) <= np.timedelta64(timedelta(minutes=30))
    rows = table.filter(pa.array(near))
    seen, _ = observation_set(rows, model, [end])
    lat, lon = (rows[name].to_numpy()[seen.rows] for name in ("lat", "lon"))
    draw = torch.Generator().manual_seed(0)
    anomalies = prior_anomalies(prior, lambda z: model.decode(z, mask=False), dates, members, draw)
    return optimal_interpolation(background, anomalies, seen, lat, lon, model.grid)


def score_persistence(scorer: StartScorer, case: ObservedCase) -> None:
    """Score climatology, and persistence of the truth over 6 hours and, if possible, over 24."""
    scorer.score(Method.CLIMATOLOGY, climatological_states(case.model, [case.end])[0], case.last)
    last = case.window - 1
    if last >= 6:
        scorer.score(Method.PERSISTENCE_6, case.truth[last - 6], case.last)
    if last >= 24:
        scorer.score(Method.PERSISTENCE_24, case.truth[last - 24], case.last)
    elif len(case.truth) > last + 24:
        # The window is too short to look back a day: the following day is used instead.
        scorer.score(Method.PERSISTENCE_24, case.last, case.truth[last + 24])


def score_interpolation(scorer: StartScorer, case: ObservedCase, members: int) -> None:
    """Score optimal interpolation of the last hour; do nothing where there is no closed-form prior.

    Arguments:
        scorer: Collects the scores.
        case: The window.
        members: Climatological states behind the covariance.
    """
    model, end = case.model, case.end
    if not isinstance(model.denoise.base, ZonalGaussianPrior):
        return
    dates = date_rows([end - timedelta(hours=i) for i in reversed(range(model.blanket_size))])
    background = climatological_states(model, [end])[0]
    state = scorer.timed(
        Method.OPTIMAL_INTERPOLATION,
        lambda: one_hour_analysis(model, case.known(), end, background, dates, members),
    )
    scorer.score(Method.OPTIMAL_INTERPOLATION, state, case.last)


@torch.no_grad()
def score_windowed(scorer: StartScorer, case: ObservedCase) -> None:
    """Score windowed optimal interpolation; do nothing without a closed-form prior."""
    model, prior = case.model, case.model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior) or prior.blanket_size > case.window:
        return
    k, times = prior.blanket_size, case.times()
    seen = case.observations().for_blanket(case.window - k, case.window)
    result = scorer.timed(
        Method.WINDOWED,
        lambda: (
            windowed_analysis(
                prior,
                lambda z: model.decode(z, mask=False),
                seen,
                date_rows(times[-k:]),
                iterations=60,
                tolerance=0.01,
            ).latents
        ),
    )
    scorer.score(Method.WINDOWED, model.decode(result[0, -1], mask=False), case.last)
    inside = case.middle - (case.window - k)
    if inside >= 0:
        state = model.decode(result[0, inside], mask=False)
        scorer.score(Method.WINDOWED_MIDDLE, state, case.truth[case.middle])
