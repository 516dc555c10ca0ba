"""Odd and hostile reports in text; what each says by the Manual on Codes (WMO-No. 306, I.1) stands first.

METAR: FM 15. TEMP and PILOT: FM 35 and FM 32, code tables 0777, 1734 and 3931. SYNOP: FM 12 and FM 14, code
tables 1845 and 1855. Remarks of METAR: FCM-H1, Surface Weather Observations and Reports (2019).
"""

from functools import partial

import numpy as np
import pytest

from model.domain.physics import FOOT, GRAVITY, KNOT, specific_humidity_from_dewpoint
from tests.worker.decoders.text_bulletins import decode, values


@pytest.fixture
def read(tmp_path):
    return partial(decode, tmp_path)


def wind(speed, direction):
    """Components of a wind that comes from a direction."""
    angle = np.deg2rad(direction)
    return [-speed * np.sin(angle), -speed * np.cos(angle)]


EAST, NORTH, SPEED = "10m_u_component_of_wind", "10m_v_component_of_wind", "10m_wind_speed"


@pytest.mark.parametrize(
    ("group", "components"),
    [
        ("24015KT", wind(15 * KNOT, 240)),
        ("24015G27KT", wind(15 * KNOT, 240)),
        ("36005MPS", wind(5.0, 360)),
        ("09036KMH", wind(10.0, 90)),
        ("240115G130KT", wind(115 * KNOT, 240)),
        ("00000KT", [0.0, 0.0]),
        ("24O15KT", wind(15 * KNOT, 240)),
        ("24015KT 210V280", wind(15 * KNOT, 240)),
    ],
)
def test_winds_of_metar(read, group, components):
    found = values(read(f"METAR EDDF 171220Z {group} 9999 M01/M03 Q1013 NOSIG="))
    assert [found[EAST], found[NORTH]] == pytest.approx(components, abs=1e-9)
    assert found["2m_temperature"] == pytest.approx(272.15) and SPEED not in found


@pytest.mark.parametrize(
    ("group", "speed"),
    [("VRB03KT", 3 * KNOT), ("///05KT", 5 * KNOT), ("00004KT", 4 * KNOT), ("0000012KT", None)],
)
def test_winds_of_metar_without_a_direction(read, group, speed):
    """000 is the direction of calm alone: with a speed it is none, and not north."""
    found = values(read(f"METAR EDDF 171220Z {group} 9999 M01/M03 Q1013="))
    assert EAST not in found
    assert found.get(SPEED) == (None if speed is None else pytest.approx(speed))


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("240P99KT", "bound"),  # 100 knots or more
        ("240P49MPS", "bound"),
        ("24015", "no_unit"),
        ("37015KT", "direction"),
    ],
)
def test_winds_of_metar_that_say_no_speed_are_set_aside_alone(read, group, reason):
    decoded = read(f"METAR EDDF 171220Z {group} 9999 M01/M03 Q1013=")
    found = values(decoded)
    assert not {EAST, NORTH, SPEED} & found.keys()
    assert found["2m_temperature"] == pytest.approx(272.15)
    assert decoded.report.values_set_aside == {f"{reason} {SPEED}": 1}


def test_a_wind_that_is_forecast_is_not_observed(read):
    found = values(read("METAR EDDF 171220Z /////KT 9999 M01/M03 Q1013 BECMG 24040KT="))
    assert not {EAST, NORTH, SPEED} & found.keys()


@pytest.mark.parametrize(
    ("groups", "hectopascals"),
    [
        ("A3001 RMK AO2 SLP163", 1016.3),
        ("A2950 RMK AO2 SLP988", 998.8),
        ("A3116 RMK AO2 SLP550", 1055.0),  # Barrow in January
        ("A2795 RMK AO2 SLP467", 946.7),  # St Paul in November
        ("RMK AO2 SLP163", 1016.3),
        ("A3001 RMK AO2 SLPNO", None),
    ],
)
def test_the_hundreds_that_sea_level_pressure_leaves_out(read, groups, hectopascals):
    """31.16 inches are 1055.2 hPa, 27.95 are 946.5."""
    found = values(read(f"METAR KJFK 171151Z 24015KT 10SM CLR 02/M06 {groups}="))
    expected = None if hectopascals is None else pytest.approx(100.0 * hectopascals)
    assert found.get("mean_sea_level_pressure") == expected


