"""NCEP files with embedded tables: values put in, and every element against pybufrkit."""

import random
import time
from dataclasses import replace

import numpy as np
import pybufrkit.decoder as pybufrkit
import pytest
from accounting import assert_accounted

from lab.encoders.ncep import fortran_records
from lab.encoders.ncep_files import PREPBUFR, SONDE_DUMP, SURFACE_DUMP
from model.domain.observations import validate_table
from model.domain.physics import GRAVITY
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.bufr import decode as bufr_decode
from worker.observations.decoders.bufr.decode import decode_bytes
from worker.observations.decoders.bufr.dump import PrepCollection
from worker.observations.decoders.bufr.embedded import EmbeddedTables
from worker.observations.decoders.bufr.framing import read_header, scan
from worker.observations.decoders.decode import decode_file, decode_limited

WHEN = (2026, 1, 2, 12)
PREPRO, CQC, VIRTMP = 1, 5, 8


def decode(blob: bytes, **options):
    return decode_bytes(blob, DecodeContext(options=options))


def rows(decoded, *names):
    """Return the rows as a list of dicts of some columns."""
    columns = names or ("report_type", "variable", "vertical", "obs_value", "rejected_by")
    return decoded.table.select(list(columns)).to_pylist()


def value(decoded, variable, vertical=None):
    """Return the value of a variable, the only one at a level."""
    found = [
        row["obs_value"]
        for row in rows(decoded)
        if row["variable"] == variable and row["vertical"] == vertical
    ]
    assert len(found) == 1, (variable, vertical, found)
    return found[0]


def file_of(tables, kind, reports, category):
    return fortran_records(
        [tables.definitions(WHEN), tables.message(kind, reports, WHEN, category)]
    )


def head(report_type, dump=11, **more):
    return {
        "SID": "72403", "XOB": 282.5217, "YOB": 38.95123, "DHR": -0.5, "ELV": 98,
        "TYP": report_type, "T29": dump, "CAT": 0, **more,
    }  # fmt: skip


def stack(*events):
    return [dict(zip(("POB", "PQM", "PPC"), event, strict=True)) for event in events]


def events(name, *found):
    """Return a stack of events of a quantity (newest first): value, mark, program."""
    return {
        f"{name}__EVENT": [
            {f"{name}OB": v, f"{name}QM": mark, f"{name}PC": program} for v, mark, program in found
        ]
    }


def level(pressure, **parts):
    return {"CAT": 1, "P___INFO": events("P", (pressure, 2, PREPRO)), **parts}


SONDE = head(
    120,
    PRSLEVEL=[
        level(
            1000.0,
            Q___INFO={**events("Q", (8000, 2, VIRTMP), (8100, 2, PREPRO)), "TDO": 10.3,
                      "Q__BACKG": {"QOE": 1.5}},
            T___INFO={**events("T", (16.4, 2, VIRTMP), (15.0, 2, PREPRO)),
                      "T__BACKG": {"TOE": 1.2}},
            Z___INFO=events("Z", (98, 2, PREPRO)),
        ),
        level(
            500.0,
            T___INFO=events("T", (-20.0, 13, CQC), (-12.0, 2, PREPRO)),
            Z___INFO=events("Z", (5600, 2, PREPRO)),
            DRFTINFO={"XDR": 282.9, "YDR": 39.1, "HRDR": 0.1},
        ),
    ],
)  # fmt: skip
WIND = head(
    220,
    PRSLEVEL=[
        level(
            500.0,
            W___INFO={
                "W__EVENT": [{"UOB": 12.5, "VOB": -3.4, "WQM": 2, "WPC": PREPRO}],
                "W__BACKG": {"WOE": 2.8},
            },
        )
    ],
)


