"""Balances of flows that keep them exactly."""

import numpy as np
import pytest
import torch

from model.diagnostics.realism import geostrophic_balance, geostrophic_wind, hydrostatic_residual
from model.domain.grids import Grid
from model.domain.physics import EARTH_RADIUS, EARTH_ROTATION, EPSILON, GAS_CONSTANT_DRY

GRIDS = [Grid("t31", "gaussian", 48, 96), Grid("r", "regular", 121, 240)]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.kind)
def test_solid_body_rotation(grid):
    # u = U cos(lat) is geostrophic for geopotential -Omega a U sin(lat)^2.
    lat = torch.from_numpy(np.deg2rad(grid.latitude))[:, None].expand(grid.shape)
    u = 20.0 * lat.cos()
    geopotential = -EARTH_ROTATION * EARTH_RADIUS * 20.0 * lat.sin().square()
    u_g, v_g = geostrophic_wind(geopotential, grid)
    away = lat.abs() > 0.3
    torch.testing.assert_close(u_g[away], u[away], rtol=5e-3, atol=5e-2)
    assert v_g[away].abs().max() < 1e-9
    found = geostrophic_balance(geopotential, u, torch.zeros_like(u), grid)
    assert found.ratio.item() == pytest.approx(1.0, abs=5e-3)
    assert found.departure.item() < 5e-3
    turned = geostrophic_balance(geopotential, torch.zeros_like(u), u, grid)
    assert turned.departure.item() == pytest.approx(np.sqrt(2), abs=0.01)


def test_meridional_wind_of_a_zonal_wave():
    # Phi = A cos(3 lon): v_g = -3 A sin(3 lon) / (f a cos(lat)).
    grid = GRIDS[1]
    lat = torch.from_numpy(np.deg2rad(grid.latitude))[:, None]
    lon = torch.from_numpy(np.deg2rad(grid.longitude))
    geopotential = (1000.0 * torch.cos(3 * lon)).expand(grid.shape)
    _, v_g = geostrophic_wind(geopotential, grid)
    f = 2 * EARTH_ROTATION * lat.sin()
    expected = -3000.0 * torch.sin(3 * lon) / (f * EARTH_RADIUS * lat.cos())
    rows = slice(10, 40)
    torch.testing.assert_close(v_g[rows], expected[rows], rtol=2e-3, atol=1e-2)


def test_hydrostatic_profiles_leave_no_residual():
    # T_v linear in ln p integrates exactly; a layer 1 K too warm shows as 1 K.
    levels = [200.0, 500.0, 850.0]
    x = torch.log(torch.tensor(levels, dtype=torch.float64))
    virtual = 180.0 + 15.0 * x
    geopotential = -GAS_CONSTANT_DRY * (180.0 * x + 7.5 * x**2)
    humidity = torch.tensor([0.0, 0.002, 0.01], dtype=torch.float64)
    temperature = virtual / (1 + (1 / EPSILON - 1) * humidity)
    shape = (3, 2, 2)
    fields = [v[:, None, None].expand(shape).clone() for v in (geopotential, temperature, humidity)]
    assert hydrostatic_residual(*fields, levels).abs().max() < 1e-9
    fields[0][0] += GAS_CONSTANT_DRY * np.log(500 / 200)
    residual = hydrostatic_residual(*fields, levels)
    torch.testing.assert_close(residual[0], torch.ones(2, 2, dtype=torch.float64))
    assert residual[1].abs().max() < 1e-9
