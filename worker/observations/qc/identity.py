"""Recognise observations reported more than once: corrections, duplicates, ascents, one barometer.

A report is what one station says about one time in one network; an ascent is a report whatever
the times of its levels. Stations are compared by their canonical identifiers, see
`worker.observations.stations`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.grids import unit_vectors
from model.domain.physics import EARTH_RADIUS
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    groups,
    is_one_of,
    not_rejected,
    rows_of,
    time_column,
)
from worker.observations.qc.base import CheckFunction, QCContext, distinct_levels
from worker.observations.qc.names import distances, nameless, reach
from worker.observations.stations import station_codes

__all__ = ["ascents", "corrections", "duplicates", "one_barometer", "one_hygrometer", "two_places"]

Codes = NDArray[np.int64]

_MINUTE = 60_000_000_000
_SPEAKING = ("duplicate", "passive", "missing", "blocklist")
"""Outcomes of values that do not prevent a correction from replacing the original."""


def _place(table: pa.Table, context: QCContext) -> list[NDArray[Any]]:
    """Return the rounded position where a station identifier is not tied to a place, else 0."""
    p = context.of("duplicates")
    placed = is_one_of(table, "report_type", p["by_position"]) | nameless(table, context)
    digits = p["position_digits"]
    return [
        np.where(placed, np.round(float_column(table, name), digits), 0.0)
        for name in ("lat", "lon")
    ]


def _levels(table: pa.Table) -> Codes:
    """Return a number for each row; rows of one variable and level share it."""
    vertical, top = (
        np.nan_to_num(np.round(float_column(table, name)), nan=-1.0)
        for name in ("vertical", "vertical_top")
    )
    kinds = [category_codes(table, name)[0] for name in ("variable", "vertical_kind")]
    return groups(*kinds, vertical, top, *distinct_levels(table))


def _launches(table: pa.Table) -> tuple[Codes, NDArray[np.int64], BoolArray]:
    """Return for each row its ascent, the launch time (ns, of the first level), and whether it drifts.

    Rows without a profile number belong to the ascent of their upload, station and time.
    """
    number, time = float_column(table, "profile_id"), time_column(table)
    named = np.isfinite(number)
    ascent = groups(
        category_codes(table, "batch_id")[0],
        category_codes(table, "report_type")[0],
        station_codes(table)[0],
        np.where(named, number, -1.0),
        np.where(named, 0, time),
    )
    count = ascent.max(initial=-1) + 1
    first = np.full(count, np.iinfo(np.int64).max)
    last = np.zeros(count, dtype=np.int64)
    np.minimum.at(first, ascent, time)
    np.maximum.at(last, ascent, time)
    return ascent, first[ascent], (last > first)[ascent]


def _over_edges(check: CheckFunction) -> CheckFunction:
    """Decorate a check so that it sees ascents as a whole, including levels beyond the window."""

    @wraps(check)
    def judged(table: pa.Table, context: QCContext) -> BoolArray:
        if context.outside_window is None or not len(context.outside_window):
            return check(table, context)
        whole = pa.concat_tables([table, context.outside_window]).unify_dictionaries()
        seen = context.already_assimilated
        if seen is not None:
            seen = np.append(seen, np.zeros(len(context.outside_window), dtype=bool))
        context = replace(context, outside_window=None, already_assimilated=seen)
        return check(whole, context)[: len(table)]

    return judged


@_over_edges
def corrections(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows of superseded reports, including values that the correction does not repeat.

    The highest correction number wins, whichever arrived first. A version whose values were all
    rejected, or that arrived after the cut-off, supersedes nothing.
    """
    version = np.nan_to_num(float_column(table, "update_sequence"), nan=0.0)
    station = station_codes(table)[0]
    bad = np.zeros(len(table), dtype=bool)
    rows = np.flatnonzero(np.isin(station, station[version > 0.0]))
    if not len(rows):
        return bad
    sub, version = table.take(rows), version[rows]
    report, ascent, in_parts = _reports(sub, station[rows], context)
    speaks = not_rejected(sub) | is_one_of(sub, "rejected_by", _SPEAKING)
    newest = np.zeros(report.max() + 1)
    np.maximum.at(newest, report[speaks], version[speaks])
    replaced = version < newest[report]
    parts = np.flatnonzero(in_parts & (newest[report] > 0.0))
    if len(parts):
        replaced[parts] = _replaced_parts(
            report[parts], ascent[parts], version[parts], speaks[parts], _levels(sub.take(parts))
        )
    bad[rows] = replaced
    return bad


