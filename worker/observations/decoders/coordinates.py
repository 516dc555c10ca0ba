"""Convert positions and levels to Pa and degrees; refuse implausible values in unstated units.

Tables and many netCDF files state no units. If their numbers are plausible only in another unit than
the usual one, the file is refused, and a decoder option can state the unit: pressures that are all
below 1100 are hPa rather than Pa, and positions that all lie within pi of 0N 0E, where there is no
land, are radians rather than degrees.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.domain.errors import DecodeError
from model.domain.physics import pressure_at_height
from worker.observations.columns import BoolArray
from worker.observations.decoders.base import DecodeReport

__all__ = ["degrees_factor", "has_place", "pascal_factor", "pressures_by_height"]

Floats = NDArray[np.float64]

_MAX_HPA = 1_100.0
_ON_LAND = ("synop", "temp", "pilot", "gnss", "profiler")
_AGREEMENT = 0.5
"""Largest difference in ln p between a level and the standard pressure at its height."""


def has_place(angle: Floats) -> BoolArray:
    """Return where a latitude or longitude is valid: -999, 999.999 and the like are fill values.

    Latitudes from 90 to 360 degrees pass; the domain check rejects them by name.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(angle) <= 360.0)


def pascal_factor(pressure: Floats, chosen: str | None, where: str) -> float:
    """Return the factor from pressures in unstated units to Pa.

    Arguments:
        pressure: Vertical coordinates, NaN where there is none.
        chosen: The sender's option `pressure_units`.
        where: Their name, for the error message.

    Raises:
        DecodeError: If all are below 1100 and no unit was chosen.
    """
    if chosen is not None:
        return 100.0 if chosen == "hPa" else 1.0
    known = pressure[np.isfinite(pressure) & (pressure > 0.0)]
    if not known.size or known.max() >= _MAX_HPA:
        return 1.0
    raise DecodeError(
        f"Expected {where} in Pa; got {known.size} from {known.min():g} to {known.max():g}, all "
        f"below {_MAX_HPA:g} as in hPa. Say which with the decoder option 'pressure_units': "
        "'hPa' or 'Pa'.",
        reason="invalid_table",
    )


def pressures_by_height(
    pressure: Floats, height: Floats, chosen: str | None, report: DecodeReport
) -> Floats:
    """Return pressures in Pa, distinguishing hPa from Pa by heights in m of the same rows.

    Raises:
        DecodeError: If all are below 1100 and there are no heights to decide.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log(pressure / pressure_at_height(height))
    ratio = ratio[np.isfinite(ratio)]
    low = not (pressure[np.isfinite(pressure)] >= _MAX_HPA).any()
    if chosen is None and low and ratio.size:
        if np.mean(np.abs(ratio + np.log(100.0)) < _AGREEMENT) >= 0.9:
            report.notes["pressures_were_hpa"] += int(np.isfinite(pressure).sum())
            return pressure * 100.0
        if np.mean(np.abs(ratio) < _AGREEMENT) >= 0.9:
            return pressure
    return pressure * pascal_factor(pressure, chosen, "column 'pres'")


def degrees_factor(
    lat: Floats,
    lon: Floats,
    chosen: str | None,
    report: DecodeReport,
    *,
    networks: NDArray[Any],
    stations: NDArray[Any],
) -> float:
    """Return the factor from positions in unstated units to degrees.

    A single station at sea may be within pi degrees of 0N 0E; that is only noted in the report, as
    `positions_within_pi`.

    Raises:
        DecodeError: If positions of several stations, or of a network on land, all look like radians
            and no unit was chosen.
    """
    if chosen is not None:
        return float(np.rad2deg(1.0)) if chosen == "radians" else 1.0
    known = np.isfinite(lat) & np.isfinite(lon) & ((lat != 0.0) | (lon != 0.0))
    edge = np.pi + 1e-6
    inside = (np.abs(lat) <= edge / 2.0) & (lon >= -edge) & (lon <= 2.0 * edge)
    if not known.any() or not inside[known].all():
        return 1.0
    several = len(set(stations[known].tolist())) > 1
    if not several and not np.isin(networks[known].astype(str), _ON_LAND).any():
        report.notes["positions_within_pi"] += int(known.sum())
        return 1.0
    raise DecodeError(
        f"Expected latitude and longitude in degrees; got {int(known.sum())} positions that all lie "
        "within pi, as in radians, where there is no land. Say which with the decoder option "
        "'angle_units': 'radians' or 'degrees'.",
        reason="invalid_table",
    )
