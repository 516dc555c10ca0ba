"""A first guess from GRIB: channel order, regridding, and what is missing by name."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import channels
from tests.worker.decoders.grib_messages import LAT, LON, message
from worker.backgrounds.uploaded import read_states

GRID = Grid("small", "gaussian", 8, 16)
CHANNELS = channels((500, 850), surface=("2m_temperature", "sea_surface_temperature"))
TIME = datetime(2024, 1, 1, 12, tzinfo=UTC)
NAMES = {"temperature": "t", "u_component_of_wind": "u", "v_component_of_wind": "v",
         "geopotential": "z", "specific_humidity": "q", "2m_temperature": "2t",
         "sea_surface_temperature": 34}  # fmt: skip


def size(number):
    """Mean and amplitude of a channel, different for each, as the atmosphere has them."""
    channel = CHANNELS[number]
    return {
        "temperature": (255.0 if channel.level == 500 else 280.0, 1.0),
        "u_component_of_wind": (0.0, 4.0 + number),
        "v_component_of_wind": (0.0, 4.0 + number),
        "geopotential": (55_000.0 if channel.level == 500 else 14_500.0, 10.0),
        "specific_humidity": (1e-3 if channel.level == 500 else 6e-3, 1e-4),
        "2m_temperature": (287.0, 1.0),
        "sea_surface_temperature": (291.0, 1.0),
    }[channel.variable]


def field(number, lat=LAT, lon=LON):
    """A field of first-order spherical harmonics, different for each channel."""
    mean, amplitude = size(number)
    phi, lam = np.deg2rad(lat)[:, None], np.deg2rad(lon)[None, :]
    return mean + amplitude * (np.sin(phi) + np.cos(phi) * np.cos(lam))


def guess(tmp_path, *, skip=(), lat=LAT, lon=LON, times=(TIME,), nan_sst=False):
    parts = []
    for time in times:
        for number, channel in reversed(list(enumerate(CHANNELS))):
            if channel.name in skip:
                continue
            values = field(number, lat, lon)
            if nan_sst and channel.variable == "sea_surface_temperature":
                values[:, : len(lon) // 4] = np.nan
            kind = "surface" if channel.level is None else "isobaricInhPa"
            short = NAMES[channel.variable]
            parts.append(
                message(
                    values, short=short, level=channel.level or 0, kind=kind, lat=lat, lon=lon,
                    time=time.replace(tzinfo=None),
                )
            )  # fmt: skip
    path = tmp_path / "guess.grib"
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("lat", "lon", "tolerance"),
    [
        (LAT, LON, 0.05),  # averaged from 10 degrees
        (np.linspace(90, -90, 91), np.arange(0, 360, 4.0), 0.05),
        (
            np.linspace(-90, 90, 181),
            np.arange(-180, 180, 2.0),
            0.05,
        ),  # south first, from the date line
        (np.linspace(90, -90, 7), np.arange(0, 360, 30.0), 0.12),  # interpolated from 30 degrees
    ],
)
def test_states_in_channel_order_on_the_models_grid(tmp_path, lat, lon, tolerance):
    found = read_states(guess(tmp_path, lat=lat, lon=lon), CHANNELS, GRID)
    assert found.states.shape == (1, len(CHANNELS), 8, 16)
    assert found.times == (TIME,)
    for number in range(len(CHANNELS)):
        expected = field(number, GRID.latitude, GRID.longitude)
        # The mean over a cell of 22 degrees differs from the value at its centre, most at the poles.
        np.testing.assert_allclose(
            found.states[0, number], expected, rtol=1e-6, atol=tolerance * size(number)[1]
        )


def test_missing_channels_are_named(tmp_path):
    path = guess(tmp_path, skip=("temperature_850hPa", "2m_temperature"))
    with pytest.raises(InvalidInput, match="temperature_850hPa") as caught:
        read_states(path, CHANNELS, GRID)
    (names,) = caught.value.context["missing"].values()
    assert names == ["2m_temperature", "temperature_850hPa"]


def test_missing_times_are_named(tmp_path):
    later = TIME + timedelta(hours=1)
    with pytest.raises(InvalidInput, match="2024-01-01T13:00:00.*all of them"):
        read_states(guess(tmp_path), CHANNELS, GRID, times=(TIME, later))
    found = read_states(guess(tmp_path, times=(later, TIME)), CHANNELS, GRID)
    assert found.times == (TIME, later)


def test_sea_surface_temperature_may_have_gaps_and_others_not(tmp_path):
    found = read_states(guess(tmp_path, nan_sst=True), CHANNELS, GRID)
    assert np.isnan(found.states[0, 1]).any()
    assert np.isfinite(np.delete(found.states, 1, axis=1)).all()
    path = guess(tmp_path, lat=LAT[:9], lon=LON)  # the northern half
    with pytest.raises(InvalidInput, match="over the whole globe"):
        read_states(path, CHANNELS, GRID)


def test_real_forecast_lacks_specific_humidity(realdata_dir):
    path = realdata_dir / "grib/global_multivar/pygrib__gfs.t12z.pgrbf120.2p5deg.grib2"
    wanted = channels((500,), surface=("2m_temperature", "mean_sea_level_pressure"))
    with pytest.raises(InvalidInput, match="specific_humidity_500hPa") as caught:
        read_states(path, wanted, GRID)
    assert next(iter(caught.value.context["missing"].values())) == ["specific_humidity_500hPa"]
    without_q = tuple(c for c in wanted if c.variable != "specific_humidity")
    states = read_states(path, without_q, GRID).states
    assert 4.5e4 < states[0, -1].min() < states[0, -1].max() < 6.0e4  # 500 hPa geopotential
