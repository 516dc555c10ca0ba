"""Atmospheric motion vectors: 310077 (2018 on), 310014, 310195.

Only the first pressure, wind and position count: later ones are intermediate vectors, alternative
heights and the model's first guess. The quality indicator (QI) without forecast is preferred.
"""

import numpy as np

from worker.decoders.bufr.block import Block, Reports, Values
from worker.decoders.bufr.stations import satellite_id
from worker.decoders.bufr.times import observation_time
from worker.decoders.units import wind_components

__all__ = ["LOWEST_QI", "decode_amv"]

LOWEST_QI = 60.0
"""Vectors below this quality in percent are flagged (EUMETSAT: Best practice for AMV users)."""

_METHODS = {
    1: "infrared",
    2: "visible",
    3: "water-vapour-cloud",
    4: "combined",
    5: "water-vapour-clear",
    6: "ozone",
    7: "water-vapour",
}
_WITHOUT_FORECAST, _WITH_FORECAST = (5, 2), (6, 1)


def decode_amv(block: Block) -> Reports:
    """Wind at the assigned pressure."""
    u, v = wind_components(block.first(11_002), block.first(11_001))
    at = block.layout.first(11_003), block.layout.first(11_004)
    u = np.where(np.isnan(u), block.at(at[0]), u)
    v = np.where(np.isnan(v), block.at(at[1]), v)
    pressure = block.at(block.layout.first(7_004))
    poor = quality(block) < LOWEST_QI
    methods = block.first(2_023)
    return Reports(
        "amv",
        satellite_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.full(len(block), np.nan),
        [
            Values("u_component_of_wind", u, "pressure", pressure, preqc=poor),
            Values("v_component_of_wind", v, "pressure", pressure, preqc=poor),
        ],
        platform=[_METHODS.get(m, "") for m in methods.tolist()],
    )


def quality(block: Block) -> np.ndarray:
    """Quality indicator in percent, shape (N,); NaN where none is given."""
    inside = block.layout.where(33_007)
    if inside.size:
        return _by_application(block, inside)
    # Older layouts describe chosen elements after 2 22 000; direction and speed come first.
    after = np.flatnonzero(block.layout.all_codes == 33_007)
    return block.at(int(after[0])) if after.size else np.full(len(block), np.nan)


def _by_application(block: Block, positions: np.ndarray) -> np.ndarray:
    result = np.full(len(block), np.nan)
    given = [(block.effective(int(at), 1_044), block.at(int(at))) for at in positions]
    for wanted in (*_WITHOUT_FORECAST, *_WITH_FORECAST):
        for application, percent in given:
            result = np.where(np.isnan(result) & (application == wanted), percent, result)
    return np.where(np.isnan(result), given[0][1], result)
