r"""Satellite ground tracks and the points a satellite sees, for simulated observing networks.

A circular orbit over a rotating spherical Earth. With mean motion :math:`n = \sqrt{GM / a^3}`,
argument of latitude :math:`u = n t`, inclination :math:`i` and the Earth's rotation
:math:`\Omega = 2 \pi` per day,

.. math::
    \sin \varphi = - \sin i \sin u, \qquad
    \lambda = \lambda_0 + \mathrm{atan2}(- \cos i \sin u, - \cos u) - \Omega t

so that at t = 0 the satellite descends through the equator at :math:`\lambda_0 + 180` degrees.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["CircularOrbit", "seen_from"]

Float = NDArray[np.float64]

_GM = 3.986004415e14
"""Geocentric gravitational constant, m3 s-2 (IAU numerical standards, GME2009, TT-compatible)."""

_RADIUS = 6371.0088
"""Mean Earth radius, km (IUGG)."""

_DAY = 86400.0


@dataclass(frozen=True)
class CircularOrbit:
    """A satellite.

    Attributes:
        altitude: Height above the mean Earth radius in km.
        inclination: Degrees; above 90 the orbit is retrograde.
        node: :math:`\\lambda_0` in degrees east.
    """

    altitude: float
    inclination: float
    node: float = 0.0

    @property
    def mean_motion(self) -> float:
        """Radians per second."""
        semi_major = 1e3 * (_RADIUS + self.altitude)
        return float(np.sqrt(_GM / semi_major**3))

    @property
    def period(self) -> float:
        """Seconds."""
        return 2 * np.pi / self.mean_motion

    def track(self, seconds: Float) -> Float:
        """The points below the satellite.

        Arguments:
            seconds: Times since t = 0, with shape (*).

        Returns:
            Latitude and longitude in degrees, longitude in [-180, 180), with shape (*, 2).
        """
        u, i = self.mean_motion * seconds, np.deg2rad(self.inclination)
        latitude = -np.arcsin(np.sin(i) * np.sin(u))
        inertial = np.arctan2(-np.cos(i) * np.sin(u), -np.cos(u))
        longitude = np.rad2deg(inertial - 2 * np.pi / _DAY * seconds) + self.node
        wrapped = (longitude + 180.0) % 360.0 - 180.0
        return np.stack((np.rad2deg(latitude), wrapped), axis=-1)

    def hourly_track(self, hours: int, per_hour: int, delay: float = 0.0) -> Float:
        """Equally spaced points of consecutive hours, with shape (hours, per_hour, 2).

        Arguments:
            hours: Number of hours.
            per_hour: Points in each, the first at the full hour.
            delay: Hours between t = 0 and the first point.
        """
        steps = np.arange(hours * per_hour, dtype=np.float64).reshape(hours, per_hour)
        return self.track(3600.0 * (delay + steps / per_hour))


def seen_from(track: Float, latitude: Float, longitude: Float) -> Float:
    """Distance of points from the nearest point of a ground track.

    A point is in the field of view of radius r when its distance is at most r.

    Arguments:
        track: Latitude and longitude in degrees, with shape (S, 2).
        latitude: Degrees, with shape (*).
        longitude: Degrees, any range, with shape (*).

    Returns:
        Great-circle distance in degrees of arc, with shape (*).
    """
    tree = cKDTree(_unit_vectors(track[:, 0], track[:, 1]))
    chord, _ = tree.query(_unit_vectors(latitude, longitude))
    return np.rad2deg(2 * np.arcsin(np.clip(chord / 2, 0.0, 1.0)))


def _unit_vectors(latitude: Float, longitude: Float) -> Float:
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    flat = np.cos(phi)
    return np.stack((flat * np.cos(lam), flat * np.sin(lam), np.sin(phi)), axis=-1)