def _reports(table: pa.Table, station: Codes, context: QCContext) -> tuple[Codes, Codes, BoolArray]:
    """Return the report and ascent of each row, and whether the ascent may come in parts."""
    ascent, launch, drifts = _launches(table)
    profile = np.isfinite(float_column(table, "profile_id"))
    by_position = is_one_of(table, "report_type", context.of("duplicates")["by_position"])
    report = groups(
        category_codes(table, "report_type")[0],
        station,
        np.where(profile, launch, time_column(table)),
        profile,
        profile & drifts,
        np.where(by_position, category_codes(table, "platform")[0], -1),
        *_place(table, context),
    )
    return report, ascent, profile & ~drifts


def _replaced_parts(
    report: Codes, ascent: Codes, version: NDArray[Any], speaks: BoolArray, level: Codes
) -> BoolArray:
    """Return the rows of ascents in parts that a correction supersedes.

    Parts A to D of an alphanumeric ascent have the same station and time, and each is stored as a
    separate ascent. A correction has at least half of the levels of the shorter version in common with
    the part that it corrects, but few (the surface) with the other parts.
    """
    bad = np.zeros(len(report), dtype=bool)
    for one in np.unique(report):
        rows = np.flatnonzero(report == one)
        parts = [rows[ascent[rows] == number] for number in np.unique(ascent[rows])]
        for older in parts:
            bad[older] = any(
                version[newer[0]] > version[older[0]]
                and speaks[newer].any()
                and _same_part(level[older], level[newer])
                for newer in parts
            )
    return bad


def _same_part(older: Codes, newer: Codes) -> bool:
    shared = len(np.intersect1d(older, newer))
    return 2 * shared >= min(len(np.unique(older)), len(np.unique(newer)))


