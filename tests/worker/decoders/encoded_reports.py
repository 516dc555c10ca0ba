"""Tables of every network, made by rule, and BUFR files of them written by our own encoders."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from bufr_messages import CONTEXT

from lab.encoders.bufr import encode_bufr
from worker.observations.columns import build_table, concat_tables

N = 12
HOUR = np.datetime64("2026-03-01T06:00", "ns")
MINUTE = np.timedelta64(60, "s")
WIND10 = ("10m_u_component_of_wind", "10m_v_component_of_wind")
WIND = ("u_component_of_wind", "v_component_of_wind")
STATIONS = {
    "synop": [f"10{n:03d}" for n in range(N)],
    "ship": [f"CALL{n}" for n in range(N)],
    "buoy": [f"62{n:05d}" for n in range(N)],
    "drifter": [f"62{n:05d}" for n in range(N)],
    "aircraft": [f"EU{n:04d}" for n in range(N)],
    "amv": ["sat057"] * N,
    "scatterometer": ["sat004"] * N,
}


def observed(report_type: str) -> dict[str, np.ndarray]:
    """Smooth values of what a network observes."""
    x = np.arange(N)
    wind = {"u": 12.0 * np.cos(x), "v": -9.0 * np.sin(x)}
    if report_type in ("aircraft", "amv"):
        found = dict(zip(WIND, wind.values(), strict=True))
        if report_type == "aircraft":
            found |= {"temperature": 220.0 + 5.03 * x, "specific_humidity": 1e-4 * (x + 1)}
        return found
    found = dict(zip(WIND10, wind.values(), strict=True))
    if report_type == "scatterometer":
        return found
    found |= {
        "2m_temperature": 260.0 + 3.17 * x,
        "surface_pressure": 97_000.0 + 130.0 * x,
        "mean_sea_level_pressure": 99_000.0 + 110.0 * x,
    }
    if report_type == "synop":
        found |= {"2m_dewpoint_temperature": 255.0 + 3.0 * x, "2m_relative_humidity": 0.05 * (x + 1),
                  "total_precipitation": 0.0003 * x}  # fmt: skip
    else:
        found["sea_surface_temperature"] = 280.0 + 1.5 * x
    return found


def observations(report_type: str) -> pa.Table:
    upper = report_type in ("aircraft", "amv")
    parts = [
        build_table(
            CONTEXT, N, report_type=report_type, station_id=STATIONS[report_type],
            time=HOUR + np.arange(N) * MINUTE, lat=np.linspace(-70, 70, N).round(2),
            lon=np.linspace(-179, 179, N).round(2), elevation=np.full(N, 40.0),
            vertical_kind="pressure" if upper else "surface",
            vertical=np.linspace(20_000, 90_000, N).round(-1) if upper else None,
            variable=variable, obs_value=value,
            platform="infrared" if report_type == "amv" else "",
        )
        for variable, value in observed(report_type).items()
    ]  # fmt: skip
    return concat_tables(parts)


def ascent() -> pa.Table:
    pressure = np.array([100_000.0, 92_500.0, 85_000.0, 60_100.0, 30_000.0])
    levels = len(pressure)
    columns = {
        "temperature": 288.0 - 10.0 * np.arange(levels),
        "specific_humidity": np.array([8e-3, 6e-3, 3e-3, 5e-4, 2e-5]),
        "u_component_of_wind": np.linspace(0.0, 40.0, levels),
        "v_component_of_wind": np.linspace(0.0, -5.0, levels),
        "geopotential": np.array([110.0, 780.0, 1_500.0, 4_200.0, 9_300.0]) * 9.80665,
    }
    # Rows from the top down: the encoder sorts them.
    return concat_tables([
        build_table(
            CONTEXT, levels, report_type="temp", station_id="10384", profile_id=np.zeros(levels, int),
            time=(HOUR + np.arange(levels) * 5 * MINUTE)[::-1], lat=np.linspace(50.0, 50.2, levels)[::-1],
            lon=np.linspace(10.0, 10.5, levels)[::-1], elevation=95.0, vertical_kind="pressure",
            vertical=pressure[::-1], variable=variable, obs_value=value[::-1],
        )
        for variable, value in columns.items()
    ])  # fmt: skip


def write_file(folder: Path, report_type: str) -> Path:
    """Encode a network's reports into one file, in compressed messages of five reports."""
    table = ascent() if report_type == "temp" else observations(report_type)
    path = folder / f"{report_type}.bufr"
    path.write_bytes(encode_bufr(table, report_type, 5, True))
    return path
