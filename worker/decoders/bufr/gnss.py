"""Ground-based GNSS receivers: 307022, 307024; integrated water vapour of the column."""

from worker.decoders.bufr.block import Block, Reports, Values
from worker.decoders.bufr.stations import station_id
from worker.decoders.bufr.times import observation_time

__all__ = ["decode_gnss"]


def decode_gnss(block: Block) -> Reports:
    """Precipitable water 0 13 016, a column value in kg m-2."""
    return Reports(
        "gnss",
        station_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        block.first(7_030, 7_001),
        [Values("total_column_water_vapour", block.first(13_016), "column")],
    )
