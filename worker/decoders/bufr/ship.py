"""Ships: 308009 and older layouts with a call sign (0 01 011)."""

import numpy as np

from worker.decoders.bufr.block import Block, Reports
from worker.decoders.bufr.stations import station_id
from worker.decoders.bufr.surface import surface_values
from worker.decoders.bufr.times import observation_time

__all__ = ["decode_ship"]


def decode_ship(block: Block) -> Reports:
    """Surface values of ships; the platform stands at sea level unless it says otherwise."""
    return Reports(
        "ship",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.nan_to_num(block.first(7_030, 7_001)),
        surface_values(block, at_sea=True),
    )
