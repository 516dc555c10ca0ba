"""Check series and profiles: speed along a track, stuck sensors, vertical consistency of ascents.

A position (fix) of a ship, buoy or aircraft that implies an impossible speed is rejected.

Humidity is checked against the temperature of the same report and level.

Ascents are checked with the hydrostatic equation and for temperature spikes. Residual of the
layer between levels i and i+1, from temperature and geopotential alone:

    r_i = (Phi_{i+1} - Phi_i) - R_d (Tv_i + Tv_{i+1}) / 2 * ln(p_i / p_{i+1})

A wrong Phi at level i shows as residuals of opposite sign below and above it, a wrong T as
residuals of equal sign. After Collins and Gandin, "Comprehensive hydrostatic quality control at
the National Meteorological Center" (1990), Mon. Wea. Rev. 118.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.grids import unit_vectors
from model.domain.physics import (
    GAS_CONSTANT_DRY,
    dewpoint_from_specific_humidity,
    virtual_temperature,
)
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    groups,
    is_one_of,
    not_rejected,
    row_pressure,
    rows_of,
    time_column,
)
from worker.observations.qc.base import QCContext
from worker.observations.qc.names import distances, nameless
from worker.observations.stations import station_codes

__all__ = ["profile", "stuck", "supersaturation", "track"]

Floats = NDArray[np.float64]


def track(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark all values of a fix that its platform cannot have reached or left in time.

    The link between consecutive fixes of a platform is impossible if the distance exceeds speed times
    time plus a tolerance for rounded positions. A fix between two impossible links is rejected, the
    worst first; at an end of the track the last fix is rejected; of only two fixes neither is trusted.
    """
    p = context.of("track")
    report, names = category_codes(table, "report_type")
    station = station_codes(table)[0]
    speed = np.array([p["speed"].get(n, np.nan) for n in names] or [np.nan])[report]
    slack = np.array([p["slack_km"].get(n, 0.0) for n in names] or [0.0])[report] * 1e3
    use = np.flatnonzero(not_rejected(table) & np.isfinite(speed) & ~nameless(table, context))
    bad = np.zeros(len(table), dtype=bool)
    if not len(use):
        return bad
    time = time_column(table)[use] * 1e-9
    where = unit_vectors(float_column(table, "lat")[use], float_column(table, "lon")[use])
    platform = groups(report[use], station[use])
    fix = groups(platform, time, *where.T)
    _, first = np.unique(fix, return_index=True)
    order = first[np.lexsort((time[first], platform[first]))]
    wrong = _wrong_fixes(
        platform[order],
        time[order],
        where[order],
        speed[use][order],
        slack[use][order],
        float_column(table, "profile_id")[use][order],
        p["passes"],
    )
    bad[use] = np.isin(fix, fix[order[wrong]])
    return bad


def _wrong_fixes(
    platform: NDArray[Any],
    time: NDArray[Any],
    where: NDArray[Any],
    speed: NDArray[Any],
    slack: NDArray[Any],
    profile: NDArray[Any],
    passes: int,
) -> BoolArray:
    """Return which of the fixes, sorted by platform and time, are wrong.

    Levels of one profile may share the time of its report (aircraft, 311009): no link is between them.
    """
    alive = np.arange(len(platform))
    wrong = np.zeros(len(platform), dtype=bool)
    for _ in range(passes):
        if len(alive) < 2:
            break
        near = platform[alive[1:]] == platform[alive[:-1]]
        distance = distances(where[alive[1:]], where[alive[:-1]])
        later = time[alive[1:]] - time[alive[:-1]]
        allowed = speed[alive[1:]] * later + slack[alive[1:]]
        linked = near & ~((later == 0.0) & (profile[alive[1:]] == profile[alive[:-1]]))
        excess = np.where(linked, np.maximum(distance - allowed, 0.0), 0.0)
        if not excess.any():
            break
        goes = _worst(near, excess)
        wrong[alive[goes]] = True
        alive = alive[~goes]
    return wrong


