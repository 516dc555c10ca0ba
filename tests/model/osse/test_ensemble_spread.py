"""Spread and ranks of calibrated synthetic ensembles, with and without mirrored pairs."""

import numpy as np
import pytest
import torch

from model.domain.grids import Grid
from model.osse.ensemble_spread import Twins, spread_over_error
from model.osse.rank_shape import rank_shape
from model.osse.withheld_ranks import ranks

GRID = Grid("t31", "gaussian", 48, 96)


def ensemble(members, mirrored, shape, seed=0):
    """Members and a truth that is drawn from the same distribution."""
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=draw)
    noise = torch.randn(members, *shape, generator=draw)
    if mirrored:
        noise = torch.stack([noise[i - i % 2] * (1 - 2 * (i % 2)) for i in range(members)])
    truth = mean + torch.randn(shape, generator=draw)
    return mean + noise, truth


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("members", [2, 3, 8])
def test_a_calibrated_ensemble_has_the_spread_of_its_error(members, mirrored):
    drawn, truth = ensemble(members, mirrored, (6, 48, 96))
    pairs = Twins.of(range(members), mirrored)
    ratio = spread_over_error(drawn, truth, GRID, pairs)
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("members", [4, 7, 8])
def test_ranks_of_a_calibrated_ensemble_are_flat(members, mirrored):
    drawn, truth = ensemble(members, mirrored, (20_000,))
    rng, error = np.random.default_rng(0), np.full(20_000, 0.2)
    values = truth.numpy() + error * rng.standard_normal(20_000)
    for chosen in Twins.of(range(members), mirrored).independent:
        found = ranks(drawn.numpy()[list(chosen)], values, error, rng)
        counts = np.bincount(found, minlength=len(chosen) + 1)
        shape = rank_shape("synthetic", counts[None])
        assert np.array(shape.bins) * 9 == pytest.approx(1.0, abs=0.08)
        assert shape.excess == pytest.approx(0.0, abs=0.05)


def test_pairs_are_found_by_the_members_numbers():
    assert Twins.of([0, 1, 2, 3], False) == Twins(4, ((0, 1, 2, 3),))
    assert Twins.of([0, 1, 2, 3], True) == Twins(0, ((0, 2), (1, 3)))
    assert Twins.of([0, 1, 2], True) == Twins(1, ((0, 2), (1, 2)))
    # Number 3 has its twin in another job.
    assert Twins.of([3, 4, 5], True) == Twins(1, ((0, 1), (0, 2)))
