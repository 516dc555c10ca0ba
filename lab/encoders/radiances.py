"""Encode brightness temperatures as the satellite agencies do: AMSU-A and MHS (ATOVS), ATMS.

ATOVS messages (310009, 310010) number channels consecutively over all sensors, those of ATMS (310061)
per sensor; code tables 0 02 048, 0 02 150 and C-8.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lab.encoders.message import MessageTemplate, build_message, calendar

__all__ = ["SENSORS", "encode_radiances"]

_SPOTS_IN_MESSAGE = 100


@dataclass(frozen=True)
class SensorLayout:
    """Layout of a sensor's BUFR messages: template, keys, channels and scan line.

    Attributes:
        template: Descriptor of its messages.
        category: Data category.
        keys: Elements that name the sensor, and their numbers.
        channel: Element that numbers a channel.
        first: Number of its first channel there.
        spots: In a scan line.
    """

    template: int
    category: int
    keys: dict[str, float]
    channel: str
    first: int
    spots: int


_THROUGH = "tovsOrAtovsOrAvhrrInstrumentationChannelNumber"
SENSORS = {
    "amsu-a": SensorLayout(310_009, 3, {"#1#satelliteSensorIndicator": 3.0}, _THROUGH, 28, 30),
    "mhs": SensorLayout(310_010, 3, {"#1#satelliteSensorIndicator": 11.0}, _THROUGH, 43, 90),
    "atms": SensorLayout(310_061, 21, {"#1#satelliteInstruments": 621.0}, "channelNumber", 1, 96),
}


@dataclass(frozen=True)
class Spots:
    """Spots with their channels side by side.

    Attributes:
        time: datetime64[s], (N,).
        lat, lon: Degrees, (N,).
        channels: Numbers as the sensor counts them, (K,).
        brightness: K, NaN where not given, (N, K).
    """

    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    channels: np.ndarray
    brightness: np.ndarray


def encode_radiances(table: pa.Table, sensor: str, satellite: int) -> bytes:
    """Return messages of the brightness temperatures of a table.

    Spots are numbered in their order, starting again from 1 after the last of a scan line.

    Arguments:
        table: Rows in `OBSERVATION_SCHEMA`; other variables are ignored.
        sensor: One of `SENSORS`.
        satellite: Identifier of common code table C-5.
    """
    how = SENSORS[sensor]
    found = _gather(table.filter(pc.equal(table["variable"], "brightness_temperature")))
    return b"".join(_messages(found, how, satellite))


def _gather(rows: pa.Table) -> Spots:
    time = rows["time"].cast(pa.int64()).to_numpy() // 1_000_000_000
    lat, lon = rows["lat"].to_numpy(), rows["lon"].to_numpy()
    places = np.rec.fromarrays([time, lat, lon])
    _, first, spot = np.unique(places, return_index=True, return_inverse=True)
    channels, column = np.unique(rows["vertical"].to_numpy(), return_inverse=True)
    brightness = np.full((len(first), len(channels)), np.nan)
    brightness[spot, column] = rows["obs_value"].to_numpy()
    when = time[first].astype("datetime64[s]")
    return Spots(when, lat[first], lon[first], channels, brightness)


def _messages(found: Spots, how: SensorLayout, satellite: int) -> Iterator[bytes]:
    width = "extended" if how.template == 310_061 else ""
    counts = {width: (len(found.channels),)} if width else {}
    template = MessageTemplate((how.template,), how.category, 0, counts)
    for start in range(0, len(found.time), _SPOTS_IN_MESSAGE):
        own = slice(start, start + _SPOTS_IN_MESSAGE)
        number = 1.0 + np.arange(start, start + len(found.time[own])) % how.spots
        columns: dict[str, np.ndarray | list[str] | float | str] = {
            **calendar(found.time[own]),
            **how.keys,
            "#1#satelliteIdentifier": float(satellite),
            "#1#fieldOfViewNumber": number,
            "#1#latitude": found.lat[own],
            "#1#longitude": found.lon[own],
        }
        for n, channel in enumerate(found.channels.tolist()):
            columns[f"#{n + 1}#{how.channel}"] = how.first + channel - 1.0
            columns[f"#{n + 1}#brightnessTemperature"] = found.brightness[own, n]
        yield build_message(template, columns, len(number), found.time[start])
