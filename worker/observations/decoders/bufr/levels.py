"""Find the levels of ascents and descents: sondes, pilot balloons and profiles of aircraft.

A level begins at a vertical coordinate, its anchor. Its other elements follow the anchor (most
templates), or precede it, in every level at the same distance: date and position in 311012 and
309060. Elements that occur once before all levels, such as the position of the launch, belong to the
report, not to the first level.
"""

from collections.abc import Sequence

import numpy as np

from model.domain.physics import (
    KNOT,
    saturation_vapour_pressure,
    specific_humidity_from_dewpoint,
    specific_humidity_from_mixing_ratio,
)
from worker.observations.decoders.bufr.block import Block
from worker.observations.decoders.bufr.identity import compose_time
from worker.observations.decoders.bufr.layout import ReportLayout
from worker.observations.decoders.bufr.reports import Values
from worker.observations.units import wind_components

__all__ = ["Levels", "MEASURED", "by_level", "find_anchors", "humidity", "wind"]

MEASURED = (11_001, 11_002, 11_003, 12_101, 12_001, 12_103, 12_003, 13_001, 13_002, 13_003, 13_009)
"""Elements observed at a level."""


def find_anchors(layout: ReportLayout, codes: Sequence[int]) -> np.ndarray:
    """Return the positions at which levels begin, ascending, (K,).

    Arguments:
        layout: Layout of the reports.
        codes: Vertical coordinates in order of preference. The one with the most occurrences
            before an observed element wins, so one in the header does not hide those of the levels.
    """
    best, best_count = np.empty(0, dtype=np.int64), -1
    for code in codes:
        found = layout.where(code)
        if found.size:
            number = int(np.count_nonzero(layout.after_each(found, *MEASURED) >= 0))
            if number > best_count:
                best, best_count = found, number
    return best


