"""Satellite ground tracks against Kepler's laws and spherical geometry."""

import numpy as np
import pytest

from lab.osse.places import CircularOrbit, seen_from


def test_a_geostationary_satellite_nearly_stands_still():
    # The Earth turns once in 86400 s here, in reality in 86164 s, the period at this height.
    orbit = CircularOrbit(altitude=35786.0, inclination=0.0, node=40.0)
    assert abs(orbit.period - 86164) < 100
    track = orbit.hourly_track(24, 4)
    assert np.abs(track[..., 0]).max() < 1e-9
    drift = track[-1, -1, 1] - track[0, 0, 1]
    assert abs(drift - 360 * (86400 / orbit.period - 1) * 23.75 / 24) < 1e-6


def test_a_low_orbit_reaches_its_inclination_and_shifts_west_by_the_earths_turn():
    orbit = CircularOrbit(altitude=800.0, inclination=75.0)
    assert abs(orbit.period / 60 - 100.7) < 0.2
    track = orbit.track(np.linspace(0, orbit.period, 20001))
    assert abs(np.abs(track[:, 0]).max() - 75.0) < 1e-3
    shift = (track[-1, 1] - track[0, 1]) % 360 - 360
    assert abs(shift + 360 * orbit.period / 86400) < 1e-6


def test_a_retrograde_polar_orbit_mirrors_the_prograde_one_in_a_frame_at_rest():
    seconds = np.linspace(0, 5000, 7)
    east, west = CircularOrbit(700.0, 60.0), CircularOrbit(700.0, 120.0)
    turn = 360 * seconds / 86400
    a, b = east.track(seconds), west.track(seconds)
    assert np.allclose(a[:, 0], b[:, 0])
    assert np.allclose(np.cos(np.deg2rad(a[:, 1] + b[:, 1] + 2 * turn)), 1)


def test_the_delay_skips_hours():
    orbit = CircularOrbit(705.0, 98.0, 40.0)
    assert np.allclose(orbit.hourly_track(2, 30, delay=3.0), orbit.hourly_track(5, 30)[3:])


@pytest.mark.parametrize("longitude", [10.0, 370.0, -350.0])
def test_distance_is_along_the_great_circle_to_the_nearest_point(longitude):
    track = np.array([[0.0, 0.0], [60.0, 10.0]])
    got = seen_from(track, np.array([60.0, 90.0, 0.0]), np.array([longitude, 77.0, longitude]))
    assert np.allclose(got, [0.0, 30.0, 10.0], atol=1e-6)


def test_a_cap_holds_its_share_of_the_sphere():
    latitude = np.linspace(-89.75, 89.75, 360)
    grid = np.meshgrid(latitude, np.arange(0, 360, 0.5), indexing="ij")
    seen = seen_from(np.array([[37.0, -122.0]]), *grid) <= 20.0
    share = (seen * np.cos(np.deg2rad(grid[0]))).sum() / np.cos(np.deg2rad(grid[0])).sum()
    assert abs(share - (1 - np.cos(np.deg2rad(20.0))) / 2) < 1e-4
