"""Recognise a station under its different identifiers, and look up its position.

WMO gave stations that had an identifier before 2016 a WIGOS identifier that contains it, under an
issuer of its own (Guide to WIGOS, WMO-No. 1165, table 2.1): 20000 and 20001 for block and station
number, 20002 for buoys, 20003 for the call signs of ships. `0-20000-0-10382` and `10382` are one
station, so the number is the canonical identifier of both. Countries issue others, `0-276-0-X12`;
reports that give a number beside it (`station_alias`) tell which station that is.

Buoys had numbers of five digits in alphanumeric codes and have seven in BUFR: 64787 is 6400787 there
(ECMWF, "WMO platform identifiers"; WMO, "Rules for allocating WMO numbers").

Text bulletins hold no positions. The list that tells them is a CSV file named by the environment
variable `APPA_STATIONS`: the columns of WMO OSCAR/Surface and wis2box
(`traditional_station_identifier`, `wigos_station_identifier`, `latitude`, `longitude`, `elevation`,
`barometer_height`), or `station_id`, `lat`, `lon`, `elevation`. Airports come from the package
`airportsdata` (from OurAirports, public domain) where the list has none.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.errors import ConfigurationError
from model.domain.physics import FOOT
from worker.observations.columns import category_codes, number_array, text_array

__all__ = [
    "StationSite",
    "airport",
    "canonical_station",
    "canonical_stations",
    "default_list",
    "identifiers",
    "is_station",
    "read_list",
    "station_codes",
]

_EARLIER = (
    (re.compile(r"0-2000[01]-0-(\d{1,5})"), 5),
    (re.compile(r"0-20002-0-(\d{5,7})"), 0),
    (re.compile(r"0-20003-0-([A-Z0-9]{3,9})"), 0),
)
_LONG_BUOY = re.compile(r"([1-7]\d)00(\d{3})")
_WIGOS = re.compile(r"\d-\d+-\d+-.+")
_FORMS = (
    (re.compile(r"\d{5}"), ("0-20000-0-", "0-20001-0-", "0-20002-0-")),
    (re.compile(r"\d{6,7}"), ("0-20002-0-",)),
    (re.compile(r"(?=.*[A-Z])[A-Z0-9]{3,9}"), ("0-20003-0-",)),
)


def canonical_station(name: str) -> str:
    """Return the identifier that a station had before WIGOS, where its WIGOS one contains it."""
    name = name.strip()
    for pattern, digits in _EARLIER:
        if found := pattern.fullmatch(name):
            name = found.group(1).zfill(digits)
            break
    return "".join(found.groups()) if (found := _LONG_BUOY.fullmatch(name)) else name


def identifiers(name: str) -> tuple[str, ...]:
    """Return all identifiers that stand for the station `name`, the canonical one first.

    Identifiers issued by a country are known only from reports, and are not included.
    """
    known = canonical_station(name)
    prefixes = [p for pattern, found in _FORMS if pattern.fullmatch(known) for p in found]
    found = [known, name, *(prefix + known for prefix in prefixes)]
    if known.isdigit() and len(known) == 5:
        long = f"{known[:2]}00{known[2:]}"
        found += [long, f"0-20002-0-{long}"]
    return tuple(dict.fromkeys(found))


def station_codes(table: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    """Return the index into the sorted canonical identifiers of a table for each of its rows.

    Like `category_codes` of the column `station_id`, but one station has one number whatever
    identifier a report names it by.
    """
    code, names = category_codes(table, "station_id")
    linked = _linked(table, code, names)
    known = [canonical_station(name) for name in names]
    known = [linked.get(name, name) for name in known]
    distinct = sorted(set(known))
    place = {name: i for i, name in enumerate(distinct)}
    lookup = np.array([*(place[name] for name in known), -1], dtype=np.int64)
    return lookup[code], distinct


def is_station(table: pa.Table, names: Iterable[str]) -> NDArray[np.bool_]:
    """Return the mask of the rows of stations that any of `names` stands for, shape (rows,)."""
    code, known = station_codes(table)
    reported, reports = category_codes(table, "station_id")
    wanted = {canonical_station(name) for name in names}
    named = [i for i, name in enumerate(reports) if canonical_station(name) in wanted]
    canonical = [i for i, name in enumerate(known) if name in wanted]
    return np.isin(code, [*canonical, *np.unique(code[np.isin(reported, named)])])


def canonical_stations(table: pa.Table) -> pa.DictionaryArray:
    """Return the canonical identifier of each row's station as a dictionary column."""
    code, names = station_codes(table)
    indices = number_array(code.astype(np.int32), code < 0)
    return pa.DictionaryArray.from_arrays(indices, text_array(names))


