"""The local ensemble filter against the Kalman filter with the sample covariance."""

import numpy as np
import pytest
import torch

from lab.osse.letkf import LETKF, LocalObservations, local_weights
from model.diagnostics.ensembles import gaspari_cohn
from model.domain.grids import Grid
from model.domain.physics import EARTH_RADIUS

GRID = Grid("small", "regular", 8, 16)
MEMBERS = 6


def kalman(states, equivalents, values, error):
    """Mean and covariance (D, D) of the Kalman filter; states (M, D), equivalents (M, N)."""
    x, y = states - states.mean(0), equivalents - equivalents.mean(0)
    count = len(states) - 1
    cross, own = x.T @ y / count, y.T @ y / count
    gain = cross @ torch.linalg.inv(own + torch.diag(error**2))
    mean = states.mean(0) + gain @ (values - equivalents.mean(0))
    return mean, x.T @ x / count - gain @ cross.T


def test_weights_are_the_kalman_filter_of_the_sample_covariance():
    random = torch.Generator().manual_seed(1)
    states = torch.randn(MEMBERS, 9, generator=random, dtype=torch.float64)
    operator = torch.randn(9, 4, generator=random, dtype=torch.float64)
    values = torch.randn(4, generator=random, dtype=torch.float64)
    error = torch.tensor([0.5, 1.0, 2.0, 0.3], dtype=torch.float64)
    equivalents = states @ operator
    y = (equivalents - equivalents.mean(0)) / error
    innovation = (values - equivalents.mean(0)) / error
    weights = local_weights(y, innovation, torch.ones(1, 4, dtype=torch.float64))[0]
    analysed = states.mean(0) + weights.T @ (states - states.mean(0))
    mean, covariance = kalman(states, equivalents, values, error)
    torch.testing.assert_close(analysed.mean(0), mean)
    torch.testing.assert_close(torch.cov(analysed.T), covariance)


def one_observation(states, *, row, column, level=1000e2):
    """A value of variable 0 at a grid point, 2 units off, with an error of 0.5."""
    equivalents = states[:, 0, row, column][:, None]
    return LocalObservations(
        equivalents / 0.5,
        (equivalents.mean(0) + 2.0) / 0.5,
        np.asarray(GRID.latitude)[[row]],
        np.asarray(GRID.longitude)[[column]],
        np.array([level]),
    )


def analyse(states, seen, **options):
    chosen = {"half_width": 3.0e6, "relaxation": 0.0, "stride": 1} | options
    level = torch.zeros(states.shape[1], dtype=torch.int64)
    return LETKF(GRID, np.array([1000e2]), **chosen).analyse(states, level, seen)


@pytest.fixture
def states():
    return torch.randn(MEMBERS, 2, *GRID.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("column", [5, 6, 15])
def test_an_observation_counts_less_with_distance(states, column):
    """As one whose error variance is divided by the correlation at its distance."""
    row, seen = 4, one_observation(states, row=4, column=5)
    after = analyse(states, seen)
    angle = np.deg2rad(GRID.longitude[column] - GRID.longitude[5])
    cosine = np.cos(np.deg2rad(GRID.latitude[row])) ** 2 * (np.cos(angle) - 1) + 1
    chord = EARTH_RADIUS * np.sqrt(2 - 2 * cosine)
    share = float(gaspari_cohn(np.asarray(chord / 3.0e6)))
    here = states[:, 1, row, column]
    if share == 0:
        torch.testing.assert_close(after[:, :, row, column], states[:, :, row, column])
        return
    seen_by = states[:, 0, row, 5]
    cross = float(torch.cov(torch.stack([here, seen_by]))[0, 1])
    gain = cross / (float(seen_by.var()) + 0.25 / share)
    assert float(after[:, 1, row, column].mean()) == pytest.approx(
        float(here.mean()) + 2.0 * gain, abs=1e-5
    )


def test_an_observation_out_of_reach_in_height_changes_nothing(states):
    seen = one_observation(states, row=4, column=5, level=100e2)
    torch.testing.assert_close(analyse(states, seen, half_depth=1.0), states)
    assert not torch.allclose(analyse(states, seen, half_depth=2.0), states)


def test_relaxation_gives_the_spread_of_the_background_back(states):
    seen = one_observation(states, row=4, column=5)
    bare, relaxed = analyse(states, seen), analyse(states, seen, relaxation=1.0)
    torch.testing.assert_close(relaxed.std(0), states.std(0))
    torch.testing.assert_close(relaxed.mean(0), bare.mean(0))
    assert float(bare[:, 0, 4, 5].std()) < 0.6 * float(states[:, 0, 4, 5].std())


def test_weights_between_points_hardly_change_the_analysis(states):
    places = [(r, c) for r in range(1, 7) for c in range(0, 16, 2)]
    lat, lon = (np.asarray(a) for a in (GRID.latitude, GRID.longitude))
    equivalents = torch.stack([states[:, 0, r, c] for r, c in places], 1)
    seen = LocalObservations(
        equivalents,
        equivalents.mean(0) + 1.0,
        lat[[r for r, _ in places]],
        lon[[c for _, c in places]],
        np.full(len(places), 1000e2),
    )
    every, other = (
        analyse(states, seen, half_width=8e6),
        analyse(states, seen, half_width=8e6, stride=2),
    )
    shift, change = every.mean(0) - states.mean(0), other.mean(0) - every.mean(0)
    assert float(change.square().mean().sqrt()) < 0.15 * float(shift.square().mean().sqrt())
