"""Sondes, aircraft, satellite winds, profilers, GNSS: values chosen by hand."""

import numpy as np
import pytest
from bufr_messages import TIME, decode, message, row, sonde, synop, value, values

DAY = np.timedelta64(1, "s")


def test_sonde_levels_drift_with_the_balloon():
    levels = [
        {"timePeriod": 0, "pressure": 100_000.0, "airTemperature": 285.0, "dewpointTemperature": 273.15,
         "windDirection": 270, "windSpeed": 5.0, "nonCoordinateGeopotentialHeight": 120,
         "latitudeDisplacement": 0.0, "longitudeDisplacement": 0.0},
        {"timePeriod": 600, "pressure": 70_000.0, "airTemperature": 270.0,
         "nonCoordinateGeopotentialHeight": 3_000,
         "latitudeDisplacement": 0.05, "longitudeDisplacement": -0.02},
        {"timePeriod": 1_200, "pressure": 61_230.0, "airTemperature": 262.0,
         "nonCoordinateGeopotentialHeight": 4_000},
    ]  # fmt: skip
    table = decode(sonde(levels, heightOfStationGroundAboveMeanSeaLevel=95)).table
    assert values(table, "temperature") == pytest.approx([285.0, 270.0, 262.0])
    temperature = [r for r in table.to_pylist() if r["variable"] == "temperature"]
    assert [r["vertical"] for r in temperature] == [100_000.0, 70_000.0, 61_230.0]
    assert [r["lat"] for r in temperature] == pytest.approx([50.0, 50.05, 50.05])
    assert [r["lon"] for r in temperature] == pytest.approx([10.0, 9.98, 9.98])
    assert [r["time"].to_datetime64() for r in temperature] == [
        TIME,
        TIME + 600 * DAY,
        TIME + 1200 * DAY,
    ]
    assert {r["profile_id"] for r in temperature} == {0}
    assert {r["report_type"] for r in temperature} == {"temp"}
    assert {r["elevation"] for r in temperature} == {95.0}
    # The geopotential counts on standard levels only: 612.3 hPa is none.
    assert values(table, "geopotential") == pytest.approx([120 * 9.80665, 3_000 * 9.80665])
    # Bolton: e = 611.2 Pa at a dewpoint of 273.15 K.
    humidity = value(table, "specific_humidity")
    ratio = 287.0597 / 461.525
    expected = ratio * 611.2 / (100_000 - (1 - ratio) * 611.2)
    assert humidity == pytest.approx(expected, rel=1e-9)
    assert value(table, "u_component_of_wind") == pytest.approx(5.0)


def test_wind_shear_blocks_at_the_end_are_no_levels():
    columns = {"#1#blockNumber": 1, "#1#stationNumber": 2, "#1#latitude": 50.0, "#1#longitude": 10.0,
               "#1#second": 0, "#1#pressure": 50_000.0, "#1#windSpeed": 20.0, "#1#windDirection": 90,
               "#2#pressure": 30_000.0}  # fmt: skip
    data = message((309_052,), 2, columns, counts={"extended": (1,), "": (1,)})
    table = decode(data).table
    assert table["vertical"].to_pylist() == [50_000.0, 50_000.0]


def test_two_ascents_in_one_file_are_two_profiles():
    level = [{"pressure": 50_000.0, "airTemperature": 250.0}]
    table = decode(sonde(level) + sonde(level, stationNumber=385)).table
    assert table["profile_id"].to_pylist() == [0, 1]
    assert table["station_id"].to_pylist() == ["10384", "10385"]


def test_pilot_without_pressure_keeps_its_height():
    columns = {"#1#blockNumber": 1, "#1#stationNumber": 2, "#1#latitude": 50.0, "#1#longitude": 10.0,
               "#1#pressure": np.nan, "#1#nonCoordinateGeopotentialHeight": 1_500,
               "#1#windDirection": 180, "#1#windSpeed": 8.0}  # fmt: skip
    descriptors = (301_001, 301_011, 301_012, 301_021, 7_004, 10_009, 11_001, 11_002)
    table = decode(message(descriptors, 2, columns)).table
    wind = row(table, "v_component_of_wind")
    assert (wind["report_type"], wind["vertical_kind"]) == ("pilot", "height")
    assert wind["vertical"] == 1_500.0 and wind["obs_value"] == pytest.approx(8.0)


