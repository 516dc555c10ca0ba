"""Alphanumeric bulletins: values by hand from the Manual on Codes, and real ones against their BUFR form."""

from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest

from model.domain.physics import GRAVITY, KNOT, specific_humidity_from_dewpoint
from tests.worker.decoders.text_bulletins import decode, values
from worker.observations.decoders.decode import decode_file


@pytest.fixture
def read(tmp_path):
    return partial(decode, tmp_path)


SYNOP = """SMDL01 EDZW 171200 CCA
AAXX 17121
10384 31680 62710 10037 21004 39990 40052 57006 60011 333 55055=
10393 41/// 00000 11021 29085=
10999 31680 62710 10037=
10400 NIL=
"""


def test_synop(read):
    decoded = read(SYNOP)
    found = values(decoded, "10384")
    # 7 m/s from 270 degrees: iw is 1, m/s.
    assert found == pytest.approx(
        {
            "surface_pressure": 99_900.0,
            "mean_sea_level_pressure": 100_520.0,
            "2m_temperature": 276.85,
            "2m_dewpoint_temperature": 272.75,
            "10m_u_component_of_wind": 10.0,
            "10m_v_component_of_wind": 0.0,
        },
        abs=1e-6,
    )
    calm = values(decoded, "10393")
    assert calm["2m_temperature"] == pytest.approx(271.05)
    assert calm["2m_relative_humidity"] == pytest.approx(0.85)
    assert calm["10m_u_component_of_wind"] == calm["10m_v_component_of_wind"] == 0.0
    rows = decoded.table.to_pylist()
    assert {r["report_type"] for r in rows} == {"synop"}
    assert {str(r["time"]) for r in rows} == {"2026-01-17 12:00:00+00:00"}
    assert {r["update_sequence"] for r in rows} == {1}  # CCA
    pressure = next(r for r in rows if r["variable"] == "surface_pressure")
    assert (pressure["lat"], pressure["lon"], pressure["elevation"]) == (52.47, 13.4, 49.0)
    assert decoded.report.reports == 4 and decoded.report.decoded == 2
    assert decoded.report.rejected == {"no_position": 1, "no_values": 1}
    assert any("station 10999" in q.detail for q in decoded.report.quarantined)


def test_ship_carries_its_position(read):
    decoded = read("BBXX WMO19 17124 99350 70555 41/96 02010 10250 20214 40104 56004 22200 04150=")
    row = decoded.table.to_pylist()[0]
    assert (row["report_type"], row["station_id"]) == ("ship", "WMO19")
    assert (row["lat"], row["lon"]) == (35.0, -55.5)
    found = values(decoded)
    # 10 knots from 200 degrees, iw is 4.
    assert found["10m_u_component_of_wind"] == pytest.approx(10 * KNOT * np.sin(np.deg2rad(20)))
    assert found["10m_v_component_of_wind"] == pytest.approx(10 * KNOT * np.cos(np.deg2rad(20)))
    assert found["sea_surface_temperature"] == pytest.approx(288.15)
    assert found["mean_sea_level_pressure"] == pytest.approx(101_040.0)


METAR = """SADL31 EDZW 171220
METAR EDDF 171220Z 24015G27KT 9999 SCT020 M01/M03 Q1013 NOSIG=
METAR COR KJFK 171151Z VRB03KT 10SM CLR 02/M06 A3001 RMK AO2 SLP163=
METAR XXXX 171220Z 24015KT 9999 M01/M03 Q1013=
"""


def test_metar_and_the_pressure_behind_qnh(read):
    """Frankfurt, 364 ft: QNH 1013.25 would be the standard pressure of 110.9 m, 1000.0 hPa."""
    decoded = read(METAR)
    found = values(decoded, "EDDF")
    assert found["2m_temperature"] == pytest.approx(272.15)
    assert found["2m_dewpoint_temperature"] == pytest.approx(270.15)
    # ICAO: p = QNH (1 - 0.0065 h / 288.15 ...)^5.2559; 110.9 m are 13.3 hPa there.
    ratio = (1013.0 / 1013.25) ** (1 / 5.25588) - 0.0065 * 110.9472 / 288.15
    assert found["surface_pressure"] == pytest.approx(101_325.0 * ratio**5.25588, abs=2.0)
    assert found["10m_u_component_of_wind"] == pytest.approx(15 * KNOT * np.sin(np.deg2rad(60)))
    other = values(decoded, "KJFK")
    assert other["10m_wind_speed"] == pytest.approx(3 * KNOT)  # variable direction
    assert other["mean_sea_level_pressure"] == pytest.approx(101_630.0)
    updates = {r["station_id"]: r["update_sequence"] for r in decoded.table.to_pylist()}
    assert updates == {"EDDF": 0, "KJFK": 1}
    assert decoded.report.rejected == {"no_position": 1}


