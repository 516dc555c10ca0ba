"""Surface reports: the traps of the templates, each with values chosen by hand."""

import eccodes
import numpy as np
import pytest
from bufr_messages import TIME, decode, message, row, synop, value, values

HEIGHT = "heightOfSensorAboveLocalGroundOrDeckOfMarinePlatform"


def variables(table):
    return set(table["variable"].to_pylist())


def test_a_full_station_report():
    table = decode(
        synop(
            nonCoordinatePressure=98_760.0,
            heightOfBarometerAboveMeanSeaLevel=101.5,
            pressureReducedToMeanSeaLevel=100_030.0,
            airTemperature=281.37,
            dewpointTemperature=277.5,
            relativeHumidity=76,
            windDirection=270,
            windSpeed=5.5,
        )
    ).table
    assert value(table, "2m_temperature") == pytest.approx(281.37, abs=1e-9)
    assert value(table, "2m_dewpoint_temperature") == pytest.approx(277.5, abs=1e-9)
    assert value(table, "2m_relative_humidity") == pytest.approx(0.76)
    assert value(table, "mean_sea_level_pressure") == 100_030.0
    assert value(table, "10m_u_component_of_wind") == pytest.approx(5.5)
    assert value(table, "10m_v_component_of_wind") == pytest.approx(0.0, abs=1e-12)
    pressure = row(table, "surface_pressure")
    assert pressure["obs_value"] == 98_760.0
    assert pressure["elevation"] == pytest.approx(101.5)
    temperature = row(table, "2m_temperature")
    assert temperature["station_id"] == "10384"
    assert temperature["elevation"] == 100.0
    assert temperature["time"].to_datetime64() == TIME
    assert temperature["vertical_kind"] == "surface" and temperature["vertical"] is None
    assert temperature["obs_error"] is None and temperature["rejected_by"] is None
    assert len(table) == 7


def test_the_isobaric_surface_is_not_the_station_pressure():
    table = decode(synop(pressure=85_000.0, nonCoordinateGeopotentialHeight=1_480)).table
    assert len(table) == 0


def test_nothing_but_missing_values_leaves_no_row_but_a_count():
    decoded = decode(synop())
    assert decoded.table.num_rows == 0
    assert dict(decoded.report.rejected) == {"no_values": 1}


def test_rain_counts_for_one_hour_only():
    rain = {"#1#totalPrecipitationOrTotalWaterEquivalent": 2.5}
    assert (
        value(decode(synop(**rain, **{"#4#timePeriod": -1})).table, "total_precipitation") == 0.0025
    )
    assert variables(decode(synop(**rain, **{"#4#timePeriod": -6})).table) == set()
    assert variables(decode(synop(**rain)).table) == set()


def test_the_second_rain_period_may_be_the_hour():
    table = decode(
        synop(**{
            "#4#timePeriod": -6, "#1#totalPrecipitationOrTotalWaterEquivalent": 9.0,
            "#5#timePeriod": -1, "#2#totalPrecipitationOrTotalWaterEquivalent": 0.4,
        })
    ).table  # fmt: skip
    assert value(table, "total_precipitation") == pytest.approx(0.0004)


def test_a_trace_of_rain_is_none():
    trace = {"#1#totalPrecipitationOrTotalWaterEquivalent": -0.1, "#4#timePeriod": -1}
    assert value(decode(synop(**trace)).table, "total_precipitation") == 0.0


def test_calm_and_missing_direction():
    calm = decode(synop(windSpeed=0.0)).table
    assert value(calm, "10m_u_component_of_wind") == value(calm, "10m_v_component_of_wind") == 0.0
    variable = decode(synop(windSpeed=1.2)).table
    assert variables(variable) == {"10m_wind_speed"}
    assert value(variable, "10m_wind_speed") == pytest.approx(1.2)


def test_sensors_at_unusual_heights_are_flagged_not_dropped():
    table = decode(
        synop(airTemperature=280.0, windSpeed=5.0, windDirection=90,
              **{f"#1#{HEIGHT}": 2.0, f"#7#{HEIGHT}": 40.0})
    ).table  # fmt: skip
    assert row(table, "2m_temperature")["rejected_by"] is None
    wind = row(table, "10m_u_component_of_wind")
    assert (wind["rejected_by"], wind["qc_flag"]) == ("domain", 13)


def test_first_order_statistics_are_not_values():
    # T as standard deviation comes before T itself.
    columns = {
        "#1#blockNumber": 10, "#1#stationNumber": 1, "#1#latitude": 1.0, "#1#longitude": 2.0,
        "#1#firstOrderStatistics": 10, "#1#airTemperature": 0.5, "#2#airTemperature": 285.0,
        "#1#nonCoordinatePressure": 100_000.0,
    }  # fmt: skip
    table = decode(
        message(
            (301_001, 301_011, 301_012, 301_021, 8_023, 12_101, 8_023, 12_101, 10_004), 0, columns
        )
    ).table
    assert value(table, "2m_temperature") == 285.0
    assert value(table, "surface_pressure") == 100_000.0


