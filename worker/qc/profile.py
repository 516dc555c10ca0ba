"""Vertical consistency of ascents: the hydrostatic equation and temperature spikes.

Residual of the layer between levels i and i+1, from temperature and geopotential alone:

    r_i = (Phi_{i+1} - Phi_i) - R_d (Tv_i + Tv_{i+1}) / 2 * ln(p_i / p_{i+1})

A wrong Phi at level i shows as residuals of opposite sign below and above it, a wrong T as
residuals of equal sign. After Collins and Gandin, "Comprehensive hydrostatic quality control at
the National Meteorological Center" (1990), Mon. Wea. Rev. 118.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.columns import BoolArray, codes, groups, is_one_of, kept, numbers
from worker.qc.context import QCContext

__all__ = ["profile"]

_DRY_GAS_CONSTANT = 287.0597  # J kg-1 K-1
_VIRTUAL = 0.608  # R_v / R_d - 1


@dataclass(frozen=True)
class _Levels:
    """Levels of all ascents, each from the ground up, with shape (levels,); NaN where absent."""

    number: NDArray[np.int64]
    ascent: NDArray[np.int64]
    pressure: NDArray[np.float64]
    temperature: NDArray[np.float64]
    geopotential: NDArray[np.float64]
    humidity: NDArray[np.float64]

    def take(self, rows: NDArray) -> "_Levels":
        return _Levels(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def profile(table: pa.Table, context: QCContext) -> BoolArray:
    """Temperatures and geopotentials of ascents that contradict each other or their neighbours."""
    p = context.of("profile")
    bad = np.zeros(len(table), dtype=bool)
    use = kept(table) & is_one_of(table, "vertical_kind", ["pressure"])
    use &= np.isfinite(numbers(table, "profile_id")) & (numbers(table, "vertical") > 0.0)
    rows = np.flatnonzero(use)
    if not len(rows):
        return bad
    sub = table.take(rows)
    levels, number = _levels(sub)
    wrong_t, wrong_z = _hydrostatic(levels, p)
    wrong_t |= _spikes(levels, p)
    for variable, wrong in (("temperature", wrong_t), ("geopotential", wrong_z)):
        is_variable = is_one_of(sub, "variable", [variable])
        bad[rows[is_variable & np.isin(number, levels.number[wrong])]] = True
    return bad


def _levels(sub: pa.Table) -> tuple[_Levels, NDArray[np.int64]]:
    """The levels sorted upwards, and the number of each row's level."""
    ascent = groups(codes(sub, "batch_id")[0], numbers(sub, "profile_id"))
    pressure, value = numbers(sub, "vertical"), numbers(sub, "obs_value")
    number = groups(ascent, pressure)
    _, first = np.unique(number, return_index=True)
    columns = {}
    for name in ("temperature", "geopotential", "specific_humidity"):
        rows = is_one_of(sub, "variable", [name])
        columns[name] = np.full(len(first), np.nan)
        columns[name][number[rows]] = value[rows]
    levels = _Levels(
        np.arange(len(first)),
        ascent[first],
        pressure[first],
        columns["temperature"],
        columns["geopotential"],
        columns["specific_humidity"],
    )
    return levels.take(np.lexsort((-levels.pressure, levels.ascent))), number


def _hydrostatic(all_levels: _Levels, p: dict) -> tuple[BoolArray, BoolArray]:
    """Levels whose temperature, and whose geopotential, is wrong."""
    wrong_t = np.zeros(len(all_levels.number), dtype=bool)
    wrong_z = wrong_t.copy()
    both = np.flatnonzero(np.isfinite(all_levels.temperature + all_levels.geopotential))
    if len(both) < 2:
        return wrong_t, wrong_z
    levels = all_levels.take(both)
    depth = np.log(levels.pressure[:-1] / levels.pressure[1:])
    virtual = levels.temperature * (1.0 + _VIRTUAL * np.nan_to_num(levels.humidity, nan=0.0))
    mean = (virtual[1:] + virtual[:-1]) / 2.0
    residual = np.diff(levels.geopotential) - _DRY_GAS_CONSTANT * mean * depth
    tolerance = p["height_tolerance"] + _DRY_GAS_CONSTANT * p["temperature_tolerance"] * depth
    linked = levels.ascent[1:] == levels.ascent[:-1]
    excess = np.where(linked & (np.abs(residual) > tolerance), residual, 0.0)
    below, above = np.append(0.0, excess), np.append(excess, 0.0)
    height = below * above < 0.0
    temperature = below * above > 0.0
    blamed = height | temperature
    # A layer with a fault that no level between two bad layers explains: an end of the ascent goes
    # alone, inside it both levels go.
    open_layer = (excess != 0.0) & ~blamed[:-1] & ~blamed[1:]
    bottom = np.append(True, ~linked)
    top = np.append(~linked, True)
    end = open_layer & (bottom[:-1] | top[1:])
    either = np.zeros(len(both), dtype=bool)
    either[:-1] |= open_layer & (bottom[:-1] | ~end)
    either[1:] |= open_layer & (top[1:] | ~end)
    wrong_t[both] = temperature | either
    wrong_z[both] = height | either
    return wrong_t, wrong_z


def _spikes(all_levels: _Levels, p: dict) -> BoolArray:
    """Temperatures far from the line in ln p through the level below and the one above."""
    wrong = np.zeros(len(all_levels.number), dtype=bool)
    rows = np.flatnonzero(np.isfinite(all_levels.temperature))
    if len(rows) < 3:
        return wrong
    levels = all_levels.take(rows)
    t, x = levels.temperature, np.log(levels.pressure)
    span = x[:-2] - x[2:]
    line = t[2:] + (t[:-2] - t[2:]) * (x[1:-1] - x[2:]) / np.where(span > 0.0, span, 1.0)
    same = (levels.ascent[:-2] == levels.ascent[2:]) & (span > 0.0) & (span < p["spike_depth"])
    off = np.where(same, np.abs(t[1:-1] - line), 0.0)
    # The neighbours of a spike lie off their own lines too, by half as much: the worst goes.
    worst = (off >= np.append(0.0, off[:-1])) & (off >= np.append(off[1:], 0.0))
    wrong[rows[1:-1]] = (off > p["spike"]) & worst
    return wrong
