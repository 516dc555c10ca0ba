"""Conversions against published tables and hand-derived numbers."""

import numpy as np
import pytest

from model.domain.physics import (
    KNOT,
    dewpoint_from_specific_humidity,
    height_of_pressure,
    specific_humidity_from_dewpoint,
    specific_humidity_from_mixing_ratio,
)
from worker.observations.units import pressure_from_flight_level, wind_components, wind_direction


@pytest.mark.parametrize(
    ("altitude", "pressure"),
    # ICAO Doc 7488/3, table 1: geopotential altitude in m, pressure in Pa.
    [(0, 101_325.0), (1_000, 89_874.5), (5_000, 54_019.9), (11_000, 22_632.0), (20_000, 5_474.88),
     (32_000, 868.02)],
)  # fmt: skip
def test_flight_level_follows_the_standard_atmosphere(altitude, pressure):
    found = pressure_from_flight_level(np.array([float(altitude)]))[0]
    assert found == pytest.approx(pressure, rel=1e-5)
    assert height_of_pressure(np.array([found]))[0] == pytest.approx(altitude, abs=1e-6)


def test_flight_level_outside_the_atmosphere_is_missing():
    assert np.isnan(pressure_from_flight_level(np.array([-1e100, 2_147_483_647.0, np.nan]))).all()


def test_wind_blows_from_its_direction():
    u, v = wind_components(
        np.array([10.0, 10.0, 10.0, 0.0]), np.array([270.0, 180.0, 45.0, np.nan])
    )
    root = 10.0 / np.sqrt(2.0)
    np.testing.assert_allclose(u, [10.0, 0.0, -root, 0.0], atol=1e-12)
    np.testing.assert_allclose(v, [0.0, 10.0, -root, 0.0], atol=1e-12)


def test_direction_of_a_wind():
    u, v = np.array([10.0, 0.0, 0.0, 0.0, -3.0]), np.array([0.0, 10.0, -10.0, 0.0, -3.0])
    np.testing.assert_allclose(wind_direction(u, v), [270.0, 180.0, 360.0, 0.0, 45.0])


def test_missing_direction_gives_no_components():
    u, v = wind_components(np.array([5.0]), np.array([np.nan]))
    assert np.isnan(u[0]) and np.isnan(v[0])


def test_a_direction_that_no_compass_has_gives_no_components():
    """Nine bits hold up to 511 degrees: 450 is no wind from the east."""
    u, v = wind_components(np.array([3.0, 3.0, 3.0, 0.0]), np.array([450.0, 361.0, -90.0, 511.0]))
    assert np.isnan(u[:3]).all() and np.isnan(v[:3]).all()
    assert (u[3], v[3]) == (0.0, 0.0)


def test_specific_humidity_at_the_ice_point():
    # e = 611.2 Pa by definition of Bolton's formula; q = eps e / (p - (1 - eps) e).
    q = specific_humidity_from_dewpoint(np.array([273.15]), np.array([100_000.0]))[0]
    ratio = 287.0597 / 461.525
    assert q == pytest.approx(ratio * 611.2 / (100_000.0 - (1.0 - ratio) * 611.2), rel=1e-12)
    assert q == pytest.approx(0.0038104, abs=1e-6)


def test_dewpoint_inverts_specific_humidity():
    dewpoint, pressure = np.linspace(200.0, 300.0, 11), np.linspace(2e4, 1e5, 11)
    q = specific_humidity_from_dewpoint(dewpoint, pressure)
    np.testing.assert_allclose(dewpoint_from_specific_humidity(q, pressure), dewpoint, rtol=1e-10)


def test_impossible_dewpoints_are_missing():
    q = specific_humidity_from_dewpoint(np.array([400.0, 0.0, np.nan]), np.array([1e4, 1e5, 1e5]))
    assert np.isnan(q).all()


def test_mixing_ratio_and_knots():
    assert specific_humidity_from_mixing_ratio(np.array([0.25]))[0] == pytest.approx(0.2)
    assert pytest.approx(51.4444, abs=1e-4) == 100 * KNOT
