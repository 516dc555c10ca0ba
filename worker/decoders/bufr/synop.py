"""Land stations: SYNOP (307080 to 307096, with WIGOS prefix or national additions), older ECMWF
and METAR layouts (307001 ff.)."""

from worker.decoders.bufr.block import Block, Reports
from worker.decoders.bufr.stations import station_id
from worker.decoders.bufr.surface import surface_values
from worker.decoders.bufr.times import observation_time

__all__ = ["decode_synop"]


def decode_synop(block: Block) -> Reports:
    """Surface values of fixed land stations."""
    return Reports(
        "synop",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        block.first(7_030, 7_001),
        surface_values(block, at_sea=False),
    )
