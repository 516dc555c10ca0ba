"""The earth2studio observation frame: time, lat, lon, observation, variable, and what goes with it.

Names of variables follow earth2studio's lexicon (`t2m`, `u10m`, `t500`, `u`); pressures are in Pa,
heights in m, longitudes from 0 to 360, times in UTC without a zone.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from worker.decoders.base import DecodeContext, Decoded
from worker.decoders.frame import decode_frame
from worker.decoders.report import DecodeReport

__all__ = ["decode_earth2studio", "is_earth2studio"]

_SURFACE = {
    "t2m": "2m_temperature",
    "d2m": "2m_dewpoint_temperature",
    "r2m": "2m_relative_humidity",
    "u10m": "10m_u_component_of_wind",
    "v10m": "10m_v_component_of_wind",
    "ws10m": "10m_wind_speed",
    "sp": "surface_pressure",
    "msl": "mean_sea_level_pressure",
    "sst": "sea_surface_temperature",
    "tcwv": "total_column_water_vapour",
}
_UPPER = {
    "t": "temperature",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "z": "geopotential",
    "q": "specific_humidity",
    "r": "relative_humidity",
    "ws": "wind_speed",
}
_PRESSURE_VARIABLES = {"pres": "surface_pressure"}
_AT_LEVEL = re.compile(r"([a-z]+)(\d{1,4})")
_IGNORED = (
    "type", "class", "quality", "scan_angle", "channel_index", "solza", "solaza", "satellite_za",
    "satellite_aza", "source",
)  # fmt: skip


def is_earth2studio(names: Mapping[str, Any] | list[str]) -> bool:
    """Whether columns are those of such a frame."""
    return {"time", "lat", "lon", "observation", "variable"} <= set(names)


def decode_earth2studio(
    columns: Mapping[str, pa.ChunkedArray], context: DecodeContext, report: DecodeReport
) -> Decoded:
    """Rows from the frame; variables outside our vocabulary are counted one by one.

    Accumulated precipitation is left out: the frame does not say over which time.
    """
    own = {"time": columns["time"], "lat": columns["lat"], "lon": columns["lon"]}
    own["obs_value"] = columns["observation"]
    names = [str(n) for n in _text(columns["variable"])]
    split = {name: _split(name) for name in set(names)}
    own["variable"] = pa.array([split[n][0] for n in names], pa.string())
    level = np.array([split[n][1] for n in names], dtype=np.float64)
    upper = np.array([split[n][0] in _UPPER.values() for n in names], dtype=bool)
    pressure = np.where(np.isfinite(level), level * 100.0, _numbers(columns, "pres", len(names)))
    height = _numbers(columns, "elev", len(names))
    by_pressure = upper & np.isfinite(pressure)
    by_height = upper & ~by_pressure & np.isfinite(height)
    kind = np.where(by_pressure, "pressure", np.where(by_height, "height", "surface"))
    vertical = np.where(by_pressure, pressure, np.where(by_height, height, np.nan))
    own["vertical_kind"] = pa.array(kind, pa.string())
    own["vertical"] = pa.array(vertical, pa.float64(), from_pandas=True)
    station = _numbers(columns, "station_elev", len(names))
    elevation = np.where(np.isfinite(station), station, np.where(upper, np.nan, height))
    own["elevation"] = pa.array(elevation, pa.float64(), from_pandas=True)
    for theirs, ours in (("station", "station_id"), ("satellite", "platform")):
        if theirs in columns:
            own[ours] = columns[theirs]
    for name in _IGNORED:
        if name in columns:
            report.notes[f"ignored_column_{name}"] += 1
    return decode_frame(own, context, report)


def _split(name: str) -> tuple[str, float]:
    """Our variable and the level in hPa in an earth2studio name; the name itself if unknown."""
    if name in _SURFACE:
        return _SURFACE[name], np.nan
    if name in _PRESSURE_VARIABLES:
        return _PRESSURE_VARIABLES[name], np.nan
    if name in _UPPER:
        return _UPPER[name], np.nan
    found = _AT_LEVEL.fullmatch(name)
    if found and found[1] in _UPPER:
        return _UPPER[found[1]], float(found[2])
    return f"earth2studio:{name}", np.nan


def _text(column: pa.ChunkedArray) -> list[Any]:
    return column.cast(pa.string()).to_pylist()


def _numbers(columns: Mapping[str, pa.ChunkedArray], name: str, length: int) -> np.ndarray:
    if name not in columns:
        return np.full(length, np.nan)
    values = pd.to_numeric(columns[name].to_pandas(), errors="coerce")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)
