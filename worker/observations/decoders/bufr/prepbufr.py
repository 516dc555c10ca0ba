"""Decode PrepBUFR: the input of NCEP's analyses, with the processing history of each value.

A report holds one kind of quantity of one station: mass (types 1xx) or wind (2xx). Each quantity
has a stack of events, the newest first: value, quality mark, program and reason of the change
(`TOB TQM TPC TRC`). The value that was used upstream is the newest; the one first reported is the
oldest, an option. The newest mark judges both: marks of 4 and above were not used upstream and
become `preqc`. Reference: NCEP, "PREPBUFR processing", tables 2, 4 and 7.

Pitfalls: after the step VIRTMP the temperature is virtual; the actual one is the value before that
step, or follows from the humidity. The humidity of surface reports is a dewpoint (`TDO`), or follows
from specific humidity and pressure. Heights of profilers are measured, their pressures are not.
Balloons drift in position and time (`XDR YDR HRDR`).
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from model.domain.physics import (
    GRAVITY,
    VIRTUAL,
    ZERO_CELSIUS,
    dewpoint_from_specific_humidity,
    specific_humidity_from_dewpoint,
)
from worker.observations.decoders.bufr.block import LAST_USED_MARK
from worker.observations.decoders.bufr.embedded import Node
from worker.observations.decoders.bufr.ragged import RaggedReports, read_reports
from worker.observations.decoders.bufr.reports import Reports, Values
from worker.observations.decoders.bufr.upper_air import STANDARD_LEVELS
from worker.observations.lexicons import PREPBUFR_ERRORS, PREPBUFR_MARINE, PREPBUFR_TYPES

__all__ = ["Packed", "PrepReports", "is_prepbufr", "read_prepbufr"]

_SURFACE = ("synop", "ship", "buoy", "drifter", "scatterometer")
_BY_HEIGHT = ("profiler", "pilot")
"""Networks that measure heights; their pressures are of a standard atmosphere."""
_WEIGHED = ("temp", "dropsonde")
"""Networks that measure pressure and temperature, from which the heights follow."""
_MARINE_KINDS = ("SFCSHP", "SALDRN")
_LAND_OR_SEA = (183, 284)
_VIRTUAL_STEP = 8
_CELLS = 2_000_000
"""Maximum size of a matrix of reports and levels; larger sets are decoded in parts."""
_HEAD = frozenset({"SID", "XOB", "YOB", "DHR", "TYP"})
_STACKED = {
    "POB": "PQM", "QOB": "QQM", "TOB": "TQM", "ZOB": "ZQM", "UOB": "WQM", "VOB": "WQM",
    "SST1": "SSTQM", "PWO": "PWQ",
}  # fmt: skip
_USED = frozenset(
    {
        *_HEAD, *_STACKED, *_STACKED.values(), *PREPBUFR_ERRORS.values(), "ELV", "T29", "TDO",
        "PMO", "PMQ", "TPC", "XDR", "YDR", "HRDR", "BYTCNT", "BITPAD", "QIFN", "SAID",
    }
)  # fmt: skip
"""Mnemonics that are read; values of others are counted as not used."""


def is_prepbufr(names: frozenset[str]) -> bool:
    """Return whether a template with these mnemonics holds PrepBUFR reports."""
    return names >= _HEAD


@dataclass
class Packed:
    """Packed reports of one kind of message and template.

    Attributes:
        kind: Such as `ADPUPA`.
        nodes: The template.
        virtual_step: Code of the step that makes temperatures virtual.
        bodies: Data sections.
        starts, ends: First bits of each report, and those after it, within its own section.
        section: Number of the section of each report.
        cycles: Time of the message of each report.
    """

    kind: str
    nodes: tuple[Node, ...]
    virtual_step: int = _VIRTUAL_STEP
    bodies: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    section: list[int] = field(default_factory=list)
    cycles: list[np.datetime64] = field(default_factory=list)

    def joined(self) -> tuple[bytes, np.ndarray, np.ndarray]:
        """Return all sections in one, with the first bits and the ends of the reports in it."""
        begin = np.concatenate([[0], np.cumsum([len(body) for body in self.bodies])])[:-1] * 8
        first = begin[np.array(self.section)]
        return b"".join(self.bodies), first + np.array(self.starts), first + np.array(self.ends)

    def read(self, max_count: int) -> RaggedReports:
        """Return the values of all reports."""
        return read_reports(self.nodes, *self.joined(), max_count)

    def part(self, reports: slice) -> "Packed":
        """Return the same packed data restricted to a slice of the reports."""
        return replace(
            self,
            starts=self.starts[reports],
            ends=self.ends[reports],
            section=self.section[reports],
            cycles=self.cycles[reports],
        )


@dataclass
class PrepReports:
    """Values read from a set of packed reports.

    Attributes:
        networks: Decoded reports of each network, with their numbers among all reports.
        refused: Number of the report and why, of the others.
        not_used: Values given and not used, by mnemonic.
        notes: Counts of marks and older events.
    """

    networks: list[tuple[Reports, np.ndarray]]
    refused: list[tuple[int, str]]
    not_used: Counter[str]
    notes: Counter[str]

    def joined(self, other: "PrepReports", number: int) -> "PrepReports":
        """Return these reports, `number` in total, followed by those of `other`."""
        return PrepReports(
            self.networks + [(reports, places + number) for reports, places in other.networks],
            self.refused + [(place + number, why) for place, why in other.refused],
            self.not_used + other.not_used,
            self.notes + other.notes,
        )


def _levels(read: RaggedReports) -> int:
    """Return the number of levels of the longest report."""
    stacked = (column for name, column in read.columns.items() if name in _STACKED)
    return max((int(column.level.max(initial=0)) for column in stacked), default=0) + 1


class _Table:
    """Columns as matrices (report, level), chosen from the stacks of events."""

    def __init__(self, read: RaggedReports, virtual_step: int, original: bool) -> None:
        self.read = read
        self.number = len(read.broken)
        self.original = original
        self.levels = _levels(read)
        self.virtual_step = virtual_step

    def head(self, name: str) -> np.ndarray:
        """Return the value of an element of the report's head, (N,); NaN where missing."""
        result = np.full(self.number, np.nan)
        if column := self.read.columns.get(name):
            result[column.report[::-1]] = column.value[::-1]
        return result

    def newest(self, name: str) -> np.ndarray:
        """Return the values of the newest events, or of an element without events, (N, K)."""
        return self._events(name, 0)

    def oldest(self, name: str) -> np.ndarray:
        """Return the values of the oldest events, (N, K)."""
        result = self.empty()
        if column := self.read.columns.get(name):
            order = np.argsort(column.event, kind="stable")
            given = order[~np.isnan(column.value[order])]
            result[column.report[given], column.level[given]] = column.value[given]
        return result

    def value(self, name: str) -> np.ndarray:
        """Return the values asked for, (N, K)."""
        return self.oldest(name) if self.original else self.newest(name)

    def bad(self, name: str) -> np.ndarray:
        """Return where the newest mark of a quantity says that it was not used, (N, K)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.newest(_STACKED[name]) > LAST_USED_MARK)

    def temperature(self, humidity: np.ndarray) -> np.ndarray:
        """Return temperatures, not virtual ones, in degrees C, (N, K)."""
        chosen = self.value("TOB")
        program, column = self.read.columns.get("TPC"), self.read.columns.get("TOB")
        if program is None or column is None:
            return chosen
        step = np.full((self.number, self.levels), -1)
        made = np.flatnonzero(program.value == self.virtual_step)
        step[program.report[made], program.level[made]] = program.event[made]
        # The event below the step holds the original temperature.
        under = column.event == step[column.report, column.level] + 1
        under &= step[column.report, column.level] >= 0
        before = self.empty()
        before[column.report[under], column.level[under]] = column.value[under]
        moist = np.nan_to_num(humidity)
        dry = (chosen + ZERO_CELSIUS) / (1.0 + VIRTUAL * moist) - ZERO_CELSIUS
        dry = np.where((step == 0) & np.isfinite(before), before, dry)
        # The oldest event is virtual only if the step made it.
        virtual = (step >= 0) & (~np.isfinite(before) if self.original else True)
        return np.where(virtual, dry, chosen)

    def empty(self) -> np.ndarray:
        """Return an array of NaN with shape (N, K): reports by levels."""
        return np.full((self.number, self.levels), np.nan)

    def _events(self, name: str, event: int) -> np.ndarray:
        result = self.empty()
        if column := self.read.columns.get(name):
            wanted = np.flatnonzero((column.event == event) & (column.level < self.levels))[::-1]
            result[column.report[wanted], column.level[wanted]] = column.value[wanted]
        return result


def read_prepbufr(packed: Packed, *, original: bool, errors: bool, max_count: int) -> PrepReports:
    """Return the observations of packed reports, network by network.

    Arguments:
        packed: The reports.
        original: Whether to take the values first reported instead of those used upstream.
        errors: Whether to take the observation errors of the file.
        max_count: Largest count of a replication.
    """
    read = packed.read(max_count)
    number = len(packed.starts)
    if number > 1 and number * _levels(read) > _CELLS:
        half = number // 2
        parts = packed.part(slice(half)), packed.part(slice(half, None))
        first, second = (
            read_prepbufr(part, original=original, errors=errors, max_count=max_count)
            for part in parts
        )
        return first.joined(second, half)
    table = _Table(read, packed.virtual_step, original)
    types, dumps = table.head("TYP"), table.head("T29")
    networks = np.array(
        [_network(packed.kind, t, d) for t, d in zip(types.tolist(), dumps.tolist(), strict=True)],
        dtype=object,
    )
    refused = []
    for number in np.flatnonzero((networks == "") | read.broken).tolist():
        what = f"report type {types[number]:.0f} of {packed.kind}, no measurement of its own"
        refused.append((number, "" if read.broken[number] else what))
    given = Counter({n: count for n, count in read.given.items() if n not in _USED and count})
    result = PrepReports([], refused, given, Counter())
    if (~read.broken).any():
        _networks(packed, table, networks, errors, result)
    return result


def _network(kind: str, report_type: float, dump_type: float) -> str:
    """Return the network of a report, "" for one that is no measurement."""
    if report_type != report_type:
        return ""
    network = PREPBUFR_TYPES.get(int(report_type), "")
    if kind in _MARINE_KINDS and (network == "ship" or int(report_type) in _LAND_OR_SEA):
        return PREPBUFR_MARINE.get(int(np.nan_to_num(dump_type)), "ship")
    return network


def _networks(
    packed: Packed, table: _Table, networks: np.ndarray, errors: bool, result: PrepReports
) -> None:
    values = {True: _surface_values(table), False: _level_values(table)}
    if errors:
        for items in values.values():
            _add_errors(table, items)
    hours = table.head("DHR")
    cycles = np.array(packed.cycles, dtype="datetime64[s]")
    time = _after(cycles, hours)
    drift = _drift(table, cycles, time)
    names = table.read.texts.get("SID", [""] * table.number)
    satellites = table.head("SAID")
    for network in sorted(set(networks.tolist()) - {""}):
        rows = np.flatnonzero((networks == network) & ~table.read.broken)
        if not len(rows):
            continue
        surface = network in _SURFACE or network == "gnss"
        items = [_picked(item, rows) for item in values[surface] if _belongs(item, network)]
        if not surface:
            for item in items:
                item.lat, item.lon, item.time = (part[rows] for part in drift)
            if network in _BY_HEIGHT:
                items = _by_height(items, table.value("ZOB")[rows])
        _count_marks(items, result.notes)
        ids = [names[n] or _satellite(satellites[n]) for n in rows.tolist()]
        result.networks.append((_reports(network, ids, time, table, items, rows), rows))
    for name in _STACKED:
        if column := table.read.columns.get(name):
            older = int(np.count_nonzero(~np.isnan(column.value) & (column.event > 0)))
            result.notes["older_events"] += older


def _reports(
    network: str,
    ids: list[str],
    time: np.ndarray,
    table: _Table,
    items: list[Values],
    rows: np.ndarray,
) -> Reports:
    types = table.head("TYP")[rows].astype(int).tolist()
    elevation = table.head("ELV")[rows]
    free = network in ("aircraft", "amv", "scatterometer")
    return Reports(
        network,
        ids,
        time[rows],
        table.head("YOB")[rows],
        table.head("XOB")[rows],
        np.full(len(rows), np.nan) if free and network != "scatterometer" else elevation,
        items,
        platform=[f"prepbufr-{number}" for number in types],
        profile=network in ("temp", "pilot", "dropsonde", "profiler"),
    )


def _satellite(number: float) -> str:
    return f"sat{int(number):03d}" if number == number else "unknown"


def _after(cycle: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """Return times some hours after those of the cycles; NaT where the hours are missing."""
    seconds = np.rint(np.nan_to_num(hours) * 3_600.0).astype(np.int64).astype("timedelta64[s]")
    return np.where(np.isnan(hours), np.datetime64("NaT", "s"), cycle + seconds)


def _drift(table: _Table, cycles: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return latitude, longitude and time of each level, those of the report where not given."""
    lat, lon, hours = table.newest("YDR"), table.newest("XDR"), table.newest("HRDR")
    own = _after(cycles[:, None], hours)
    return (
        np.where(np.isnan(lat), table.head("YOB")[:, None], lat),
        np.where(np.isnan(lon), table.head("XOB")[:, None], lon),
        np.where(np.isnat(own), time[:, None], own),
    )