def aircraft(**columns):
    place = {"aircraftRegistrationNumberOrOtherIdentification": "EU0042", "latitude": 48.0,
             "longitude": 11.0, "second": 30, "flightLevel": 11_000}  # fmt: skip
    ranked = {k if k.startswith("#") else f"#1#{k}": v for k, v in {**place, **columns}.items()}
    return message((311_010,), 4, ranked, counts={"short": (0,) * 6, "": (0, 0)})


def test_aircraft_pressure_comes_from_the_flight_level():
    table = decode(aircraft(airTemperature=216.65, windSpeed=50.0, windDirection=270)).table
    found = row(table, "temperature")
    assert found["vertical"] == pytest.approx(22_632.0, rel=1e-5)
    assert found["vertical_kind"] == "pressure"
    assert found["time"].to_datetime64() == TIME + 30 * DAY
    assert (found["station_id"], found["report_type"]) == ("EU0042", "aircraft")
    assert value(table, "u_component_of_wind") == pytest.approx(50.0)


def test_steep_roll_flags_the_wind_alone():
    table = decode(
        aircraft(
            airTemperature=220.0, windSpeed=50.0, windDirection=270, aircraftRollAngleQuality=1
        )
    ).table
    assert row(table, "temperature")["rejected_by"] is None
    assert row(table, "u_component_of_wind")["rejected_by"] == "preqc"


def test_humidity_of_aircraft():
    assert value(decode(aircraft(mixingRatio=0.004)).table, "specific_humidity") == pytest.approx(
        0.004 / 1.004
    )
    assert value(decode(aircraft(relativeHumidity=35)).table, "relative_humidity") == pytest.approx(
        0.35
    )


def test_old_aircraft_template_and_wind_in_knots():
    columns = {"#1#aircraftFlightNumber": "LH442", "#1#latitude": 48.0, "#1#longitude": 11.0,
               "#1#height": 5_000, "#1#airTemperature": 255.0, "#1#windDirection": 180,
               "#1#windSpeed": 50}  # fmt: skip
    descriptors = (1_006, 301_011, 301_012, 301_021, 7_002, 12_001, 11_001, 11_084)
    table = decode(message(descriptors, 4, columns)).table
    assert value(table, "v_component_of_wind") == pytest.approx(50 * 1852 / 3600)
    assert row(table, "temperature")["vertical"] == pytest.approx(54_019.9, rel=1e-5)
    assert row(table, "temperature")["station_id"] == "LH442"


def amv(quality, **columns):
    place = {"satelliteIdentifier": 57, "satelliteDerivedWindComputationMethod": 1, "latitude": 10.0,
             "longitude": -20.0, "second": 0, "pressure": 25_000.0, "windDirection": 270,
             "windSpeed": 30.0, "standardGeneratingApplication": 5,
             "percentConfidence": quality}  # fmt: skip
    ranked = {k if k.startswith("#") else f"#1#{k}": v for k, v in {**place, **columns}.items()}
    return decode(message((310_077,), 5, ranked, counts={"": (0, 0, 0, 0)})).table


def test_satellite_wind():
    table = amv(85, **{"#2#pressure": 99_000.0, "#2#u": -50.0})
    wind = row(table, "u_component_of_wind")
    assert wind["obs_value"] == pytest.approx(30.0)
    assert (wind["vertical"], wind["station_id"], wind["platform"]) == (
        25_000.0,
        "sat057",
        "infrared",
    )
    assert wind["rejected_by"] is None
    assert table.num_rows == 2


def test_winds_from_nowhere_are_counted():
    level = {"pressure": 85_000.0, "windDirection": 450, "windSpeed": 3.0, "airTemperature": 280.0}
    decoded = decode(sonde([level]))
    assert set(decoded.report.rows_by_variable) == {"temperature"}
    not_used = decoded.report.not_used
    assert (not_used["011001 windDirection"], not_used["011002 windSpeed"]) == (1, 1)
    decoded = decode(synop(windDirection=450, windSpeed=3.0))
    assert dict(decoded.report.rows_by_variable) == {"10m_wind_speed": 1}
    assert decoded.report.not_used["011001 windDirection"] == 1


