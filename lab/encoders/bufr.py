"""Encode rows of one network as BUFR messages.

Land stations (307080), ships (308009), moored (315008) and drifting buoys (315009),
scatterometer winds (312061), sondes (309052), aircraft (311010) and satellite winds (310077).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import (
    MessageTemplate,
    ReportTable,
    build_message,
    calendar,
    gather,
    reported_direction,
)
from model.domain.errors import InvalidInput
from model.domain.physics import GRAVITY, dewpoint_from_specific_humidity, height_of_pressure
from model.domain.registry import Registry
from worker.observations.decoders.bufr.identity import LAST_POSITION, NOMINAL
from worker.observations.decoders.bufr.upper_air import AMV_METHODS, STANDARD_LEVELS

__all__ = [
    "AIRCRAFT",
    "AMV",
    "BUOY",
    "DRIFTER",
    "ENCODERS",
    "SCATTEROMETER",
    "SHIP",
    "SYNOP",
    "aircraft",
    "amv",
    "drifter",
    "encode_bufr",
    "moored_buoy",
    "scatterometer",
    "ship",
    "sonde",
    "sonde_template",
    "synop",
]

SYNOP = MessageTemplate((301_150, 307_080), 0, 2, {"": (0, 0)})
SHIP = MessageTemplate((308_009,), 1, 0, {"": (0,)})
BUOY = MessageTemplate((315_008,), 1, 25, {"short": (0, 1, 0, 0, 0, 0, 0, 0)})
DRIFTER = MessageTemplate((315_009,), 1, 0, {"short": (0, 1, 1, 1), "": (0,)})

_HEIGHT = "heightOfSensorAboveLocalGroundOrDeckOfMarinePlatform"
_MEAN_WIND = 2
_WIGOS = re.compile(r"(\d+)-(\d+)-(\d+)-(.+)")

Columns = dict[str, np.ndarray | list[str] | float | str]


def _texts(names: Iterable[str], most: int) -> list[str]:
    """Return the names; refuse long ones, which would collide if cut to their element's width."""
    found = list(names)
    if long := next((name for name in found if len(name) > most), None):
        raise InvalidInput(f"Expected names of at most {most} characters; got '{long}'.", name=long)
    return found


def _place(reports: ReportTable) -> Columns:
    moment = calendar(reports.time)
    moment.pop("#1#second")
    return {**moment, "#1#latitude": reports.lat, "#1#longitude": reports.lon}


def _common(reports: ReportTable) -> Columns:
    u, v = reports.get("10m_u_component_of_wind"), reports.get("10m_v_component_of_wind")
    speed = np.where(np.isnan(u), reports.get("10m_wind_speed"), np.hypot(u, v))
    return {
        "#1#nonCoordinatePressure": reports.get("surface_pressure"),
        "#1#pressureReducedToMeanSeaLevel": reports.get("mean_sea_level_pressure"),
        "#1#airTemperature": reports.get("2m_temperature"),
        "#1#timeSignificance": float(_MEAN_WIND),
        "#1#windDirection": reported_direction(u, v),
        "#1#windSpeed": speed,
    }


def _humidity(reports: ReportTable) -> Columns:
    return {
        "#1#dewpointTemperature": reports.get("2m_dewpoint_temperature"),
        "#1#relativeHumidity": np.round(reports.get("2m_relative_humidity") * 100.0),
    }


def synop(reports: ReportTable) -> Columns:
    """Return columns of land stations; sensors at 2 m and 10 m, rain of the past hour."""
    rain = reports.get("total_precipitation") * 1_000.0
    return {
        **_land_identity(reports),
        **_place(reports),
        "#1#heightOfStationGroundAboveMeanSeaLevel": reports.elevation,
        "#1#heightOfBarometerAboveMeanSeaLevel": reports.elevation,
        f"#1#{_HEIGHT}": 2.0,
        **_common(reports),
        **_humidity(reports),
        "#4#timePeriod": np.where(np.isnan(rain), np.nan, -1.0),
        "#1#totalPrecipitationOrTotalWaterEquivalent": rain,
        f"#7#{_HEIGHT}": 10.0,
        "#10#timePeriod": -10.0,
    }


