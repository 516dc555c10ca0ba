"""Wind profilers and radar winds: 309020, 321021/321022 and older layouts by height.

A level begins at its height: 0 07 007 above mean sea level or 0 07 006 above the station.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Reports, Values
from worker.decoders.bufr.stations import station_id
from worker.decoders.bufr.times import observation_time
from worker.decoders.units import GRAVITY, wind_components

__all__ = ["decode_profiler"]


def decode_profiler(block: Block) -> Reports:
    """Wind components by height in m above mean sea level."""
    elevation = block.first(7_030, 7_001)
    anchors, height = _heights(block, elevation)
    layout = block.layout
    speed_at, direction_at = (layout.after_each(anchors, c) for c in (11_002, 11_001))
    u, v = wind_components(block.at_each(speed_at), block.at_each(direction_at))
    u_at, v_at = (layout.after_each(anchors, c) for c in (11_003, 11_004))
    u = np.where(np.isnan(u), block.at_each(u_at), u)
    v = np.where(np.isnan(v), block.at_each(v_at), v)
    suspect = np.logical_or.reduce(
        [block.suspect(at) for at in (speed_at, direction_at, u_at, v_at)]
    )
    return Reports(
        "profiler",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        elevation,
        [
            Values("u_component_of_wind", u, "height", height, preqc=suspect),
            Values("v_component_of_wind", v, "height", height, preqc=suspect),
        ],
        profile=True,
    )


def _heights(block: Block, elevation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions at which levels begin and their heights above mean sea level, (K,) and (N, K)."""
    for code in (7_007, 7_006, 7_009, 10_007, 7_003):
        anchors = block.layout.where(code)
        if not anchors.size:
            continue
        height = block.at_each(anchors)
        if code == 7_006:
            height = height + elevation[:, None]
        return anchors, height / GRAVITY if code == 7_003 else height
    return np.empty(0, dtype=np.int64), np.empty((len(block), 0))
