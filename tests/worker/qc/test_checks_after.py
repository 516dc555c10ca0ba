"""Checks of a window, with the background, and the selection: closed forms and planted faults."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from model.domain.grids import Grid
from model.domain.observations import FEEDBACK_SCHEMA, station_draw, validate_table
from model.domain.physics import pressure_after_rise
from tests.worker.qc.clean import change, clean_day, join, sonde, stations
from tests.worker.tables import make_table
from worker.observations.columns import float_column
from worker.observations.qc.background import reduce_temperature
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import run_checks

GRID = Grid("test", "regular", 19, 36)


def feedback(table, hofx, spread=0.0):
    """The table with a background."""
    for field in FEEDBACK_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    for name, value in (("hofx_background", hofx), ("background_spread", spread)):
        i = FEEDBACK_SCHEMA.get_field_index(name)
        array = pa.array(np.broadcast_to(value, len(table)).astype(float)).cast(
            FEEDBACK_SCHEMA[i].type
        )
        table = table.set_column(i, FEEDBACK_SCHEMA[i], array)
    return validate_table(table, FEEDBACK_SCHEMA)


def run(table, stage, parameters=None, **context):
    checked, report = run_checks(
        table, stage, QCContext(parameters=load_parameters(parameters), **context)
    )
    return checked, checked["rejected_by"].to_pylist(), report


# ---------------------------------------------------------------- window


def test_late_rows_are_named():
    late = make_table(1, received=datetime(2024, 1, 1, 15, tzinfo=UTC), lat=[50.0])
    table = join(make_table(1), late)
    _, names, _ = run(table, "window", cut_off=datetime(2024, 1, 1, 13, tzinfo=UTC))
    assert names == [None, "late"]


def test_duplicates_across_batches():
    second = make_table(1, batch_id="b2", received=datetime(2024, 1, 1, 15, tzinfo=UTC))
    _, names, _ = run(join(second, make_table(1)), "window")
    assert names == ["duplicate", None]  # the earlier arrival stays


def test_reductions_closed_forms():
    # An isothermal limit and the ICAO column: from sea level to 1000 m, 898.75 hPa and 281.65 K.
    assert reduce_temperature(288.15, 1000.0, 0.0065) == pytest.approx(281.65)
    p = pressure_after_rise(np.array([101325.0]), np.array([288.15]), np.array([1000.0]), 0.0065)
    assert p[0] == pytest.approx(89874.6, rel=1e-4)
    isothermal = pressure_after_rise(np.array([1e5]), np.array([280.0]), np.array([500.0]), 1e-9)
    assert isothermal[0] == pytest.approx(1e5 * np.exp(-9.80665 * 500 / (287.0597 * 280)), rel=1e-5)


def test_reduction_there_and_back():
    up = pressure_after_rise(np.array([95000.0]), np.array([285.0]), np.array([400.0]), 0.0065)
    back = pressure_after_rise(up, np.array([285.0 - 0.0065 * 400]), np.array([-400.0]), 0.0065)
    assert back[0] == pytest.approx(95000.0)


def test_temperature_and_pressure_move_to_the_models_surface():
    shape = {"station_id": "1", "lat": 0.5, "lon": 0.5, "elevation": 0.0}
    table = join(
        make_table(1, obs_value=[288.15], obs_error=[2.5], **shape),
        make_table(
            1, obs_value=[101325.0], obs_error=[100.0], variable="surface_pressure", **shape
        ),
    )
    orography = np.full(GRID.shape, 400.0)
    moved, names, _ = run(table, "window", grid=GRID, orography=orography)
    assert names == [None, None]
    np.testing.assert_allclose(
        float_column(moved, "obs_value"),
        [288.15 - 2.6, 101325.0 * (1 - 0.0065 * 400 / 288.15) ** (9.80665 / (287.0597 * 0.0065))],
    )
    np.testing.assert_allclose(float_column(moved, "elevation"), 400.0)
    error = float_column(moved, "obs_error")
    assert error[0] == pytest.approx(np.hypot(2.5, 0.8), rel=1e-5)
    again, _, _ = run(moved, "window", grid=GRID, orography=orography)
    np.testing.assert_array_equal(
        float_column(again, "obs_value"), float_column(moved, "obs_value")
    )


def test_too_far_above_the_model_is_rejected_unchanged():
    table = make_table(1, lat=0.5, lon=0.5, elevation=2000.0)
    kept, names, report = run(table, "window", grid=GRID, orography=np.zeros(GRID.shape))
    assert names == ["difference"]
    assert report.rejected == {"orography": 1}
    assert float_column(kept, "obs_value")[0] == 285.0


def test_without_orography_nothing_moves():
    table = clean_day()
    kept, names, _ = run(table, "window")
    assert set(names) == {None}
    assert kept.equals(table)


# ---------------------------------------------------------------- background


def test_background_check_uses_error_and_spread():
    # sqrt(1.5^2 + 2^2) = 2.5; 6 sigma = 15 m/s: 14.9 stays, 15.1 goes.
    table = make_table(2, variable="10m_u_component_of_wind", obs_error=1.5, obs_value=[14.9, 15.1])
    _, names, _ = run(feedback(table, 0.0, 2.0), "background")
    assert names == [None, "background_check"]


def test_background_check_absolute_limit():
    table = make_table(
        2, variable="10m_u_component_of_wind", obs_error=50.0, obs_value=[18.9, 19.1]
    )
    assert run(feedback(table, 0.0), "background")[1] == [None, "background_check"]


def test_the_other_component_goes_too():
    shape = {"station_id": ["a", "b"], "obs_error": 1.0}
    u = make_table(2, variable="10m_u_component_of_wind", obs_value=[60.0, 1.0], **shape)
    v = make_table(2, variable="10m_v_component_of_wind", obs_value=[1.0, 1.0], **shape)
    _, names, _ = run(feedback(join(u, v), 0.0), "background")
    assert names == ["background_check", None, "difference", None]


def test_buddy_check_finds_the_one_that_disagrees():
    rng = np.random.default_rng(3)
    n = 40
    lat, lon = rng.uniform(48, 51, n), rng.uniform(5, 9, n)
    smooth = 4.0 * np.sin(np.deg2rad(10 * lat))  # a background error that all of them share
    value = 285.0 + smooth + rng.normal(0.0, 0.5, n)
    value[7] += 8.0
    table = make_table(n, obs_error=0.5, obs_value=value, lat=lat, lon=lon)
    relaxed = {"background_check": {"enabled": False}}
    _, names, _ = run(feedback(table, 285.0), "background", relaxed)
    assert {i: name for i, name in enumerate(names) if name} == {7: "buddy"}


def test_buddies_of_the_same_station_do_not_count():
    value = np.full(12, 285.0)
    value[0] = 299.0
    table = make_table(12, obs_error=0.5, obs_value=value, station_id="one", lat=50.0, lon=5.0)
    relaxed = {"background_check": {"enabled": False}}
    assert set(run(feedback(table, 285.0), "background", relaxed)[1]) == {None}


def test_background_stage_without_background_does_nothing():
    table = clean_day()
    assert run(table, "background")[0].equals(table)


# ---------------------------------------------------------------- select


def test_withholding_is_stable_and_has_its_share():
    names = [f"{i:05d}" for i in range(20000)]
    share = np.mean([station_draw(name, "appa") < 0.05 for name in names])
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 20000))
    table = stations(40)
    _, names, _ = run(table, "select", {"withholding": {"share": 0.3}})
    chosen = {s for s, n in zip(table["station_id"].to_pylist(), names, strict=True) if n}
    assert chosen == {f"{i:05d}" for i in range(40) if station_draw(f"{i:05d}", "appa") < 0.3}
    assert names.count("withheld") == 24 * len(chosen)


def test_a_denied_network_is_passive_except_where_it_is_withheld():
    table = join(stations(40), make_table(5, report_type="ship", station_id=list("abcde")))
    share = {"withholding": {"share": 0.3}}
    _, before, _ = run(table, "select", share)
    _, names, report = run(table, "select", share | {"denial": {"report_types": ["synop"]}})
    synop = [name == "synop" for name in table["report_type"].to_pylist()]
    assert [n for n, s in zip(names, synop, strict=True) if not s] == [None] * 5
    for old, new, denied in zip(before, names, synop, strict=True):
        assert new == ("passive" if denied and old is None else old)
    assert report.rejected["denial"] == names.count("passive") > 0


def test_superobservation_mean_error_and_members():
    n = 4
    table = make_table(
        n, report_type="amv", station_id="sat", vertical_kind="pressure", vertical=50000.0,
        variable="u_component_of_wind", obs_value=[10.0, 12.0, 14.0, 16.0], obs_error=2.0,
        lat=[0.5, 0.6, 0.7, 0.8], lon=[179.9, -179.9, 179.9, -179.9],
    )  # fmt: skip
    merged, names, report = run(table, "select", grid=GRID, levels=(500, 850))
    assert names == ["thinned"] * n + [None]
    assert report.rejected == {"superobbing": n}
    row = merged.to_pylist()[-1]
    assert row["obs_value"] == pytest.approx(13.0)
    # sigma^2 = 4 (0.5 + 0.5 / 4)
    assert row["obs_error"] == pytest.approx(np.sqrt(2.5), rel=1e-6)
    assert row["lat"] == pytest.approx(0.65, abs=1e-3)
    assert abs(row["lon"]) == pytest.approx(180.0, abs=1e-6)
    assert row["batch_id"] == "superobservations"
    again, names, _ = run(merged, "select", grid=GRID, levels=(500, 850))
    assert len(again) == len(merged)


def test_superobservations_stay_apart_by_level_hour_and_cell():
    table = make_table(
        4, report_type="amv", vertical_kind="pressure", vertical=[50000.0, 85000.0, 50000.0, 50000.0],
        variable="u_component_of_wind", obs_error=2.0, lat=[0.5, 0.5, 0.5, 40.0], lon=0.5,
        time=np.datetime64("2024-01-01T12:00", "ns")
        - np.array([0, 0, 1, 0]) * np.timedelta64(1, "h"),
    )  # fmt: skip
    merged, names, _ = run(table, "select", grid=GRID, levels=(500, 850))
    assert names == [None] * 4


def test_superobservation_of_a_linear_field_keeps_its_departures():
    table = feedback(
        make_table(
            2, report_type="aircraft", vertical_kind="pressure", vertical=50000.0,
            variable="temperature", obs_error=1.0, obs_value=[250.0, 252.0], lat=0.5, lon=0.5,
        ),
        np.array([249.0, 253.0]),
    )  # fmt: skip
    merged, _, _ = run(table, "select")
    assert merged["hofx_background"].to_pylist()[-1] == pytest.approx(251.0)


def test_thinning_of_an_ascent_keeps_the_nearest_to_each_level():
    pressure = np.array([70500.0, 70000.0, 69500.0, 50400.0, 49900.0])
    table = sonde(pressure)
    _, names, _ = run(table, "select", {"withholding": {"share": 0.0}}, levels=(500, 700))
    assert names == ["thinned", None, "thinned", "thinned", None] * 2


def test_wind_components_are_thinned_alike():
    rng = np.random.default_rng(1)
    n = 30
    shape = {
        "report_type": "temp", "station_id": "s", "vertical_kind": "pressure",
        "vertical": rng.uniform(4e4, 6e4, n), "lat": 0.5, "lon": 0.5,
    }  # fmt: skip
    u = make_table(n, variable="u_component_of_wind", **shape)
    v = make_table(n, variable="v_component_of_wind", **shape)
    _, names, _ = run(join(u, v), "select", {"withholding": {"share": 0.0}}, levels=(500,))
    assert names[:n] == names[n:]
    assert names.count(None) == 2


def test_disabled_check_does_nothing():
    table = change(stations(), "obs_value", 3, 900.0)
    _, names, _ = run(table, "pre", {"bounds": {"enabled": False}})
    assert set(names) == {None}


def soundings(**columns):
    """Two channels of one satellite in one cell, and what changes."""
    return make_table(
        4, report_type="satellite", station_id="sat004", vertical_kind="channel",
        vertical=[5.0, 5.0, 6.0, 6.0], variable="brightness_temperature", lat=0.5, lon=0.5,
        obs_error=0.5, **columns,
    )  # fmt: skip


def test_superobservations_keep_channels_and_sensors_apart():
    """Each channel sees another height: a mean over channels is the temperature of nothing."""
    table = soundings(obs_value=[240.0, 242.0, 220.0, 222.0], scan_angle=[10.0, 12.0, 10.0, 12.0])
    merged, names, _ = run(table, "select", grid=GRID, levels=(500, 850))
    rows = [row for row in merged.to_pylist() if row["rejected_by"] is None]
    assert [(r["vertical"], r["obs_value"], r["scan_angle"]) for r in rows] == [
        (5.0, 241.0, 11.0),
        (6.0, 221.0, 11.0),
    ]
    for name in ("platform", "station_id"):
        apart = soundings().set_column(
            soundings().schema.get_field_index(name), name, pa.array(["a", "b", "a", "b"])
        )
        _, names, _ = run(validate_table(apart), "select", grid=GRID, levels=(500, 850))
        assert names == [None] * 4


def test_superobservations_keep_layers_with_other_bounds_apart():
    """Both have their mean pressure at 500 hPa."""
    table = make_table(
        2, report_type="satellite", vertical_kind="layer", vertical=[100_000.0, 62_500.0],
        vertical_top=[25_000.0, 40_000.0], variable="geopotential_thickness", lat=0.5, lon=0.5,
        obs_error=100.0, obs_value=[100_000.0, 32_000.0],
    )  # fmt: skip
    _, names, _ = run(table, "select", grid=GRID, levels=(500, 850))
    assert names == [None] * 2


def test_two_sensors_of_a_satellite_that_look_at_one_place_are_no_duplicates():
    table = soundings(platform=["amsu-a", "mhs", "amsu-a", "amsu-a"], obs_value=[240.0] * 4)
    _, names, _ = run(table, "window")
    assert names == [None, None, None, "duplicate"]
