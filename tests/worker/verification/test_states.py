"""Spectra and balance of states in closed form."""

import numpy as np
import pytest
import torch

from model.domain.grids import Grid
from model.domain.physics import EARTH_RADIUS, EARTH_ROTATION
from model.domain.variables import channels
from worker.results.verification.states import pressure_tendency, score_states

GAUSSIAN = Grid("g", "gaussian", 48, 96)
LEVELS = (250, 500, 850)
NAMES = channels(LEVELS)


def place(variable, level):
    return [c.variable == variable and c.level == level for c in NAMES].index(True)


def states(grid, members=2):
    return np.zeros((members, len(NAMES), *grid.shape), dtype=np.float32)


def values(scores):
    return {(s.quantity, s.level): s for s in scores}


@pytest.mark.parametrize("grid", [GAUSSIAN, Grid("r", "regular", 361, 720)])
def test_energy_of_one_harmonic_lies_in_its_band(grid):
    """cos^8(lat) cos(8 lon) has total wavenumber 8 alone: synoptic."""
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    wave = 30 * np.cos(lat) ** 8 * np.cos(8 * lon)
    after, before = states(grid), states(grid)
    after[:, place("u_component_of_wind", 500)] = wave
    before[:, place("u_component_of_wind", 500)] = 0.5 * wave
    found = values(score_states(after, before, NAMES, grid))
    # Mean of cos^16(lat) over the sphere is the product of 2k / (2k + 1) for k = 1 to 8.
    mean = np.prod([2 * k / (2 * k + 1) for k in range(1, 9)])
    synoptic = found["kinetic_energy_synoptic", "500 hPa"]
    assert synoptic.analysis == pytest.approx(0.5 * 30**2 * mean / 2, rel=2e-3)
    assert synoptic.background == pytest.approx(synoptic.analysis / 4, rel=1e-6)
    for band in ("planetary", "small"):
        assert found[f"kinetic_energy_{band}", "500 hPa"].analysis < 1e-4 * synoptic.analysis


def test_balanced_flow_is_found_balanced_and_noise_is_not():
    lat = np.deg2rad(GAUSSIAN.latitude)[:, None] * np.ones(GAUSSIAN.nlon)
    speed, radius = 20.0, EARTH_RADIUS
    # Zonal wind U cos(lat) in geostrophic balance: Phi = -U Omega a sin^2(lat).
    after = states(GAUSSIAN)
    after[:, place("u_component_of_wind", 500)] = speed * np.cos(lat)
    after[:, place("geopotential", 500)] = -speed * EARTH_ROTATION * radius * np.sin(lat) ** 2
    before = after.copy()
    before[:, place("v_component_of_wind", 500)] = 5 * np.random.default_rng(0).standard_normal(
        GAUSSIAN.shape
    )
    score = values(score_states(after, before, NAMES, GAUSSIAN))["geostrophic", "500 hPa"]
    assert score.analysis < 0.02
    assert score.background > 0.3


def test_isothermal_dry_air_is_hydrostatic():
    after = states(GAUSSIAN)
    for level in LEVELS:
        after[:, place("temperature", level)] = 250.0
        after[:, place("geopotential", level)] = 287.05 * 250.0 * np.log(1000 / level)
    before = after.copy()
    before[:, place("temperature", 500)] += 4.0  # 2 K in both layers' means
    score = values(score_states(after, before, NAMES, GAUSSIAN))["hydrostatic", "all"]
    assert score.analysis < 0.02
    assert score.background == pytest.approx(2.0, abs=0.02)


def test_no_background_and_missing_levels():
    found = score_states(states(GAUSSIAN), None, NAMES, GAUSSIAN)
    assert all(s.background is None for s in found)
    surface = [c for c in NAMES if c.level is None]
    assert score_states(states(GAUSSIAN)[:, : len(surface)], None, surface, GAUSSIAN) == []


def test_tendency_of_a_wave_and_of_the_mean():
    grid = GAUSSIAN
    north = np.sign(grid.latitude)[:, None] * np.ones(grid.nlon)
    pressure = torch.tensor(np.stack([0 * north, 7 * north, 7 * north + 50 * north + 3]))
    absolute, mean = pressure_tendency(pressure, grid)
    assert absolute == pytest.approx(50.0, rel=1e-6)  # 53 on one half, 47 on the other
    assert mean == pytest.approx(3.0, rel=1e-6)
