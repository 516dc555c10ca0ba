"""Physically plausible products without a model: smooth fields with known forms and random members."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np

from model.domain.grids import Grid
from model.domain.observations import FEEDBACK_SCHEMA, empty_table
from model.domain.variables import LEVELS_T31, channels
from model.domain.windows import AssimilationWindow
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.results.outputs.product import Product

T31 = Grid("t31", "gaussian", 48, 96)
TINY = Grid("tiny", "regular", 7, 12)
NOON = datetime(2025, 3, 20, 12, tzinfo=UTC)


def _wave(grid: Grid, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Waves of wavenumbers 1 to 6 with random phases, of order one, with shape (*, Y, X)."""
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    total = np.zeros((*shape, *grid.shape))
    for k in range(1, 7):
        a, b = rng.uniform(0, 2 * np.pi, (2, *shape, 1, 1))
        total += np.cos(k * lon + a) * np.cos(k * lat + b) * np.cos(lat) / k
    return total


@cache
def make_states(
    grid: Grid, times: int, members: int, levels: tuple[int, ...] = LEVELS_T31, seed: int = 0
) -> np.ndarray:
    """States with the size and variability of the atmosphere, shape (M, T, C, Y, X), float32."""
    rng = np.random.default_rng(seed)
    mu = np.sin(np.deg2rad(grid.latitude))[:, None] * np.ones(grid.nlon)
    fields = []
    for channel in channels(levels):
        common = _wave(grid, rng, (1, times))
        noise = _wave(grid, rng, (members, times))
        p = channel.level
        base, size, error = {
            "2m_temperature": (300 - 45 * mu**2, 6.0, 0.8),
            "10m_u_component_of_wind": (6 * np.cos(3 * np.arcsin(mu)), 5.0, 1.2),
            "10m_v_component_of_wind": (0 * mu, 4.0, 1.2),
            "mean_sea_level_pressure": (101300 - 800 * mu**2, 900.0, 90.0),
            "sea_surface_temperature": (301 - 28 * mu**2, 1.0, 0.1),
            "total_precipitation": (0 * mu - 2e-4, 6e-4, 1e-4),
            "temperature": (285 - 60 * mu**2 - 12 * np.log(1000 / (p or 1000)) ** 1.3, 5.0, 0.7),
            "u_component_of_wind": (25 * (1 - mu**2) * np.abs(mu) * 2, 9.0, 1.5),
            "v_component_of_wind": (0 * mu, 8.0, 1.5),
            "geopotential": (
                9.80665 * 7400 * np.log(1000 / (p or 1000)) * (1 - 0.08 * mu**2),
                700,
                80,
            ),
            "specific_humidity": (0.016 * (1 - mu**2) * ((p or 1000) / 1000) ** 3, 1e-3, 2e-4),
        }[channel.variable]
        field = base + size * common + error * noise
        if channel.variable == "sea_surface_temperature":
            field = np.where(_land(grid), np.nan, field)
        fields.append(field)
    return np.stack(fields, axis=2).astype(np.float32)


def _land(grid: Grid) -> np.ndarray:
    """A round continent at 0 to 60 N, 40 to 110 E."""
    lat, lon = grid.latitude[:, None], grid.longitude
    return (lat > 0) & (lat < 60) & (lon > 40) & (lon < 110)


def make_product(
    grid: Grid = T31,
    *,
    members: int = 4,
    times: int = 1,
    kind: str = "filtering",
    levels: tuple[int, ...] = LEVELS_T31,
    spec: dict[str, Any] | None = None,
    **changes: Any,
) -> Product:
    """A finished job; `changes` replace fields of the product, `spec` those of the job's spec."""
    if kind == "forecast":
        asked = ForecastSpec(valid_time=NOON, lead_hours=times, members=members, **(spec or {}))
        valid = tuple(NOON + timedelta(hours=i + 1) for i in range(times))
    else:
        asked = FilteringSpec(
            valid_time=NOON, write_hours=times, window_hours=24, members=members, **(spec or {})
        )
        valid = tuple(NOON - timedelta(hours=times - 1 - i) for i in range(times))
    job = JobRecord(id="j1", spec=asked, analysis_id="a1")
    states = make_states(grid, times, members, levels)
    values = {
        "job": job,
        "times": valid,
        "states": states,
        "background": None if kind == "forecast" else make_states(grid, times, members, levels, 1),
        "grid": grid,
        "channels": channels(levels),
        "window": None
        if kind == "forecast"
        else AssimilationWindow(NOON - timedelta(hours=24), NOON),
        "feedback": empty_table(FEEDBACK_SCHEMA),
        "counts": {} if kind == "forecast" else {"used": 812, "background_check": 9},
        "background_info": {"source": "previous_analysis", "age_hours": 1},
        "provenance": {
            "checkpoint": "t31",
            "checkpoint_sha256": "ab" * 32,
            "code_version": "0.1.0",
            "seeds": [100 + m for m in range(members)],
            "configuration": {"steps": 8, "guidance": "mmps"},
            "observations_sha256": "cd" * 32,
        },
        "flags": ("simulated",),
        **changes,
    }
    return Product(**values)
