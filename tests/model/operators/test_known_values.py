"""One value by hand for each operator."""

import numpy as np
import pytest
import torch

from model.domain.grids import Grid, bilinear
from model.domain.physics import GAS_CONSTANT_DRY, GRAVITY, height_of_pressure, pressure_at_height
from model.domain.variables import LEVELS_T31
from model.operators.base import Statics
from model.operators.observation_set import build_observation_set
from model.operators.placement import log_pressure
from model.operators.upper_air import column_weights, gaussian_weighting
from tests.model.operators import worlds

GRID = worlds.GRIDS["regular"]


def observe(columns, states, statics=None, grid=GRID):
    """H(states) and why rows were rejected."""
    chosen, after = build_observation_set(
        worlds.table(columns), grid, worlds.CHANNELS, worlds.TIMES, statics
    )
    return chosen.operator(states), after["rejected_by"].to_pylist()


def blank(grid=GRID):
    return torch.zeros(worlds.LENGTH, len(worlds.CHANNELS), *grid.shape, dtype=torch.float64)


def one(variable, kind, vertical=None, **more):
    return {"variable": [variable], "vertical_kind": [kind], "vertical": [vertical]} | {
        name: [value] for name, value in more.items()
    }


def test_bilinear_is_exact_on_a_field_linear_in_both_directions():
    states = blank()
    lat, lon = np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
    states[:, worlds.index("2m_temperature")] = torch.from_numpy(280 + 0.3 * lat + 0.1 * lon)
    out, _ = observe(one("2m_temperature", "surface", lat=-33.3, lon=101.7), states, Statics())
    assert out.item() == pytest.approx(280 - 0.3 * 33.3 + 0.1 * 101.7, abs=1e-9)


def test_longitudes_are_periodic():
    # Columns 337.5 and 0 hold 1 and 3; half-way between lies -11.25.
    cells, weights = bilinear(GRID, np.array([0.0]), np.array([-11.25]))
    field = np.zeros(GRID.shape)
    field[4, 15], field[4, 0] = 1.0, 3.0
    assert (field.reshape(-1)[cells] * weights).sum() == pytest.approx(2.0)


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_at_the_pole_of_a_gaussian_grid_the_two_sides_count_half_each(pole):
    grid = worlds.GRIDS["gaussian"]
    field = np.zeros(grid.shape)
    row = 0 if pole > 0 else -1
    field[row, 3], field[row, 11] = 4.0, 8.0  # opposite meridians, 180 degrees apart
    longitude = np.array([grid.longitude[3]])
    cells, weights = bilinear(grid, np.array([pole]), longitude)
    assert (field.reshape(-1)[cells] * weights).sum() == pytest.approx(6.0)


def test_a_uniform_wind_over_the_pole_stays_uniform():
    # A wind of 10 m/s along the 0-180 degree meridians, in components: v = -10 cos(lon),
    # u = -10 sin(lon) at the north pole; the interpolated vector has the same form.
    grid = worlds.GRIDS["gaussian"]
    states = blank(grid)
    lon = torch.from_numpy(np.deg2rad(grid.longitude))
    states[:, worlds.index("10m_u_component_of_wind")] = -10 * torch.sin(lon)
    states[:, worlds.index("10m_v_component_of_wind")] = -10 * torch.cos(lon)
    place = float(grid.longitude[2])
    for lat in (89.0, 84.0):
        u, _ = observe(
            one("10m_u_component_of_wind", "surface", lat=lat, lon=place), states, grid=grid
        )
        assert u.item() == pytest.approx(-10 * np.sin(np.deg2rad(place)))


def test_half_way_in_ln_p():
    states = blank()
    states[:, worlds.index("temperature", 500)] = 250.0
    states[:, worlds.index("temperature", 300)] = 230.0
    middle = float(np.sqrt(500.0 * 300.0) * 100.0)
    out, _ = observe(one("temperature", "pressure", middle), states)
    assert out.item() == pytest.approx(240.0, abs=1e-4)


def test_between_two_hours_and_beyond_the_last():
    states = blank()
    channel = worlds.index("mean_sea_level_pressure")
    states[:, channel] = torch.tensor([0.0, 100.0, 200.0, 300.0]).double()[:, None, None]
    hours = [-0.5, -0.25, 1.75, 3.0, 3.5, 3.6, -0.6]
    columns = {
        "variable": ["mean_sea_level_pressure"] * len(hours),
        "hours": hours,
    }
    out, why = observe(columns, states)
    assert out.tolist() == pytest.approx([0, 0, 175, 300, 300])
    assert why == [None] * 5 + ["domain"] * 2


