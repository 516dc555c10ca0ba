"""The report and the recognition of formats."""

import json

import numpy as np
import pytest

from model.domain.errors import DecodeError
from model.domain.observations import validate_table
from worker.observations.columns import build_table, concat_tables, wrap_longitude
from worker.observations.decoders.base import KEPT_QUARANTINED, DecodeContext, DecodeReport
from worker.observations.decoders.decode import decode_file
from worker.observations.formats import detect_format


def table(variable, value, **columns):
    return build_table(
        DecodeContext("b"), len(value), report_type="synop", station_id="s",
        time=np.datetime64("2026-01-01", "ns"), lat=0.0, lon=0.0, vertical_kind="surface",
        variable=variable, obs_value=np.array(value), **columns,
    )  # fmt: skip


def test_reports_add_up_and_survive_json():
    first = DecodeReport(format="bufr", size=10, messages=2, decoded=1)
    first.reject("no_time", 3, 7, "detail")
    first.count_rows(table("2m_temperature", [1.0, 2.0], rejected_by=[None, "preqc"]))
    second = DecodeReport(format="bufr", size=5, messages=1)
    second.reject("no_time", 0, 5)
    merged = DecodeReport.model_validate(
        json.loads(json.dumps(first.model_dump(mode="json")))
    ).merge(second)
    assert (merged.size, merged.messages, merged.rows) == (15, 3, 2)
    assert dict(merged.rejected) == {"no_time": 2}
    assert dict(merged.flagged) == {"preqc": 1}
    assert merged.rows_by_variable == {"2m_temperature": 2}
    assert [q.offset for q in merged.quarantined] == [3, 0]


def test_a_flood_of_bad_messages_stays_small():
    report = DecodeReport()
    for number in range(1_000):
        report.reject("bad_frame", number, 1)
    assert report.rejected["bad_frame"] == 1_000
    assert len(report.quarantined) == KEPT_QUARANTINED


def test_reasons_are_a_closed_list():
    with pytest.raises(KeyError, match="no_such_reason"):
        DecodeReport().reject("no_such_reason")


def test_rows_are_numbered_anew_when_joined():
    joined = concat_tables(
        [table("2m_temperature", [1.0]), table("surface_pressure", [2.0, np.nan])]
    )
    assert joined["observation_id"].to_pylist() == [0, 1, 2]
    assert joined["obs_value"].to_pylist() == [1.0, 2.0, None]
    assert validate_table(joined).num_rows == 3


def test_names_outside_the_schema_are_refused():
    with pytest.raises(KeyError, match="colour"):
        table("2m_temperature", [1.0], colour="red")


def test_longitudes():
    found = wrap_longitude(np.array([180.0, 360.0, -180.0, 190.0, -180.00000000000003, 359.5]))
    np.testing.assert_allclose(found, [-180.0, 0.0, -180.0, -170.0, -180.0, -0.5], atol=1e-9)
    assert (found >= -180).all() and (found < 180).all()


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (b"PAR1....", "x", "parquet"),
        (b"\x89HDF\r\n\x1a\n....", "x", "ioda-netcdf"),
        (b"CDF\x01....", "x", "ioda-netcdf"),
        (b"\xff\xffODA\x00", "x", "odb2"),
        (b"\x01\r\r\n123\r\r\nISMD01 EDZW 010600\r\r\nBUFR\x00\x00\x00\x04", "x", "bufr"),
        (b"GRIB\x00\x00\x00\x01", "x", "grib"),
        (b"GRIB\x00\x00\x00\x02", "bufr.bufr", "grib"),
        (b'{"type": "FeatureCollection", "features": []}', "x", "geojson"),
        (b"time,lat,lon,variable,observation\n", "x", "csv"),
        (b"time,lat,lon,variable,observation,platform\n,,,,,from BUFR text", "x", "csv"),
        (b"whatever", "obs.grib2", "grib"),
    ],
)
def test_recognition_by_content_then_name(tmp_path, head, name, expected):
    path = tmp_path / name
    path.write_bytes(head)
    assert detect_format(path) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"7z\xbc\xaf", "compressed_archive"),
        (b"\x89PNG\r\n\x1a\n", "wrong_format"),
        (b"SOVX83 KWNB\nJJVV 01061\n", "alphanumeric"),
        (b"no idea", "unknown_format"),
    ],
)
def test_what_cannot_be_read_has_a_reason(tmp_path, content, reason):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        detect_format(path)
    assert caught.value.context["reason"] == reason
    decoded = decode_file(path)
    assert decoded.table.num_rows == 0
    assert dict(decoded.report.rejected) == {reason: 1}
