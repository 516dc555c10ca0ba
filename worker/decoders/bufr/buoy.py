"""Moored and drifting buoys: 315008, 315009, 308003 and sub-surface layouts with a surface value.

Drifting buoys report two date groups: of the nominal time and of the last known position.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Reports
from worker.decoders.bufr.stations import station_id
from worker.decoders.bufr.surface import bad_location, surface_values
from worker.decoders.bufr.times import observation_time

__all__ = ["decode_buoy"]


def decode_buoy(block: Block) -> Reports:
    """Surface values of buoys; rows of a dubious location are flagged."""
    values = surface_values(block, at_sea=True)
    dubious = bad_location(block)
    for item in values:
        item.preqc = dubious if item.preqc is None else item.preqc | dubious
    drifting = block.header.descriptors[0] == 315_009 or block.layout.has(22_060, 33_022, 1_012)
    return Reports(
        "drifter" if drifting else "buoy",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.nan_to_num(block.first(7_030, 7_001)),
        values,
    )