def _level_values(table: _Table) -> list[Values]:
    """Return the quantities aloft, by pressure."""
    pressure = table.value("POB") * 100.0
    q = table.value("QOB") * 1.0e-6
    level = table.bad("POB")
    z = table.value("ZOB") * GRAVITY
    standard = np.isin(np.round(pressure / 100.0, 2), STANDARD_LEVELS)
    temperature = table.temperature(q) + ZERO_CELSIUS
    found = [
        ("temperature", temperature, "TOB"),
        ("specific_humidity", q, "QOB"),
        ("u_component_of_wind", table.value("UOB"), "UOB"),
        ("v_component_of_wind", table.value("VOB"), "VOB"),
        ("geopotential", np.where(standard, z, np.nan), "ZOB"),
    ]
    return [
        Values(variable, value, "pressure", pressure, preqc=table.bad(name) | level)
        for variable, value, name in found
    ]


def _surface_values(table: _Table) -> list[Values]:
    """Return the quantities at the surface: first levels, shape (N,)."""
    pressure = table.value("POB") * 100.0
    q = table.value("QOB") * 1.0e-6
    dewpoint = table.newest("TDO") + ZERO_CELSIUS
    dewpoint = np.where(np.isnan(dewpoint), dewpoint_from_specific_humidity(q, pressure), dewpoint)
    found = [
        ("surface_pressure", pressure, "POB"),
        ("2m_temperature", table.temperature(q) + ZERO_CELSIUS, "TOB"),
        ("2m_dewpoint_temperature", dewpoint, "QOB"),
        ("10m_u_component_of_wind", table.value("UOB"), "UOB"),
        ("10m_v_component_of_wind", table.value("VOB"), "VOB"),
        ("sea_surface_temperature", table.value("SST1"), "SST1"),
    ]
    items = [Values(v, value[:, 0], preqc=table.bad(name)[:, 0]) for v, value, name in found]
    water = table.value("PWO")[:, 0]
    items.append(Values("total_column_water_vapour", water, "column", preqc=table.bad("PWO")[:, 0]))
    with np.errstate(invalid="ignore"):
        reduced_bad = table.newest("PMQ")[:, 0] > LAST_USED_MARK
    reduced = table.newest("PMO")[:, 0] * 100.0
    items.append(Values("mean_sea_level_pressure", reduced, preqc=reduced_bad))
    return items