@pytest.mark.parametrize(
    ("groups", "temperature", "dewpoint"),
    [
        ("M00/M00", 273.15, 273.15),
        ("12///", 285.15, None),
        ("/////", None, None),
        ("M40/M45", 233.15, 228.15),
        ("02/M06 A3001 RMK T00221061", 275.35, 267.05),
    ],
)
def test_temperatures_of_metar(read, groups, temperature, dewpoint):
    found = values(read(f"METAR KJFK 171151Z 24015KT 9999 {groups}="))
    for variable, value in (("2m_temperature", temperature), ("2m_dewpoint_temperature", dewpoint)):
        assert found.get(variable) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("METAR COR EDDF 171220Z 24015KT 9999 02/01 Q1013=", 1),
        ("METAR EDDF 171220Z COR 24015KT 9999 02/01 Q1013=", 1),
        ("METAR CYUL 171200Z CCA 24015KT 9999 02/01 A2992=", 1),
        ("METAR EDDF 171220Z AUTO 24015KT 9999 02/01 Q1013=", 0),
    ],
)
def test_corrected_metars(read, text, number):
    assert set(read(text).table["update_sequence"].to_pylist()) == {number}


def ascent(part, groups, last="1", day="17"):
    return f"TT{part} {day}12{last} 10393 {groups}="


@pytest.mark.parametrize(
    ("part", "groups", "level", "metres"),
    [
        ("AA", "00124 02458 27012", 1000, 124),
        ("AA", "00563 02458 27012", 1000, -63),
        ("AA", "92789 00662 28018", 925, 789),
        ("AA", "85487 04560 29020", 850, 1_487),
        ("AA", "70986 10161 28530", 700, 2_986),
        ("AA", "70012 10161 28530", 700, 3_012),
        ("AA", "25970 58556 28560", 250, 9_700),
        ("AA", "25029 58556 28560", 250, 10_290),
        ("AA", "20080 60356 28050", 200, 10_800),
        ("AA", "10610 62156 27545", 100, 16_100),
        ("CC", "70834 63356 27548", 70, 18_340),
        ("CC", "50045 65157 27052", 50, 20_450),
        ("CC", "50930 84757 27052", 50, 19_300),  # in the polar night
        ("CC", "30390 65157 27052", 30, 23_900),
        ("CC", "10107 45157 27052", 10, 31_070),
        ("CC", "10890 82757 27052", 10, 28_900),  # in the polar night
    ],
)
def test_heights_of_standard_levels(read, part, groups, level, metres):
    found = values(read(ascent(part, groups)))
    assert found["geopotential", 100.0 * level] == pytest.approx(metres * GRAVITY)


