"""Scatterometer winds (312061)."""

import re

import numpy as np

from worker.decoders.units import wind_direction
from worker.encoders.bufr.message import MessageTemplate, calendar
from worker.encoders.bufr.reports import ReportTable

__all__ = ["SCATTEROMETER", "scatterometer"]

SCATTEROMETER = MessageTemplate((312_061,), 12, 0, {"": (2,)})


def scatterometer(reports: ReportTable) -> dict[str, np.ndarray | list[str] | float | str]:
    """Columns of wind cells; two solutions as instruments give them: the wind is the second."""
    u, v = reports.get("10m_u_component_of_wind"), reports.get("10m_v_component_of_wind")
    direction, speed = np.round(wind_direction(u, v), 1), np.hypot(u, v)
    satellite = [re.fullmatch(r"sat(\d+)", text) for text in reports.station_id]
    return {
        "#1#satelliteIdentifier": np.array([float(m.group(1)) if m else np.nan for m in satellite]),
        **calendar(reports.time),
        "#1#latitude": reports.lat,
        "#1#longitude": reports.lon,
        "#1#windVectorCellQuality": 0.0,
        "#1#numberOfVectorAmbiguities": 2.0,
        "#1#indexOfSelectedWindVector": 2.0,
        "#1#windSpeedAt10M": speed,
        "#1#windDirectionAt10M": (direction + 180.0) % 360.0,
        "#2#windSpeedAt10M": speed,
        "#2#windDirectionAt10M": direction,
    }
