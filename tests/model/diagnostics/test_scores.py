"""Scores against closed forms."""

import math

import numpy as np
import pytest
import torch

from model.diagnostics.ensembles import ranks
from model.diagnostics.scores import bias, fair_crps, rmse, spread_skill
from model.domain.grids import Grid

GRIDS = [Grid("r", "regular", 19, 36), Grid("g", "gaussian", 16, 32)]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.kind)
def test_constant_error_and_one_cap(grid):
    truth = torch.zeros(2, 3, *grid.shape)
    forecast = truth + torch.tensor([1.0, -2.0, 3.0])[:, None, None]
    assert rmse(forecast, truth, grid).flatten().tolist() == pytest.approx([1, 2, 3] * 2)
    assert bias(forecast, truth, grid).flatten().tolist() == pytest.approx([1, -2, 3] * 2)
    # An error of 1 in the northern hemisphere is half the sphere (the equator row counts half).
    half = torch.from_numpy(np.clip(np.sign(grid.latitude).round(9) / 2 + 0.5, 0, 1))
    north = half[:, None].expand(grid.shape)
    assert bias(north, torch.zeros(grid.shape), grid).item() == pytest.approx(0.5)


def test_missing_cells_are_left_out():
    grid = GRIDS[0]
    forecast = torch.ones(grid.shape)
    forecast[:5] = float("nan")
    assert rmse(forecast, torch.zeros(grid.shape), grid).item() == pytest.approx(1.0)


def test_fair_crps_of_two_members():
    # |1 - 0| and |3 - 0| average 2; the pair differs by 2, over 2 * M (M - 1) = 4, counted twice.
    grid = GRIDS[1]
    members = torch.tensor([1.0, 3.0])[:, None, None].expand(2, *grid.shape)
    assert fair_crps(members, torch.zeros(grid.shape), grid).item() == pytest.approx(2.0 - 1.0)


def test_fair_crps_of_a_normal_ensemble_does_not_depend_on_its_size():
    # Of N(0, 1) at an outcome drawn from the same: 1 / sqrt(pi).
    grid = Grid("g", "gaussian", 64, 128)
    draw = torch.Generator().manual_seed(3)
    truth = torch.randn(4, *grid.shape, generator=draw)
    for count in (2, 8):
        members = torch.randn(count, 4, *grid.shape, generator=draw)
        score = fair_crps(members, truth, grid).mean().item()
        assert score == pytest.approx(1 / math.sqrt(math.pi), abs=0.012)


def test_spread_matches_skill_in_a_reliable_ensemble():
    grid = Grid("g", "gaussian", 64, 128)
    draw = torch.Generator().manual_seed(4)
    truth = torch.randn(8, *grid.shape, generator=draw)
    members = torch.randn(4, 8, *grid.shape, generator=draw)
    found = spread_skill(members, truth, grid)
    assert found.spread.mean().item() == pytest.approx(1.0, abs=0.01)
    assert found.skill.mean().item() == pytest.approx(math.sqrt(1 + 1 / 4), abs=0.01)
    assert found.ratio.mean().item() == pytest.approx(1.0, abs=0.01)


def test_ranks():
    members, exact = np.array([[1.0], [2.0]]), np.zeros(3)
    draw = np.random.default_rng(0)
    found = ranks(members.repeat(3, axis=1), np.array([0.0, 1.5, 5.0]), exact, draw)
    assert found.tolist() == [0, 1, 2]
    # A tie with the lower member is shared at random between the two ranks beside it.
    tied = ranks(members.repeat(10_000, axis=1), np.ones(10_000), np.zeros(10_000), draw)
    assert np.bincount(tied, minlength=3) / 10_000 == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
