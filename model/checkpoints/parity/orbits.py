"""Satellite ground tracks and fields of view against their recordings.

The recorded tracks were computed in float32, where the phase n t of an orbit after many hours has
lost digits; positions may differ by that, and points that close to the edge of the field of view
may fall on the other side.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from model.checkpoints.parity.case import ParityCase
from model.checkpoints.parity.compare import Outcome
from model.operators.orbits import CircularOrbit, Float, seen_from

__all__ = ["fields_of_view", "tracks"]

_FULL_GRID = (721, 1440)
_RADIUS = 5.0
"""Radius in degrees where the name gives none."""


def tracks(case: ParityCase) -> Iterator[Outcome]:
    """`orbit.<i>`: latitude and longitude below satellite i."""
    for name, match in case.names(r"orbit\.(\d+)"):
        orbit = case.orbits[int(match[1])]
        ours, theirs = _track(orbit), case.outputs[name].double().numpy()
        if ours.shape != theirs.shape:
            note = f"shape {ours.shape} instead of {theirs.shape}"
            yield Outcome(name, case.label, "missed", note=note)
            continue
        # The chord between corresponding points, as an angle: longitudes mean little at a pole.
        a, b = (_vectors(points.reshape(-1, 2)) for points in (ours, theirs))
        error = float(np.rad2deg(np.linalg.norm(a - b, axis=-1)).max())
        yield _outcome(case, name, error, _slack(orbit), "degrees of arc")


def fields_of_view(case: ParityCase) -> Iterator[Outcome]:
    """`orbit.coarse.*` and `orbit.full.*`: the points that are seen each hour."""
    for name, match in case.names(r"orbit\.coarse\.(\d+)x(\d+)\.(\d+)\.(fov|dt)([\d.]+)"):
        orbit = case.orbits[int(match[3])]
        radius = float(match[5]) if match[4] == "fov" else _RADIUS
        grid = int(match[1]), int(match[2])
        hours = [_distances(hour, grid) for hour in _track(orbit)]
        if match[4] == "dt":
            step = int(match[5])
            hours = hours[step - 1 :: step]
        yield _seen(case, name, np.stack(hours), radius, orbit, case.outputs[name].numpy() != 0)
    names = list(case.names(r"orbit\.full\.(\d+)"))
    for name, match in names:
        orbit = case.orbits[0] | {"observation_time": len(names)}
        distance = _distances(_track(orbit)[int(match[1])], _FULL_GRID)
        theirs = np.zeros(distance.size, dtype=bool)
        theirs[case.outputs[name].numpy()] = True
        yield _seen(case, name, distance, _RADIUS, orbit, theirs.reshape(distance.shape))


def _track(orbit: dict[str, Any]) -> Float:
    satellite = CircularOrbit(
        orbit["orbital_altitude"], orbit["inclination"], orbit["initial_phase"]
    )
    return satellite.hourly_track(orbit["observation_time"], orbit["obs_freq"], orbit["delay"])


def _distances(track: Float, grid: tuple[int, int]) -> Float:
    rows, columns = grid
    latitude = np.linspace(90.0, -90.0, rows)
    longitude = np.arange(columns) * 360.0 / columns
    return seen_from(track, *np.meshgrid(latitude, longitude, indexing="ij"))


def _slack(orbit: dict[str, Any]) -> float:
    """Degrees by which float32 arithmetic may move a recorded satellite."""
    satellite = CircularOrbit(orbit["orbital_altitude"], orbit["inclination"])
    seconds = 3600 * (orbit["delay"] + orbit["observation_time"])
    phase = np.rad2deg(satellite.mean_motion * seconds)
    return float(4 * torch.finfo(torch.float32).eps * max(phase, 360.0))


def _seen(
    case: ParityCase,
    name: str,
    distance: Float,
    radius: float,
    orbit: dict[str, Any],
    theirs: np.ndarray,
) -> Outcome:
    if distance.shape != theirs.shape:
        note = f"shape {distance.shape} instead of {theirs.shape}"
        return Outcome(name, case.label, "missed", note=note)
    differing = (distance <= radius) != theirs
    edge = np.abs(distance[differing] - radius)
    note = f"{int(differing.sum())} of {int(theirs.sum())} points differ, by degrees from the edge"
    return _outcome(case, name, float(edge.max()) if edge.size else 0.0, _slack(orbit), note)


def _outcome(case: ParityCase, name: str, error: float, allowed: float, note: str) -> Outcome:
    status = "matched" if error <= allowed else "missed"
    return Outcome(name, case.label, status, error, allowed, note)


def _vectors(points: Float) -> Float:
    phi, lam = np.deg2rad(points[:, 0]), np.deg2rad(points[:, 1])
    return np.stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)), axis=-1)
