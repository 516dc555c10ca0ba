"""Checks after decoding: each rejects the planted fault, and keeps the clean table."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from model.domain.errors import ConfigurationError
from tests.worker.qc.clean import LEVELS, aircraft, change, clean_day, join, ship, sonde, stations
from tests.worker.tables import make_table
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import run_checks


def outcome(table, **parameters):
    context = QCContext(parameters=load_parameters(parameters or None))
    checked, report = run_checks(table, "pre", context)
    assert len(checked) == len(table)
    return checked["rejected_by"].to_pylist(), report


def rejected(table, **parameters):
    names, _ = outcome(table, **parameters)
    return {i: name for i, name in enumerate(names) if name}


def test_the_clean_day_passes():
    table = clean_day()
    names, report = outcome(table)
    assert set(names) == {None}
    assert report.used == report.rows == len(table)
    assert not report.rejected


def test_first_check_keeps_the_row():
    table = change(change(stations(), "obs_value", 3, 900.0), "lat", 3, 95.0)
    names, report = outcome(table)
    assert {i: n for i, n in enumerate(names) if n} == {3: "domain"}
    assert report.rejected == {"domain": 1}
    assert report.rejected_by_variable == {"2m_temperature": {"domain": 1}}


def test_missing_value():
    assert rejected(change(stations(), "obs_value", 5, None)) == {5: "missing"}


def test_flag_without_a_name_is_the_providers():
    assert rejected(change(stations(), "qc_flag", 5, 11)) == {5: "preqc"}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("lat", 90.5),
        ("lat", float("nan")),
        ("lon", 180.0),
        ("elevation", 12000.0),
        ("time", datetime(2024, 1, 1, 13, 31, tzinfo=UTC)),  # arrived at 12:30
        ("time", datetime(1812, 1, 1, tzinfo=UTC)),
    ],
)
def test_impossible_place_or_time(column, value):
    assert rejected(change(stations(), column, 7, value)) == {7: "domain"}


def test_null_island_and_missing_level():
    table = change(change(ship(), "lat", 0, 0.0), "lon", 0, 0.0)
    assert rejected(table)[0] == "domain"
    assert rejected(change(aircraft(), "vertical", 2, None)) == {2: "domain"}
    assert rejected(change(aircraft(), "vertical", 2, -5.0)) == {2: "domain"}


def test_limited_domain():
    names, _ = outcome(stations(), domain={"box": [4.0, 39.5, 8.0, 41.5]})
    assert names.count(None) == 2 * 2 * 12  # two of six stations, two variables, twelve hours


def test_box_across_the_date_line():
    table = make_table(3, lat=np.zeros(3) + 1, lon=np.array([175.0, -175.0, 0.0]))
    assert rejected(table, domain={"box": [170.0, -10.0, -170.0, 10.0]}) == {2: "domain"}


def test_gross_limits_by_level():
    assert rejected(change(stations(), "obs_value", 2, 28.5)) == {2: "bounds"}  # Celsius as Kelvin
    assert rejected(change(stations(), "obs_value", 80, 1013.0)) == {80: "bounds"}  # hPa as Pa
    # 280 K is ordinary at 850 hPa and impossible at 250 hPa.
    table = aircraft()
    assert rejected(change(table, "obs_value", 4, 280.0)) == {4: "bounds"}
    assert rejected(change(change(table, "vertical", 4, 85000.0), "obs_value", 4, 280.0)) == {}


def test_correction_wins_over_the_first_report():
    first = make_table(2, obs_value=np.array([280.0, 281.0]))
    correction = make_table(
        1, obs_value=np.array([290.0]), update_sequence=1, lat=np.array([-60.0])
    )
    assert rejected(join(first, correction)) == {0: "duplicate"}
    repeat = make_table(1, obs_value=np.array([280.0]))
    assert rejected(join(first, repeat)) == {2: "duplicate"}


def test_a_rejected_row_does_not_displace_a_good_one():
    broken = make_table(1, obs_value=np.array([900.0]), update_sequence=9)
    good = make_table(1, obs_value=np.array([285.0]))
    assert rejected(join(broken, good)) == {0: "bounds"}


def test_anonymous_ships_are_told_apart_by_place():
    table = make_table(2, report_type="ship", station_id="SHIP", lat=[10.0, 20.0])
    assert rejected(table) == {}


@pytest.mark.parametrize("name", ["SHIP", "RIGG", "PLAT", "ZZZZ", "/////", "00000", ""])
def test_call_signs_that_many_platforms_share(name):
    """Two platforms a thousand kilometres apart in one hour are no duplicate and no impossible track."""
    hours = np.array(["2024-01-01T11:00", "2024-01-01T12:00"] * 2, dtype="datetime64[ns]")
    shape = {"report_type": "ship", "station_id": name, "time": hours}
    assert rejected(make_table(4, lat=[10.0, 10.0, 20.0, 20.0], **shape)) == {}


def humid(humidity, kind="surface", vertical=None, names=("2m_dewpoint_temperature",), **columns):
    """Temperature 285 K and the given humidity of one report."""
    variable = ["2m_temperature" if kind == "surface" else "temperature", *names]
    return make_table(
        2, station_id="03772", lat=51.5, lon=-0.4, variable=variable, vertical_kind=kind,
        vertical=vertical, obs_value=np.array([285.0, humidity]), **columns,
    )  # fmt: skip


def test_dewpoint_above_the_temperature_beside_it():
    assert rejected(humid(290.0)) == {1: "bounds"}
    assert rejected(humid(285.4)) == {}  # rounding in fog
    assert rejected(humid(280.0)) == {}
    assert rejected(humid(290.0, time=np.array(["2024-01-01T11", "2024-01-01T12"], "M8[ns]"))) == {}
    # At 850 hPa and 285 K air is saturated at 10.3 g/kg (Bolton 1980).
    aloft = {"kind": "pressure", "vertical": 85000.0, "names": ("specific_humidity",)}
    assert rejected(humid(0.018, **aloft)) == {1: "bounds"}
    assert rejected(humid(0.011, **aloft)) == {}


def test_a_dewpoint_is_not_held_against_a_rejected_temperature():
    table = humid(280.0)
    assert rejected(change(table, "obs_value", 0, 150.0)) == {0: "bounds"}


def test_blocklist_patterns_networks_and_periods():
    entry = {"station": "0000[12]", "variables": ["2m_temperature"], "from": "2024-01-01T06:00"}
    found = rejected(stations(), blocklist={"entries": [entry]})
    assert len(found) == 2 * 6
    assert set(found.values()) == {"blocklist"}
    entry = {"station": "*", "report_types": ["ship"], "until": "2024-01-01T01:00Z"}
    assert len(rejected(ship(), blocklist={"entries": [entry]})) == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"variables": ["2m_temperature"]},
        {"station": "00001", "variable": "2m_temperature"},
        {"station": "00001", "variables": ["2m_temperatur"]},
        {"station": "00001", "report_types": "synop"},
        {"station": "00001", "until": "soon"},
        {"station": 1600},  # what YAML makes of 03100
    ],
)
def test_entries_of_the_blocklist_that_mean_something_else_are_refused(entry):
    with pytest.raises(ConfigurationError, match="Blocklist"):
        rejected(stations(), blocklist={"entries": [entry]})


def test_ship_that_jumps_inside_its_track():
    assert rejected(change(ship(), "lon", 5, -30.0)) == {5: "track"}


@pytest.mark.parametrize("row", [0, 11])
def test_ship_that_jumps_at_an_end(row):
    assert rejected(change(ship(), "lon", row, -30.0)) == {row: "track"}


def test_two_fixes_that_contradict_are_both_rejected():
    table = ship().slice(0, 2)
    assert rejected(change(table, "lon", 0, 100.0)) == {0: "track", 1: "track"}


def test_aircraft_with_wrong_sign_of_longitude():
    table = aircraft()
    assert rejected(change(table, "lon", 6, 9.0)) == {6: "track"}


def test_levels_of_a_profile_share_the_time_of_their_report():
    # 150 km flown in the climb, all under the time of the report (BUFR 3 11 009).
    table = make_table(
        4, report_type="aircraft", station_id="EU0042", profile_id=np.full(4, 3),
        time=np.datetime64("2024-01-01T06:00", "ns"), lat=50.0 + 0.45 * np.arange(4), lon=8.0,
        variable="temperature", vertical_kind="pressure",
        vertical=np.array([95_000.0, 80_000.0, 60_000.0, 40_000.0]),
        obs_value=np.array([283.0, 274.0, 260.0, 243.0]),
    )  # fmt: skip
    assert rejected(table) == {}
    loose = table.set_column(
        table.schema.get_field_index("profile_id"),
        table.schema.field("profile_id"),
        pa.array([None] * 4, table.schema.field("profile_id").type),
    )
    assert set(rejected(loose).values()) == {"track"}


def test_all_values_of_a_wrong_fix_go():
    wind = ship()
    for row in range(12):
        wind = change(
            change(wind, "variable", row, "2m_temperature"), "obs_value", row, 280.0 + row
        )
    table = change(change(join(ship(), wind), "lon", 5, -30.0), "lon", 17, -30.0)
    assert rejected(table) == {5: "track", 17: "track"}


def test_stuck_thermometer():
    hours = np.datetime64("2024-01-01T00:00", "ns") + np.arange(12) * np.timedelta64(1, "h")
    table = make_table(
        12, station_id="1", time=hours, obs_value=np.full(12, 280.1), lat=10.0, lon=1.0
    )
    assert set(rejected(table)) == set(range(12))
    assert set(rejected(table).values()) == {"stuck"}
    assert rejected(change(table, "obs_value", 6, 280.2)) == {}
    calm = make_table(
        12,
        station_id="1",
        time=hours,
        obs_value=np.zeros(12),
        variable="10m_u_component_of_wind",
        lat=10.0,
        lon=1.0,
    )
    assert rejected(calm) == {}


def test_wrong_geopotential_is_told_from_wrong_temperature():
    n, level = len(LEVELS), 4
    table = sonde()
    value = table["obs_value"].to_pylist()
    wrong_z = change(table, "obs_value", n + level, value[n + level] + 2000.0)
    assert rejected(wrong_z) == {n + level: "profile"}
    wrong_t = change(table, "obs_value", level, value[level] - 30.0)
    assert rejected(wrong_t) == {level: "profile"}


def test_wrong_geopotential_at_the_top():
    n = len(LEVELS)
    table = sonde()
    value = table["obs_value"].to_pylist()
    found = rejected(change(table, "obs_value", 2 * n - 1, value[-1] + 3000.0))
    assert found == {n - 1: "profile", 2 * n - 1: "profile"}


def test_shifted_upper_part_rejects_both_sides_of_the_break():
    n, first = len(LEVELS), 6
    table = sonde()
    for row in range(n + first, 2 * n):
        table = change(table, "obs_value", row, table["obs_value"][row].as_py() + 3000.0)
    assert set(rejected(table)) == {first - 1, first, n + first - 1, n + first}


def test_spike_in_a_dense_ascent_without_heights():
    pressure = np.linspace(1e5, 3e4, 200)
    table = sonde(pressure).slice(0, 200)
    value = table["obs_value"][100].as_py()
    assert rejected(change(table, "obs_value", 100, value - 25.0)) == {100: "profile"}


def test_ascents_do_not_mix():
    assert rejected(join(sonde(), sonde(profile_id=2, lat=10.0))) == {}


def test_empty_table():
    assert outcome(make_table(0))[0] == []