def test_levels_reach_half_a_layer_further():
    levels = np.array([10_000.0, 50_000.0])
    half = np.sqrt(5.0)
    pressures = np.array([10_000 / half * 1.001, 10_000 / half * 0.999, 50_000 * half * 0.999])
    pair, weights, reached = log_pressure(levels, pressures)
    assert reached.tolist() == [True, False, True]
    np.testing.assert_allclose(weights[0], [1, 0])
    np.testing.assert_allclose(weights[2], [0, 1])
    _, sloped, _ = log_pressure(levels, pressures, sloped=True)
    np.testing.assert_allclose(sloped[2], [-0.5, 1.5], atol=1e-2)


def test_wind_speed_three_four_five():
    states = blank()
    states[:, worlds.index("10m_u_component_of_wind")] = 3.0
    states[:, worlds.index("10m_v_component_of_wind")] = -4.0
    out, _ = observe(one("10m_wind_speed", "surface"), states)
    assert out.item() == pytest.approx(5.0)


def test_wind_speed_has_a_gradient_at_calm():
    states = blank().requires_grad_()
    out, _ = observe(one("wind_speed", "pressure", 50_000.0), states)
    (gradient,) = torch.autograd.grad(out.sum(), states)
    assert out.item() == 0.0
    assert gradient.abs().max() == 0.0


def test_thickness_of_an_isothermal_atmosphere():
    # Hypsometric equation: R T ln(p_bottom / p_top), at levels and between them alike, because
    # the geopotential of an isothermal atmosphere is linear in ln p.
    states = blank()
    for level in (50, 100, 200, 300, 500, 700, 850, 925):
        states[:, worlds.index("geopotential", level)] = (
            GAS_CONSTANT_DRY * 250.0 * np.log(1000.0 / level)
        )
    out, _ = observe(
        one("geopotential_thickness", "layer", 90_000.0, vertical_top=40_000.0), states
    )
    assert out.item() == pytest.approx(GAS_CONSTANT_DRY * 250.0 * np.log(9 / 4), rel=1e-6)


def test_column_of_constant_humidity():
    states = blank()
    for level in (50, 100, 200, 300, 500, 700, 850, 925):
        states[:, worlds.index("specific_humidity", level)] = 5e-3
    out, _ = observe(one("total_column_water_vapour", "column"), states)
    assert out.item() == pytest.approx(5e-3 * 101_325 / GRAVITY)
    high, _ = observe(one("total_column_water_vapour", "column", elevation=3_000.0), states)
    assert high.item() == pytest.approx(5e-3 * 70_109 / GRAVITY, rel=1e-3)  # ICAO at 3 km


def test_column_is_exact_for_humidity_linear_in_pressure():
    levels = np.array([10_000.0, 40_000.0, 80_000.0])
    weights = column_weights(levels, np.array([60_000.0]))
    # Integral of p dp from 100 to 600 hPa, plus 100 hPa held constant above.
    expected = (60_000.0**2 - 10_000.0**2) / 2 + 10_000.0**2
    assert (weights @ levels)[0] == pytest.approx(expected)


def test_brightness_temperature_is_the_weighted_mean():
    states = blank()
    states[:, worlds.index("temperature", 50)] = 200.0
    states[:, worlds.index("temperature", 925)] = 300.0
    weights = np.zeros(8)
    weights[0], weights[-1] = 0.25, 0.75
    given = Statics(weighting_functions={9: weights})
    out, why = observe(
        {
            "variable": ["brightness_temperature"] * 2,
            "vertical_kind": ["channel"] * 2,
            "vertical": [9.0, 10.0],
        },
        states,
        given,
    )
    assert out.tolist() == pytest.approx([275.0])
    assert why == [None, "operator_failed"]