def test_wigos_identifiers_come_first():
    columns = {
        "#1#wigosIdentifierSeries": 0, "#1#wigosIssuerOfIdentifier": 20_000, "#1#wigosIssueNumber": 0,
        "#1#wigosLocalIdentifierCharacter": "06260", "#1#blockNumber": 6, "#1#stationNumber": 260,
        "#1#latitude": 52.1, "#1#longitude": 5.2, "#1#airTemperature": 280.0,
    }  # fmt: skip
    table = decode(message((301_150, 307_080), 0, columns, counts={"": (0, 0)})).table
    assert table["station_id"].to_pylist() == ["0-20000-0-06260"]
    columns["#1#wigosLocalIdentifierCharacter"] = ""
    table = decode(message((301_150, 307_080), 0, columns, counts={"": (0, 0)})).table
    assert table["station_id"].to_pylist() == ["06260"]


def test_longitudes_are_wrapped():
    for given, expected in ((180.0, -180.0), (-180.0, -180.0), (179.5, 179.5)):
        table = decode(synop(airTemperature=280.0, longitude=given)).table
        assert table["lon"].to_pylist() == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"#1#year": np.nan}, "no_time"),
        ({"#1#hour": np.nan}, "no_time"),
        ({"#1#day": 31, "#1#month": 4}, "no_time"),
        ({"#1#latitude": np.nan}, "no_position"),
    ],
)
def test_reports_without_time_or_place_have_a_reason(columns, reason):
    decoded = decode(synop(airTemperature=280.0, **columns))
    assert decoded.table.num_rows == 0
    assert dict(decoded.report.rejected) == {reason: 1}
    assert decoded.report.quarantined[0].report == 0


@pytest.mark.parametrize("compressed", [True, False])
def test_reports_of_one_message_keep_their_order_and_gaps(compressed):
    temperature = np.array([280.0, np.nan, 282.0])
    data = message(
        (307_080,), 0,
        {"#1#blockNumber": 10, "#1#stationNumber": np.array([1, 2, 3]), "#1#latitude": 50.0,
         "#1#longitude": np.array([1.0, 2.0, 3.0]), "#1#airTemperature": temperature,
         "#1#windSpeed": 0.0},
        subsets=3, counts={"": (0, 0)}, compressed=compressed,
    )  # fmt: skip
    table = decode(data).table
    assert values(table, "2m_temperature") == [280.0, 282.0]
    assert values(table, "10m_u_component_of_wind") == [0.0, 0.0, 0.0]
    stations = dict.fromkeys(table["station_id"].to_pylist())
    assert list(stations) == ["10001", "10002", "10003"]


def test_cloud_layers_shift_the_later_groups():
    layers = {"#2#cloudAmount": 3, "#3#cloudAmount": 5, "#1#airTemperature": 281.0,
              "#1#windSpeed": 7.0, "#1#windDirection": 180,
              "#4#timePeriod": -1, "#1#totalPrecipitationOrTotalWaterEquivalent": 1.0,
              "#1#blockNumber": 10, "#1#stationNumber": 5, "#1#latitude": 1.0,
              "#1#longitude": 1.0}  # fmt: skip
    table = decode(message((307_080,), 0, layers, counts={"": (2, 1)})).table
    assert value(table, "10m_v_component_of_wind") == pytest.approx(7.0)
    assert value(table, "total_precipitation") == pytest.approx(0.001)


def test_two_digit_years_of_edition_3():
    handle = eccodes.codes_bufr_new_from_samples("BUFR3")
    eccodes.codes_set(handle, "masterTablesVersionNumber", 13)
    eccodes.codes_set(handle, "localTablesVersionNumber", 0)
    eccodes.codes_set(handle, "dataCategory", 0)
    eccodes.codes_set_array(
        handle, "unexpandedDescriptors", [301_001, 301_011, 301_012, 301_021, 12_101]
    )
    for key, number in {
        "year": 26, "month": 3, "day": 1, "hour": 6, "minute": 0, "latitude": 1.0, "longitude": 1.0,
        "airTemperature": 280.0, "blockNumber": 1, "stationNumber": 1,
    }.items():  # fmt: skip
        eccodes.codes_set(handle, f"#1#{key}", number)
    eccodes.codes_set(handle, "pack", 1)
    data = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    assert row(decode(data).table, "2m_temperature")["time"].to_datetime64() == TIME


def test_ship():
    columns = {
        "#1#shipOrMobileLandStationIdentifier": "DBLK", "#1#latitude": 54.25, "#1#longitude": -7.5,
        "#1#airTemperature": 284.0, "#1#oceanographicWaterTemperature": 285.5,
        "#1#depthBelowWaterSurface": 3.0, "#1#windSpeed": 10.0, "#1#windDirection": 360,
        f"#7#{HEIGHT}": 32.0,
    }  # fmt: skip
    table = decode(message((308_009,), 1, columns, counts={"": (0,)})).table
    assert set(table["report_type"].to_pylist()) == {"ship"}
    assert set(table["station_id"].to_pylist()) == {"DBLK"}
    assert value(table, "sea_surface_temperature") == pytest.approx(285.5)
    wind = row(table, "10m_v_component_of_wind")
    assert wind["obs_value"] == pytest.approx(-10.0) and wind["rejected_by"] is None