def _worst(near: BoolArray, excess: NDArray[Any]) -> BoolArray:
    """Return the fixes to remove in this pass, from the links between consecutive fixes."""
    zero, none = np.zeros(1), np.zeros(1, dtype=bool)
    before, after = np.concatenate([zero, excess]), np.concatenate([excess, zero])
    has_before, has_after = np.concatenate([none, near]), np.concatenate([near, none])
    both = (before > 0) & (after > 0)
    # At an end, the fix is to blame only if its neighbour's other link is sound or absent.
    sound_next = np.append(~both[1:], True)
    sound_last = np.append(True, ~both[:-1])
    end = (~has_before & (after > 0) & sound_next) | (~has_after & (before > 0) & sound_last)
    score = np.where(both, before + after, 0.0)
    highest = (score >= np.append(0.0, score[:-1])) & (score >= np.append(score[1:], 0.0))
    goes = (both & highest) | end
    # One impossible link inside a track splits it; neither side is known to be right.
    lonely = (before > 0) ^ (after > 0)
    return goes if goes.any() else lonely


_HOUR = 3_600_000_000_000


def stuck(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark values that stay exactly equal over enough consecutive reports and hours of one station."""
    p = context.of("stuck")
    bad = np.zeros(len(table), dtype=bool)
    variable, names = category_codes(table, "variable")
    value, time = float_column(table, "obs_value"), time_column(table)
    network, station = category_codes(table, "report_type")[0], station_codes(table)[0]
    good = not_rejected(table) & np.isfinite(value)
    if p["ignore_zero"]:
        good &= value != 0.0
    for name, limit in p["variables"].items():
        if name not in names:
            continue
        rows = np.flatnonzero(good & (variable == names.index(name)))
        if len(rows):
            series = groups(network[rows], station[rows])
            bad[rows] = _repeats(series, time[rows], value[rows], limit["count"], limit["hours"])
    return bad


def _repeats(
    series: np.ndarray, time: np.ndarray, value: np.ndarray, count: int, hours: float
) -> BoolArray:
    order = np.lexsort((time, series))
    s, t, v = series[order], time[order], value[order]
    starts = np.append(True, (s[1:] != s[:-1]) | (v[1:] != v[:-1]))
    run = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(s)) - 1
    # Distinct times count: one report may hold a value twice.
    steps = np.append(True, (t[1:] != t[:-1]) | starts[1:])
    length = np.bincount(run, weights=steps)
    long = (length >= count) & (t[last] - t[first] >= hours * _HOUR)
    bad = np.zeros(len(s), dtype=bool)
    bad[order] = long[run]
    return bad


@dataclass(frozen=True)
class _Levels:
    """Levels of all ascents, each from the ground up, with shape (levels,); NaN where absent."""

    number: NDArray[np.int64]
    ascent: NDArray[np.int64]
    pressure: NDArray[np.float64]
    temperature: NDArray[np.float64]
    geopotential: NDArray[np.float64]
    humidity: NDArray[np.float64]

    def take(self, rows: NDArray[Any]) -> "_Levels":
        return _Levels(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def profile(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark temperatures and geopotentials of ascents that contradict each other or their neighbours."""
    p = context.of("profile")
    bad = np.zeros(len(table), dtype=bool)
    use = not_rejected(table) & is_one_of(table, "vertical_kind", ["pressure"])
    use &= np.isfinite(float_column(table, "profile_id")) & (float_column(table, "vertical") > 0.0)
    rows = np.flatnonzero(use)
    if not len(rows):
        return bad
    sub = rows_of(table, rows)
    levels, number = _levels(sub)
    wrong_t, wrong_z = _hydrostatic(levels, p)
    wrong_t |= _spikes(levels, p)
    for variable, wrong in (("temperature", wrong_t), ("geopotential", wrong_z)):
        is_variable = is_one_of(sub, "variable", [variable])
        bad[rows[is_variable & np.isin(number, levels.number[wrong])]] = True
    return bad


def _levels(sub: pa.Table) -> tuple[_Levels, NDArray[np.int64]]:
    """Return the levels sorted upwards, and the number of each row's level."""
    ascent = groups(category_codes(sub, "batch_id")[0], float_column(sub, "profile_id"))
    pressure, value = float_column(sub, "vertical"), float_column(sub, "obs_value")
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


def _hydrostatic(all_levels: _Levels, p: Mapping[str, Any]) -> tuple[BoolArray, BoolArray]:
    """Return the levels whose temperature, and whose geopotential, is wrong."""
    wrong_t = np.zeros(len(all_levels.number), dtype=bool)
    wrong_z = wrong_t.copy()
    both = np.flatnonzero(np.isfinite(all_levels.temperature + all_levels.geopotential))
    if len(both) < 2:
        return wrong_t, wrong_z
    levels = all_levels.take(both)
    depth = np.log(levels.pressure[:-1] / levels.pressure[1:])
    virtual = virtual_temperature(levels.temperature, np.nan_to_num(levels.humidity, nan=0.0))
    mean = (virtual[1:] + virtual[:-1]) / 2.0
    residual = np.diff(levels.geopotential) - GAS_CONSTANT_DRY * mean * depth
    tolerance = p["height_tolerance"] + GAS_CONSTANT_DRY * p["temperature_tolerance"] * depth
    linked = levels.ascent[1:] == levels.ascent[:-1]
    excess = np.where(linked & (np.abs(residual) > tolerance), residual, 0.0)
    below, above = np.append(0.0, excess), np.append(excess, 0.0)
    height = below * above < 0.0
    temperature = below * above > 0.0
    blamed = height | temperature
    # A bad layer that no level between two bad layers explains: at an end of the ascent the end level
    # is rejected, elsewhere both levels.
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


def _spikes(all_levels: _Levels, p: Mapping[str, Any]) -> BoolArray:
    """Return the temperatures far from the line in ln p through the level below and the one above."""
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
    # The neighbours of a spike deviate, too, by half as much: reject the worst.
    worst = (off >= np.append(0.0, off[:-1])) & (off >= np.append(off[1:], 0.0))
    wrong[rows[1:-1]] = (off > p["spike"]) & worst
    return wrong


_BESIDE = {"2m_dewpoint_temperature": "2m_temperature", "specific_humidity": "temperature"}
"""Temperature in the same report and at the same level, by humidity."""


def supersaturation(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark humidities whose dewpoint exceeds the temperature of the same level by more than `excess`.

    Air is hardly ever supersaturated over water; a dewpoint above the temperature is a fill value, or
    another quantity. Without a temperature in the same report nothing is marked.
    """
    excess = context.of("supersaturation")["excess"]
    variable, names = category_codes(table, "variable")
    bad = np.zeros(len(table), dtype=bool)
    for humidity, temperature in _BESIDE.items():
        if humidity not in names or temperature not in names:
            continue
        moist, warm = (variable == names.index(name) for name in (humidity, temperature))
        rows = np.flatnonzero((moist | warm) & not_rejected(table))
        sub = rows_of(table, rows)
        value, moist, warm = float_column(sub, "obs_value"), moist[rows], warm[rows]
        beside = _beside(sub, np.where(warm, value, np.nan))
        dewpoint = value
        if humidity == "specific_humidity":
            dewpoint = dewpoint_from_specific_humidity(value, row_pressure(sub))
        with np.errstate(invalid="ignore"):
            bad[rows] |= moist & (dewpoint > beside + excess[humidity])
    return bad


def _beside(table: pa.Table, value: Floats) -> Floats:
    """Return the largest value of each row's report and level, NaN where none is finite."""
    where = (float_column(table, name) for name in ("lat", "lon", "vertical"))
    report = groups(
        *(category_codes(table, n)[0] for n in ("report_type", "station_id", "vertical_kind")),
        time_column(table),
        *(np.nan_to_num(column, nan=-1.0) for column in where),
    )
    largest = np.full(report.max(initial=-1) + 1, np.nan)
    np.fmax.at(largest, report, value)
    return largest[report]
