"""CREX: values by hand, and real messages."""

import numpy as np
import pytest

from model.domain.observations import validate_table
from model.domain.physics import GRAVITY, specific_humidity_from_dewpoint
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file

SYNOP = """SMDL01 EDZW 171200 CCB
CREX++
T000103 A000 D01031 B10004 B10051 B12004 B12006 B11011 B11012 B04025 B12199++
 10 384 1 2026 01 17 12 00 5247000 01340000 00048 09990 10052 -037
 -055 270 105 -0060 ABC+
 10 393 1 2026 01 17 12 00 5221000 01412000 00112 ///// 10060 042
 //// 000 000 -0060 ///++
7777
"""


def read(tmp_path, text):
    path = tmp_path / "x.crex"
    path.write_bytes(text.replace("\n", "\r\r\n").encode("ascii"))
    decoded = decode_file(path, context=DecodeContext())
    assert decoded.report.format == "crex"
    validate_table(decoded.table)
    return decoded


def values(decoded, station):
    return {
        r["variable"]: r["obs_value"]
        for r in decoded.table.to_pylist()
        if r["station_id"] == station
    }


def test_synop_with_an_element_that_no_table_knows(tmp_path):
    decoded = read(tmp_path, SYNOP)
    assert values(decoded, "10384") == pytest.approx(
        {
            "surface_pressure": 99_900.0,
            "mean_sea_level_pressure": 100_520.0,
            "2m_temperature": 269.45,
            "2m_dewpoint_temperature": 267.65,
            "10m_u_component_of_wind": 10.5,
            "10m_v_component_of_wind": 0.0,
        },
        abs=1e-9,
    )
    second = values(decoded, "10393")
    assert "surface_pressure" not in second and second["2m_temperature"] == pytest.approx(277.35)
    row = decoded.table.to_pylist()[0]
    assert (row["lat"], row["lon"], row["update_sequence"]) == (52.47, 13.4, 2)
    assert str(row["time"]) == "2026-01-17 12:00:00+00:00"
    assert decoded.report.reports == 2 and decoded.report.decoded == 1


def test_the_digits_of_the_end_mark_within_a_value(tmp_path):
    """A longitude of -59.777 77 degrees does not end the message."""
    found = read(tmp_path, SYNOP.replace("01340000", "-5977770").replace("00048", "7777"))
    row = found.table.to_pylist()[0]
    assert found.report.decoded == 1 and not found.report.rejected
    assert (row["lat"], row["lon"]) == (52.47, -59.7777)


CHECKED = """CREX++
T000103 A001 B01011 D01011 D01012 D01023 B10051 B12004 B22042 E++
 1SHIP7     22026 301 417 512 600 70540 80800- 910101 0042 1285++
7777
"""


def test_check_digits(tmp_path):
    text = CHECKED.replace("70540 80800- 910101 0042 1285", "75400 8-00800 910101 0042 1120")
    decoded = read(tmp_path, text)
    found = values(decoded, "SHIP7")
    assert found["mean_sea_level_pressure"] == pytest.approx(101_010.0)
    assert found["2m_temperature"] == pytest.approx(277.35)
    assert found["sea_surface_temperature"] == pytest.approx(285.15)
    row = decoded.table.to_pylist()[0]
    assert (row["report_type"], row["lat"], row["lon"]) == ("ship", 54.0, -8.0)
    wrong = read(tmp_path, text.replace("910101", "810101"))
    assert wrong.report.rejected == {"undecodable": 1}
    assert "check digit 9" in wrong.report.quarantined[0].detail


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SYNOP.replace("7777", ""), "truncated"),
        (SYNOP.replace("-055 270", "270"), "undecodable"),
        (SYNOP.replace("09990", "0x990"), "undecodable"),
        (SYNOP.replace("D01031", "D63255"), "needs_local_tables"),
        (SYNOP.replace("B10004", "C01010 B10004"), "unsupported_template"),
        (SYNOP.replace("A000", "A255"), "unsupported_template"),
        ("CREX++\nT000103++\n++\n7777\n", "bad_frame"),
        ("CREX++\nT000103 A000 D01031 B12004++\n++\n7777\n", "no_values"),
    ],
)
def test_what_cannot_be_read_has_a_reason(tmp_path, text, reason):
    report = read(tmp_path, text).report
    assert reason in report.rejected, report.rejected


def test_a_real_sonde(realdata_dir):
    """06181 on 30 November 2004: `10130 106 000039 062 023 215 0020` is its lowest level."""
    decoded = decode_file(realdata_dir / "crex" / "dballe__test-temp0.crex")
    rows = [r for r in decoded.table.to_pylist() if r["vertical"] == 101_300.0]
    found = {r["variable"]: r["obs_value"] for r in rows}
    assert found["temperature"] == pytest.approx(279.35)
    q = specific_humidity_from_dewpoint(np.array(275.45), np.array(101_300.0))
    assert found["specific_humidity"] == pytest.approx(float(q))
    assert found["u_component_of_wind"] == pytest.approx(2.0 * np.sin(np.deg2rad(35)))
    assert {r["station_id"] for r in rows} == {"06181"}
    standard = [r for r in decoded.table.to_pylist() if r["variable"] == "geopotential"]
    first = next(r for r in standard if r["vertical"] == 100_000.0)
    assert first["obs_value"] == pytest.approx(1_430.0)  # 000143, tens of m2 s-2
    assert first["obs_value"] / GRAVITY == pytest.approx(146, abs=1)


def test_every_real_message_ends_in_rows_or_a_reason(realdata_dir):
    for path in sorted((realdata_dir / "crex").iterdir()):
        report = decode_file(path).report
        assert report.rows or report.rejected, path.name
        assert report.decoded + sum(report.rejected.values()) >= report.messages


@pytest.mark.parametrize(
    ("name", "number"),
    [("A_SXDL01EDZW171200CCC_C_EDZW_20260117123000.crex", 3), ("x.crex", 0)],
)
def test_a_correction_named_by_the_file(tmp_path, name, number):
    """Over HTTP the raw file is called `content`: the name that the sender gave counts."""
    path = tmp_path / "content"
    path.write_bytes(SYNOP[SYNOP.index("CREX") :].encode("ascii"))
    decoded = decode_file(path, context=DecodeContext(file_name=name))
    assert set(decoded.table["update_sequence"].to_pylist()) == {number}