def _belongs(item: Values, network: str) -> bool:
    """Return whether such values are measurements of this network."""
    if network == "scatterometer":
        return item.variable.startswith("10m_")
    if network == "gnss" or item.vertical_kind == "column":
        return network == "gnss" and item.vertical_kind == "column"
    # Elsewhere the height follows from the pressure, or the pressure from the height.
    return item.variable != "geopotential" or network in _WEIGHED


def _add_errors(table: _Table, items: list[Values]) -> None:
    """Add the observation errors of the file to the values, in SI units."""
    for item in items:
        name = PREPBUFR_ERRORS.get(item.variable)
        if name is None:
            continue
        error = table.newest(name)
        if name == "POE":
            error = error * 100.0
        elif name == "QOE":
            # Tenths of relative humidity: times the specific humidity of saturated air.
            saturated = specific_humidity_from_dewpoint(
                table.temperature(table.value("QOB") * 1e-6) + ZERO_CELSIUS,
                table.value("POB") * 100.0,
            )
            error = error * 0.1 * saturated
        item.error = error if item.value.ndim == 2 else error[:, 0]


def _by_height(items: list[Values], height: np.ndarray) -> list[Values]:
    """Return the values at their measured heights, and at their pressures where there is none."""
    measured = np.isfinite(height)
    found = []
    for item in items:
        at_height = np.where(measured, item.value, np.nan)
        found.append(replace(item, value=at_height, vertical_kind="height", vertical=height))
        found.append(replace(item, value=np.where(measured, np.nan, item.value)))
    return found


def _picked(item: Values, rows: np.ndarray) -> Values:
    """Return the values of some reports."""
    return Values(
        item.variable,
        item.value[rows],
        item.vertical_kind,
        None if item.vertical is None else item.vertical[rows],
        preqc=None if item.preqc is None else item.preqc[rows],
        error=None if item.error is None else item.error[rows],
    )


def _count_marks(items: list[Values], notes: Counter[str]) -> None:
    """Note how many values of each variable the sender's analysis did not use."""
    for item in items:
        if item.preqc is not None:
            flagged = int(np.count_nonzero(item.preqc & np.isfinite(item.value)))
            if flagged:
                notes[f"not_used_upstream {item.variable}"] += flagged
