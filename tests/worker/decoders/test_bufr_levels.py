"""Levels of ascents, sensors at several heights, and the count of what is not used."""

import numpy as np
import pytest
from bufr_messages import TIME, decode, message, row, sonde, synop, value, values

from worker.observations.decoders.base import DecodeReport

SECOND = np.timedelta64(1, "s")
SENSOR = "heightOfSensorAboveLocalGroundOrDeckOfMarinePlatform"
FLIGHT_LEVELS = (500.0, 3_000.0, 9_000.0)
TEMPERATURES = (280.0, 268.0, 228.0)
STANDARD_PRESSURES = (95_461.0, 70_109.0, 30_742.0)
"""ICAO standard atmosphere at the flight levels, Pa."""


def profile(template, counts, header=0, **levels):
    """An ascent with three levels; `header` is the number of positions (and dates) before them."""
    columns = {"#1#latitude": 50.03, "#1#longitude": 8.57, "#1#second": 0,
               "#1#aircraftRegistrationNumberOrOtherIdentification": "EU0042"}  # fmt: skip
    for n in range(3):
        columns |= {f"#{n + 1}#flightLevel": FLIGHT_LEVELS[n],
                    f"#{n + 1}#airTemperature": TEMPERATURES[n],
                    f"#{n + 1}#windSpeed": 10.0 * (n + 1), f"#{n + 1}#windDirection": 270}  # fmt: skip
        for key, given in levels.items():
            columns[f"#{n + 1 + header}#{key}"] = given[n]
    return decode(message((template,), 4, columns, counts=counts))


def rows(table, variable):
    return [r for r in table.to_pylist() if r["variable"] == variable]


def test_aircraft_profile_at_one_position():
    decoded = profile(311_008, {"": (3,)}, dewpointTemperature=(274.0, 262.0, 220.0))
    assert decoded.table.num_rows == 12
    temperature = rows(decoded.table, "temperature")
    assert [r["obs_value"] for r in temperature] == pytest.approx(TEMPERATURES)
    assert [r["vertical"] for r in temperature] == pytest.approx(STANDARD_PRESSURES, rel=1e-4)
    assert {(r["lat"], r["lon"]) for r in temperature} == {(50.03, 8.57)}
    assert {r["profile_id"] for r in temperature} == {0}
    assert values(decoded.table, "u_component_of_wind") == pytest.approx([10.0, 20.0, 30.0])
    assert len(values(decoded.table, "specific_humidity")) == 3
    assert not decoded.report.not_used and not decoded.report.values_set_aside


def test_aircraft_profile_with_positions():
    latitudes, longitudes = (50.1, 50.2, 50.3), (8.6, 8.7, 8.8)
    decoded = profile(311_009, {"": (3,)}, 1, latitude=latitudes, longitude=longitudes)
    temperature = rows(decoded.table, "temperature")
    assert [r["lat"] for r in temperature] == pytest.approx(latitudes)
    assert [r["lon"] for r in temperature] == pytest.approx(longitudes)


def test_aircraft_profile_of_one_level_has_that_level_s_position():
    columns = {"#1#latitude": 50.0, "#1#longitude": 8.0, "#2#latitude": 51.0, "#2#longitude": 9.0,
               "#1#second": 0, "#1#flightLevel": 3_000, "#1#airTemperature": 268.0}  # fmt: skip
    found = row(decode(message((311_009,), 4, columns, counts={"": (1,)})).table, "temperature")
    assert (found["lat"], found["lon"]) == pytest.approx((51.0, 9.0))


def test_a_level_without_position_is_at_the_report_s():
    decoded = profile(
        311_009, {"": (3,)}, 1, latitude=(50.1, np.nan, 50.3), longitude=(8.6, np.nan, 8.8)
    )
    temperature = rows(decoded.table, "temperature")
    assert [r["lat"] for r in temperature] == pytest.approx([50.1, 50.03, 50.3])


def dated_profile(**levels):
    """A profile whose levels begin with a date, as in 311012."""
    descriptors = (1_008, 301_011, 301_012, 4_006, 301_021, 8_004, 113_000, 31_001, 4_001, 4_002,
                   4_003, 4_004, 4_005, 4_006, 7_010, 5_001, 6_001, 11_001, 11_002, 12_101,
                   13_003)  # fmt: skip
    columns = {"#1#latitude": 50.03, "#1#longitude": 8.57, "#1#second": 0}
    for n in range(3):
        columns |= {f"#{n + 2}#year": 2026, f"#{n + 2}#month": 3, f"#{n + 2}#day": 1,
                    f"#{n + 2}#hour": 6, f"#{n + 2}#minute": 2 * n, f"#{n + 2}#second": 30,
                    f"#{n + 2}#latitude": 50.1 + n, f"#{n + 2}#longitude": 8.6,
                    f"#{n + 1}#flightLevel": FLIGHT_LEVELS[n],
                    f"#{n + 1}#airTemperature": TEMPERATURES[n],
                    f"#{n + 1}#relativeHumidity": 30 + n}  # fmt: skip
    return decode(message(descriptors, 4, columns, counts={"": (3,)})).table


