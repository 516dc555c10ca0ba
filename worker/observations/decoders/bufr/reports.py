"""Describe the reports that a family decodes, and collect them into one observation table."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from model.domain.observations import VERTICAL_KINDS
from model.domain.variables import VARIABLES
from worker.observations.columns import (
    build_table,
    coded_column,
    number_array,
    repeated_column,
)
from worker.observations.decoders.base import DecodeContext

__all__ = ["Collector", "Reports", "Values", "has_position"]


@dataclass
class Values:
    """Values of one variable in a block; NaN gives no row.

    Attributes:
        variable: An id of the vocabulary.
        value: SI, shape (N,) or (N, K) for K levels.
        vertical_kind: One of VERTICAL_KINDS.
        vertical: Coordinate, same shape; rows need it unless the kind is surface or column.
        preqc: Where the provider's own flags reject the value, same shape.
        domain: Where the value is not at the height for which its variable is defined, same shape.
        time, lat, lon, elevation: Replace those of the report, broadcastable to `value`.
        error: One standard deviation in SI units, from the file, same shape.
    """

    variable: str
    value: np.ndarray
    vertical_kind: str = "surface"
    vertical: np.ndarray | None = None
    preqc: np.ndarray | None = None
    domain: np.ndarray | None = None
    time: np.ndarray | None = None
    lat: np.ndarray | None = None
    lon: np.ndarray | None = None
    elevation: np.ndarray | None = None
    error: np.ndarray | None = None


@dataclass
class Reports:
    """Reports that a family decodes from a block of N.

    Attributes:
        report_type: Network, one for all.
        station_id: Station or platform, N texts.
        time: datetime64[s], NaT where the report has none.
        lat, lon, elevation: Degrees north, degrees east, m; NaN where missing.
        values: The observed quantities.
        platform: Detail, N texts or one for all.
        profile: Whether the rows of a report belong to one profile.
        station_alias: Another identifier of each station, N texts, "" where none; empty for none.
        scan_angle: Scan angle of a sounder, degrees from nadir (see `radiances`), (N,); None for others.
    """

    report_type: str
    station_id: list[str]
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    elevation: np.ndarray
    values: list[Values]
    platform: list[str] | str = ""
    profile: bool = False
    drop: np.ndarray | None = field(default=None)
    station_alias: list[str] = field(default_factory=list)
    scan_angle: np.ndarray | None = None


_FLAGS = ("preqc", "domain")
_WITHDRAWN = ("synop", "ship", "buoy", "drifter")
_POLE = 90.0 + 1e-6
"""The South Pole station decodes to a latitude of -90.00000000000001."""
_DTYPES = {
    "variable": np.int32,
    "vertical_kind": np.int32,
    "rejected_by": np.int32,
    "obs_value": np.float64,
    "obs_error": np.float32,
    "vertical": np.float32,
    "time": "datetime64[ns]",
    "lat": np.float64,
    "lon": np.float64,
    "elevation": np.float32,
    "report": np.int64,
}


@dataclass
class _PerReport:
    """Columns that all rows of a report share."""

    station_id: list[str] = field(default_factory=list)
    station_alias: list[str] = field(default_factory=list)
    platform: list[str] = field(default_factory=list)
    report_type: list[str] = field(default_factory=list)
    ordinal: list[np.ndarray] = field(default_factory=list)
    offset: list[np.ndarray] = field(default_factory=list)
    update_sequence: list[np.ndarray] = field(default_factory=list)
    profile: list[np.ndarray] = field(default_factory=list)
    scan_angle: list[np.ndarray] = field(default_factory=list)
    scanned: bool = False


class Collector:
    """Collect rows as arrays, and build one table at the end.

    Attributes:
        set_aside: Values without time, position or level, by reason and variable.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in _DTYPES}
        self._reports = _PerReport()
        self._count = 0
        self.set_aside: Counter[str] = Counter()
        self._placed_at: dict[tuple[int, ...], np.ndarray] = {}

    def add(
        self, reports: Reports, ordinal: np.ndarray, offset: np.ndarray, update: np.ndarray
    ) -> np.ndarray:
        """Add the rows of a block.

        Arguments:
            reports: Reports of a block of N.
            ordinal: Place of each report in the file, (N,).
            offset: Offset of the message of each report, (N,).
            update: Correction number of each report, (N,).

        Returns:
            Number of rows of each report, (N,).
        """
        number = len(ordinal)
        usable = ~np.isnat(reports.time) & has_position(reports)
        rows = np.zeros(number, dtype=np.int64)
        self._placed_at.clear()
        for values in reports.values:
            self._add_values(reports, values, usable, rows)
        self._add_withdrawn(reports, usable & (update > 0) & (rows == 0), rows)
        shared = self._reports
        shared.station_id += reports.station_id
        shared.station_alias += reports.station_alias or [""] * number
        platform = reports.platform
        shared.platform += [platform] * number if isinstance(platform, str) else platform
        shared.report_type += [reports.report_type] * number
        shared.ordinal.append(ordinal)
        shared.offset.append(offset)
        shared.update_sequence.append(update)
        shared.profile.append(np.full(number, reports.profile))
        angle = reports.scan_angle
        shared.scanned |= angle is not None
        shared.scan_angle.append(np.full(number, np.nan) if angle is None else angle)
        self._count += number
        return rows

    def _add_values(
        self, reports: Reports, values: Values, usable: np.ndarray, rows: np.ndarray
    ) -> None:
        value = values.value if values.value.ndim == 2 else values.value[:, None]
        keep = np.isfinite(value) & usable[:, None]
        vertical = None if values.vertical is None else _matrix(values.vertical, value)
        keep = self._placed(values, keep, vertical)
        at = np.nonzero(keep)
        count = len(at[0])
        if not count:
            return
        rows += keep.sum(axis=1)

        def pick(own: np.ndarray | None, shared: np.ndarray) -> np.ndarray:
            return shared[at[0]] if own is None else _matrix(own, value)[at]

        flag = np.full(count, -1)
        for number, name in reversed(list(enumerate(_FLAGS))):
            mask = getattr(values, name)
            if mask is not None:
                flag = np.where(_matrix(mask, value)[at], number, flag)
        columns = {
            "variable": np.full(count, tuple(VARIABLES).index(values.variable)),
            "vertical_kind": np.full(count, VERTICAL_KINDS.index(values.vertical_kind)),
            "rejected_by": flag,
            "obs_value": value[at],
            "obs_error": np.full(count, np.nan)
            if values.error is None
            else _matrix(values.error, value)[at],
            "vertical": np.full(count, np.nan) if vertical is None else vertical[at],
            "time": pick(values.time, reports.time),
            "lat": np.clip(pick(values.lat, reports.lat), -90.0, 90.0),
            "lon": pick(values.lon, reports.lon),
            "elevation": pick(values.elevation, reports.elevation),
            "report": at[0] + self._count,
        }
        for name, column in columns.items():
            self._rows[name].append(column.astype(_DTYPES[name], copy=False))

    def _placed(self, values: Values, given: np.ndarray, vertical: np.ndarray | None) -> np.ndarray:
        """Return which of the given values have time, position and level, (N, K); count the others."""
        keep = given
        tests: list[tuple[str, np.ndarray]] = []
        if values.time is not None:
            tests.append(("no_time", self._once(lambda time: ~np.isnat(time), values.time)))
        if values.lat is not None and values.lon is not None:
            tests.append(("no_position", self._once(is_position, values.lat, values.lon)))
        if vertical is not None:
            high = values.vertical_kind == "height" or vertical > 0
            tests.append(("no_level", np.isfinite(vertical) & high))
        for reason, passed in tests:
            if passed.all():
                continue
            before, keep = keep, keep & _matrix(passed, given)
            if lost := int(np.count_nonzero(before) - np.count_nonzero(keep)):
                self.set_aside[f"{reason} {values.variable}"] += lost
        return keep

    def _once(self, test: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
        """Return the test of arrays, cached for the other variables of the same block."""
        key = tuple(id(array) for array in arrays)
        if key not in self._placed_at:
            self._placed_at[key] = test(*arrays)
        return self._placed_at[key]

    def _add_withdrawn(self, reports: Reports, empty: np.ndarray, rows: np.ndarray) -> None:
        """Add one missing value for each correction that withdraws a whole surface report."""
        at = np.flatnonzero(empty)
        if not len(at) or reports.report_type not in _WITHDRAWN:
            return
        rows[at] = 1
        columns = {
            "variable": np.full(len(at), tuple(VARIABLES).index("2m_temperature")),
            "vertical_kind": np.full(len(at), VERTICAL_KINDS.index("surface")),
            "rejected_by": np.full(len(at), -1),
            "obs_value": np.full(len(at), np.nan),
            "obs_error": np.full(len(at), np.nan),
            "vertical": np.full(len(at), np.nan),
            "time": reports.time[at],
            "lat": np.clip(reports.lat[at], -90.0, 90.0),
            "lon": reports.lon[at],
            "elevation": reports.elevation[at],
            "report": at + self._count,
        }
        for name, column in columns.items():
            self._rows[name].append(column.astype(_DTYPES[name], copy=False))

    def table(self, context: DecodeContext) -> pa.Table:
        """Return the observation table of everything added, reports in the order of the file."""
        if not self._rows["report"]:
            return build_table(context, 0)
        rows = {name: np.concatenate(parts) for name, parts in self._rows.items()}
        shared = self._reports
        ordinal = np.concatenate(shared.ordinal)
        order = np.argsort(ordinal[rows["report"]], kind="stable")
        rows = {name: column[order] for name, column in rows.items()}
        report = rows.pop("report")
        profile = np.concatenate(shared.profile)[report]
        angle = np.concatenate(shared.scan_angle)[report] if shared.scanned else None
        return build_table(
            context,
            len(report),
            station_id=repeated_column(shared.station_id, report),
            station_alias=repeated_column([name or None for name in shared.station_alias], report),
            platform=repeated_column(shared.platform, report),
            report_type=repeated_column(shared.report_type, report),
            variable=coded_column(rows.pop("variable"), tuple(VARIABLES)),
            vertical_kind=coded_column(rows.pop("vertical_kind"), VERTICAL_KINDS),
            rejected_by=coded_column(rows.pop("rejected_by"), _FLAGS),
            scan_angle=angle,
            profile_id=number_array(ordinal[report].astype(np.int32), ~profile),
            update_sequence=np.concatenate(shared.update_sequence)[report].astype(np.int16),
            message_offset=np.concatenate(shared.offset)[report],
            **rows,
        )


def has_position(reports: Reports) -> np.ndarray:
    """Return whether latitude and longitude are given and possible, (N,)."""
    return is_position(reports.lat, reports.lon)


def is_position(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Return whether latitude and longitude in degrees are given and possible."""
    with np.errstate(invalid="ignore"):
        return np.asarray((np.abs(lat) <= _POLE) & (np.abs(lon) <= 360.0))


def _matrix(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(array if array.ndim == 2 else array[:, None], like.shape)