def _land_identity(reports: ReportTable) -> Columns:
    number = len(reports)
    series, issuer, issue = (np.full(number, np.nan) for _ in range(3))
    block, station = np.full(number, np.nan), np.full(number, np.nan)
    local, name = [""] * number, [""] * number
    for i, text in enumerate(reports.station_id):
        if match := _WIGOS.fullmatch(text):
            series[i], issuer[i], issue[i] = (int(match.group(k)) for k in (1, 2, 3))
            local[i] = match.group(4)
        elif re.fullmatch(r"\d{5}", text):
            block[i], station[i] = int(text[:2]), int(text[2:])
        else:
            name[i] = text
    return {
        "#1#wigosIdentifierSeries": series,
        "#1#wigosIssuerOfIdentifier": issuer,
        "#1#wigosIssueNumber": issue,
        "#1#wigosLocalIdentifierCharacter": _texts(local, 16),
        "#1#blockNumber": block,
        "#1#stationNumber": station,
        "#1#stationOrSiteName": _texts(name, 20),
    }


def ship(reports: ReportTable) -> Columns:
    """Return columns of ships; a call sign has at most nine characters."""
    return {
        "#1#shipOrMobileLandStationIdentifier": _texts(reports.station_id, 9),
        **_place(reports),
        "#1#heightOfBarometerAboveMeanSeaLevel": np.nan_to_num(reports.elevation),
        **_common(reports),
        **_humidity(reports),
        "#1#oceanographicWaterTemperature": reports.get("sea_surface_temperature"),
        "#8#timePeriod": -10.0,
    }


def _platform_number(reports: ReportTable) -> np.ndarray:
    return np.array([float(t) if t.isdigit() else np.nan for t in reports.station_id])


def moored_buoy(reports: ReportTable) -> Columns:
    """Return columns of moored buoys with a WMO number of up to seven digits."""
    return {
        "#1#marineObservingPlatformIdentifier": _platform_number(reports),
        **_place(reports),
        **_common(reports),
        **_humidity(reports),
        "#1#seaSurfaceTemperature": reports.get("sea_surface_temperature"),
    }


def drifter(reports: ReportTable) -> Columns:
    """Return columns of drifting buoys: the last position is of the nominal time."""
    nominal = calendar(reports.time, 2)
    nominal.pop("#2#second")
    common = _common(reports)
    return {
        "#1#marineObservingPlatformIdentifier": _platform_number(reports),
        **_place(reports),
        **nominal,
        **common,
        "#1#timeSignificance": float(LAST_POSITION),
        "#2#timeSignificance": float(NOMINAL),
        "#3#timeSignificance": float(_MEAN_WIND),
        "#1#oceanographicWaterTemperature": reports.get("sea_surface_temperature"),
    }


SCATTEROMETER = MessageTemplate((312_061,), 12, 0, {"": (2,)})


def scatterometer(reports: ReportTable) -> Columns:
    """Return columns of wind cells; two solutions as instruments give them: the wind is the second."""
    u, v = reports.get("10m_u_component_of_wind"), reports.get("10m_v_component_of_wind")
    direction, speed = reported_direction(u, v, 1), np.hypot(u, v)
    satellite = [re.fullmatch(r"sat(\d+)", text) for text in reports.station_id]
    return {
        "#1#satelliteIdentifier": np.array([float(m.group(1)) if m else np.nan for m in satellite]),
        **calendar(reports.time),
        "#1#latitude": reports.lat,
        "#1#longitude": reports.lon,
        "#1#windVectorCellQuality": 0.0,
        "#1#numberOfVectorAmbiguities": 2.0,
        "#1#indexOfSelectedWindVector": 2.0,
        "#1#windSpeedAt10M": speed,
        "#1#windDirectionAt10M": (direction + 180.0) % 360.0,
        "#2#windSpeedAt10M": speed,
        "#2#windDirectionAt10M": direction,
    }