def test_aircraft_profile_with_times():
    table = dated_profile()
    temperature = rows(table, "temperature")
    assert [r["time"].to_datetime64() for r in temperature] == [
        TIME + (30 + 120 * n) * SECOND for n in range(3)
    ]
    assert [r["lat"] for r in temperature] == pytest.approx([50.1, 51.1, 52.1])
    assert values(table, "relative_humidity") == pytest.approx([0.30, 0.31, 0.32])


HEIGHTS = (1_500, 3_000, 5_500)


def by_height(*elements, **columns):
    descriptors = (301_001, 301_011, 301_012, 301_021, 7_030, 7_007, 101_000 + 1_000 * len(elements),
                   31_001, 7_009, *elements)  # fmt: skip
    given = {"#1#blockNumber": 10, "#1#stationNumber": 393, "#1#latitude": 52.2,
             "#1#longitude": 14.1, "#1#height": 112}  # fmt: skip
    for n in range(3):
        given[f"#{n + 1}#geopotentialHeight"] = HEIGHTS[n]
        given |= {f"#{n + 1}#{key}": level[n] for key, level in columns.items()}
    return decode(message(descriptors, 2, given, counts={"": (3,)}))


def test_sonde_without_barometer_keeps_temperature_and_humidity():
    decoded = by_height(
        12_101, 12_103, 11_001, 11_002, airTemperature=(275.0, 266.0, 250.0),
        dewpointTemperature=(270.0, 258.0, 240.0), windDirection=(270,) * 3, windSpeed=(5.0,) * 3,
    )  # fmt: skip
    for variable in ("temperature", "relative_humidity", "u_component_of_wind"):
        found = rows(decoded.table, variable)
        assert [r["vertical"] for r in found] == list(HEIGHTS), variable
        assert {r["vertical_kind"] for r in found} == {"height"}, variable
    # Bolton (1980): e(270 K) = 484.6 Pa, e(275 K) = 698.5 Pa.
    assert values(decoded.table, "relative_humidity")[0] == pytest.approx(484.6 / 698.5, rel=2e-3)
    assert set(decoded.report.not_used) <= {"007007 height"}


def test_sonde_levels_with_height_where_pressure_is_missing():
    levels = [
        {"pressure": 85_000.0, "nonCoordinateGeopotentialHeight": 1_480, "airTemperature": 275.0},
        {"nonCoordinateGeopotentialHeight": 3_000, "airTemperature": 266.0},
    ]
    found = rows(decode(sonde(levels)).table, "temperature")
    assert sorted((r["vertical_kind"], r["vertical"], r["obs_value"]) for r in found) == [
        ("height", 3_000.0, pytest.approx(266.0)), ("pressure", 85_000.0, pytest.approx(275.0)),
    ]  # fmt: skip


def test_level_without_pressure_and_height_is_counted():
    decoded = decode(
        sonde([{"pressure": 85_000.0, "airTemperature": 275.0}, {"airTemperature": 266.0}])
    )
    assert values(decoded.table, "temperature") == pytest.approx([275.0])
    assert dict(decoded.report.values_set_aside) == {"no_level temperature": 1}


@pytest.mark.parametrize("element", [13_003, 13_009])
def test_relative_humidity_of_sondes(element):
    descriptors = (301_001, 301_011, 301_012, 301_021, 103_000, 31_001, 7_004, 12_101, element)
    columns = {
        "#1#blockNumber": 10,
        "#1#stationNumber": 393,
        "#1#latitude": 52.2,
        "#1#longitude": 14.1,
    }
    for n in range(3):
        columns |= {f"#{n + 1}#pressure": 85_000.0 - 10_000 * n, f"#{n + 1}#airTemperature": 275.0,
                    f"#{n + 1}#relativeHumidity": 70 - 10 * n}  # fmt: skip
    table = decode(message(descriptors, 2, columns, counts={"": (3,)})).table
    assert values(table, "relative_humidity") == pytest.approx([0.7, 0.6, 0.5])
    assert {r["vertical_kind"] for r in rows(table, "relative_humidity")} == {"pressure"}


def station(*descriptors, **columns):
    place = {
        "#1#blockNumber": 10,
        "#1#stationNumber": 384,
        "#1#latitude": 50.0,
        "#1#longitude": 10.0,
    }
    ranked = {key.replace("_", "#", 2): given for key, given in columns.items()}
    return decode(
        message((301_001, 301_011, 301_012, 301_021, *descriptors), 0, {**place, **ranked})
    )


