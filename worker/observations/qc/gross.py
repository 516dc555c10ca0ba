"""Check rows one by one: provider flags, missing and impossible values, gross limits, blocklist and
late arrival.
"""

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from model.domain.errors import ConfigurationError
from model.domain.observations import REPORT_TYPES
from model.domain.variables import VARIABLES
from worker.observations.columns import (
    BoolArray,
    category_codes,
    float_column,
    is_one_of,
    row_pressure,
    time_column,
)
from worker.observations.qc.base import QCContext
from worker.observations.stations import identifiers, station_codes

__all__ = [
    "BlocklistEntry",
    "blocklist",
    "bounds",
    "provider_flags",
    "outside_domain",
    "late_arrival",
    "limit_at",
    "missing_value",
]

_HOUR = 3_600_000_000_000


def provider_flags(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows with a flag but without a rejecting check: those flagged by the provider."""
    return float_column(table, "qc_flag") > 0


def missing_value(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows without a finite value, such as NaN."""
    return ~np.isfinite(float_column(table, "obs_value"))


def late_arrival(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows that arrived after the cut-off."""
    if context.cut_off is None:
        return np.zeros(len(table), dtype=bool)
    limit = pa.scalar(context.cut_off, pa.timestamp("ns", tz="UTC"))
    return np.array(pc.greater(table["received_time"], limit).to_numpy(), dtype=bool)


def outside_domain(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows whose position, height or time is impossible or outside the domain."""
    p = context.of("domain")
    lat, lon = float_column(table, "lat"), float_column(table, "lon")
    bad = ~((np.abs(lat) <= 90.0) & (lon >= -180.0) & (lon < 180.0))
    if p["null_island"]:
        bad |= (lat == 0.0) & (lon == 0.0)
    if p["box"] is not None:
        bad |= _outside(lat, lon, p["box"])
    bad |= _beyond(float_column(table, "elevation"), p["elevation"], required=False)
    bad |= _vertical(table, p)
    time = time_column(table)
    bad |= time > time_column(table, "received_time") + p["future_hours"] * _HOUR
    return bad | (time < np.datetime64(p["earliest"], "ns").astype(np.int64))


def _outside(lat: np.ndarray, lon: np.ndarray, box: list[float]) -> BoolArray:
    west, south, east, north = box
    across = (lon - west) % 360.0 <= (east - west) % 360.0
    return ~(across & (lat >= south) & (lat <= north))


def _beyond(values: np.ndarray, limits: list[float], *, required: bool) -> BoolArray:
    absent = np.isnan(values)
    outside = ~((values >= limits[0]) & (values <= limits[1]))
    return np.where(absent, required, outside)


def _vertical(table: pa.Table, p: Mapping[str, Any]) -> BoolArray:
    kind, names = category_codes(table, "vertical_kind")
    vertical, top = float_column(table, "vertical"), float_column(table, "vertical_top")
    pressure = [100.0 * limit for limit in p["pressure"]]
    bad = np.zeros(len(kind), dtype=bool)
    for i, name in enumerate(names):
        rows = kind == i
        if name in ("pressure", "layer"):
            bad[rows] = _beyond(vertical[rows], pressure, required=True)
        if name == "layer":
            bad[rows] |= ~(top[rows] < vertical[rows])
        if name == "height":
            bad[rows] = _beyond(vertical[rows], p["height"], required=True)
    return bad


def bounds(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark values outside the limits of their variable, interpolated in ln p between levels."""
    limits = context.of("bounds")["limits"]
    variable, names = category_codes(table, "variable")
    value, pressure = float_column(table, "obs_value"), row_pressure(table)
    bad = np.zeros(len(table), dtype=bool)
    for i, name in enumerate(names):
        if name not in limits:
            continue
        rows = variable == i
        low, high = (limit_at(limits[name], side, pressure[rows]) for side in ("low", "high"))
        with np.errstate(invalid="ignore"):
            bad[rows] = (value[rows] < low) | (value[rows] > high)
    return bad


def limit_at(entry: Mapping[str, Any], side: str, pressure: np.ndarray) -> np.ndarray:
    """Return one side of the limits of a variable at pressures (Pa), linear in ln p."""
    if "pressure" not in entry:
        return np.full(len(pressure), float(entry[side]))
    levels = np.log(np.asarray(entry["pressure"], dtype=float) * 100.0)
    order = np.argsort(levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        limit = np.interp(np.log(pressure), levels[order], np.asarray(entry[side], float)[order])
    return np.asarray(limit)


def _nanoseconds(time: object) -> int | None:
    if time in (None, ""):
        return None
    text = str(time).replace("+00:00", "").removesuffix("Z")
    return int(np.datetime64(text, "ns").astype(np.int64))


def _text(name: object) -> object:
    """Return the identifier of a station as text; YAML reads 10382 as a number and 03100 as 1600."""
    if isinstance(name, int) and not isinstance(name, bool):
        if name < _FIRST_WITHOUT_ZERO:
            raise ValueError(f"expected the station in quotes; got the number {name}")
        return str(name)
    return name


_FIRST_WITHOUT_ZERO = 10_000
"""Smallest number of a station of five digits that does not begin with 0, which means octal in YAML."""

Time = Annotated[int | None, BeforeValidator(_nanoseconds)]
"""Time in UTC, in nanoseconds since 1970."""
Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: () if names is None else names)]


class BlocklistEntry(BaseModel):
    """Stations whose rows are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    station: Annotated[str, BeforeValidator(_text)] = Field(description="Pattern with * and ?.")
    report_types: Names = Field(default=(), description="Networks; none named: all.")
    variables: Names = Field(default=(), description="Variables; none named: all.")
    start: Time = Field(default=None, alias="from", description="First time observed (UTC).")
    until: Time = Field(default=None, description="Last time observed (UTC).")
    note: str = Field(default="", description="Why; for those who read the file.")

    @field_validator("report_types")
    @classmethod
    def _known_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(REPORT_TYPES[name].name for name in names)

    @field_validator("variables")
    @classmethod
    def _known_variables(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(VARIABLES[name].id for name in names)

    @classmethod
    def read(cls, entry: object) -> Self:
        """Return an entry of the parameter `entries`.

        Raises:
            ConfigurationError: Naming its first fault.
        """
        try:
            return cls.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "entry"
            message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
            raise ConfigurationError(
                f"Blocklist: in the entry {entry}: at '{where}': {message}.",
                check="blocklist",
                field=where,
            ) from error


def blocklist(table: pa.Table, context: QCContext) -> BoolArray:
    """Mark rows matched by an entry: station pattern, and optionally networks, variables and period.

    The pattern may be that of any identifier of the station.
    """
    bad = np.zeros(len(table), dtype=bool)
    station, names = station_codes(table)
    reported, known = category_codes(table, "station_id")
    for given in context.of("blocklist")["entries"]:
        entry = BlocklistEntry.read(given)
        pattern = re.compile(translate(entry.station))
        rows = np.isin(station, [i for i, name in enumerate(names) if pattern.match(name)])
        hits = [i for i, name in enumerate(known) if _matches(pattern, name)]
        rows |= np.isin(station, station[np.isin(reported, hits)])
        for wanted, column in ((entry.report_types, "report_type"), (entry.variables, "variable")):
            if wanted:
                rows &= is_one_of(table, column, wanted)
        if entry.start is not None:
            rows &= time_column(table) >= entry.start
        if entry.until is not None:
            rows &= time_column(table) <= entry.until
        bad |= rows
    return bad


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    return any(pattern.match(form) for form in identifiers(name))
