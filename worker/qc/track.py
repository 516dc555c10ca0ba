"""Ships, buoys and aircraft cannot jump: fixes that need an impossible speed are rejected."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.columns import BoolArray, codes, groups, kept, numbers, times, unit_vectors
from worker.qc.context import QCContext

__all__ = ["track"]

_EARTH_RADIUS = 6_371_229.0  # m


def track(table: pa.Table, context: QCContext) -> BoolArray:
    """All values of a fix that its platform can neither have come to nor left from in time.

    Links between consecutive fixes of one platform are impossible when the distance exceeds speed
    times time plus a slack for rounded positions. A fix between two impossible links goes, the
    worst first; at the end of a track the end goes; of two fixes alone neither is trusted.
    """
    p = context.of("track")
    report, names = codes(table, "report_type")
    station, stations = codes(table, "station_id")
    speed = np.array([p["speed"].get(n, np.nan) for n in names] or [np.nan])[report]
    slack = np.array([p["slack_km"].get(n, 0.0) for n in names] or [0.0])[report] * 1e3
    anonymous = [i for i, n in enumerate(stations) if n in context.of("duplicates")["anonymous"]]
    use = np.flatnonzero(kept(table) & np.isfinite(speed) & ~np.isin(station, anonymous))
    bad = np.zeros(len(table), dtype=bool)
    if not len(use):
        return bad
    time = times(table)[use] * 1e-9
    where = unit_vectors(numbers(table, "lat")[use], numbers(table, "lon")[use])
    platform = groups(report[use], station[use])
    fix = groups(platform, time, *where.T)
    _, first = np.unique(fix, return_index=True)
    order = first[np.lexsort((time[first], platform[first]))]
    wrong = _wrong_fixes(
        platform[order],
        time[order],
        where[order],
        speed[use][order],
        slack[use][order],
        p["passes"],
    )
    bad[use] = np.isin(fix, fix[order[wrong]])
    return bad


def _wrong_fixes(
    platform: NDArray, time: NDArray, where: NDArray, speed: NDArray, slack: NDArray, passes: int
) -> BoolArray:
    """Which of the fixes, sorted by platform and time, are wrong."""
    alive = np.arange(len(platform))
    wrong = np.zeros(len(platform), dtype=bool)
    for _ in range(passes):
        if len(alive) < 2:
            break
        near = platform[alive[1:]] == platform[alive[:-1]]
        chord = np.linalg.norm(where[alive[1:]] - where[alive[:-1]], axis=1)
        distance = 2.0 * _EARTH_RADIUS * np.arcsin(np.minimum(chord / 2.0, 1.0))
        allowed = speed[alive[1:]] * (time[alive[1:]] - time[alive[:-1]]) + slack[alive[1:]]
        excess = np.where(near, np.maximum(distance - allowed, 0.0), 0.0)
        if not excess.any():
            break
        goes = _worst(near, excess)
        wrong[alive[goes]] = True
        alive = alive[~goes]
    return wrong


def _worst(near: BoolArray, excess: NDArray) -> BoolArray:
    """Fixes to remove in this pass, from the links between consecutive fixes."""
    zero, none = np.zeros(1), np.zeros(1, dtype=bool)
    before, after = np.concatenate([zero, excess]), np.concatenate([excess, zero])
    has_before, has_after = np.concatenate([none, near]), np.concatenate([near, none])
    both = (before > 0) & (after > 0)
    # At an end, the fix is to blame only if its neighbour's other link is sound or absent.
    sound_next = np.append(~both[1:], True)
    sound_last = np.append(True, ~both[:-1])
    end = (~has_before & (after > 0) & sound_next) | (~has_after & (before > 0) & sound_last)
    score = np.where(both, before + after, 0.0)
    highest = (score >= np.append(0.0, score[:-1])) & (score >= np.append(score[1:], 0.0))
    goes = (both & highest) | end
    # One impossible link inside a track splits it; neither side is known to be right.
    lonely = (before > 0) ^ (after > 0)
    return goes if goes.any() else lonely
