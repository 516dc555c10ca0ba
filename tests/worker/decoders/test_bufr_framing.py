"""Finding messages among headers, junk and lies."""

import pytest
from bufr_messages import decode, synop, value, values

from worker.observations.decoders.bufr.framing import correction_number, scan

ONE = synop(airTemperature=280.0)
TWO = synop(airTemperature=290.0)
HEADING = b"\x01\r\r\n123\r\r\nISMD01 EDZW 010600 CCA\r\r\n"


def outcome(data):
    report = decode(data).report
    return report.messages, report.decoded, dict(report.rejected)


def test_messages_between_bulletin_headings_and_junk():
    data = b"junk" + HEADING + ONE + b"\r\r\n\x03NNNN" + HEADING + TWO + b"\x00" * 50
    decoded = decode(data)
    assert values(decoded.table, "2m_temperature") == [280.0, 290.0]
    assert decoded.report.bytes_between == len(data) - len(ONE) - len(TWO)
    assert set(decoded.table["update_sequence"].to_pylist()) == {1}
    assert set(decoded.table["message_offset"].to_pylist()) == {
        data.index(b"BUFR"),
        data.rindex(b"BUFR"),
    }


@pytest.mark.parametrize(
    ("indicator", "sequence", "number"),
    [
        ("", 0, 0),
        ("RRA", 0, 0),
        ("CCA", 0, 1),
        ("CCC", 0, 3),
        ("AAB", 0, 2),
        ("COR", 0, 1),
        ("AMD", 0, 1),
        ("CCB", 1, 2),
        ("", 2, 2),
        ("", 255, 0),
    ],
)
def test_rank_of_corrections(indicator, sequence, number):
    assert correction_number(indicator, sequence) == number


def test_correction_named_by_the_file():
    name = "A_ISMD01LIIB210600CCB_C_EDZW_20220321061203_12271638.bin"
    assert set(decode(ONE, name).table["update_sequence"].to_pylist()) == {2}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("A_ISMD01EDZW021200CCA_C_EDZW_20250102123000_2.bufr", 1),
        ("a_ismd01edzw021200ccb_c_edzw_20250102123000_2.bufr", 2),
        ("ISMD01_EDZW_021200_CCA.bufr", 1),
        ("ISMD01 EDZW 021200 COR", 1),
        ("ISMD01EDZW021200RRA", 0),
        ("A_ISMD01EDZW021200_C_EDZW_20250102121000_1.bufr", 0),
        ("ISMD01_EDZW_021200.BUF", 0),
        ("W_CCA_report.bufr", 0),
    ],
)
def test_headings_in_file_names(name, number):
    assert set(decode(ONE, name).table["update_sequence"].to_pylist()) == {number}


def test_a_file_name_adds_the_group_that_the_same_heading_inside_lacks():
    plain = b"ISMD01 EDZW 021200\r\r\n" + ONE
    for name, number in (("ISMD01EDZW021200CCA", 1), ("ISMD02EDZW021200CCA", 0)):
        assert set(decode(plain, name).table["update_sequence"].to_pylist()) == {number}


@pytest.mark.parametrize(
    "heading", [b"ISMD01 EDZW 021200CCB", b"ISMD01  EDZW  021200  CCB", b"ISMD01 EDZW 021200 CCB"]
)
def test_spaces_in_headings_do_not_matter(heading):
    decoded = decode(b"\x01\r\r\n123\r\r\n" + heading + b"\r\r\n" + ONE, "content")
    assert set(decoded.table["update_sequence"].to_pylist()) == {2}


def test_a_length_that_is_too_long_costs_only_its_message():
    lying = bytearray(ONE)
    lying[4:7] = (len(ONE) + len(TWO) - 3).to_bytes(3, "big")
    assert outcome(bytes(lying) + TWO + ONE) == (3, 2, {"bad_frame": 1})


def test_a_length_beyond_the_file_is_truncation():
    lying = bytearray(ONE)
    lying[4:7] = b"\xff\xff\xff"
    assert outcome(bytes(lying)) == (1, 0, {"truncated": 1})
    assert outcome(bytes(lying) + TWO) == (2, 1, {"truncated": 1})


@pytest.mark.parametrize("length", [0, 4, 8, 11, 12, 20])
def test_lengths_too_short_for_a_message(length):
    lying = bytearray(ONE)
    lying[4:7] = length.to_bytes(3, "big")
    assert outcome(bytes(lying) + TWO) == (2, 1, {"bad_frame": 1})


def test_a_file_cut_anywhere_ends_in_a_reason():
    for cut in range(4, len(ONE)):
        messages, decoded, rejected = outcome(ONE[:cut])
        assert (messages, decoded, sum(rejected.values())) == (1, 0, 1), cut


@pytest.mark.parametrize("edition", [0, 1, 5, 102, 255])
def test_other_editions_are_named(edition):
    other = bytearray(ONE)
    other[7] = edition
    assert outcome(bytes(other) + TWO) == (2, 1, {"unsupported_edition": 1})


def test_sections_that_do_not_fit_into_the_message():
    for at in (8, 9):
        other = bytearray(ONE)
        other[at] = 0x7F
        assert outcome(bytes(other) + TWO) == (2, 1, {"bad_frame": 1})


def test_the_word_inside_the_data_is_not_a_message():
    frames = list(scan(ONE[:60] + b"BUFR" + ONE[64:]))
    assert len(frames) == 1 and not frames[0].reason


def test_the_same_bytes_give_the_same_value_wherever_they_stand():
    assert value(decode(b"\x00" * 7 + ONE).table, "2m_temperature") == 280.0