TEMP = """USDL01 EDZW 171200
TTAA 67121 10393 99013 04257 27010 00124 02458 27512 92789 00662 28018
85487 04560 29020 70012 10161 28530 50556 25357 28045 40717 37557 28055
30914 52157 28570 25029 58556 28560 20169 60356 28050 15351 59956 27545
10610 62156 27545 88220 60757 28065 77310 28572 41825=
TTBB 67128 10393 00013 04257 11850 04560 22700 10161 33500 25357
21212 00013 27010 11850 29020 22100 28501=
TTCC 67123 10393 70834 63356 27548 50045 65157 27052 88999 77999=
"""


def test_temp(read):
    decoded = read(TEMP, received=datetime(2026, 1, 17, 13, tzinfo=UTC))
    found = values(decoded)
    assert {r["report_type"] for r in decoded.table.to_pylist()} == {"temp"}
    # 99013: 1013 hPa. 042: even, +4.2; 57: 7 K below.
    assert found["temperature", 101_300.0] == pytest.approx(277.35)
    q = specific_humidity_from_dewpoint(np.array(277.35 - 7.0), np.array(101_300.0))
    assert found["specific_humidity", 101_300.0] == pytest.approx(float(q))
    # 67 is day 17 in knots.
    assert found["u_component_of_wind", 101_300.0] == pytest.approx(10 * KNOT)
    assert found["geopotential", 100_000.0] == pytest.approx(124 * GRAVITY)
    assert found["geopotential", 92_500.0] == pytest.approx(789 * GRAVITY)
    assert found["geopotential", 85_000.0] == pytest.approx(1_487 * GRAVITY)
    assert found["geopotential", 70_000.0] == pytest.approx(3_012 * GRAVITY)
    assert found["geopotential", 50_000.0] == pytest.approx(5_560 * GRAVITY)
    assert found["geopotential", 30_000.0] == pytest.approx(9_140 * GRAVITY)
    assert found["geopotential", 25_000.0] == pytest.approx(10_290 * GRAVITY)
    assert found["geopotential", 10_000.0] == pytest.approx(16_100 * GRAVITY)
    assert found["geopotential", 7_000.0] == pytest.approx(18_340 * GRAVITY)
    assert found["geopotential", 5_000.0] == pytest.approx(20_450 * GRAVITY)
    # 253: odd tenths, below zero.
    assert found["temperature", 50_000.0] == pytest.approx(273.15 - 25.3)
    assert found["temperature", 22_000.0] == pytest.approx(273.15 - 60.7)
    assert found["u_component_of_wind", 31_000.0] == pytest.approx(
        72 * KNOT * np.sin(np.deg2rad(105))
    )
    # 28501 at 22100: 285 degrees, 1 knot at 100 hPa. Hundreds stand in the direction elsewhere.
    assert decoded.report.decoded == 3
    assert decoded.report.rejected == {}


def test_hundreds_of_the_wind_stand_in_the_direction(read):
    decoded = read("PPBB 17120 10393 90012 09005 09507 27115 9/// /////=")
    found = values(decoded)
    assert {r["report_type"] for r in decoded.table.to_pylist()} == {"pilot"}
    assert found["u_component_of_wind", 112.0] == pytest.approx(-5.0)  # height 0 is the ground
    assert found["u_component_of_wind", 600.0] == pytest.approx(115.0)
    assert {r["vertical_kind"] for r in decoded.table.to_pylist()} == {"height"}


def test_pilot_at_standard_pressures(read):
    decoded = read("PPAA 17120 10393 55385 27010 27015 27020 77999=")
    found = values(decoded)
    assert [found["u_component_of_wind", p] for p in (85_000.0, 70_000.0, 50_000.0)] == (
        pytest.approx([10.0, 15.0, 20.0])
    )


