"""Profiles whose values on pressure levels are known in closed form."""

import numpy as np
import pytest

from lab.training.nature_store import (
    EXPONENT,
    NATURE_RUN_VIRTUAL,
    SigmaFields,
    mean_sea_level_pressure,
    surface_temperature,
    temperature_2m,
    to_pressure_levels,
)
from model.domain.physics import GAS_CONSTANT_DRY, GRAVITY, STANDARD_LAPSE_RATE

SIGMA = np.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])
LEVELS = np.array([50, 100, 200, 300, 500, 700, 850, 925]) * 100.0


def column(temperature, *, surface_pressure=1e5, geopotential=0.0, u=None, humidity=None):
    """A (8, 1, 1) column; whatever is not given is zero."""
    shape = (8, 1, 1)
    zero = np.zeros(shape)
    return SigmaFields(
        temperature=np.broadcast_to(np.reshape(temperature, (-1, 1, 1)), shape),
        u=zero if u is None else np.reshape(u, shape),
        v=zero,
        specific_humidity=zero if humidity is None else np.reshape(humidity, shape),
        surface_pressure=np.full((1, 1), surface_pressure),
        surface_geopotential=np.full((1, 1), geopotential),
        sigma=SIGMA,
    )


def standard(pressure, surface_pressure, surface):
    """Temperature of a 6.5 K/km atmosphere with ``surface`` K at ``surface_pressure``."""
    return surface * (pressure / surface_pressure) ** EXPONENT


def test_isothermal_layers_have_the_hypsometric_thickness():
    out = to_pressure_levels(np, column(250.0), LEVELS)
    np.testing.assert_allclose(out.temperature[:, 0, 0], 250.0, rtol=1e-12)
    thickness = -np.diff(out.geopotential[:, 0, 0])
    np.testing.assert_allclose(
        thickness, GAS_CONSTANT_DRY * 250.0 * np.log(LEVELS[1:] / LEVELS[:-1])
    )


@pytest.mark.parametrize(("surface_pressure", "height"), [(101325.0, 0.0), (89000.0, 1100.0)])
def test_standard_lapse_rate_is_exact_above_and_below_the_ground(surface_pressure, height):
    surface = 280.0
    fields = column(
        standard(SIGMA * surface_pressure, surface_pressure, surface),
        surface_pressure=surface_pressure,
        geopotential=GRAVITY * height,
    )
    out = to_pressure_levels(np, fields, LEVELS)
    expected = standard(LEVELS, surface_pressure, surface)
    np.testing.assert_allclose(out.temperature[:, 0, 0], expected, rtol=1e-12)
    # dT/dz = -6.5 K/km all along, so height follows from temperature alone.
    z = height + (surface - expected) / STANDARD_LAPSE_RATE
    np.testing.assert_allclose(out.geopotential[:, 0, 0], GRAVITY * z, atol=0.05)


def test_another_lapse_rate_between_full_levels_is_exact_too():
    exponent = GAS_CONSTANT_DRY * 0.009 / GRAVITY
    fields = column(300.0 * SIGMA**exponent)
    out = to_pressure_levels(np, fields, LEVELS)
    temperature = 300.0 * (LEVELS / 1e5) ** exponent
    np.testing.assert_allclose(out.temperature[:, 0, 0], temperature, rtol=1e-12)
    thickness = -np.diff(out.geopotential[:, 0, 0])
    np.testing.assert_allclose(thickness, GRAVITY * np.diff(temperature) / 0.009, rtol=1e-5)


def test_moist_thickness_uses_virtual_temperature():
    fields = column(280.0, humidity=np.full(8, 0.01))
    out = to_pressure_levels(np, fields, LEVELS)
    thickness = out.geopotential[4, 0, 0] - out.geopotential[5, 0, 0]
    assert thickness == pytest.approx(
        GAS_CONSTANT_DRY * 280.0 * (1 + NATURE_RUN_VIRTUAL * 0.01) * np.log(700 / 500), rel=1e-9
    )


def test_wind_is_linear_in_log_pressure_and_held_under_the_lowest_level():
    u = 3.0 * np.log(SIGMA * 1e5) - 7.0
    levels = np.append(LEVELS, [97000.0, 105000.0])
    out = to_pressure_levels(np, column(260.0, u=u), levels)
    np.testing.assert_allclose(out.u[:8, 0, 0], 3.0 * np.log(LEVELS) - 7.0, rtol=1e-12)
    np.testing.assert_allclose(out.u[8:, 0, 0], u[-1])