def heights(values_by_height, key):
    given = {}
    for n, (height, observed) in enumerate(values_by_height, start=1):
        given |= {f"_{n}_{SENSOR}": height, f"_{n}_{key}": observed}
    return given


@pytest.mark.parametrize(
    ("sensors", "expected", "outcome"),
    [
        (((0.05, 268.0), (2.0, 275.0)), 275.0, None),
        (((50.0, 272.0), (10.0, 273.0), (2.0, 275.0)), 275.0, None),
        (((2.0, np.nan), (1.5, 276.0)), 276.0, None),
        (((2.0, 275.0), (2.0, 281.0)), 275.0, None),
        (((2.0, np.nan), (2.0, 281.0)), None, None),
        (((0.05, 268.0), (30.0, 272.0)), 268.0, "domain"),
    ],
)
def test_the_sensor_nearest_to_two_metres_counts(sensors, expected, outcome):
    decoded = station(*(7_032, 12_101) * len(sensors), **heights(sensors, "airTemperature"))
    given = sum(observed == observed for _, observed in sensors)
    assert decoded.report.not_used["012101 airTemperature"] == given - (expected is not None)
    if expected is None:
        assert dict(decoded.report.rejected) == {"no_values": 1}
        return
    found = row(decoded.table, "2m_temperature")
    assert (found["obs_value"], found["rejected_by"]) == (pytest.approx(expected), outcome)


def test_wind_of_the_mast_level_nearest_to_ten_metres():
    sensors = heights(((80.0, 12.0), (10.0, 7.0), (2.0, 3.0)), "windSpeed")
    directions = {f"_{n}_windDirection": 90.0 * n for n in (1, 2, 3)}
    decoded = station(*(7_032, 11_001, 11_002) * 3, **sensors, **directions)
    assert value(decoded.table, "10m_v_component_of_wind") == pytest.approx(7.0)
    assert row(decoded.table, "10m_v_component_of_wind")["rejected_by"] is None
    assert decoded.report.not_used["011002 windSpeed"] == 2
    assert decoded.report.not_used["011001 windDirection"] == 2


def test_the_shallowest_water_temperature_counts():
    columns = {"#1#shipOrMobileLandStationIdentifier": "DBLK", "#1#latitude": 50.0,
               "#1#longitude": -10.0, "#1#airTemperature": 285.0}  # fmt: skip
    for n, (depth, temperature) in enumerate(((50.0, 280.0), (1.0, 286.0), (5.0, 285.0)), start=1):
        columns |= {
            f"#{n}#depthBelowWaterSurface": depth,
            f"#{n}#oceanographicWaterTemperature": temperature,
        }
    descriptors = (1_011, 301_011, 301_012, 301_021, 12_101, *(7_063, 22_043) * 3)
    decoded = decode(message(descriptors, 1, columns))
    assert value(decoded.table, "sea_surface_temperature") == pytest.approx(286.0)
    assert decoded.report.not_used["022043 oceanographicWaterTemperature"] == 2


def test_elements_without_a_use_are_counted_by_name():
    rain = {"#1#totalPrecipitationOrTotalWaterEquivalent": 9.0, "#4#timePeriod": -6}
    report = decode(synop(airTemperature=280.0, horizontalVisibility=9_000, **rain) * 2).report
    assert report.not_used["020001 horizontalVisibility"] == 2
    assert report.not_used["013011 totalPrecipitationOrTotalWaterEquivalent"] == 2
    assert not any(name.startswith("012101") for name in report.not_used)


def test_half_a_wind_and_second_humidities_are_counted():
    report = decode(
        sonde([
            {"pressure": 85_000.0, "windSpeed": 5.0},
            {"pressure": 80_000.0, "windSpeed": 5.0, "windDirection": 90,
             "nonCoordinateGeopotentialHeight": 1_950},
        ])
    ).report  # fmt: skip
    assert report.not_used["011002 windSpeed"] == 1
    assert report.not_used["010009 nonCoordinateGeopotentialHeight"] == 1
    both = station(12_101, 13_003, _1_airTemperature=280.0, _1_relativeHumidity=50).report
    assert not any(name.startswith("013003") for name in both.not_used)


def test_counts_are_the_same_however_messages_are_unpacked():
    one = synop(airTemperature=280.0, horizontalVisibility=9_000, cloudAmount=3)
    single, many = decode(one).report.not_used, decode(one * 50).report.not_used
    assert {name: 50 * count for name, count in single.items()} == dict(many)


def test_reports_add_the_counts():
    first, second = DecodeReport(format="bufr"), DecodeReport(format="bufr")
    first.not_used["020001 horizontalVisibility"] = 2
    second.not_used["020001 horizontalVisibility"] = 3
    second.values_set_aside["no_level temperature"] = 1
    merged = first.merge(second)
    assert merged.not_used == {"020001 horizontalVisibility": 5}
    assert merged.values_set_aside == {"no_level temperature": 1}