def test_water_from_the_deep_is_no_surface_temperature():
    columns = {"#1#shipOrMobileLandStationIdentifier": "DBLK", "#1#latitude": 54.0,
               "#1#longitude": -7.0, "#1#oceanographicWaterTemperature": 280.0,
               "#1#depthBelowWaterSurface": 50.0}  # fmt: skip
    decoded = decode(message((308_009,), 1, columns, counts={"": (0,)}))
    assert dict(decoded.report.rejected) == {"no_values": 1}


def drifter(**more):
    columns = {
        "#1#marineObservingPlatformIdentifier": 6_201_234, "#1#latitude": 40.0, "#1#longitude": -30.0,
        "#1#timeSignificance": 26, "#1#hour": 3,
        "#2#timeSignificance": 25, "#2#year": 2026, "#2#month": 3, "#2#day": 1, "#2#hour": 6,
        "#2#minute": 0, "#1#oceanographicWaterTemperature": 291.25,
        "#1#pressureReducedToMeanSeaLevel": 101_500.0, **more,
    }  # fmt: skip
    counts = {"short": (0, 1, 1, 1), "": (0,)}
    return decode(message((315_009,), 1, columns, counts=counts)).table


def test_drifter_takes_the_nominal_time_not_that_of_the_last_position():
    table = drifter()
    found = row(table, "sea_surface_temperature")
    assert found["time"].to_datetime64() == TIME
    assert (found["report_type"], found["station_id"]) == ("drifter", "6201234")
    assert found["obs_value"] == pytest.approx(291.25)
    assert found["rejected_by"] is None


def test_dubious_location_flags_every_value():
    table = drifter(**{"#1#qualityOfBuoyLocation": 2})
    assert set(table["rejected_by"].to_pylist()) == {"preqc"}
    assert set(table["qc_flag"].to_pylist()) == {11}


def test_moored_buoy():
    columns = {"#1#marineObservingPlatformIdentifier": 6_200_001, "#1#latitude": 45.0,
               "#1#longitude": -5.0, "#1#seaSurfaceTemperature": 287.15}  # fmt: skip
    counts = {"short": (0, 1, 0, 0, 0, 0, 0, 0)}
    found = row(
        decode(message((315_008,), 1, columns, counts=counts)).table, "sea_surface_temperature"
    )
    assert (found["report_type"], found["station_id"]) == ("buoy", "6200001")
    assert found["obs_value"] == pytest.approx(287.15)


def test_associated_flags_reach_the_value():
    # 2 04 002 puts a two-bit field before each element; meaning 2: value 2 is highly suspect.
    columns = {"#1#blockNumber": 1, "#1#stationNumber": 2, "#1#latitude": 1.0, "#1#longitude": 1.0,
               "#1#airTemperature->associatedField->associatedFieldSignificance": 2,
               "#1#airTemperature": 280.0, "#1#airTemperature->associatedField": 2,
               "#1#nonCoordinatePressure": 99_000.0,
               "#1#nonCoordinatePressure->associatedField": 0}  # fmt: skip
    descriptors = (301_001, 301_011, 301_012, 301_021, 204_002, 31_021, 12_101, 10_004, 204_000)
    table = decode(message(descriptors, 0, columns)).table
    assert row(table, "2m_temperature")["rejected_by"] == "preqc"
    assert row(table, "surface_pressure")["rejected_by"] is None


def test_a_correction_without_values_withdraws_the_report():
    table = decode(synop(), "ISMD01EDZW021200CCA").table
    assert table["obs_value"].to_pylist() == [None]
    assert table["update_sequence"].to_pylist() == [1]
    assert table["station_id"].to_pylist() == ["10384"]


def test_a_number_beside_a_wigos_identifier_is_its_alias():
    columns = {
        "#1#wigosIdentifierSeries": 0, "#1#wigosIssuerOfIdentifier": 756, "#1#wigosIssueNumber": 0,
        "#1#wigosLocalIdentifierCharacter": "PAY", "#1#blockNumber": 6, "#1#stationNumber": 610,
        "#1#latitude": 46.8, "#1#longitude": 6.9, "#1#airTemperature": 280.0,
    }  # fmt: skip
    table = decode(message((301_150, 307_080), 0, columns, counts={"": (0, 0)})).table
    assert table["station_id"].to_pylist() == ["0-756-0-PAY"]
    assert table["station_alias"].to_pylist() == ["06610"]
    assert decode(synop(airTemperature=280.0)).table["station_alias"].to_pylist() == [None]