def test_a_channel_is_that_of_its_sensor():
    """Channel 5 of AMSU-A and of HIRS see other layers; a number alone is for any other sensor."""
    states = blank()
    for level, temperature in ((50, 200.0), (500, 250.0), (925, 300.0)):
        states[:, worlds.index("temperature", level)] = temperature
    top, middle, bottom = (np.eye(8)[LEVELS_T31.index(level)] for level in (50, 500, 925))
    given = Statics(
        weighting_functions={("amsu-a", 5): bottom, 5: middle, ("hirs", 5): top, ("hirs", 6): top}
    )
    out, why = observe(
        {
            "variable": ["brightness_temperature"] * 5,
            "vertical_kind": ["channel"] * 5,
            "vertical": [5.0, 5.0, 5.0, 5.0, 6.0],
            "platform": ["hirs", "amsu-a", "msu", None, "amsu-a"],
        },
        states,
        given,
    )
    assert out.tolist() == pytest.approx([200.0, 300.0, 250.0, 250.0])
    assert why == [None] * 4 + ["operator_failed"]


def test_gaussian_weighting_peaks_where_asked():
    levels = np.geomspace(1_000, 100_000, 41)
    weights = gaussian_weighting(levels, 10_000.0)
    assert levels[weights.argmax()] == pytest.approx(10_000.0)
    assert weights.sum() == pytest.approx(1.0)


def test_station_pressure_of_the_standard_atmosphere():
    # ICAO: 898.75 hPa at 1000 m when sea level has 1013.25 hPa and 15 C (8.5 C at 1000 m).
    states = blank()
    states[:, worlds.index("mean_sea_level_pressure")] = 101_325.0
    states[:, worlds.index("2m_temperature")] = 288.15 - 6.5
    out, _ = observe(one("surface_pressure", "surface", elevation=1_000.0), states)
    assert out.item() == pytest.approx(89_875.0, abs=5.0)


def test_relative_humidity_of_half_saturation():
    # At 20 C saturation is 23.37 hPa; q = 0.622 e / (p - 0.378 e) with e half of it at 850 hPa.
    e = 1168.6
    q = 0.62198 * e / (85_000 - 0.37802 * e)
    states = blank()
    states[:, worlds.index("temperature", 850)] = 293.15
    states[:, worlds.index("specific_humidity", 850)] = q
    out, _ = observe(one("relative_humidity", "pressure", 85_000.0), states)
    assert out.item() == pytest.approx(0.5, abs=1e-3)


def test_height_is_read_in_the_models_own_column():
    # Levels 500 and 300 hPa at 5000 m and 9000 m: 6000 m is a quarter of the way up.
    states = blank()
    heights = {50: 20e3, 100: 16e3, 200: 12e3, 300: 9e3, 500: 5e3, 700: 3e3, 850: 1.5e3, 925: 800}
    for level, height in heights.items():
        states[:, worlds.index("geopotential", level)] = height * GRAVITY
        states[:, worlds.index("temperature", level)] = 1000.0 - level
    out, why = observe(
        {
            "variable": ["temperature"] * 3,
            "vertical_kind": ["height"] * 3,
            "vertical": [6_000.0, 700.0, 30_000.0],
        },
        states,
    )
    assert out.tolist() == pytest.approx([550.0, 75.0])
    assert why == [None, None, "domain"]


def test_two_metre_temperature_is_carried_to_the_stations_height():
    states = blank()
    states[:, worlds.index("2m_temperature")] = 280.0
    given = Statics(orography=np.full(GRID.shape, 200.0))
    out, _ = observe(one("2m_temperature", "surface", elevation=1_200.0), states, given)
    assert out.item() == pytest.approx(273.5)


def test_sea_surface_temperature_takes_sea_cells_only():
    states = blank()
    channel = worlds.index("sea_surface_temperature")
    states[:, channel, 4, 0], states[:, channel, 4, 1] = 290.0, 300.0
    mask = np.ones(GRID.shape)
    mask[4, 1] = 0.0
    out, why = observe(
        {
            "variable": ["sea_surface_temperature"] * 2,
            "lat": [0.0, 45.0],
            "lon": [5.0, 5.0],
        },
        states,
        Statics(land_sea_mask=mask),
    )
    assert out.tolist() == pytest.approx([300.0])
    assert why == [None, "domain"]


def test_standard_atmosphere_against_its_tables():
    # ICAO Doc 7488: 5 km 540.20 hPa, 11 km 226.32 hPa, 20 km 54.749 hPa, 30 km 11.719 hPa.
    heights = np.array([5e3, 11e3, 20e3, 30e3])
    pressures = np.array([54_020.0, 22_632.0, 5_474.9, 1_171.9])
    np.testing.assert_allclose(pressure_at_height(heights), pressures, rtol=5e-5)
    np.testing.assert_allclose(height_of_pressure(pressure_at_height(heights)), heights, rtol=1e-9)


