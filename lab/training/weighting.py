"""Fit the weighting functions of a checkpoint: from known peaks, or to radiances above known states.

Brightness temperatures of a sounder are collocated with the states of a store (ERA5, analyses, a nature
run): each with the temperatures of the model's levels at its position, in the state nearest in time. The
fit is that of `model.operators.weighting`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from lab.training.datasets import StateStore
from model.domain.errors import InvalidInput
from model.domain.grids import bilinear, interpolate
from model.domain.variables import Channel
from model.latent_model import LatentModel
from model.operators.weighting import (
    LEAST_INSIDE,
    LEAST_PROFILES,
    PEAKS,
    FittedChannel,
    fit_channel,
    level_weights,
    share_inside,
)
from worker.observations.columns import float_column, time_column
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_limited

__all__ = [
    "ChannelWeights",
    "Soundings",
    "add_weights",
    "fit_weights",
    "known_weights",
    "soundings",
]

FARTHEST_SECONDS = 1_800
"""Largest time between a brightness temperature and its state."""

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelWeights:
    """The weights of one channel, or why it cannot be used.

    Attributes:
        sensor, channel: Which.
        weights: Of the model's levels, with shape (levels,); None where it cannot be used.
        peak: hPa.
        inside: Share of the weighting function within the model's levels.
        fit: How it was fitted; None where the peak is known from the description of the sensor.
        why: Why it cannot be used; empty if it can.
    """

    sensor: str
    channel: int
    weights: Float | None
    peak: float
    inside: float
    fit: FittedChannel | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for the card of a checkpoint."""
        found: dict[str, Any] = {"peak_hpa": round(self.peak, 2), "inside": round(self.inside, 3)}
        if self.fit is not None:
            error, bias = round(self.fit.error, 3), round(self.fit.bias, 3)
            found |= {"profiles": self.fit.count, "error_k": error, "bias_k": bias}
        return found | ({"left_out": self.why} if self.why else {})


def known_weights(levels: Sequence[int], sensors: Iterable[str] = ()) -> list[ChannelWeights]:
    """Return the closed form of every channel whose peak is known.

    Arguments:
        levels: hPa, ascending.
        sensors: Some of `PEAKS`; all if empty.
    """
    chosen = _chosen(sensors)
    pressures = 100.0 * np.array(levels, dtype=np.float64)
    return [
        _judged(
            pressures, sensor, channel, level_weights(pressures, 100.0 * peak), 100.0 * peak, None
        )
        for sensor in chosen
        for channel, peak in PEAKS[sensor].items()
    ]


def _chosen(sensors: Iterable[str]) -> list[str]:
    chosen = list(sensors) or list(PEAKS)
    if unknown := sorted(set(chosen) - set(PEAKS)):
        raise InvalidInput(
            f"Expected sensors among {', '.join(PEAKS)}; got {', '.join(unknown)}.",
            sensors=unknown,
        )
    return chosen


def _judged(
    levels: Float, sensor: str, channel: int, weights: Float, peak: float, fit: FittedChannel | None
) -> ChannelWeights:
    """Return the weights of a channel, unusable if too much of them lies outside the levels."""
    inside = share_inside(levels, peak)
    why = "" if inside >= LEAST_INSIDE else f"{inside:.0%} of it within the levels of the model"
    kept = None if why else weights
    return ChannelWeights(sensor, channel, kept, peak / 100.0, inside, fit, why)


@dataclass(frozen=True, eq=False)
class Soundings:
    """Brightness temperatures above known states.

    Attributes:
        sensor, channel: Of each value, with shape (N,).
        brightness: K, with shape (N,).
        profiles: Temperatures of the levels there in K, with shape (N, levels).
    """

    sensor: NDArray[Any]
    channel: NDArray[np.int64]
    brightness: Float
    profiles: Float


