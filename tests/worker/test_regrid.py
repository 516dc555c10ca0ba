"""Interpolation and averaging against exact results."""

import numpy as np
import pytest

from model.domain.grids import Grid
from model.domain.regrid import cell_index, conservative, interpolate_rectilinear

GRID = Grid("test", "regular", 37, 72)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("descending", [True, False])
def test_bilinear_is_exact_for_linear_fields(descending):
    latitude = GRID.latitude if descending else GRID.latitude[::-1]
    longitude = np.arange(10.0, 60.0, 2.5)
    field = 2.0 * latitude[:, None] - 0.5 * longitude[None, :]
    lat, lon = RNG.uniform(-90, 90, 50), RNG.uniform(10, 57.5, 50)
    np.testing.assert_allclose(
        interpolate_rectilinear(field, latitude, longitude, lat, lon), 2 * lat - 0.5 * lon
    )


def test_bilinear_wraps_and_leaves_the_outside_empty():
    field = np.broadcast_to(np.cos(np.deg2rad(GRID.longitude)), GRID.shape)
    east = interpolate_rectilinear(
        field, GRID.latitude, GRID.longitude, np.array([0.0]), np.array([-2.5])
    )
    assert east[0] == pytest.approx((np.cos(np.deg2rad(-5.0)) + 1.0) / 2)
    part = interpolate_rectilinear(
        field[:, :10], GRID.latitude, GRID.longitude[:10], np.zeros(1), np.array([90.0])
    )
    assert np.isnan(part[0])


def test_cell_index_is_the_nearest_grid_point():
    j, i = np.mgrid[0 : GRID.nlat, 0 : GRID.nlon]
    lat = GRID.latitude[j] + 1.0 * (j < 36) * (j > 0)
    index = cell_index(GRID.latitude, GRID.nlon, lat.ravel(), (GRID.longitude[i] - 361.0).ravel())
    np.testing.assert_array_equal(index, np.arange(GRID.nlat * GRID.nlon))


def test_conservative_keeps_constants_and_the_global_mean():
    coarse = Grid("coarse", "regular", 10, 24)
    field = RNG.normal(size=GRID.shape)
    result = conservative(field, GRID.latitude, GRID.longitude, coarse.latitude, coarse.longitude)
    mean = (field.mean(axis=1) * GRID.area_weights).sum()
    assert (result.mean(axis=1) * coarse.area_weights).sum() == pytest.approx(mean, abs=1e-12)
    ones = conservative(
        np.ones(GRID.shape), GRID.latitude[::-1], GRID.longitude - 180.0, coarse.latitude,
        coarse.longitude,
    )  # fmt: skip
    np.testing.assert_allclose(ones, 1.0)


def test_conservative_orientation_and_missing_values():
    coarse = Grid("coarse", "regular", 10, 24)
    field = np.broadcast_to(GRID.latitude[:, None], GRID.shape).copy()
    args = (GRID.longitude, coarse.latitude, coarse.longitude)
    north_first = conservative(field, GRID.latitude, *args)
    assert np.all(np.diff(north_first[:, 0]) < 0)
    np.testing.assert_allclose(conservative(field[::-1], GRID.latitude[::-1], *args), north_first)
    field[:, :40] = np.nan
    holes = conservative(field, GRID.latitude, *args)
    assert np.isnan(holes[5, 3]) and holes[5, 20] == pytest.approx(north_first[5, 20])


def test_identity_onto_the_same_grid():
    field = RNG.normal(size=GRID.shape)
    same = conservative(field, GRID.latitude, GRID.longitude, GRID.latitude, GRID.longitude)
    np.testing.assert_allclose(same, field)
