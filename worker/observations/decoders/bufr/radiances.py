r"""Decode radiances of sounders as brightness temperatures by channel: HIRS, AMSU-A, AMSU-B, MHS, ATMS.

ATOVS 310008, 310009 and 310010, ATMS 310061, and the same sensors in NCEP dumps. A channel begins
at its number, 0 02 150 (which counts the channels of all ATOVS sensors through) or 0 05 042 (which
counts those of one), before its brightness temperature. Channels are numbered as the sensor's own.

The scan angle is the view from the satellite, between the nadir and the spot. Seen from the spot at
the zenith angle z, with the satellite at the height h,

.. math:: \sin\theta = \frac{R}{R + h} \sin z,

and its sign is that of the spot's number in the scan line, counted from the middle. Without zenith
angle it is the sensor's step times that number.

References:
    | EUMETSAT, "ATOVS Level 1b Product Guide", 2010; NOAA, "KLM User's Guide", 2009, section 3;
      "JPSS ATMS SDR Calibration ATBD", 2013 (spots of a scan line and the steps between them)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from model.domain.physics import MEAN_EARTH_RADIUS
from worker.observations.decoders.bufr.block import Block
from worker.observations.decoders.bufr.identity import observation_time, satellite_id
from worker.observations.decoders.bufr.reports import Reports, Values

__all__ = ["SOUNDERS", "Sounder", "decode_radiances"]


class Sounder(NamedTuple):
    """A cross-track sounder.

    Attributes:
        channels: How many it has.
        first: Number of its first channel in code table 0 02 150, 0 where it has none there.
        spots: In a scan line.
        step: Degrees between neighbouring spots.
    """

    channels: int
    first: int
    spots: int
    step: float


SOUNDERS = {
    "hirs": Sounder(20, 1, 56, 1.8),
    "msu": Sounder(4, 21, 11, 9.47),
    "amsu-a": Sounder(15, 28, 30, 10.0 / 3.0),
    "amsu-b": Sounder(5, 43, 90, 1.1),
    "mhs": Sounder(5, 43, 90, 10.0 / 9.0),
    "atms": Sounder(22, 0, 96, 1.11),
}

_BY_INDICATOR = {0: "hirs", 1: "msu", 3: "amsu-a", 4: "amsu-b", 11: "mhs"}
"""Code table 0 02 048."""
_BY_INSTRUMENT = {
    203: "mhs", 570: "amsu-a", 574: "amsu-b", 605: "hirs", 606: "hirs", 607: "hirs", 621: "atms",
    623: "msu",
}  # fmt: skip
"""Common code table C-8, 0 02 019."""

Flags = tuple[tuple[int, int, tuple[int, ...]], ...]

_LINE_FLAGS: Flags = (
    (33_030, 24, (1, 4, 5)),
    (33_031, 24, (5, 7, 10, 13, 16)),
    (33_033, 24, (22, 23)),
)
"""Bad bits, numbered from the left, of a line or spot: element, width, bits. Not to be used, not
calibrated, not located; all channels missing, suspect."""
_CHANNEL_FLAGS: Flags = ((33_032, 24, (1, 2, 3)), (33_081, 12, (4, 6, 7, 8, 9, 10, 11)))
"""The same of one channel: no good counts to calibrate by; counts insufficient, out of range or
inconsistent, gain error."""


def decode_radiances(block: Block) -> Reports:
    """Return the brightness temperatures of all channels, by satellite and sensor."""
    layout = block.layout
    sensors = _sensors(block)
    measured = next(
        (at for c in (12_163, 12_063) if (at := layout.where(c)).size), layout.where(-1)
    )
    value = block.at_each(measured)
    channel = _channels(block, measured, sensors)
    block.usage.leave(measured, np.isnan(channel))
    flagged = np.zeros(value.shape, dtype=bool)
    for code, width, bits in _CHANNEL_FLAGS:
        nearest = [layout.before_each(measured, code), layout.after_each(measured, code)]
        at = nearest[0] if (nearest[0] >= 0).all() else nearest[1]
        flagged |= _any_bit(block.at_each(at), width, bits)
    for code, width, bits in _LINE_FLAGS:
        flagged |= _any_bit(block.first(code), width, bits)[:, None]
    brightness = np.where(np.isnan(channel), np.nan, value)
    return Reports(
        "satellite",
        satellite_id(block),
        observation_time(block),
        block.first(5_001, 5_002),
        block.first(6_001, 6_002),
        np.full(len(block), np.nan),
        [Values("brightness_temperature", brightness, "channel", channel, preqc=flagged)],
        platform=sensors,
        scan_angle=_scan_angle(block, sensors),
    )


def _sensors(block: Block) -> list[str]:
    """Return the name of each report's sensor, "" where it is none of `SOUNDERS`."""
    indicator, instrument = block.first(2_048), block.first(2_019)
    return [
        _BY_INDICATOR.get(old) or _BY_INSTRUMENT.get(number, "")
        for old, number in zip(indicator.tolist(), instrument.tolist(), strict=True)
    ]


def _of(sensors: list[str], what: Callable[[Sounder], float]) -> np.ndarray:
    """Return a property of each report's sounder, (N,); NaN for sensors not in `SOUNDERS`."""
    known = {name: what(sounder) for name, sounder in SOUNDERS.items()}
    return np.array([known.get(name, np.nan) for name in sensors])


def _channels(block: Block, measured: np.ndarray, sensors: list[str]) -> np.ndarray:
    """Return the channel of each value as its sensor counts it, (N, K); NaN if it is none of its own."""
    through = block.at_each(block.layout.before_each(measured, 2_150))
    own = block.at_each(block.layout.before_each(measured, 5_042))
    channel = np.where(
        np.isnan(through), own, through - _of(sensors, lambda s: s.first - 1)[:, None]
    )
    channels = _of(sensors, lambda s: s.channels)[:, None]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where((channel >= 1) & (channel <= channels), channel, np.nan))


def _any_bit(flags: np.ndarray, width: int, bits: tuple[int, ...]) -> np.ndarray:
    """Return whether any of the bits, numbered from the left from 1, is set; False where missing."""
    numbers = np.where(np.isfinite(flags), flags, 0.0).astype(np.int64)
    numbers[numbers == (1 << width) - 1] = 0
    return np.asarray(numbers & sum(1 << (width - bit) for bit in bits) != 0)


def _scan_angle(block: Block, sensors: list[str]) -> np.ndarray:
    """Return the view from nadir in degrees, negative before the middle of the scan line, (N,)."""
    spots = _of(sensors, lambda s: s.spots)
    beside = block.first(5_043) - (spots + 1.0) / 2.0
    height = block.first(7_002, 7_001)
    sine = np.sin(np.deg2rad(block.first(7_024))) / (1.0 + height / MEAN_EARTH_RADIUS)
    seen = np.rad2deg(np.arcsin(np.abs(sine))) * np.sign(beside)
    return np.asarray(np.where(np.isnan(seen), beside * _of(sensors, lambda s: s.step), seen))
