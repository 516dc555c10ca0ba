"""Spectra of pure spherical harmonics."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from model.diagnostics.realism import power_spectrum, spectral_ratio
from model.domain.grids import Grid

GRIDS = [Grid("t31", "gaussian", 48, 96), Grid("r", "regular", 61, 120)]


def harmonic(grid, degree, order):
    colatitude = np.deg2rad(90.0 - grid.latitude)[:, None]
    return torch.from_numpy(sph_harm_y(degree, order, colatitude, np.deg2rad(grid.longitude)).real)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.kind)
@pytest.mark.parametrize(("degree", "order"), [(0, 0), (3, 0), (7, 4), (20, 20)])
def test_a_pure_harmonic_has_all_its_power_at_its_degree(grid, degree, order):
    # The real part of Y_lm has squared norm 1/2 (1 for m = 0), over 4 pi.
    power = power_spectrum(harmonic(grid, degree, order), grid)
    expected = torch.zeros_like(power)
    expected[degree] = (1.0 if order == 0 else 0.5) / (4 * np.pi)
    torch.testing.assert_close(power, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.kind)
def test_power_adds_up_to_the_area_mean_of_the_square(grid):
    field = 2.0 * harmonic(grid, 5, 2) + 3.0 * harmonic(grid, 9, 1)
    weights = torch.from_numpy(grid.area_weights)[:, None] / grid.nlon
    total = (weights * field.square()).sum()
    # The area weights of the regular grid are those of bands, good to second order.
    tolerance = 1e-10 if grid.kind == "gaussian" else 5e-3
    torch.testing.assert_close(power_spectrum(field, grid).sum(), total, rtol=tolerance, atol=0)


def test_ratio_of_a_field_at_half_amplitude():
    grid = GRIDS[0]
    fields = torch.randn(3, 2, *grid.shape, dtype=torch.float64)
    ratio = spectral_ratio(fields / 2, fields, grid)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.25))
