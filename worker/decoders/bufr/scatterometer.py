"""Scatterometer winds: 312061 (ASCAT), 312028 and relatives.

A cell holds several wind solutions; 0 21 102 is the number of the selected one, from 1. The
model wind 0 11 081/0 11 082 in the same report is no observation.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Reports, Values
from worker.decoders.bufr.stations import satellite_id
from worker.decoders.bufr.times import observation_time
from worker.decoders.units import wind_components

__all__ = ["decode_scatterometer"]

_REJECTING_BITS = (17, 15, 14, 13)
"""Bits of 0 21 155 counted from the lowest (KNMI): quality control failed, land, ice, no
inversion."""


def decode_scatterometer(block: Block) -> Reports:
    """Wind at 10 m of the selected solution."""
    u, v = wind_components(selected(block, 11_012), selected(block, 11_011))
    flags = np.nan_to_num(block.first(21_155)).astype(np.int64)
    bad = (flags & sum(1 << bit for bit in _REJECTING_BITS)) != 0
    return Reports(
        "scatterometer",
        satellite_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.zeros(len(block)),
        [
            Values("10m_u_component_of_wind", u, preqc=bad),
            Values("10m_v_component_of_wind", v, preqc=bad),
        ],
    )


def selected(block: Block, code: int) -> np.ndarray:
    """The element of the selected solution, shape (N,); NaN where none is selected."""
    index_at = block.layout.first(21_102)
    positions = block.layout.where(code)
    solutions = block.at_each(positions[positions > index_at])
    number = np.nan_to_num(block.at(index_at)).astype(np.int64)
    valid = (number >= 1) & (number <= solutions.shape[1])
    picked = (
        solutions[np.arange(len(block)), np.where(valid, number - 1, 0)]
        if len(solutions.T)
        else np.full(len(block), np.nan)
    )
    return np.where(valid, picked, np.nan)