class Levels:
    """The levels of a block.

    Arguments:
        block: The reports.
        anchors: Positions at which levels begin, ascending, (K,).
        whole: Whether elements before the anchor of a single level belong to it, too.
    """

    def __init__(self, block: Block, anchors: np.ndarray, whole: bool = False) -> None:
        self.block = block
        self.anchors = anchors
        self._whole = whole and len(anchors) == 1
        self._observed = np.flatnonzero(np.isin(block.layout.codes, MEASURED))

    def where(self, *codes: int) -> np.ndarray:
        """Return the position in each level of the first of the elements that occurs, or -1, (K,)."""
        result: np.ndarray | None = None
        for code in codes:
            if self.block.layout.has(code):
                found = self._measured(code)
                result = found if result is None else np.where(result < 0, found, result)
        return np.full(len(self.anchors), -1) if result is None else result

    def get(self, *codes: int) -> np.ndarray:
        """Return the value in each level of the first of the elements that is given, (N, K)."""
        return self.block.either(*(self.where(code) for code in codes))

    def own(self, code: int) -> np.ndarray:
        """Return positions of an element that is repeated in each level, not of one in the header, (K,).

        Dates, positions and second coordinates of a level: no observed element stands between them
        and the anchor.
        """
        layout, anchors = self.block.layout, self.anchors
        found = layout.where(code)
        if not len(anchors) or not found.size or (found.size == 1 and found[0] < anchors[0]):
            return np.full(len(anchors), -1)
        after = layout.after_each(anchors, code)
        if after[0] >= 0 and not self._observed_between(anchors[0], after[0]):
            return after
        before = layout.before_each(anchors, code)
        if len(anchors) == 1:
            repeated = np.count_nonzero(found < anchors[0]) > 1
            return before if repeated else np.array([-1])
        if before[1] >= 0 and not self._observed_between(before[1], anchors[1]):
            return before
        return after if self._follows(after) else np.full(len(anchors), -1)

    def times(self, time: np.ndarray) -> np.ndarray | None:
        """Return the times given level by level, else those of the reports (N, 1); None if none are.

        A level may give only the time of day; its date is that of the first such time after the
        report's time, or within twelve hours before it.

        Arguments:
            time: Times of the reports, datetime64[s], (N,).
        """
        if (self.own(4_004) < 0).all():
            return None
        parts = [self.own(code) for code in (4_001, 4_002, 4_003, 4_004, 4_005, 4_006)]
        header = time[:, None]
        values = [self.block.at_each(part) for part in parts]
        dated = (parts[0] >= 0).any()
        if not dated:
            months = header.astype("datetime64[M]")
            number = np.where(np.isnat(header), np.nan, months.astype(np.int64))
            days = (header.astype("datetime64[D]") - months.astype("datetime64[D]")).astype(float)
            values[:3] = number // 12 + 1_970, number % 12 + 1, days + 1
        zero = [np.nan_to_num(part) for part in values[4:]]
        found = compose_time(*np.broadcast_arrays(*values[:4], *zero))
        if not dated:
            late = found < header - np.timedelta64(12, "h")
            found = np.where(late, found + np.timedelta64(24, "h"), found)
        return np.where(np.isnat(found), header, found)

    def place(self, lat: np.ndarray, lon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return latitude and longitude of each level, else those of the reports, (N, 1) or (N, K)."""
        found = []
        for report, codes in ((lat, (5_001, 5_002)), (lon, (6_001, 6_002))):
            places = [own for code in codes if ((own := self.own(code)) >= 0).any()]
            if places:
                own = self.block.either(*places)
                found.append(np.where(np.isnan(own), report[:, None], own))
            else:
                found.append(report[:, None])
        return found[0], found[1]

    def report(self, header: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Return a coordinate of the reports, (N,): from the header, else from the first level with one."""
        lacking = np.isnan(header)
        if not lacking.any() or not own.shape[1]:
            return header
        first = np.argmax(~np.isnan(own), axis=1)
        return np.where(lacking, own[np.arange(len(own)), first], header)

    def _measured(self, code: int) -> np.ndarray:
        layout, anchors = self.block.layout, self.anchors
        if self._whole:
            return np.array([layout.first(code)])
        after = layout.after_each(anchors, code)
        if len(anchors) > 1 and not self._follows(after):
            before = layout.before_each(anchors, code)
            if self._precedes(before):
                return before
        return after

    def _follows(self, after: np.ndarray) -> bool:
        first, last = after[0] - self.anchors[0], after[-1] - self.anchors[-1]
        return bool(after[0] >= 0 and first == last)

    def _precedes(self, before: np.ndarray) -> bool:
        first, second = self.anchors[:2] - before[:2]
        return bool(before[1] >= 0 and first == second)

    def _observed_between(self, low: int, high: int) -> bool:
        first, last = np.searchsorted(self._observed, (low, high))
        return bool(last > first)


def by_level(
    variable: str,
    value: np.ndarray,
    pressure: np.ndarray,
    height: np.ndarray,
    preqc: np.ndarray,
    **where: np.ndarray | None,
) -> list[Values]:
    """Return values at their pressure, and where there is none at their height.

    Arguments:
        variable: An id of the vocabulary.
        value: SI, (N, K).
        pressure: Pa, (N, K); NaN where missing.
        height: Metres above mean sea level, likewise.
        preqc: Where the provider flagged the value as bad, (N, K).
        where: Time, lat and lon of the levels, as in `Values`.
    """
    if np.isnan(value).all():
        return []
    level = np.isfinite(pressure)
    if level.all():
        return [Values(variable, value, "pressure", pressure, preqc=preqc, **where)]
    if not level.any():
        return [Values(variable, value, "height", height, preqc=preqc, **where)]
    at_pressure, at_height = np.where(level, value, np.nan), np.where(level, np.nan, value)
    return [
        Values(variable, at_pressure, "pressure", pressure, preqc=preqc, **where),
        Values(variable, at_height, "height", height, preqc=preqc, **where),
    ]


def wind(
    levels: Levels,
    pressure: np.ndarray,
    height: np.ndarray,
    bad: np.ndarray | None = None,
    **where: np.ndarray | None,
) -> list[Values]:
    """Return the wind components of each level; speed or direction alone is not used.

    Arguments:
        levels: Levels of a block of N with K levels.
        pressure: Pa, (N, K); NaN where missing.
        height: Metres above mean sea level, likewise.
        bad: Where the wind is to be flagged as bad, (N, K).
        where: Time, lat and lon of the levels, as in `Values`.
    """
    block = levels.block
    speed_at, knots_at, direction_at = (levels.where(code) for code in (11_002, 11_084, 11_001))
    speed, knots = block.at_each(speed_at), block.at_each(knots_at)
    in_knots = np.isnan(speed)
    u, v = wind_components(np.where(in_knots, knots * KNOT, speed), block.at_each(direction_at))
    incomplete = np.isnan(u)
    for at in (speed_at, direction_at):
        block.usage.leave(at, incomplete)
    block.usage.leave(knots_at, incomplete | ~in_knots)
    flag = np.logical_or.reduce([block.suspect(at) for at in (speed_at, knots_at, direction_at)])
    u_at, v_at = levels.where(11_003), levels.where(11_004)
    if (u_at >= 0).any() and (v_at >= 0).any():
        given = block.at_each(u_at), block.at_each(v_at)
        taken = incomplete & np.isfinite(given[0]) & np.isfinite(given[1])
        u, v = np.where(taken, given[0], u), np.where(taken, given[1], v)
        for at in (u_at, v_at):
            block.usage.leave(at, ~taken)
            flag = flag | block.suspect(at)
    flag = flag if bad is None else flag | bad
    return [
        *by_level("u_component_of_wind", u, pressure, height, flag, **where),
        *by_level("v_component_of_wind", v, pressure, height, flag, **where),
    ]


def humidity(
    levels: Levels, temperature: np.ndarray, pressure: np.ndarray, height: np.ndarray,
    **where: np.ndarray | None,
) -> list[Values]:  # fmt: skip
    """Return the humidity of each level, one value from the first of these that it gives.

    Specific humidity from the mixing ratio, or from dewpoint and pressure; relative humidity as
    reported, or from dewpoint and temperature where there is no pressure, over water: e_s(Td) /
    e_s(T).

    Arguments:
        levels: Levels of a block of N with K levels.
        temperature: K, (N, K); NaN where missing.
        pressure: Pa, likewise.
        height: Metres above mean sea level, likewise.
        where: Time, lat and lon of the levels, as in `Values`.
    """
    block = levels.block
    mixed_at, dew_at = levels.where(13_002), levels.where(12_103, 12_003)
    reported_at = levels.where(13_003, 13_009)
    dewpoint, reported = block.at_each(dew_at), block.at_each(reported_at) / 100.0
    mixed = specific_humidity_from_mixing_ratio(block.at_each(mixed_at))
    from_dew = specific_humidity_from_dewpoint(dewpoint, pressure)
    q = np.where(np.isnan(mixed), from_dew, mixed)
    without = np.isnan(q) & np.isnan(reported) & ~np.isfinite(pressure)
    ratio = np.where(without, _saturation_ratio(dewpoint, temperature), np.nan)
    derived = np.isfinite(ratio)
    relative = np.where(derived, ratio, np.where(np.isnan(q), reported, np.nan))
    block.usage.leave(dew_at, ~(np.isnan(mixed) & np.isfinite(from_dew) | derived))
    block.usage.leave(reported_at, np.isfinite(q))
    dew_flag = block.suspect(dew_at)
    q_flag = np.where(np.isnan(mixed), dew_flag, block.suspect(mixed_at))
    relative_flag = np.where(derived, dew_flag, block.suspect(reported_at))
    return [
        *by_level("specific_humidity", q, pressure, height, q_flag, **where),
        *by_level("relative_humidity", relative, pressure, height, relative_flag, **where),
    ]


def _saturation_ratio(dewpoint: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Return the relative humidity of dewpoints and temperatures in K; NaN where either is missing."""
    if np.isnan(dewpoint).all():
        return np.full_like(dewpoint, np.nan)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        ratio = saturation_vapour_pressure(dewpoint) / saturation_vapour_pressure(temperature)
    return np.where(np.isfinite(ratio), ratio, np.nan)