def _linked(table: pa.Table, code: NDArray[np.int64], names: Iterable[str]) -> Mapping[str, str]:
    """Return the station number that reports give with a WIGOS identifier issued by a country.

    A number given with several of them is a dummy and is ignored.
    """
    if "station_alias" not in table.column_names:
        return {}
    alias, aliases = category_codes(table, "station_alias")
    if not aliases:
        return {}
    names = list(names)
    rows = alias >= 0
    partners: dict[str, set[str]] = defaultdict(set)
    for mine, other in np.unique(np.stack([code[rows], alias[rows]]), axis=1).T:
        name = canonical_station(names[mine])
        if _WIGOS.fullmatch(name):
            partners[canonical_station(aliases[other])].add(name)
    return {found.pop(): number for number, found in partners.items() if len(found) == 1}


_IDENTIFIERS = ("traditional_station_identifier", "station_id", "wigos_station_identifier")
_LATITUDES, _LONGITUDES = ("latitude", "lat"), ("longitude", "lon")


class StationSite(NamedTuple):
    """Site of a station: degrees north and east, height of the ground and of the barometer in m."""

    lat: float
    lon: float
    elevation: float
    barometer: float


def default_list() -> str:
    """Return the path of the list of this installation, "" for none."""
    return os.environ.get("APPA_STATIONS", "")


@lru_cache(maxsize=4)
def read_list(path: str) -> Mapping[str, StationSite]:
    """Return the places by canonical identifier; none for an empty path.

    Raises:
        ConfigurationError: If the file cannot be read or lacks its columns.
    """
    if not path:
        return {}
    found: dict[str, StationSite] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names = set(rows.fieldnames or ())
            if not (names & set(_IDENTIFIERS) and names & set(_LATITUDES)):
                raise ConfigurationError(
                    f"Expected columns station_id, lat, lon and elevation in the list of stations; "
                    f"got {', '.join(sorted(names)) or 'none'}.",
                    source=path,
                )
            for row in rows:
                _add(found, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(
            f"Expected a readable list of stations at '{path}'; {error}.", source=path
        ) from error
    return found


def _add(found: dict[str, StationSite], row: Mapping[str, str | None]) -> None:
    """Add the station of a row; a row without a position is left out."""
    lat, lon = _number(row, *_LATITUDES), _number(row, *_LONGITUDES)
    if not (abs(lat) <= 90.0 and abs(lon) <= 360.0):
        return
    ground = _number(row, "elevation")
    barometer = _number(row, "barometer_height")
    place = StationSite(lat, lon, ground, barometer if barometer == barometer else ground)
    for column in _IDENTIFIERS:
        if name := (row.get(column) or "").strip():
            found.setdefault(canonical_station(name), place)


def _number(row: Mapping[str, str | None], *columns: str) -> float:
    text = next((row[column] for column in columns if row.get(column)), None)
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


@lru_cache(maxsize=1)
def _airports() -> Mapping[str, Mapping[str, Any]]:
    import airportsdata  # noqa: PLC0415 (a table of 28 000 airports, needed for METAR alone)

    found: dict[str, Any] = airportsdata.load("ICAO")
    return found


def airport(code: str) -> StationSite | None:
    """Return the place of an airport by its ICAO code, None if it is not known."""
    entry = _airports().get(code)
    if entry is None:
        return None
    height = float(entry["elevation"]) * FOOT
    return StationSite(float(entry["lat"]), float(entry["lon"]), height, height)
