"""Where an hour of a synthetic network observes: stations, sondes, aircraft, a sounder's swath.

Stations are spread evenly over regions, as many in each as the Integrated Surface Database
(NOAA/NCEI, ISD history of 2025) lists there as active since 2020. Sondes ascend at few of the
stations. Aircraft fly over the regions with most flights. The sounder is on a sun-synchronous
orbit of 101 minutes with an inclination of 98.7 degrees and a swath of 2 200 km. With 10 000
stations drawn from that list itself, the decoder of the released model would do 2 % more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NETWORK", "Place", "observed_places"]

NETWORK = {"stations": 50_000, "sondes": 8_000, "aircraft": 30_000, "sounder swath": 100_000}
"""Values per hour."""
_AT_ONE_PLACE = {"stations": 5, "sondes": 160, "aircraft": 3, "sounder swath": 15}

Box = tuple[int, int, int, int, float]
"""South, north, west, east in degrees, and a weight."""

_STATIONS: Sequence[Box] = (
    (36, 62, -11, 32, 2298), (58, 72, 4, 32, 277), (48, 68, 32, 60, 351), (48, 60, 60, 140, 370),
    (60, 73, 60, 150, 152), (22, 42, 32, 62, 485), (36, 48, 45, 80, 210), (18, 37, -17, 32, 230),
    (-35, -15, 11, 41, 335), (-15, 5, 28, 50, 127), (4, 18, -18, 16, 200), (-15, 18, 10, 40, 95),
    (6, 34, 68, 92, 516), (20, 48, 98, 126, 381), (28, 50, 78, 98, 61), (31, 46, 126, 146, 330),
    (-10, 22, 92, 128, 365), (-40, -24, 113, 154, 463), (-24, -11, 120, 154, 116), (-48, -34, 166, 179, 38),
    (25, 49, -125, -67, 2637), (49, 60, -130, -55, 484), (60, 75, -140, -60, 132), (54, 71, -168, -140, 141),
    (14, 27, -118, -85, 114), (7, 27, -88, -60, 145), (-33, -12, -60, -35, 478), (-12, 6, -75, -35, 315),
    (-56, -12, -76, -57, 207), (-78, -62, -70, -55, 7), (-78, -65, 40, 170, 21), (63, 67, -25, -13, 40),
    (60, 77, -55, -20, 18), (27, 40, -31, -13, 11), (62, 81, 5, 70, 8), (-25, 25, 130, 179, 65),
    (-25, 25, -180, -130, 45),
)  # fmt: skip
_FLIGHTS: Sequence[Box] = (
    (25, 49, -125, -67, 40), (36, 62, -11, 32, 30), (40, 60, -60, -11, 10), (20, 46, 100, 146, 20),
)  # fmt: skip
_PERIOD, _INCLINATION, _SWATH, _EARTH = 101 / 60, np.deg2rad(98.7), 2200.0, 6371.0

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """Places where a kind of observation has several values each.

    Attributes:
        lat: Degrees north, with shape (n,).
        lon: Degrees east, with shape (n,).
        values: Values at each place.
        surface: Whether they are surface variables.
    """

    lat: Float
    lon: Float
    values: int
    surface: bool


def observed_places(hour: int) -> list[Place]:
    """Return where the network observes in an hour; the same hour gives the same places."""
    draw = np.random.default_rng(hour)
    count = {kind: NETWORK[kind] // each for kind, each in _AT_ONE_PLACE.items()}
    spread = {
        "stations": _over(_STATIONS, count["stations"], draw),
        "sondes": _over(_STATIONS, count["sondes"], draw),
        "aircraft": _over(_FLIGHTS, count["aircraft"], draw),
        "sounder swath": _swath(hour, count["sounder swath"], draw),
    }
    return [
        Place(*where, _AT_ONE_PLACE[kind], kind == "stations") for kind, where in spread.items()
    ]


def _over(boxes: Sequence[Box], count: int, draw: np.random.Generator) -> tuple[Float, Float]:
    weight = np.array([box[4] for box in boxes])
    south, north, west, east, _ = np.array(boxes, dtype=float)[
        draw.choice(len(boxes), count, p=weight / weight.sum())
    ].T
    height = draw.uniform(np.sin(np.deg2rad(south)), np.sin(np.deg2rad(north)))
    return np.rad2deg(np.arcsin(height)), draw.uniform(west, east)


def _swath(hour: int, count: int, draw: np.random.Generator) -> tuple[Float, Float]:
    time = hour + draw.uniform(0, 1, count)
    here, ahead = _track(time), _track(time + 1e-3)
    across = np.cross(here, ahead - here)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    angle = (draw.uniform(-0.5, 0.5, count) * _SWATH / _EARTH)[:, None]
    x, y, z = (np.cos(angle) * here + np.sin(angle) * across).T
    return np.rad2deg(np.arcsin(z)), np.rad2deg(np.arctan2(y, x))


def _track(hours: Float) -> Float:
    """Return unit vectors below the satellite, on the turning earth; with shape (n, 3)."""
    phase = 2 * np.pi * hours / _PERIOD
    lat = np.arcsin(np.sin(_INCLINATION) * np.sin(phase))
    lon = np.arctan2(np.cos(_INCLINATION) * np.sin(phase), np.cos(phase)) - np.pi * hours / 12
    return np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), axis=1)
