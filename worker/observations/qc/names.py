"""Recognise placeholder identifiers, and identifiers shared by many platforms.

Such a name identifies neither a place nor a track: senders that mask call signs (PrepBUFR's
`MASKSTID`, `SHIP`, an aircraft without a registration) report a whole fleet under one. Known
placeholders are listed in `qc.yaml`. Others are detected because they are at several places at once.
A single faulty platform is not mistaken for many: most of its positions are close together.
"""

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.grids import unit_vectors
from model.domain.physics import EARTH_RADIUS
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    groups,
    not_rejected,
    time_column,
)
from worker.observations.qc.base import QCContext
from worker.observations.stations import station_codes

__all__ = ["distances", "nameless", "reach"]

_PLACEHOLDER = re.compile(r"[\W_]*|0+|9{3,}|-\d+|([A-Za-z])\1+")
"""Only punctuation, zeros or nines, a negative number, or one repeated letter."""
_MAX_FIXES = 64
"""Maximum number of fixes examined from one time on."""


def nameless(table: pa.Table, context: QCContext) -> BoolArray:
    """Return the rows whose station identifier is a placeholder, or shared by many platforms."""
    known = {str(name).upper() for name in context.of("duplicates")["anonymous"]}
    code, names = category_codes(table, "station_id")
    masks = [_is_placeholder(name.strip(), known) for name in names]
    listed = np.array([*masks, True], dtype=bool)[code]
    return np.asarray(listed | _shared(table, context))


def _is_placeholder(name: str, known: set[str]) -> bool:
    return name.upper() in known or bool(_PLACEHOLDER.fullmatch(name))


def reach(context: QCContext, networks: list[str], seconds: float) -> NDArray[np.float64]:
    """Return the distance in m that a platform of each network can travel in a time; NaN if fixed."""
    limits = context.of("track")
    speed = [limits["speed"].get(name, np.nan) for name in networks]
    slack = [limits["slack_km"].get(name, 0.0) for name in networks]
    return np.array(speed) * seconds + 1e3 * np.array(slack)


def distances(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances in m between places given as unit vectors, (N, 3) or (3,)."""
    chord = np.linalg.norm(one - other, axis=-1)
    return np.asarray(2.0 * EARTH_RADIUS * np.arcsin(np.minimum(chord / 2.0, 1.0)))


def _shared(table: pa.Table, context: QCContext) -> BoolArray:
    """Return the rows of platforms that are at `shared` places or more within `shared_seconds`."""
    p = context.of("places")
    report, networks = category_codes(table, "report_type")
    far = np.append(reach(context, networks, p["shared_seconds"]), np.nan)[report]
    # Levels of a profile all have the time of their report, although they differ in position.
    single = np.isnan(float_column(table, "profile_id"))
    use = np.flatnonzero(not_rejected(table) & np.isfinite(far) & single)
    if len(use) < p["shared"]:
        return np.zeros(len(table), dtype=bool)
    platform = groups(report, station_codes(table)[0])
    sub = table.take(use)
    time = time_column(sub) * 1e-9
    where = unit_vectors(float_column(sub, "lat"), float_column(sub, "lon"))
    fix = groups(platform[use], time, *where.T)
    _, first = np.unique(fix, return_index=True)
    order = first[np.lexsort((time[first], platform[use][first]))]
    many = _crowds(
        platform[use][order], time[order].astype(np.float64), where[order], far[use][order],
        p["shared"], p["shared_seconds"],
    )  # fmt: skip
    return np.asarray(np.isin(platform, many))


def _crowds(
    platform: NDArray[np.int64],
    time: NDArray[np.float64],
    where: NDArray[np.float64],
    far: NDArray[np.float64],
    places: int,
    seconds: float,
) -> list[int]:
    """Return the names whose fixes, sorted by platform and time, belong to several platforms."""
    near = (platform[1:] == platform[:-1]) & (np.diff(time) <= seconds)
    jumps = np.flatnonzero(near & (distances(where[1:], where[:-1]) > far[1:]))
    often, count = np.unique(platform[jumps], return_counts=True)
    found = []
    for one in often[count >= places - 1].tolist():
        begin, end = np.searchsorted(platform, [one, one + 1])
        for start in jumps[(jumps >= begin) & (jumps < end)].tolist():
            last = start + np.searchsorted(time[start:end], time[start] + seconds, side="right")
            if _apart(where[start : min(int(last), start + _MAX_FIXES)], far[start], places):
                found.append(one)
                break
    return found


def _apart(where: NDArray[np.float64], far: float, places: int) -> bool:
    """Return whether the fixes are at `places` or more places, none with more than half of them."""
    centres: list[NDArray[np.float64]] = []
    members: list[int] = []
    for fix in where:
        beside = [n for n, centre in enumerate(centres) if float(distances(fix, centre)) <= far]
        if beside:
            members[beside[0]] += 1
        else:
            centres.append(fix)
            members.append(1)
    return len(centres) >= places and 2 * max(members) <= len(where)