@pytest.mark.parametrize(
    ("group", "celsius", "depression"),
    [
        ("00000", 0.0, 0.0),
        ("00100", -0.1, 0.0),
        ("04257", 4.2, 7.0),
        ("25350", -25.3, 5.0),
        ("25356", -25.3, 6.0),
        ("25399", -25.3, 49.0),
        ("253//", -25.3, None),
        ("25353", -25.3, None),  # 51 to 55 are not used
        ("///50", None, None),
    ],
)
def test_temperatures_of_temp(read, group, celsius, depression):
    decoded = read(ascent("AA", f"50556 {group} 28045"))
    found = values(decoded)
    assert found.get(("temperature", 50_000.0)) == (
        None if celsius is None else pytest.approx(273.15 + celsius)
    )
    humid = found.get(("specific_humidity", 50_000.0))
    if depression is None:
        assert humid is None
    else:
        dewpoint = np.array(273.15 + celsius - depression)
        expected = specific_humidity_from_dewpoint(dewpoint, np.array(50_000.0))
        assert humid == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("group", "speed", "direction"),
    [
        ("28045", 45, 280),
        ("28145", 145, 280),  # hundreds are added to the direction
        ("28645", 145, 285),
        ("36045", 45, 360),
        ("00000", 0, 0),
        ("00010", None, None),  # no direction but of calm
        ("37010", None, None),
        ("/////", None, None),
    ],
)
def test_winds_of_temp(read, group, speed, direction):
    decoded = read(ascent("AA", f"50556 25350 {group}", day="67"))
    found = values(decoded)
    level = [found.get((f"{c}_component_of_wind", 50_000.0)) for c in "uv"]
    impossible = speed is None and group.isdigit()
    assert decoded.report.values_set_aside == ({"direction wind": 1} if impossible else {})
    assert level == (
        [None, None] if speed is None else pytest.approx(wind(speed * KNOT, direction))
    )


def test_a_surface_wind_where_no_other_is_given(read):
    """Calm at the surface, 00000, is not 1000 hPa at sea level; without it 1000 hPa follows at once."""
    both = "99013 04257 00000 00124 02458 92789 00662 85487 04560"
    found = values(read(ascent("AA", both, last="/")))
    assert found["u_component_of_wind", 101_300.0] == found["v_component_of_wind", 101_300.0] == 0.0
    assert found["geopotential", 100_000.0] == pytest.approx(124 * GRAVITY)
    assert found["temperature", 100_000.0] == pytest.approx(273.15 + 2.4)
    alone = values(read(ascent("AA", both.replace("00000 ", ""), last="/")))
    assert ("u_component_of_wind", 101_300.0) not in alone
    assert alone["geopotential", 100_000.0] == pytest.approx(124 * GRAVITY)
    assert alone["temperature", 92_500.0] == pytest.approx(273.15 + 0.6)


def test_a_wind_that_begins_like_a_level_is_none(read):
    """The tropopause with a wind from 100 degrees, where no level should have one."""
    text = "50556 25350 10610 62156 88220 60757 10045 77999"
    found = values(read(ascent("AA", text, last="/")))
    assert found["geopotential", 10_000.0] == pytest.approx(16_100 * GRAVITY)
    assert found["temperature", 10_000.0] == pytest.approx(273.15 - 62.1)


def test_parts_of_an_ascent_without_an_end_mark(read):
    """The lowest significant level, 00013, is 1013 hPa and not a height of 1000 hPa."""
    text = "TTAA 17121 10393 99013 04257 27010 00124 02458 27012\nTTBB 17128 10393 00013 04257 11850 04560="
    decoded = read(text)
    found = values(decoded)
    assert decoded.report.decoded == 2
    assert found["temperature", 85_000.0] == pytest.approx(273.15 - 4.5)
    assert found["geopotential", 100_000.0] == pytest.approx(124 * GRAVITY)
    assert found["temperature", 100_000.0] == pytest.approx(273.15 + 2.4)


@pytest.mark.parametrize("place", ["99935 10079", "99541 11899", "99541 20079"])
def test_ships_nowhere(read, place):
    report = read(f"UUAA DBLK 17121 {place} 19914 99010 08020 24510 00085 07818 25012=").report
    assert report.rejected == {"no_position": 1}


def test_a_pilot_at_heights_of_500_metres(read):
    """8: units of 500 m, of which the second digit is the tens: 12 are 6 km."""
    found = values(read("PPBB 17120 10393 8024/ 27010 27015 8112/ 27020 27025="))
    heights = [1_000.0, 2_000.0, 5_500.0, 6_000.0]
    assert [found["u_component_of_wind", height] for height in heights] == (
        pytest.approx([10.0, 15.0, 20.0, 25.0])
    )