def test_odd_number_of_columns_crosses_the_pole_between_two():
    grid = Grid("odd", "gaussian", 4, 5)
    cells, weights = bilinear(grid, np.array([90.0]), np.array([0.0]))
    assert sorted(cells[0, 2:].tolist()) == [2, 3]
    np.testing.assert_allclose(weights[0], [0.5, 0, 0.25, 0.25])


def humid_states(temperature, levels):
    """Return states of one temperature at 2 m and a specific humidity by level in hPa."""
    states = blank()
    states[:, worlds.index("2m_temperature")] = temperature
    for channel, c in enumerate(worlds.CHANNELS):
        if c.variable == "specific_humidity":
            states[:, channel] = levels(c.level)
    return states


@pytest.mark.parametrize(("elevation", "pressure"), [(0.0, 101_325.0), (1_500.0, 84_559.7)])
def test_humidity_at_a_station_is_that_of_the_column_at_its_pressure(elevation, pressure):
    """By hand: e = q p / (0.622 + 0.378 q), e_s and dewpoint by Bolton; T carried with 6.5 K/km."""
    states = humid_states(293.15, lambda level: 0.008)
    ground = Statics(orography=np.zeros(GRID.shape))
    e = 0.008 * pressure / (0.62198 + 0.37802 * 0.008)
    air = 293.15 - 273.15 - 0.0065 * elevation
    saturated = 611.2 * np.exp(17.67 * air / (air + 243.5))
    log = np.log(e / 611.2)
    out, _ = observe(one("2m_relative_humidity", "surface", elevation=elevation), states, ground)
    assert out.item() == pytest.approx(e / saturated, rel=2e-4)
    out, _ = observe(one("2m_dewpoint_temperature", "surface", elevation=elevation), states, ground)
    assert out.item() == pytest.approx(273.15 + 243.5 * log / (17.67 - log), abs=0.005)


def test_a_station_on_a_mountain_reads_the_humidity_up_there():
    """q falls with ln p: at 850 hPa it is what the levels beside it give."""
    states = humid_states(280.0, lambda level: 0.01 * (level / 1000.0) ** 3)
    height = float(height_of_pressure(np.array(85_000.0)))
    low, _ = observe(one("2m_dewpoint_temperature", "surface", elevation=0.0), states)
    high, _ = observe(one("2m_dewpoint_temperature", "surface", elevation=height), states)
    assert high.item() < low.item() - 5.0


def test_dewpoint_of_wild_states_is_finite_with_a_finite_slope():
    for q in (-1.6453, -0.3, -1e-3, 0.0, 1e-9, 0.9):
        states = humid_states(280.0, lambda level, q=q: q).requires_grad_()
        for variable in ("2m_dewpoint_temperature", "2m_relative_humidity"):
            out, _ = observe(one(variable, "surface", elevation=100.0), states)
            (slope,) = torch.autograd.grad(out.sum(), states)
            assert out.isfinite().all() and slope.isfinite().all(), (variable, q)


def test_states_without_humidity_leave_it_passive():
    without = [c for c in worlds.CHANNELS if c.variable != "specific_humidity"]
    for variable in ("2m_dewpoint_temperature", "2m_relative_humidity"):
        chosen, after = build_observation_set(
            worlds.table(one(variable, "surface", elevation=0.0)), GRID, without, worlds.TIMES
        )
        assert len(chosen) == 0
        assert after["rejected_by"].to_pylist() == ["passive"]


def test_without_temperature_at_2_m_that_of_the_column_is_carried_down():
    channels = [c for c in worlds.CHANNELS if c.variable != "2m_temperature"]
    lowest = max(c.level for c in channels if c.variable == "temperature")
    states = torch.zeros(worlds.LENGTH, len(channels), *GRID.shape, dtype=torch.float64)
    for number, c in enumerate(channels):
        states[:, number] = {"specific_humidity": 0.006, "temperature": 283.0}.get(c.variable, 0.0)
    table = worlds.table(one("2m_relative_humidity", "surface", elevation=0.0))
    chosen, _ = build_observation_set(table, GRID, channels, worlds.TIMES)
    air = 283.0 + 0.0065 * float(height_of_pressure(np.array(100.0 * lowest)))
    e = 0.006 * 101_325.0 / (0.62198 + 0.37802 * 0.006)
    saturated = 611.2 * np.exp(17.67 * (air - 273.15) / (air - 29.65))
    assert chosen.operator(states).item() == pytest.approx(e / saturated, rel=2e-4)