def test_temp_ship(read):
    decoded = read("UUAA DBLK 17121 99541 10079 19914 99010 08020 24510 00085 07818 25012=")
    row = decoded.table.to_pylist()[0]
    assert (row["station_id"], row["lat"], row["lon"]) == ("DBLK", 54.1, 7.9)
    assert values(decoded)["geopotential", 100_000.0] == pytest.approx(85 * GRAVITY)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("x", {}, None),
        ("A_SMDL01EDZW021200_C_EDZW_20230102121500_1.txt", {}, "2023-01-02 12:00"),
        ("x", {"reference_time": "2024-03-01T00:00:00Z"}, "2024-02-02 12:00"),
    ],
)
def test_the_month_is_never_guessed(read, name, options, expected):
    """Day 2 two weeks before the arrival: a file of today, or of any month before."""
    decoded = read("AAXX 02121\n10384 31680 62710 10037=", name, **options)
    if expected is None:
        assert decoded.report.rejected == {"no_time": 1}
        assert "reference_time" in decoded.report.quarantined[0].detail
    else:
        assert str(decoded.table["time"][0].as_py())[:16] == expected


def test_the_last_day_of_a_month_arrives_on_the_first_of_the_next(read):
    text = "AAXX 31181\n10384 31680 62710 10037="
    decoded = read(text, received=datetime(2026, 2, 1, 0, 10, tzinfo=UTC))
    assert str(decoded.table["time"][0].as_py())[:16] == "2026-01-31 18:00"


def test_random_groups_end_in_reasons(read):
    rng = np.random.default_rng(4)
    letters = np.array(list("0123456789/ABX =\n"))
    for code in ("AAXX 17121 10384", "TTAA 67121 10393", "PPBB 17120 10393", "METAR EDDF 171220Z"):
        for _ in range(40):
            tail = "".join(rng.choice(letters, 120))
            report = read(f"{code} {tail}=").report
            assert report.rows or report.rejected


def test_a_station_list_of_the_installation(read, tmp_path, monkeypatch):
    path = tmp_path / "stations.csv"
    path.write_text(
        "station_name,wigos_station_identifier,latitude,longitude,elevation,barometer_height\n"
        "A,0-20000-0-10999,50.5,7.25,100,101.5\nB,0-20000-0-10998,,,,\n"
    )
    monkeypatch.setenv("APPA_STATIONS", str(path))
    decoded = read("AAXX 17121\n10999 31680 62710 10037 39990=")
    row = next(r for r in decoded.table.to_pylist() if r["variable"] == "surface_pressure")
    assert (row["lat"], row["lon"], row["elevation"]) == (50.5, 7.25, 101.5)


def test_real_synops_agree_with_their_bufr_form(realdata_dir, monkeypatch):
    """Romania, 21 March 2022: the country sent both forms."""
    monkeypatch.setenv("APPA_STATIONS", str(realdata_dir / "stations/wis2box__romania.csv"))
    text = decode_file(
        realdata_dir
        / "gts_text/1_synop2bufr__A_SMRO01YRBK211200_C_EDZW_20220321120500_12524785.txt"
    )
    bufr = decode_file(
        realdata_dir
        / "bufr/surface_land/synop2bufr__A_ISMD01YRBK211200_C_EDZW_20220321120500_12524783.bin"
    )
    assert text.report.decoded == text.report.reports == 23

    def by_station(decoded):
        return {
            (r["station_id"].removeprefix("0-20000-0-"), str(r["time"]), r["variable"]): r[
                "obs_value"
            ]
            for r in decoded.table.to_pylist()
        }

    mine, theirs = by_station(text), by_station(bufr)
    both = mine.keys() & theirs.keys()
    assert len(both) > 80
    tolerance = {"10m_u_component_of_wind": 0.6, "10m_v_component_of_wind": 0.6}
    for key in both:
        # BUFR: hundredths of a K and tens of Pa; text: tenths of both.
        limit = {"2m_temperature": 0.06, "2m_dewpoint_temperature": 0.06}.get(key[2], 6.0)
        assert mine[key] == pytest.approx(theirs[key], abs=tolerance.get(key[2], limit)), key


@pytest.mark.parametrize(
    ("heading", "name", "number"),
    [
        ("SMDL01 EDZW 171200CCB", "content", 2),
        ("SMDL01  EDZW  171200  CCB", "content", 2),
        ("SMDL01 EDZW 171200", "SMDL01_EDZW_171200_CCA.txt", 1),
        ("SMDL01 EDZW 171200", "SMDL02_EDZW_171200_CCA.txt", 0),
        ("SMDL01 EDZW 171200", "A_SMDL01EDZW171200CCC_C_EDZW_20260117120500_1.txt", 3),
    ],
)
def test_corrections_however_the_heading_is_written(read, heading, name, number):
    text = SYNOP.replace("SMDL01 EDZW 171200 CCA", heading)
    table = read(text, name=name).table
    assert set(table["update_sequence"].to_pylist()) == {number}
