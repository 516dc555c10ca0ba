"""Baselines against dense closed forms on tiny sizes."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch

from lab.osse.baselines import (
    fit_climatology,
    optimal_interpolation,
    prior_anomalies,
    windowed_analysis,
)
from model.diagnostics.ensembles import gaspari_cohn
from model.domain.grids import Grid, unit_vectors
from model.domain.variables import Channel
from model.gaussian_prior import ZonalGaussianPrior, fit_zonal_gaussian
from model.operators.base import Statics
from model.operators.composite import reconstruction_residual, representativeness_std
from model.operators.observation_set import build_observation_set
from tests.model.operators import worlds

GRID = Grid("tiny", "gaussian", 4, 8)
CHANNELS = (Channel("mean_sea_level_pressure"), Channel("2m_temperature"))


def observations(count, hours, seed=0, error=2.0, statics=None):
    rng = np.random.default_rng(seed)
    times = [worlds.FIRST + timedelta(hours=i) for i in range(hours)]
    table = worlds.table(
        {
            "variable": [CHANNELS[i % 2].variable for i in range(count)],
            "lat": rng.uniform(-80, 80, count),
            "lon": rng.uniform(-180, 180, count),
            "hours": rng.uniform(0, hours - 1, count),
            "obs_value": rng.normal(size=count),
            "obs_error": np.full(count, error),
        }
    )
    found, _ = build_observation_set(table, GRID, CHANNELS, times, statics)
    return found, table["lat"].to_numpy(), table["lon"].to_numpy()


@pytest.fixture(scope="module")
def prior():
    """Fitted to random blankets that are correlated in channel, latitude, longitude and time."""
    torch.manual_seed(1)
    blankets = torch.randn(64, 3, 2, 4, 8)
    blankets = blankets + blankets.roll(1, -1) + blankets.roll(1, -2)
    blankets = blankets + 0.7 * blankets.roll(1, 1) + 0.5 * blankets.roll(1, 2)
    hours = [datetime(2001, 1, 1, tzinfo=UTC) + timedelta(hours=131 * i) for i in range(64)]
    dates = torch.tensor([[[t.year, t.month, t.day, t.hour + 0] for _ in range(3)] for t in hours])
    fitted = ZonalGaussianPrior(3, (2, 4, 8), modes=4, dense=6)
    return fit_zonal_gaussian(fitted, lambda: iter([(blankets, dates)]))


def test_windowed_analysis_is_the_dense_kalman_analysis(prior):
    seen, _, _ = observations(30, 3)
    date = torch.tensor([[2001, 3, 1, h] for h in (22, 23, 0)])
    size = 3 * 2 * 4 * 8
    covariance = prior.covariance_times(torch.eye(size).view(size, 3, 2, 4, 8))
    covariance = covariance.reshape(size, size).double()
    mean = prior.climatology(date[None]).double()
    zero = seen.operator(torch.zeros(1, 3, 2, 4, 8, dtype=torch.float64))
    h = (seen.operator(torch.eye(size).double().view(size, 3, 2, 4, 8)) - zero).T
    r = torch.diag(seen.error_std.double().square())
    gain = covariance @ h.T @ torch.linalg.inv(h @ covariance @ h.T + r)
    expected = mean.flatten() + gain @ (seen.values.double() - seen.operator(mean)[0])
    found = windowed_analysis(prior, lambda x: x, seen, date, iterations=200, tolerance=1e-6)
    torch.testing.assert_close(found.latents.flatten().double(), expected, rtol=1e-3, atol=1e-3)
    # Members scatter around the mean with the Kalman analysis covariance.
    members = windowed_analysis(
        prior,
        lambda x: x,
        seen,
        date,
        members=800,
        generator=torch.Generator().manual_seed(2),
        iterations=60,
        tolerance=1e-4,
    ).latents.flatten(1)
    posterior = covariance - gain @ h @ covariance
    variance = members.double().var(dim=0)
    torch.testing.assert_close(variance, posterior.diagonal(), rtol=0.25, atol=0)
    assert variance.mean().item() == pytest.approx(posterior.diagonal().mean().item(), rel=0.03)


def test_windowed_analysis_without_observations_is_the_prior(prior):
    seen, _, _ = observations(5, 3)
    date = torch.tensor([[2001, 3, 1, h] for h in (22, 23, 0)])
    found = windowed_analysis(prior, lambda x: x, seen.select(np.zeros(5, bool)), date)
    torch.testing.assert_close(found.latents, prior.climatology(date[None]))


def test_optimal_interpolation_is_the_dense_formula():
    rng = np.random.default_rng(4)
    anomalies = torch.from_numpy(rng.normal(size=(20, 2, *GRID.shape))).float()
    background = torch.from_numpy(rng.normal(size=(2, *GRID.shape))).float()
    seen, lat, lon = observations(25, 1, error=1.0)
    half_width = 4.0e6
    found = optimal_interpolation(background, anomalies, seen, lat, lon, GRID, half_width)

    flat = anomalies.double().flatten(1)
    states = torch.eye(flat.shape[1]).double().view(-1, 1, 2, *GRID.shape)
    h = (seen.operator(states) - seen.operator(torch.zeros_like(states[:1]))).T
    rows, columns = np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
    cells = torch.from_numpy(unit_vectors(rows.ravel(), columns.ravel())).float().double()
    places = torch.from_numpy(unit_vectors(lat, lon)).float().double()

    def rho(a, b):
        distance = (a[:, None] - b).norm(dim=-1) * 6_371_229.0 / half_width
        return torch.from_numpy(gaspari_cohn(distance.numpy()))

    joint = flat.T @ flat / 19
    between = (joint @ h.T) * rho(cells.repeat(2, 1), places)
    inside = (h @ joint @ h.T) * rho(places, places) + torch.eye(25)
    expected = background.double().flatten() + between @ torch.linalg.solve(
        inside, seen.values.double() - seen.operator(background[None].double())
    )
    torch.testing.assert_close(found.flatten().double(), expected, rtol=1e-4, atol=1e-4)


def test_gaspari_cohn():
    # Values of equation 4.10: 1 at 0, 5/24 at half the support, 0 beyond.
    found = torch.from_numpy(gaspari_cohn(np.array([0.0, 1.0, 2.0, 3.0])))
    torch.testing.assert_close(
        found, torch.tensor([1.0, 5 / 24, 0.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=1e-5
    )


def test_climatology_follows_the_season():
    days = np.arange(0, 1461, 7)
    times = np.datetime64("2000-01-01T00", "h") + days * np.timedelta64(24, "h")
    phase = torch.from_numpy(2 * np.pi * days / 365.2425)
    states = (3.0 + 2.0 * torch.cos(phase) - torch.sin(2 * phase))[:, None, None, None]
    halves = [(states[:100], times[:100]), (states[100:], times[100:])]
    found = fit_climatology(halves).at(times[:10])
    torch.testing.assert_close(found.double(), states[:10], atol=1e-5, rtol=1e-5)


def test_representativeness_is_the_residual_at_the_observation():
    seen, _, _ = observations(8, 2)
    residual = torch.zeros(2, GRID.nlat)
    residual[0], residual[1] = 3.0, 4.0
    std = representativeness_std(seen.operator, torch.tensor([1e5, 280.0]), residual)
    assert std.tolist() == pytest.approx([3.0, 4.0] * 4)
    assert seen.with_representativeness(std).error_std.tolist() == pytest.approx(
        [np.hypot(2, 3), np.hypot(2, 4)] * 4
    )
    statics = Statics(residual=residual.double().numpy(), typical=np.array([1e5, 280.0]))
    within, _, _ = observations(8, 2, statics=statics)
    assert within.error_std.tolist() == pytest.approx([np.hypot(2, 3), np.hypot(2, 4)] * 4)
    states = torch.zeros(5, 2, *GRID.shape)
    states[:, 1, 0] = float("nan")
    found = reconstruction_residual(states, torch.full_like(states, 2.0))
    assert found.shape == (2, GRID.nlat)
    assert found[0].unique().tolist() == [2.0]
    assert found[1, 0].item() == 0.0


def test_anomalies_from_the_prior_have_its_variance(prior):
    date = torch.tensor([[2001, 3, 1, h] for h in (21, 22, 23)])
    draw = torch.Generator().manual_seed(5)
    found = prior_anomalies(prior, lambda z: 2.0 * z, date, 1501, draw)
    assert found.shape == (1501, *prior.latent_shape)
    size = 3 * 2 * 4 * 8
    covariance = prior.covariance_times(torch.eye(size).view(size, 3, 2, 4, 8))
    variance = covariance.reshape(size, size).diagonal().view(3, -1)[[0, 2]].mean()
    assert found.var().item() == pytest.approx(4 * variance.item(), rel=0.05)