AIRCRAFT = MessageTemplate((311_010,), 4, 0, {"short": (0,) * 6, "": (0, 0)})
AMV = MessageTemplate((310_077,), 5, 0, {"": (0, 0, 0, 0)})

_BALLOON_LAUNCH = 18
_STANDARD_LEVEL = 65_536
_QI_WITHOUT_FORECAST = 5
_METHODS = {text: number for number, text in AMV_METHODS.items()}


def _wind(reports: ReportTable) -> tuple[np.ndarray, np.ndarray]:
    """Return the direction in whole degrees and speed in m s-1."""
    u, v = reports.get("u_component_of_wind"), reports.get("v_component_of_wind")
    return reported_direction(u, v), np.hypot(u, v)


def sonde_template(levels: int, subcategory: int) -> MessageTemplate:
    """Return the template of an ascent with that many levels."""
    return MessageTemplate((309_052,), 2, subcategory, {"extended": (levels,), "": (0,)})


def sonde(levels: ReportTable) -> Columns:
    """Return columns of one ascent; levels from the ground up, drift relative to the lowest."""
    station = levels.station_id[0]
    wmo = re.fullmatch(r"\d{5}", station)
    direction, speed = _wind(levels)
    dewpoint = dewpoint_from_specific_humidity(levels.get("specific_humidity"), levels.vertical)
    columns: Columns = {
        "#1#blockNumber": float(station[:2]) if wmo else np.nan,
        "#1#stationNumber": float(station[2:]) if wmo else np.nan,
        "#1#shipOrMobileLandStationIdentifier": "" if wmo else _texts([station], 9)[0],
        "#1#timeSignificance": float(_BALLOON_LAUNCH),
        **calendar(levels.time[:1]),
        "#1#latitude": levels.lat[:1],
        "#1#longitude": levels.lon[:1],
        "#1#heightOfStationGroundAboveMeanSeaLevel": levels.elevation[:1],
    }
    by_level = {
        "timePeriod": (levels.time - levels.time[0]).astype(np.float64),
        "extendedVerticalSoundingSignificance": np.where(
            np.isin(np.round(levels.vertical / 100.0), STANDARD_LEVELS), _STANDARD_LEVEL, 0
        ),
        "pressure": levels.vertical,
        "nonCoordinateGeopotentialHeight": np.round(levels.get("geopotential") / GRAVITY),
        "latitudeDisplacement": levels.lat - levels.lat[0],
        "longitudeDisplacement": levels.lon - levels.lon[0],
        "airTemperature": levels.get("temperature"),
        "dewpointTemperature": dewpoint,
        "windDirection": direction,
        "windSpeed": speed,
    }
    for name, values in by_level.items():
        columns |= {f"#{k + 1}#{name}": float(value) for k, value in enumerate(values)}
    return columns


def aircraft(reports: ReportTable) -> Columns:
    """Return columns of aircraft reports; the pressure becomes a flight level in whole metres."""
    direction, speed = _wind(reports)
    q = reports.get("specific_humidity")
    return {
        "#1#aircraftRegistrationNumberOrOtherIdentification": _texts(reports.station_id, 8),
        **calendar(reports.time),
        "#1#latitude": reports.lat,
        "#1#longitude": reports.lon,
        "#1#flightLevel": np.round(height_of_pressure(reports.vertical)),
        "#1#airTemperature": reports.get("temperature"),
        "#1#windDirection": direction,
        "#1#windSpeed": speed,
        "#1#mixingRatio": q / (1.0 - q),
        "#1#relativeHumidity": np.round(reports.get("relative_humidity") * 100.0),
    }