def test_the_value_used_upstream_and_its_mark():
    decoded = decode(file_of(PREPBUFR, "ADPUPA", [SONDE, WIND], 102))
    validate_table(decoded.table)
    assert set(decoded.table["report_type"].to_pylist()) == {"temp"}
    # Virtual by its newest event: the value under it is the temperature.
    assert value(decoded, "temperature", 100_000.0) == pytest.approx(15.0 + 273.15)
    assert value(decoded, "specific_humidity", 100_000.0) == pytest.approx(0.008)
    assert value(decoded, "temperature", 50_000.0) == pytest.approx(-20.0 + 273.15)
    assert value(decoded, "geopotential", 50_000.0) == pytest.approx(5600 * GRAVITY)
    assert value(decoded, "u_component_of_wind", 50_000.0) == pytest.approx(12.5)
    assert value(decoded, "v_component_of_wind", 50_000.0) == pytest.approx(-3.4)
    flagged = [row for row in rows(decoded) if row["rejected_by"]]
    assert [(row["variable"], row["rejected_by"]) for row in flagged] == [("temperature", "preqc")]
    assert decoded.report.notes["not_used_upstream temperature"] == 1
    assert decoded.report.notes["older_events"] == 3
    assert decoded.report.notes["table_messages"] == 1
    assert decoded.report.messages == decoded.report.decoded == 1


def test_the_value_first_reported():
    decoded = decode(file_of(PREPBUFR, "ADPUPA", [SONDE, WIND], 102), event="original")
    assert value(decoded, "temperature", 100_000.0) == pytest.approx(15.0 + 273.15)
    assert value(decoded, "specific_humidity", 100_000.0) == pytest.approx(0.0081)
    assert value(decoded, "temperature", 50_000.0) == pytest.approx(-12.0 + 273.15)


def test_a_virtual_temperature_changed_later_is_turned_back_by_humidity():
    """T = Tv / (1 + 0.608 q): 20.0 C virtual with 10 g/kg are 18.23 C."""
    parts = {
        "Q___INFO": events("Q", (10_000, 2, VIRTMP)),
        "T___INFO": events("T", (20.0, 2, CQC), (20.5, 2, VIRTMP), (18.7, 2, PREPRO)),
    }
    report = head(120, PRSLEVEL=[level(1000.0, **parts)])
    decoded = decode(file_of(PREPBUFR, "ADPUPA", [report], 102))
    expected = 293.15 / (1.0 + 0.6078 * 0.010)
    assert value(decoded, "temperature", 100_000.0) == pytest.approx(expected, abs=0.002)


def test_positions_and_times_drift_with_the_balloon():
    decoded = decode(file_of(PREPBUFR, "ADPUPA", [SONDE], 102))
    found = rows(decoded, "vertical", "variable", "lat", "lon", "time")
    aloft = next(r for r in found if r["vertical"] == 50_000.0)
    launch = next(r for r in found if r["vertical"] == 100_000.0)
    assert (aloft["lat"], aloft["lon"]) == pytest.approx((39.1, -77.1), abs=1e-4)
    assert (launch["lat"], launch["lon"]) == pytest.approx((38.95123, -77.4783), abs=1e-4)
    assert str(aloft["time"])[:19] == "2026-01-02 12:06:00"
    assert str(launch["time"])[:19] == "2026-01-02 11:30:00"


def test_errors_of_the_file_where_asked():
    blob = file_of(PREPBUFR, "ADPUPA", [SONDE, WIND], 102)
    assert decode(blob).table["obs_error"].null_count == decode(blob).table.num_rows
    found = {
        (row["variable"], row["vertical"]): row["obs_error"]
        for row in rows(decode(blob, file_errors=True), "variable", "vertical", "obs_error")
    }
    assert found["temperature", 100_000.0] == pytest.approx(1.2)
    assert found["u_component_of_wind", 50_000.0] == pytest.approx(2.8)
    # 15 % of the specific humidity of saturated air at 15 C and 1000 hPa, 10.7 g/kg.
    assert found["specific_humidity", 100_000.0] == pytest.approx(0.15 * 0.0107, rel=0.01)
    assert found["geopotential", 50_000.0] is None


def surface(report_type, dump, **more):
    return head(
        report_type,
        dump,
        P___INFO=events("P", (1009.3, 2, PREPRO)),
        Q___INFO={**events("Q", (7000, 9, PREPRO)), "TDO": 8.8},
        T___INFO=events("T", (11.2, 2, PREPRO)),
        PMSL_SEQ={"PMO": 1021.4, "PMQ": 2},
        **more,
    )