def test_humidity_is_linear_in_pressure_and_never_negative():
    q = 0.01 * SIGMA
    out = to_pressure_levels(np, column(280.0, humidity=q), LEVELS)
    np.testing.assert_allclose(out.specific_humidity[:, 0, 0], 1e-7 * LEVELS, rtol=1e-12)
    dry = np.zeros(8)
    dry[-1] = 0.01
    out = to_pressure_levels(np, column(280.0, humidity=dry), LEVELS)
    assert (out.specific_humidity >= 0).all()


def test_levels_may_come_in_any_order_and_columns_do_not_mix():
    both = SigmaFields(
        *(
            np.concatenate([a, b], axis=-1)
            for a, b in zip(
                _arrays(column(250.0)), _arrays(column(280.0, surface_pressure=7e4)), strict=True
            )
        ),
        sigma=SIGMA,
    )
    out = to_pressure_levels(np, both, LEVELS[::-1])
    one = to_pressure_levels(np, column(280.0, surface_pressure=7e4), LEVELS)
    np.testing.assert_allclose(out.geopotential[::-1, :, 1], one.geopotential[:, :, 0])


def _arrays(fields):
    return (
        fields.temperature,
        fields.u,
        fields.v,
        fields.specific_humidity,
        fields.surface_pressure,
        fields.surface_geopotential,
    )


def test_high_plateau_warms_to_298_k_at_sea_level_and_no_further():
    # 3000 m, 290 K at the ground: 6.5 K/km would give 309.5 K at sea level; the cap is 298 K.
    geopotential = 3000.0 * GRAVITY
    fields = column(
        standard(SIGMA * 7e4, 7e4, 290.0), surface_pressure=7e4, geopotential=geopotential
    )
    exponent = GAS_CONSTANT_DRY * 8.0 / geopotential
    # Where T reaches 298 K along T ∝ p^exponent.
    bottom = 7e4 * (298.0 / 290.0) ** (1.0 / exponent)
    out = to_pressure_levels(np, fields, np.array([bottom]))
    assert out.temperature[0, 0, 0] == pytest.approx(298.0, rel=1e-6)
    assert out.geopotential[0, 0, 0] == pytest.approx(0.0, abs=2.0)


@pytest.mark.parametrize("height", [-400.0, 0.0, 300.0, 1500.0, 4000.0])
def test_reduction_to_sea_level_of_the_standard_atmosphere(height):
    # ICAO standard atmosphere: 288.15 K and 1013.25 hPa at sea level.
    temperature = 288.15 - STANDARD_LAPSE_RATE * height
    pressure = 101325.0 * (temperature / 288.15) ** (1.0 / EXPONENT)
    msl = mean_sea_level_pressure(
        np, np.array(pressure), np.array(temperature), np.array(GRAVITY * height)
    )
    assert float(msl) == pytest.approx(101325.0, abs=5.0)


def test_hot_and_cold_ground_change_the_reduction():
    """Above 290.5 K the layer is isothermal at the mean with 290.5 K; below 255 K half-warmed."""
    geopotential = np.array(800.0 * GRAVITY)
    hot = mean_sea_level_pressure(np, np.array(9e4), np.array(310.5), geopotential)
    assert float(hot) == pytest.approx(
        9e4 * np.exp(geopotential / (GAS_CONSTANT_DRY * 300.5)), rel=1e-9
    )
    cold = mean_sea_level_pressure(np, np.array(9e4), np.array(235.0), geopotential)
    warmed = 245.0
    expected = 9e4 * (1 + STANDARD_LAPSE_RATE * 800.0 / warmed) ** (1.0 / EXPONENT)
    assert float(cold) == pytest.approx(expected, abs=1.0)


def test_surface_temperature_follows_the_standard_lapse_rate():
    assert surface_temperature(280.0, 0.95) == pytest.approx(280.0 * (1 / 0.95) ** EXPONENT)


def test_screen_temperature_extends_an_unstable_profile_and_holds_a_stable_one():
    profile = 280.0 + 20.0 * np.log(SIGMA)
    warm = temperature_2m(np, profile[:, None], SIGMA)
    assert warm[0] == pytest.approx(280.0 + 20.0 * np.log(0.99), rel=1e-12)
    stable = temperature_2m(np, 280.0 - 20.0 * np.log(SIGMA)[:, None], SIGMA)
    assert stable[0] == pytest.approx(280.0 - 20.0 * np.log(0.95), rel=1e-12)


def test_screen_temperature_refuses_other_levels():
    with pytest.raises(ValueError, match=r"0\.835"):
        temperature_2m(np, np.zeros((3, 1)), np.array([0.2, 0.5, 0.9]))