def test_poor_satellite_winds_are_flagged():
    assert set(amv(59)["rejected_by"].to_pylist()) == {"preqc"}
    # The indicator without forecast (application 5) decides, whatever comes first.
    mixed = {"#1#standardGeneratingApplication": 6, "#2#standardGeneratingApplication": 5,
             "#2#percentConfidence": 90}  # fmt: skip
    assert set(amv(10, **mixed)["rejected_by"].to_pylist()) == {None}


def scatterometer(index, **columns):
    ranked = {
        "#1#satelliteIdentifier": 4, "#1#latitude": 10.0, "#1#longitude": -20.0, "#1#second": 0,
        "#1#numberOfVectorAmbiguities": 3, "#1#indexOfSelectedWindVector": index,
        "#1#modelWindSpeedAt10M": 25.0, "#1#modelWindDirectionAt10M": 45.0,
        "#1#windSpeedAt10M": 4.0, "#1#windDirectionAt10M": 90.0,
        "#2#windSpeedAt10M": 6.0, "#2#windDirectionAt10M": 180.0,
        "#3#windSpeedAt10M": 8.0, "#3#windDirectionAt10M": 270.0,
        **{f"#1#{k}": v for k, v in columns.items()},
    }  # fmt: skip
    return decode(message((312_061,), 12, ranked, counts={"": (3,)}))


@pytest.mark.parametrize(("index", "u", "v"), [(1, -4.0, 0.0), (2, 0.0, 6.0), (3, 8.0, 0.0)])
def test_the_selected_solution_counts(index, u, v):
    table = scatterometer(index).table
    assert value(table, "10m_u_component_of_wind") == pytest.approx(u, abs=1e-12)
    assert value(table, "10m_v_component_of_wind") == pytest.approx(v, abs=1e-12)


def test_no_selection_no_wind():
    for index in (np.nan, 0, 4):
        report = scatterometer(index).report
        assert dict(report.rejected) == {"no_values": 1}
        assert "no wind was selected in the cell" in report.quarantined[0].detail


def test_cells_over_land_are_flagged():
    # Code table 0 21 155 counts bits from the left of 24: bit 9 is land.
    table = scatterometer(1, windVectorCellQuality=1 << (24 - 9)).table
    assert set(table["rejected_by"].to_pylist()) == {"preqc"}


def test_wind_profiler():
    columns = {
        "#1#blockNumber": 6, "#1#stationNumber": 632, "#1#latitude": 47.0, "#1#longitude": 7.0,
        "#1#height": 430, "#1#measuringEquipmentType": 6, "#2#height": 1_000, "#1#windDirection": 90,
        "#1#windSpeed": 5.0, "#1#w": 0.1,
    }  # fmt: skip
    descriptors = (301_001, 301_011, 301_012, 301_021, 7_001, 2_003, 7_007, 11_001, 11_002, 11_006)
    columns = {("#1#heightOfStation" if k == "#1#height" else k): v for k, v in columns.items()}
    columns["#1#height"] = columns.pop("#2#height")
    found = row(decode(message(descriptors, 2, columns)).table, "u_component_of_wind")
    assert (found["report_type"], found["vertical_kind"], found["vertical"]) == (
        "profiler", "height", 1_000.0,
    )  # fmt: skip
    assert found["obs_value"] == pytest.approx(-5.0)


def test_water_vapour_of_gnss():
    columns = {"#1#stationOrSiteName": "ZIMM-GFZ", "#1#latitude": 46.9, "#1#longitude": 7.5,
               "#1#precipitableWater": 21.0}  # fmt: skip
    found = row(decode(message((307_022,), 0, columns)).table, "total_column_water_vapour")
    assert (found["report_type"], found["vertical_kind"]) == ("gnss", "column")
    assert (found["station_id"], found["obs_value"]) == ("ZIMM-GFZ", 21.0)