@pytest.mark.parametrize(
    ("kind", "report_type", "dump", "network"),
    [
        ("ADPSFC", 181, 511, "synop"),
        ("ADPSFC", 187, 512, "synop"),
        ("SFCSHP", 180, 522, "ship"),
        ("SFCSHP", 180, 561, "buoy"),
        ("SFCSHP", 180, 562, "drifter"),
        ("SFCSHP", 183, 522, "ship"),
    ],
)
def test_networks_of_surface_reports(kind, report_type, dump, network):
    report = surface(report_type, dump, SST_INFO={"SSTEVENT": [{"SST1": 285.25, "SSTQM": 2}]})
    decoded = decode(file_of(PREPBUFR, kind, [report], 109))
    assert set(decoded.table["report_type"].to_pylist()) == {network}
    assert value(decoded, "surface_pressure") == pytest.approx(100_930.0)
    assert value(decoded, "mean_sea_level_pressure") == pytest.approx(102_140.0)
    assert value(decoded, "2m_temperature") == pytest.approx(284.35)
    assert value(decoded, "2m_dewpoint_temperature") == pytest.approx(281.95)
    assert value(decoded, "sea_surface_temperature") == pytest.approx(285.25)
    flagged = [row["variable"] for row in rows(decoded) if row["rejected_by"] == "preqc"]
    assert flagged == ["2m_dewpoint_temperature"]


@pytest.mark.parametrize(
    ("report_type", "network", "place"),
    [
        (220, "temp", ("pressure", 70_000.0)),
        (221, "pilot", ("height", 3_050.0)),
        (223, "profiler", ("height", 3_050.0)),
        (231, "aircraft", ("pressure", 70_000.0)),
    ],
)
def test_where_winds_are_placed(report_type, network, place):
    """Heights of pilot balloons and profilers are measured, pressures of the others."""
    winds = {"W__EVENT": [{"UOB": 4.0, "VOB": 1.0, "WQM": 2, "WPC": PREPRO}]}
    height = events("Z", (3_050, 2, PREPRO))
    report = head(report_type, PRSLEVEL=[level(700.0, W___INFO=winds, Z___INFO=height)])
    report["PRSLEVEL"].append(level(850.0, W___INFO=winds))
    decoded = decode(file_of(PREPBUFR, "ADPUPA", [report], 102))
    found = {
        (r["vertical_kind"], r["vertical"])
        for r in rows(decoded, "variable", "vertical_kind", "vertical")
        if r["variable"] == "u_component_of_wind"
    }
    assert found == {place, ("pressure", 85_000.0)}
    assert set(decoded.table["report_type"].to_pylist()) == {network}
    # Only a sonde weighs the air: elsewhere the height is no observation of the geopotential.
    assert ("geopotential" in decoded.report.rows_by_variable) == (network == "temp")


def test_satellite_winds_and_precipitable_water():
    vector = head(
        245, SAID=259, PRSLEVEL=level(
            250.0, W___INFO={"W__EVENT": [{"UOB": 30.1, "VOB": 2.2, "WQM": 2, "WPC": PREPRO}]}
        ),
    )  # fmt: skip
    decoded = decode(file_of(PREPBUFR, "SATWND", [{**vector, "SID": ""}], 105))
    assert set(decoded.table["report_type"].to_pylist()) == {"amv"}
    assert set(decoded.table["station_id"].to_pylist()) == {"sat259"}
    assert value(decoded, "u_component_of_wind", 25_000.0) == pytest.approx(30.1)
    water = head(153, PWTEVENT=[{"PWO": 23.4, "PWQ": 2}])
    decoded = decode(file_of(PREPBUFR, "GPSIPW", [water], 118))
    assert [(r["report_type"], r["obs_value"]) for r in rows(decoded)] == [("gnss", 23.4)]


def test_reports_that_are_no_measurement_are_refused_by_type():
    decoded = decode(file_of(PREPBUFR, "ADPSFC", [surface(191, 511), surface(181, 511)], 109))
    assert decoded.report.rejected == {"unsupported_template": 1}
    assert "report type 191" in decoded.report.quarantined[0].detail
    assert decoded.report.reports == 2


def test_elements_without_a_variable_are_counted():
    report = {**SONDE, "PREWXSEQ": {"PRWE": 61}}
    decoded = decode(file_of(PREPBUFR, "ADPUPA", [report], 102))
    assert decoded.report.not_used["ADPUPA PRWE"] == 1


