r"""Place a synthetic network: where its stations stand and what its satellites see.

Stations are quasi-random and repeatable. A satellite flies a circular orbit over a rotating
spherical Earth. With mean motion :math:`n = \sqrt{GM / a^3}`, argument of latitude
:math:`u = n t`, inclination :math:`i` and the Earth's rotation :math:`\Omega = 2 \pi` per day,

.. math::
    \sin \varphi = - \sin i \sin u, \qquad
    \lambda = \lambda_0 + \mathrm{atan2}(- \cos i \sin u, - \cos u) - \Omega t

so that at t = 0 the satellite descends through the equator at :math:`\lambda_0 + 180` degrees.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model.domain.grids import Grid, bilinear, interpolate, unit_vectors
from model.domain.physics import GEOCENTRIC_CONSTANT, MEAN_EARTH_RADIUS, SIDEREAL_DAY, SOLAR_DAY
from model.operators.base import Statics

__all__ = [
    "CircularOrbit",
    "Places",
    "Swath",
    "land_stations",
    "sea_stations",
    "seen_from",
    "sounder_swath",
]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class CircularOrbit:
    r"""Describe a satellite on a circular orbit.

    Attributes:
        altitude: Height above the mean Earth radius in km.
        inclination: Degrees; above 90 the orbit is retrograde.
        node: :math:`\lambda_0` in degrees east.
    """

    altitude: float
    inclination: float
    node: float = 0.0

    @property
    def mean_motion(self) -> float:
        """Angular velocity along the orbit, radians per second."""
        semi_major = 1e3 * (MEAN_EARTH_RADIUS / 1e3 + self.altitude)
        return float(np.sqrt(GEOCENTRIC_CONSTANT / semi_major**3))

    @property
    def period(self) -> float:
        """Return the time of one revolution in seconds."""
        return 2 * np.pi / self.mean_motion

    def track(self, seconds: Float) -> Float:
        """Return the points below the satellite.

        Arguments:
            seconds: Times since t = 0, with shape (*).

        Returns:
            Latitude and longitude in degrees, longitude in [-180, 180), with shape (*, 2).
        """
        u, i = self.mean_motion * seconds, np.deg2rad(self.inclination)
        latitude = -np.arcsin(np.sin(i) * np.sin(u))
        inertial = np.arctan2(-np.cos(i) * np.sin(u), -np.cos(u))
        longitude = np.rad2deg(inertial - 2 * np.pi / SOLAR_DAY * seconds) + self.node
        wrapped = (longitude + 180.0) % 360.0 - 180.0
        return np.stack((np.rad2deg(latitude), wrapped), axis=-1)

    def hourly_track(self, hours: int, per_hour: int, delay: float = 0.0) -> Float:
        """Return equally spaced points of consecutive hours, with shape (hours, per_hour, 2).

        Arguments:
            hours: Number of hours.
            per_hour: Points in each, the first at the full hour.
            delay: Hours between t = 0 and the first point.
        """
        steps = np.arange(hours * per_hour, dtype=np.float64).reshape(hours, per_hour)
        return self.track(3600.0 * (delay + steps / per_hour))


def seen_from(track: Float, latitude: Float, longitude: Float) -> Float:
    """Return the distance of points from the nearest point of a ground track.

    A point is in the field of view of radius r when its distance is at most r.

    Arguments:
        track: Latitude and longitude in degrees, with shape (S, 2).
        latitude: Degrees, with shape (*).
        longitude: Degrees, any range, with shape (*).

    Returns:
        Great-circle distance in degrees of arc, with shape (*).
    """
    tree = cKDTree(unit_vectors(track[:, 0], track[:, 1]))
    chord, _ = tree.query(unit_vectors(latitude, longitude))
    distance: Float = np.rad2deg(2 * np.arcsin(np.clip(chord / 2, 0.0, 1.0)))
    return distance


LAND = 0.5


@dataclass(frozen=True)
class Places:
    """Fixed positions, each with shape (n,): degrees north, degrees east in [-180, 180), m."""

    lat: Float
    lon: Float
    elevation: Float

    def __len__(self) -> int:
        return len(self.lat)


@dataclass(frozen=True)
class Swath:
    """Footprints of a scanning instrument, each with shape (n,).

    Attributes:
        seconds: Since the epoch of the orbit.
        lat: Degrees north.
        lon: Degrees east in [-180, 180).
    """

    seconds: Float
    lat: Float
    lon: Float


def _east(lon: Float) -> Float:
    return np.mod(lon + 180.0, 360.0) - 180.0


def _fibonacci(count: int, turn: float) -> tuple[Float, Float]:
    """Return points of equal share of the sphere along a golden spiral, turned by `turn` degrees."""
    k = np.arange(count) + 0.5
    lat = np.rad2deg(np.arcsin(1.0 - 2.0 * k / count))
    return lat, _east(360.0 * k * (np.sqrt(5.0) - 1.0) / 2.0 + turn)


def _station_density(lat: Float) -> Float:
    """Return the relative density of land stations: largest in the northern middle latitudes."""
    north = np.exp(-(((lat - 45.0) / 22.0) ** 2))
    south = 0.35 * np.exp(-(((lat + 25.0) / 18.0) ** 2))
    return 0.12 + north + south


def land_stations(count: int, grid: Grid, statics: Statics, seed: int = 0) -> Places:
    """Return stations on land, denser in the northern middle latitudes, at the model's own height.

    Where the land-sea mask is unknown, all of the sphere counts as land.
    """
    rng = np.random.default_rng(seed)
    lat, lon = _fibonacci(40 * count, turn=137.0 * seed)
    cells = bilinear(grid, lat, lon)
    mask = statics.land_sea_mask
    land = np.ones(len(lat), dtype=bool) if mask is None else interpolate(mask, *cells) >= LAND
    share = np.where(land, _station_density(lat), 0.0)
    chosen = np.sort(rng.choice(len(lat), count, replace=False, p=share / share.sum()))
    ground = np.zeros(len(lat))
    if statics.orography is not None:
        ground = interpolate(statics.orography, *cells)
    return Places(lat[chosen], lon[chosen], ground[chosen])


def sea_stations(count: int, grid: Grid, statics: Statics, seed: int = 0) -> Places:
    """Return ships and buoys: at sea between 55 S and 65 N, at sea level."""
    rng = np.random.default_rng(seed + 1)
    lat, lon = _fibonacci(40 * count, turn=61.0 * seed)
    open_sea = (lat > -55.0) & (lat < 65.0)
    if statics.land_sea_mask is not None:
        open_sea &= interpolate(statics.land_sea_mask, *bilinear(grid, lat, lon)) < 1e-3
    chosen = np.sort(rng.choice(np.flatnonzero(open_sea), count, replace=False))
    return Places(lat[chosen], lon[chosen], np.zeros(count))


def sounder_swath(
    seconds: Float,
    *,
    inclination: float = 98.7,
    period: float = 6_080.0,
    reach: float = 9.0,
    spots: int = 8,
) -> Swath:
    """Return footprints of a cross-track sounder on a circular polar orbit over a turning Earth.

    Arguments:
        seconds: Times of the scan lines since the satellite crossed the equator northward at
            longitude 0, with shape (lines,).
        inclination: Degrees.
        period: Of the orbit, s.
        reach: Half the width of the swath, degrees of arc.
        spots: Footprints across the swath.

    Returns:
        lines * spots footprints, line by line.
    """
    phase = 2.0 * np.pi * seconds / period
    tilt = np.deg2rad(inclination)
    zero = np.zeros_like(phase)
    # Unit vectors: to the satellite, and normal to the orbit's plane (across the track).
    track = np.stack(
        (np.cos(phase), np.sin(phase) * np.cos(tilt), np.sin(phase) * np.sin(tilt)), axis=-1
    )
    normal = np.stack((zero, zero - np.sin(tilt), zero + np.cos(tilt)), axis=-1)
    across = np.deg2rad(np.linspace(-reach, reach, spots))[:, None]
    spot = np.cos(across) * track[:, None] + np.sin(across) * normal[:, None]
    lat = np.rad2deg(np.arcsin(np.clip(spot[..., 2], -1.0, 1.0)))
    turned = 360.0 * seconds / SIDEREAL_DAY
    lon = np.rad2deg(np.arctan2(spot[..., 1], spot[..., 0])) - turned[:, None]
    times = np.broadcast_to(seconds[:, None], lat.shape)
    return Swath(times.ravel(), lat.ravel(), _east(lon).ravel())