def soundings(model: LatentModel, states: StateStore, files: Iterable[Path]) -> Soundings:
    """Return the brightness temperatures of files beside the temperatures of a store.

    Values that their provider flags, and those without a state within half an hour, are left out.

    Raises:
        InvalidInput: If none is left.
    """
    states.check_grid(model.grid)
    parts = [part for path in files for part in _beside(model, states, _radiances(path))]
    if not parts:
        raise InvalidInput(
            f"Expected brightness temperatures within {FARTHEST_SECONDS // 60} minutes of a state of "
            f"{states.url}; got none."
        )
    columns = zip(*parts, strict=True)
    return Soundings(*(np.concatenate(column) for column in columns))


def _radiances(path: Path) -> pa.Table:
    table = decode_limited(path, context=DecodeContext()).table
    bright = pc.equal(table["variable"].cast(pa.string()), "brightness_temperature")
    return table.filter(pc.and_(bright, table["rejected_by"].is_null()))


def _beside(
    model: LatentModel, states: StateStore, table: pa.Table
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64], Float, Float]]:
    """Yield sensor, channel, brightness and profile of the values that belong to each state."""
    seconds = time_column(table) // 1_000_000_000
    hours = states.times.astype("datetime64[s]").astype(np.int64)
    after = np.clip(np.searchsorted(hours, seconds), 1, max(len(hours) - 1, 1))
    before = after - 1
    last = np.minimum(after, len(hours) - 1)
    nearest = np.where(
        np.abs(seconds - hours[before]) <= np.abs(seconds - hours[last]), before, last
    )
    near = np.abs(seconds - hours[nearest]) <= FARTHEST_SECONDS
    sensor = table["platform"].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
    for state in np.unique(nearest[near]).tolist():
        rows = np.flatnonzero(near & (nearest == state))
        own = table.take(rows)
        yield (
            sensor[rows].astype(str),
            np.rint(float_column(own, "vertical")).astype(np.int64),
            float_column(own, "obs_value"),
            _profiles(model, states, state, float_column(own, "lat"), float_column(own, "lon")),
        )


def _profiles(model: LatentModel, states: StateStore, number: int, lat: Float, lon: Float) -> Float:
    """Return the temperatures of the model's levels at places, with shape (N, levels)."""
    fields = states.read([number])[0]
    cells, weights = bilinear(model.grid, lat, lon)
    place = {channel: at for at, channel in enumerate(states.channels)}
    levels = [place[Channel("temperature", level)] for level in model.card.levels]
    return np.stack(
        [interpolate(fields[at].astype(np.float64), cells, weights) for at in levels], axis=1
    )


def fit_weights(
    levels: Sequence[int], found: Soundings, sensors: Iterable[str] = ()
) -> list[ChannelWeights]:
    """Fit every channel that has enough values; sensors without a name are left out.

    Arguments:
        levels: hPa, ascending.
        found: Brightness temperatures with collocated profiles.
        sensors: Only these; all there are if empty.
    """
    pressures, wanted = 100.0 * np.array(levels, dtype=np.float64), set(sensors)
    fitted = []
    for sensor in sorted(set(found.sensor.tolist()) - {""}):
        if wanted and sensor not in wanted:
            continue
        own = found.sensor == sensor
        for channel in np.unique(found.channel[own]).tolist():
            rows = own & (found.channel == channel)
            if (count := int(rows.sum())) < LEAST_PROFILES:
                why = f"{count} values, fewer than {LEAST_PROFILES}"
                fitted.append(ChannelWeights(sensor, channel, None, 0.0, 0.0, why=why))
                continue
            fit = fit_channel(pressures, found.profiles[rows], found.brightness[rows])
            fitted.append(_judged(pressures, sensor, channel, fit.weights, fit.peak, fit))
    return fitted


def add_weights(model: LatentModel, channels: Iterable[ChannelWeights]) -> int:
    """Add usable weights to a model, and the results of all channels to its card; return their number."""
    known: dict[str, dict[str, Any]] = {}
    used = 0
    for one in channels:
        known.setdefault(one.sensor, {})[str(one.channel)] = one.as_dict()
        if one.weights is not None:
            name = f"weighting_function.{one.sensor}.{one.channel}"
            model.static[name] = torch.from_numpy(one.weights).float()
            used += 1
    provenance = {**model.card.provenance, "weighting_functions": known}
    model.card = model.card.model_copy(update={"provenance": provenance})
    return used
