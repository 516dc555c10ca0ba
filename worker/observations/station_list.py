"""Look up the position of stations that report only a number, as in text bulletins.

The list is a CSV file named by the environment variable `APPA_STATIONS`: the columns of WMO
OSCAR/Surface and wis2box (`traditional_station_identifier`, `wigos_station_identifier`, `latitude`,
`longitude`, `elevation`, `barometer_height`), or `station_id`, `lat`, `lon`, `elevation`. Airports
come from the package `airportsdata` (from OurAirports, public domain) where the list has none.
"""

import csv
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from model.domain.errors import ConfigurationError
from model.domain.physics import FOOT
from worker.observations.stations import canonical_station

__all__ = ["StationSite", "airport", "default_list", "read_list"]

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
