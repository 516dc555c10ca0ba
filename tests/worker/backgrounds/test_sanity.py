"""What a first guess may hold: states with the size of the atmosphere pass, anything else is named."""

from datetime import UTC, datetime

import numpy as np
import pytest

from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import channels
from tests.worker.backgrounds import test_uploaded as uploads
from tests.worker.decoders.grib_messages import message
from worker.backgrounds.uploaded import check_states, implausible, read_states

GRID = Grid("small", "gaussian", 16, 32)
CHANNELS = channels((100, 300, 500, 850, 1000))
TIME = datetime(2024, 1, 1, 12, tzinfo=UTC)


def state():
    """The standard atmosphere with a contrast between equator and poles and a wave of winds."""
    mu = np.sin(np.deg2rad(GRID.latitude))[:, None] * np.ones(GRID.nlon)
    wave = np.cos(4 * np.deg2rad(GRID.longitude)) * np.sqrt(1 - mu**2)
    height = {1000: 111.0, 850: 1457.0, 500: 5574.0, 300: 9164.0, 100: 16180.0}
    kelvin = {1000: 287.4, 850: 278.7, 500: 251.9, 300: 228.6, 100: 216.65}
    # 70 % of saturation at the mean temperature, by the tables of the Smithsonian (es 11.9 hPa at
    # 9.4 C, 7.96 at 3.4 C, 1.2 at -21 C), and little above.
    humidity = {1000: 7.0e-3, 850: 4.4e-3, 500: 1.0e-3, 300: 1.2e-4, 100: 3e-6}
    fields = []
    for channel in CHANNELS:
        p = channel.level
        fields.append(
            {
                "2m_temperature": 303 - 45 * mu**2,
                "mean_sea_level_pressure": 101_300 + 800 * wave,
                "sea_surface_temperature": np.where(mu > 0.5, np.nan, 299 - 20 * mu**2),
                "total_precipitation": 1e-4 * (1 + wave),
                "temperature": kelvin.get(p, 0) + 10 * (1 / 3 - mu**2),
                "geopotential": 9.80665 * height.get(p, 0) + 300 * (1 / 3 - mu**2),
                "specific_humidity": humidity.get(p, 0) * 1.4 * (1 - 0.85 * mu**2),
            }.get(channel.variable, 8.0 * wave)
        )
    return np.stack(fields).astype(np.float32)


def index(name):
    return [c.name for c in CHANNELS].index(name)


def test_a_state_is_plausible():
    assert implausible(state(), CHANNELS, GRID) == {}


UNKNOWN = ("total_precipitation", "specific_humidity_100hPa", "specific_humidity_300hPa")
"""Channels whose size alone tells little."""


@pytest.mark.parametrize("channel", [c.name for c in CHANNELS if c.name not in UNKNOWN])
def test_the_spread_of_any_channel_is_noticed(channel):
    # Spread is small, without sign and nearly the same everywhere.
    spread = state()
    field = spread[index(channel)]
    spread[index(channel)] = 0.05 * np.nanstd(field) * (1.2 + np.cos(np.arange(GRID.nlon)))
    faults = implausible(spread, CHANNELS, GRID)
    # Heights near sea level are small, too: there the layer above is wrong.
    assert (channel if channel != "geopotential_1000hPa" else "geopotential_850hPa") in faults


@pytest.mark.parametrize(
    ("variable", "factor", "offset"),
    [
        ("temperature", 1, -273.15), ("2m_temperature", 1, -273.15),
        ("sea_surface_temperature", 1, -273.15), ("mean_sea_level_pressure", 0.01, 0),
        ("geopotential", 1 / 9.80665, 0), ("specific_humidity", 1000, 0),
        ("specific_humidity", 0.1, 0), ("total_precipitation", 1000, 0),
        ("u_component_of_wind", 0.1, 0), ("temperature", 1, 20), ("geopotential", 1.1, 0),
    ],
)  # fmt: skip
def test_other_units_increments_and_biases_are_noticed(variable, factor, offset):
    wrong = state()
    places = [i for i, c in enumerate(CHANNELS) if c.variable == variable]
    wrong[places] = factor * wrong[places] + offset
    assert implausible(wrong, CHANNELS, GRID)


def test_exchanged_levels_and_dead_fields_are_noticed():
    wrong, dead = state(), state()
    a, b = index("temperature_500hPa"), index("temperature_850hPa")
    wrong[[a, b]] = wrong[[b, a]]
    assert implausible(wrong, CHANNELS, GRID)
    dead[index("v_component_of_wind_500hPa")] = 0.0
    assert "everywhere" in implausible(dead, CHANNELS, GRID)["v_component_of_wind_500hPa"]


def test_the_refusal_names_time_channel_expected_and_got():
    wrong = state()
    wrong[index("2m_temperature")] -= 130.0
    with pytest.raises(InvalidInput, match="expected 180 to 335") as refused:
        check_states((TIME,), wrong[None], CHANNELS, GRID)
    assert "2024-01-01T12:00:00" in str(refused.value)
    assert list(refused.value.context["channels"]) == ["2m_temperature"]


def test_an_upload_passes_both_checks_before_use(tmp_path):
    """Spread that says so is no state; spread that does not say so is implausible."""
    path = uploads.guess(tmp_path)
    good = path.read_bytes()
    keys = {"short": "t", "level": 500}
    spread = np.full(uploads.field(0).shape, 0.7)
    spread[3] = 1.3
    rest = uploads.guess(tmp_path, skip=("temperature_500hPa",)).read_bytes()
    named = {"productDefinitionTemplateNumber": 2, "derivedForecast": 4}
    path.write_bytes(rest + message(spread, **keys, **named))
    with pytest.raises(InvalidInput, match=r"temperature_500hPa.*ensemble spread \(1\)"):
        read_states(path, uploads.CHANNELS, uploads.GRID)
    path.write_bytes(rest + message(spread, **keys))
    with pytest.raises(InvalidInput, match="temperature_500hPa: 0.7 to .* K, expected 185 to 290"):
        read_states(path, uploads.CHANNELS, uploads.GRID)
    path.write_bytes(good)
    assert len(read_states(path, uploads.CHANNELS, uploads.GRID).times) == 1