def random_sonde(draw, levels):
    """Return a sonde whose levels hold parts and events at random."""

    def several(name, low, high, factor):
        return events(
            name,
            *(
                (draw.randrange(low, high) * factor, draw.randrange(15), PREPRO)
                for _ in range(draw.randrange(1, 5))
            ),
        )

    found = []
    for k in range(levels):
        parts = {
            "Q___INFO": {**several("Q", 0, 20_000, 1), "TDO": None},
            "T___INFO": {**several("T", -800, 300, 0.1), "T__BACKG": {"TOE": 1.0}},
            "Z___INFO": several("Z", 100, 9_000, 1),
            "DRFTINFO": {"XDR": 10.0 + k / 100, "YDR": 50.0, "HRDR": k / 1_000},
        }
        given = {name: part for name, part in parts.items() if draw.random() < 0.8}
        found.append(level(round(1000.0 - 9.0 * k, 1), **given))
    return head(120, PRSLEVEL=found)


def test_every_element_agrees_with_pybufrkit(tmp_path):
    """All numbers of all elements, from a template whose reports all differ in layout."""
    draw = random.Random(7)
    reports = [random_sonde(draw, draw.randrange(1, 30)) for _ in range(12)]
    blob = PREPBUFR.definitions(WHEN) + PREPBUFR.message("ADPUPA", reports, WHEN, 102)
    started = time.process_time()
    *_, message = pybufrkit.generate_bufr_message(pybufrkit.Decoder(), blob)
    data = message.template_data.value
    slow = time.process_time() - started
    theirs: dict[str, list[float]] = {}
    for n in range(len(reports)):
        described = data.decoded_descriptors_all_subsets[n]
        for descriptor, number in zip(described, data.decoded_values_all_subsets[n], strict=True):
            name = getattr(descriptor, "name", "")
            if isinstance(number, int | float):
                theirs.setdefault(name.split()[0] if name else "", []).append(float(number))
    started = time.process_time()
    mine = read_all(blob)
    fast = time.process_time() - started
    for name in ("POB", "PQM", "QOB", "QQM", "TOB", "TQM", "TPC", "TOE", "ZOB", "XDR", "HRDR"):
        found = mine.columns[name]
        order = np.lexsort((found.event, found.level, found.report))
        given = found.value[order]
        np.testing.assert_allclose(given[~np.isnan(given)], theirs[name], rtol=1e-12, err_msg=name)
    assert fast < slow


def read_all(blob):
    tables, collection = EmbeddedTables(), None
    for number, frame in enumerate(scan(blob)):
        message = blob[frame.offset : frame.offset + frame.length]
        header = read_header(message)
        if number == 0:
            tables.add(message, header)
            continue
        collection = PrepCollection(tables, header)
        collection.add(message, header, frame, 0)
    return collection.packed.read(1_000)