def duplicates(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows with the same station, time, level and variable as a preferred row.

    Preferred is the highest correction number, then the earliest arrival, then the order in the
    file. Where a station id is not tied to a place (satellites, anonymous call signs) the rounded
    position is part of the identity. Rows already rejected are ignored.
    """
    rows = np.flatnonzero(not_rejected(table))
    bad = np.zeros(len(table), dtype=bool)
    if not len(rows):
        return bad
    sub = rows_of(table, rows)
    identity = groups(
        category_codes(sub, "report_type")[0],
        station_codes(table)[0][rows],
        _levels(sub),
        time_column(sub),
        *_place(sub, context),
    )
    correction = np.nan_to_num(float_column(sub, "update_sequence"), nan=0.0)
    order = np.lexsort(
        (
            float_column(sub, "observation_id"),
            category_codes(sub, "batch_id")[0],
            time_column(sub, "received_time"),
            -correction,
            identity,
        )
    )
    repeated = np.zeros(len(rows), dtype=bool)
    repeated[order[1:]] = identity[order[1:]] == identity[order[:-1]]
    bad[rows[repeated]] = True
    return bad


def two_places(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark positions of one call sign that contradict most of its others within a minute.

    With two ships under one call sign, or one wrong position, neither is trusted. A single outlier
    among consistent positions is rejected alone. Names shared by many platforms are ignored, as are
    profiles, whose levels all have the time of their report although they differ in position.
    """
    p = context.of("places")
    report, names = category_codes(table, "report_type")
    far = np.append(reach(context, names, p["seconds"]), np.nan)[report]
    single = np.isnan(float_column(table, "profile_id"))
    usable = not_rejected(table) & np.isfinite(far) & single
    use = np.flatnonzero(usable & ~nameless(table, context))
    bad = np.zeros(len(table), dtype=bool)
    if not len(use):
        return bad
    sub = table.take(use)
    time = time_column(sub) * 1e-9
    where = unit_vectors(float_column(sub, "lat"), float_column(sub, "lon"))
    platform = groups(report[use], station_codes(table)[0][use])
    fix = groups(platform, time, *where.T)
    _, first = np.unique(fix, return_index=True)
    order = first[np.lexsort((time[first], platform[first]))]
    seen, against = _contradictions(
        platform[order], time[order], where[order], far[use][order], p["seconds"]
    )
    wrong = 2 * against > seen
    bad[use] = np.isin(fix, fix[order[wrong]])
    return bad


def _contradictions(
    platform: Codes, time: NDArray[Any], where: NDArray[Any], far: NDArray[Any], seconds: float
) -> tuple[Codes, Codes]:
    """Return for each fix the number of neighbours in time, and how many of them it contradicts.

    The fixes are sorted by platform and time.
    """
    seen, against = np.zeros(len(platform), int), np.zeros(len(platform), int)
    for shift in range(1, len(platform)):
        near = (platform[shift:] == platform[:-shift]) & (time[shift:] - time[:-shift] <= seconds)
        if not near.any():
            break
        apart = near & (distances(where[shift:], where[:-shift]) > far[shift:])
        for total, found in ((seen, near), (against, apart)):
            total[shift:] += found
            total[:-shift] += found
    return seen, against


@dataclass(frozen=True)
class _AscentVersion:
    """One version of an ascent: all its parts with the same launch time.

    Attributes:
        network: Code of the report type.
        station: Code of the station.
        launch: Time of the first level, ns.
        where: Unit vector of the launch position.
        worth: Number of values, doubled if the levels have their own times.
        received: Arrival of the first part, ns.
        assimilated: Whether the continued analysis has assimilated or rejected any of it.
        rows: Its rows.
    """

    network: int
    station: int
    launch: int
    where: NDArray[np.float64]
    worth: int
    received: int
    assimilated: bool
    rows: NDArray[np.int64]


@_over_edges
def ascents(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows of an ascent that was also received in a better version.

    Versions may differ in launch time, or lack the drift. They have the same station, and launches
    near in time and place. The better version has more values; own times and positions of the levels
    count double. The wind of a pilot balloon is rejected if a sonde reports that of the same ascent. A
    version seen by the continued analysis remains preferred, because another one would count the
    ascent twice.
    """
    p = context.of("ascents")
    bad = np.zeros(len(table), dtype=bool)
    use = not_rejected(table) & is_one_of(table, "report_type", p["report_types"])
    use &= ~nameless(table, context)
    rows = np.flatnonzero(use)
    if not len(rows):
        return bad
    names = category_codes(table, "report_type")[1]
    rank = {names.index(n): i for i, n in enumerate(p["report_types"]) if n in names}
    variable = category_codes(table, "variable")[0]
    for ascent in _same_ascent(_forms(table, rows, context), p):
        best: dict[int, _AscentVersion] = {}
        for form in sorted(
            ascent, key=lambda f: (rank[f.network], not f.assimilated, -f.worth, f.received)
        ):
            if form.network in best:
                bad[form.rows] = True
                continue
            for other in best.values():
                late, known = (
                    (other, form) if form.assimilated > other.assimilated else (form, other)
                )
                bad[late.rows] |= np.isin(variable[late.rows], variable[known.rows])
            best[form.network] = form
    return bad


def _forms(table: pa.Table, rows: NDArray[np.int64], context: QCContext) -> list[_AscentVersion]:
    """Return the versions of ascents, sorted by station and launch."""
    p = context.of("ascents")
    assimilated = context.already_assimilated
    seen = np.zeros(len(rows), bool) if assimilated is None else assimilated[rows]
    sub = rows_of(table, rows)
    network, station = category_codes(sub, "report_type")[0], station_codes(table)[0][rows]
    ascent, launch, drifts = _launches(sub)
    long = np.bincount(ascent)[ascent] >= p["least"]
    long |= np.isfinite(float_column(sub, "profile_id"))
    form = groups(network, station, launch // _MINUTE, drifts)
    level, received = _levels(sub), time_column(sub, "received_time")
    where = unit_vectors(float_column(sub, "lat"), float_column(sub, "lon"))
    order = np.argsort(np.where(long, form, -1), kind="stable")[int((~long).sum()) :]
    found = []
    for mine in np.split(order, np.flatnonzero(np.diff(form[order])) + 1) if len(order) else []:
        at = mine[0]
        worth = len(np.unique(level[mine])) * (2 if drifts[at] else 1)
        begin = mine[np.argmin(time_column(sub)[mine])]
        found.append(
            _AscentVersion(
                int(network[at]), int(station[at]), int(launch[at]), where[begin], worth,
                int(received[mine].min()), bool(seen[mine].any()), rows[mine],
            )
        )  # fmt: skip
    return sorted(found, key=lambda f: (f.station, f.launch))


def _same_ascent(
    forms: Sequence[_AscentVersion], p: Mapping[str, Any]
) -> Iterator[list[_AscentVersion]]:
    """Yield the versions of each ascent that has more than one."""
    for _, of_station in groupby(forms, key=lambda form: form.station):
        waiting = list(of_station)
        while waiting:
            first = waiting[0]
            same = [form for form in waiting if _near(first, form, p)]
            waiting = [form for form in waiting if not _near(first, form, p)]
            if len(same) > 1:
                yield same


def _near(first: _AscentVersion, other: _AscentVersion, p: Mapping[str, Any]) -> bool:
    apart = EARTH_RADIUS * float(np.linalg.norm(first.where - other.where))
    late = (other.launch - first.launch) / _MINUTE
    return bool(late <= p["minutes"] and apart <= 1e3 * p["kilometres"])


def one_hygrometer(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark relative humidities at 2 m where the dewpoint of the same report is in use."""
    use = not_rejected(table) & is_one_of(table, "vertical_kind", ["surface"])
    dewpoint = is_one_of(table, "variable", ["2m_dewpoint_temperature"]) & use
    relative = is_one_of(table, "variable", ["2m_relative_humidity"]) & use
    if not (dewpoint.any() and relative.any()):
        return np.zeros(len(table), dtype=bool)
    report = _same_report(table, context)
    return np.asarray(relative & np.isin(report, report[dewpoint]))


def _same_report(table: pa.Table, context: QCContext) -> NDArray[np.int64]:
    """Return a number for each row; rows of one report of a station share it."""
    return groups(
        category_codes(table, "report_type")[0],
        station_codes(table)[0],
        time_column(table),
        *_place(table, context),
    )


def one_barometer(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark mean sea level pressures where the station pressure they derive from is in use.

    Without the height of the barometer the sea level pressure is kept instead.
    """
    use = not_rejected(table) & is_one_of(table, "vertical_kind", ["surface"])
    station = is_one_of(table, "variable", ["surface_pressure"]) & use
    reduced = is_one_of(table, "variable", ["mean_sea_level_pressure"]) & use
    if not (station.any() and reduced.any()):
        return np.zeros(len(table), dtype=bool)
    report = _same_report(table, context)
    placed = station & np.isfinite(float_column(table, "elevation"))
    return np.asarray(
        (reduced & np.isin(report, report[placed]))
        | (station & ~placed & np.isin(report, report[reduced]))
    )