def test_a_synop_whose_wind_has_no_unit(read):
    """iw is /: neither knots nor metres per second."""
    decoded = read("AAXX 1712/\n10384 31680 62710 10037=")
    found = values(decoded)
    assert not {EAST, NORTH, SPEED} & found.keys() and found["2m_temperature"] > 270.0
    assert decoded.report.values_set_aside == {f"no_unit {SPEED}": 1}


@pytest.mark.parametrize(("indicator", "metres"), [("1", 450.0), ("5", 450.0 * FOOT)])
def test_a_mobile_station_gives_its_height_in_metres_or_feet(read, indicator, metres):
    """im of 1 to 4 is in metres, 5 to 8 in feet."""
    text = f"OOXX ABCD 17121 99525 10134 19523 0450{indicator} 41/96 62710 10037="
    row = read(text).table.to_pylist()[0]
    assert row["elevation"] == pytest.approx(metres)


@pytest.mark.parametrize(
    ("group", "speed"), [("61299 00112", 112 * KNOT), ("61212", 12 * KNOT), ("60000", 0.0)]
)
def test_synops_with_more_than_99_knots(read, group, speed):
    found = values(read(f"AAXX 17124\n10384 31680 {group} 10037="))
    assert np.hypot(found[EAST], found[NORTH]) == pytest.approx(speed)


@pytest.mark.parametrize(
    "text",
    [
        "AAXX 17121 10384 COR 41590 63005 10082=",
        "AAXX 17121 COR 10384 41590 63005 10082=",
        "AAXX COR 17121 10384 41590 63005 10082=",
        "AAXX 17121 10384 CCA 41590 63005 10082=",
    ],
)
def test_a_mark_of_correction_is_no_group_of_a_synop(read, text):
    """Taken for a group it moved the others: 41590 became a wind of 90 m/s from 150 degrees."""
    decoded = read(text)
    found = values(decoded)
    assert found["2m_temperature"] == pytest.approx(281.35)
    assert [found[EAST], found[NORTH]] == pytest.approx(wind(5.0, 300))
    assert set(decoded.table["update_sequence"].to_pylist()) == {1}


def test_a_mark_of_correction_in_an_ascent(read):
    decoded = read("TTAA COR 67121 10384 99010 08256 27015 92780 05060 27520=")
    assert set(decoded.table["update_sequence"].to_pylist()) == {1}
    assert set(decoded.table["station_id"].to_pylist()) == {"10384"}


def test_groups_that_are_none(read):
    decoded = read("AAXX 17121 10384 4159 63005 10082=")
    assert dict(decoded.report.rejected) == {"undecodable": 1}
    assert dict(read("AAXX 17121 10384 nil=").report.rejected) == {"no_values": 1}
    decoded = read("AAXX 17121 10384 41590 63005 1008 20056 30I05 333 10123=")
    assert set(values(decoded)) == {"2m_dewpoint_temperature", EAST, NORTH}
    assert dict(decoded.report.values_set_aside) == {"malformed group": 2}


@pytest.mark.parametrize("place", ["99935 10079", "99541 11899"])
def test_ships_nowhere_in_bbxx(read, place):
    """189.9 degrees east are no place of a ship: longitudes end at 180."""
    decoded = read(f"BBXX DBXY 17124 {place} 41598 63005 10082=")
    assert dict(decoded.report.rejected) == {"no_position": 1}


def test_the_end_of_a_day(read):
    decoded = read("METAR EDDF 162400Z 24010KT CAVOK 08/03 Q1015=")
    assert [t.isoformat()[:16] for t in set(decoded.table["time"].to_pylist())] == [
        "2026-01-17T00:00"
    ]
    assert values(decoded)["2m_temperature"] == pytest.approx(281.15)
    for clock in ("162420Z", "162500Z", "161260Z"):
        decoded = read(f"METAR EDDF {clock} 24010KT CAVOK 08/03 Q1015=")
        assert dict(decoded.report.rejected) == {"no_time": 1}