DUMPED = {
    "YEAR": 2026, "MNTH": 1, "DAYS": 2, "HOUR": 11, "MINU": 50, "RPID": "SHIP7", "CLAT": 45.5,
    "CLON": -30.25, "SELV": 0, "TMDB": 284.15, "TMDP": 280.65, "WDIR": 270, "WSPD": 8.0,
    "PRES": 101_230, "PMSL": 101_230, "WNDSQ": [{"WDIR": 270, "WSPD": 8.0}],
    "PRSSQ": [{"PRES": 101_230, "PMSL": 101_230}], "QMAT": 2,
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_a_dump_of_ships(compressed):
    others = [{**DUMPED, "RPID": f"SHIP{n}", "TMDB": 280.0 + n} for n in range(5)]
    reports = [DUMPED, *others, {**DUMPED, "RPID": "LAST", "TMDP": None}]
    write = SURFACE_DUMP.compressed if compressed else SURFACE_DUMP.message
    blob = SURFACE_DUMP.definitions(WHEN) + write("NC001001", reports, WHEN, 1)
    decoded = decode(blob)
    validate_table(decoded.table)
    assert decoded.report.rejected == {}
    found = rows(
        decoded, "station_id", "report_type", "variable", "obs_value", "time", "lat", "lon"
    )
    first = [row for row in found if row["station_id"] == "SHIP7"]
    by_variable = {row["variable"]: row["obs_value"] for row in first}
    assert by_variable == pytest.approx(
        {
            "2m_temperature": 284.15,
            "2m_dewpoint_temperature": 280.65,
            "surface_pressure": 101_230.0,
            "mean_sea_level_pressure": 101_230.0,
            "10m_u_component_of_wind": 8.0,
            "10m_v_component_of_wind": 0.0,
        },
        abs=1e-9,
    )
    assert {row["report_type"] for row in found} == {"ship"}
    assert (first[0]["lat"], first[0]["lon"]) == (45.5, -30.25)
    assert str(first[0]["time"])[:16] == "2026-01-02 11:50"
    temperatures = [r["obs_value"] for r in found if r["variable"] == "2m_temperature"]
    assert temperatures == pytest.approx([284.15, 280, 281, 282, 283, 284, 284.15])
    assert sum(row["variable"] == "2m_dewpoint_temperature" for row in found) == 6


@pytest.mark.parametrize("compressed", [False, True])
def test_quality_marks_of_a_dump(compressed):
    """13 failed and 14 was purged; 2 was not checked. A mark belongs to the values after it."""
    reports = [{**DUMPED, "QMAT": 14, "QMDD": 2}, {**DUMPED, "QMAT": None, "QMDD": 13}]
    write = SURFACE_DUMP.compressed if compressed else SURFACE_DUMP.message
    decoded = decode(SURFACE_DUMP.definitions(WHEN) + write("NC001001", reports, WHEN, 1))
    flagged = [r["variable"] for r in rows(decoded) if r["rejected_by"] == "preqc"]
    assert sorted(flagged) == ["2m_dewpoint_temperature", "2m_temperature"]
    assert decoded.report.flagged == {"preqc": 2}


def test_marks_of_the_levels_of_a_sonde():
    levels = [
        {"PRLC": 100_000, "UATMP": {"TMDB": 280.0, "TMDP": 277.0, "QMAT": 2, "QMDD": 2}},
        {"PRLC": 85_000, "UATMP": {"TMDB": 270.0, "TMDP": 267.0, "QMAT": 13, "QMDD": 2}},
        {"PRLC": 70_000, "UAWND": {"WDIR": 180, "WSPD": 20.0}},
    ]
    report = {**DUMPED, "WMOB": 10, "WMOS": 393, "UARLV": levels}
    decoded = decode(file_of(SONDE_DUMP, "NC002001", [report], 2))
    flagged = [(r["variable"], r["vertical"]) for r in rows(decoded) if r["rejected_by"]]
    assert flagged == [("temperature", 85_000.0)]


def test_a_dump_of_sondes():
    report = {
        **DUMPED, "RPID": "10393", "WMOB": 10, "WMOS": 393, "UARLV": [
            {"PRLC": 100_000, "UATMP": {"TMDB": 280.15, "TMDP": 277.15}, "UAGP": {"GP10": 1_000}},
            {"PRLC": 50_000, "UAWND": {"WDIR": 180, "WSPD": 20.0}},
        ],
    }  # fmt: skip
    decoded = decode(file_of(SONDE_DUMP, "NC002001", [report, report], 2))
    assert set(decoded.table["station_id"].to_pylist()) == {"10393"}
    assert decoded.report.rows_by_variable == {
        "temperature": 2, "specific_humidity": 2, "geopotential": 2,
        "u_component_of_wind": 2, "v_component_of_wind": 2,
    }  # fmt: skip


def test_reports_side_by_side_give_what_they_give_one_by_one(monkeypatch):
    """Sondes of a dump that all differ in layout; the slow way unpacks each by a layout of its own."""
    draw = random.Random(11)

    def some(part):
        return [part] * draw.randrange(2)

    def ascent(number):
        return {
            **DUMPED, "RPID": f"S{number}", "WMOB": 10, "WMOS": number, "UARLV": [
                {
                    "PRLC": 100_000 - 1_000 * k,
                    "UATMP": some({"TMDB": 280.0 - k, "TMDP": draw.choice([270.0, None])}),
                    "UAWND": some({"WDIR": draw.randrange(360), "WSPD": 7.5}),
                    "UAGP": some({"GP10": 80 * k}),
                }
                for k in range(draw.randrange(0, 60))
            ],
        }  # fmt: skip

    reports = [ascent(n) for n in range(40)]
    blob = SONDE_DUMP.definitions(WHEN) + b"".join(
        SONDE_DUMP.message("NC002001", reports[n : n + 7], WHEN, 2) for n in range(0, 40, 7)
    )
    fast = decode(blob)
    monkeypatch.setattr(bufr_decode, "is_ragged", lambda nodes: False)
    slow = decode(blob)
    assert fast.report.rows_by_variable == slow.report.rows_by_variable
    assert fast.report.rejected == slow.report.rejected
    assert fast.report.not_used == slow.report.not_used
    assert fast.table.num_rows > 1_000

    def sorted_rows(decoded):
        names = ["station_id", "variable", "vertical", "obs_value", "profile_id", "message_offset"]
        return sorted(decoded.table.select(names).to_pylist(), key=str)

    assert sorted_rows(fast) == sorted_rows(slow)


OPTIONAL = replace(
    SURFACE_DUMP,
    sequences={**SURFACE_DUMP.sequences, "NC001001": "<WHOLE>", "WHOLE": "DATES PLACE TMDB"},
    numbers={**SURFACE_DUMP.numbers, "WHOLE": 361_200},
)
"""Reports all of whose elements lie in one replication."""


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_reports_whose_replications_are_all_empty_are_counted(number, side_by_side, monkeypatch):
    blob = OPTIONAL.message("NC001001", [{}] * number, WHEN, 1)
    good = SURFACE_DUMP.definitions(WHEN) + SURFACE_DUMP.message("NC001001", [DUMPED], WHEN, 1)
    if not side_by_side:
        monkeypatch.setattr(bufr_decode, "is_ragged", lambda nodes: False)
    decoded = decode(OPTIONAL.definitions(WHEN) + blob + good)
    assert_accounted(decoded)
    assert decoded.report.rejected == {"no_time": number}
    assert (decoded.report.reports, decoded.report.rows) == (number + 1, 6)


def test_reports_that_are_all_shorter_than_their_count_are_counted():
    blob = bytearray(OPTIONAL.message("NC001001", [{}], WHEN, 1))
    blob[-6] |= 0x80  # the count of one bit, after the length of the report
    decoded = decode(OPTIONAL.definitions(WHEN) + bytes(blob))
    assert_accounted(decoded)
    assert decoded.report.rejected == {"undecodable": 1}


def test_new_tables_replace_the_old_ones():
    """The same numbers may stand for other elements in the second half of a file."""
    other = replace(
        SURFACE_DUMP,
        elements=SURFACE_DUMP.elements.replace("TMDB 012101 2 0 16", "TMDB 012101 1 0 12"),
    )
    blob = b"".join(
        tables.definitions(WHEN) + tables.message("NC001001", [{**DUMPED, "TMDB": t}], WHEN, 1)
        for tables, t in ((SURFACE_DUMP, 284.15), (other, 284.2))
    )
    decoded = decode(blob)
    found = [r["obs_value"] for r in rows(decoded) if r["variable"] == "2m_temperature"]
    assert found == pytest.approx([284.15, 284.2], abs=0.001)
    assert decoded.report.messages == decoded.report.decoded == 2


def test_parts_of_a_file_know_its_tables(tmp_path):
    reports = [{**DUMPED, "RPID": f"S{n}"} for n in range(40)]
    path = tmp_path / "gdas.sfcshp.bufr_d"
    messages = [SURFACE_DUMP.message("NC001001", [r], WHEN, 1) for r in reports]
    path.write_bytes(fortran_records([SURFACE_DUMP.definitions(WHEN), *messages]))
    whole, parted = decode_file(path), decode_limited(path, processes=2)
    assert parted.report.rows == whole.report.rows == 240
    assert parted.report.messages == 40
    assert parted.report.bytes_between == whole.report.bytes_between


def test_bytes_set_at_random_end_in_counted_outcomes():
    """In tables and in reports; every message is decoded or named, every report counted."""
    draw = random.Random(3)
    sound = file_of(PREPBUFR, "ADPUPA", [SONDE, WIND] * 5, 102)
    sound += file_of(SURFACE_DUMP, "NC001001", [DUMPED] * 3, 1)
    for _ in range(150):
        broken = bytearray(sound)
        for _ in range(draw.randrange(1, 6)):
            broken[draw.randrange(40, len(broken))] = draw.randrange(256)
        report = decode(bytes(broken)).report
        assert report.decoded <= report.messages
        assert report.rows or report.rejected


def test_a_message_by_tables_that_are_not_in_the_file():
    decoded = decode(PREPBUFR.message("ADPUPA", [SONDE], WHEN, 102))
    assert decoded.report.rejected == {"needs_local_tables": 1}