def amv(reports: ReportTable) -> Columns:
    """Return columns of satellite winds of full quality; the platform names the method."""
    direction, speed = _wind(reports)
    satellite = [re.fullmatch(r"sat(\d+)", text) for text in reports.station_id]
    return {
        "#1#satelliteIdentifier": np.array([float(m.group(1)) if m else np.nan for m in satellite]),
        "#1#satelliteDerivedWindComputationMethod": np.array(
            [float(_METHODS.get(text, "nan")) for text in reports.platform]
        ),
        **calendar(reports.time),
        "#1#latitude": reports.lat,
        "#1#longitude": reports.lon,
        "#1#pressure": reports.vertical,
        "#1#windDirection": direction,
        "#1#windSpeed": speed,
        "#1#standardGeneratingApplication": float(_QI_WITHOUT_FORECAST),
        "#1#percentConfidence": 100.0,
    }


_RADIOSONDE, _DROPSONDE = 4, 7


@dataclass(frozen=True)
class Encoder:
    """How a network is encoded: its template and the function that returns its columns."""

    template: MessageTemplate
    columns: Callable[[ReportTable], Columns]


ENCODERS: Registry[Encoder] = Registry(
    "report type with a BUFR encoder",
    synop=Encoder(SYNOP, synop),
    ship=Encoder(SHIP, ship),
    buoy=Encoder(BUOY, moored_buoy),
    drifter=Encoder(DRIFTER, drifter),
    aircraft=Encoder(AIRCRAFT, aircraft),
    amv=Encoder(AMV, amv),
    scatterometer=Encoder(SCATTEROMETER, scatterometer),
    temp=Encoder(sonde_template(0, _RADIOSONDE), sonde),
    dropsonde=Encoder(sonde_template(0, _DROPSONDE), sonde),
)


def encode_bufr(
    table: pa.Table,
    report_type: str,
    reports_per_message: int = 100,
    compressed: bool = True,
    update_sequence: int = 0,
) -> bytes:
    """Return messages of the rows of one network, one after another.

    Values are rounded as the templates prescribe (temperature 0.01 K, pressure 10 Pa, speed
    0.1 m/s, direction 1 degree). Variables that a network does not report are left out.

    Arguments:
        table: Rows in `OBSERVATION_SCHEMA`; those of other networks are ignored.
        report_type: One of `ENCODERS`.
        reports_per_message: 1 gives a message per report. An ascent is always one message.
        compressed: Whether messages of several reports are compressed.
        update_sequence: 0 for original messages, more for corrections.

    Raises:
        UnknownName: If there is no encoder for the network.
        InvalidInput: If a value does not fit into its element.
    """
    encoder = ENCODERS[report_type]
    reports = gather(table.filter(pc.equal(table["report_type"], report_type)))
    messages = []
    groups = (
        _ascents(reports) if encoder.columns is sonde else _chunks(reports, reports_per_message)
    )
    for group in groups:
        template, subsets = encoder.template, len(group)
        if encoder.columns is sonde:
            template, subsets = sonde_template(len(group), encoder.template.subcategory), 1
        messages.append(
            build_message(
                template,
                encoder.columns(group),
                subsets,
                group.time[0],
                compressed,
                update_sequence,
            )
        )
    return b"".join(messages)


def _chunks(reports: ReportTable, size: int) -> Iterator[ReportTable]:
    for start in range(0, len(reports), size):
        yield reports.take(np.arange(start, min(start + size, len(reports))))


def _ascents(reports: ReportTable) -> Iterator[ReportTable]:
    """Yield levels of each ascent, by decreasing pressure."""
    launched = np.where(reports.profile < 0, reports.time.astype(np.int64), 0)
    names, station = np.unique(reports.station_id.astype(str), return_inverse=True)
    keys = np.rec.fromarrays([reports.profile, launched, station])
    _, first, ascent = np.unique(keys, return_index=True, return_inverse=True)
    for number in np.argsort(first):
        index = np.flatnonzero(ascent == number)
        yield reports.take(index[np.argsort(-reports.vertical[index], kind="stable")])
