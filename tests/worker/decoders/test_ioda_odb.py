"""IODA-style NetCDF and ODB-2: files written here with the formats' own libraries, and real ones."""

from datetime import UTC, datetime

import h5py
import netCDF4
import numpy as np
import pandas as pd
import pyodc
import pytest

from model.domain.observations import validate_table
from tests.worker.decoders.accounting import assert_accounted
from worker.observations.decoders import ioda as ioda_module
from worker.observations.decoders.base import DecodeContext, FileBudget, MessageLimits
from worker.observations.decoders.decode import decode_file

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def write_ioda(path, values, *, meta=None, errors=None, marks=None, units=None):
    """A file with three locations."""
    with netCDF4.Dataset(path, "w") as data:
        data.createDimension("Location", 3)
        groups = {
            "MetaData": {
                "latitude": np.float32([50, 51, 52]),
                "longitude": np.float32([10, 190, -10]),
                **(meta or {}),
            },
            "ObsValue": values,
            "ObsError": errors or {},
            "PreQC": marks or {},
        }
        for group, variables in groups.items():
            made = data.createGroup(group)
            for name, array in variables.items():
                made.createVariable(name, np.asarray(array).dtype, ("Location",))[:] = array
        time = data["MetaData"].createVariable("dateTime", "i8", ("Location",))
        time.units = "seconds since 1970-01-01T00:00:00Z"
        time[:] = int(NOON.timestamp()) + np.array([0, 60, 3600])
        station = data["MetaData"].createVariable("stationIdentification", str, ("Location",))
        station[:] = np.array(["a", "b", "c"], dtype=object)
        for name, unit in (units or {}).items():
            data["ObsValue"][name].units = unit
    return path


def ioda(tmp_path, *args, options=None, **kwargs):
    path = write_ioda(tmp_path / "obs.nc4", *args, **kwargs)
    decoded = decode_file(path, context=DecodeContext(options=options or {}))
    validate_table(decoded.table)
    return decoded


@pytest.mark.parametrize(
    ("group", "name"), [("ObsValue", "airTemperature"), ("MetaData", "latitude"), ("/", "PreQC")]
)
def test_ioda_names_that_are_not_utf8(tmp_path, group, name):
    path = write_ioda(tmp_path / "obs.nc4", {"airTemperature": np.float32([250, 251, 252])})
    with h5py.File(path, "a") as file:  # netCDF itself refuses to write such names
        file[group].move(name, b"\xff" + name.encode())
    decoded = decode_file(path, context=DecodeContext())
    assert decoded.table.num_rows == 0
    assert decoded.report.rejected == {"invalid_table": 1}
    assert "UTF-8" in decoded.report.quarantined[0].detail


def test_ioda_fill_values_are_refused_by_their_shapes(tmp_path, monkeypatch):
    """A thousand million locations in some kilobytes: none of their fill values is read."""
    path = write_ioda(tmp_path / "obs.nc4", {"airTemperature": np.float32([250, 251, 252])})
    with netCDF4.Dataset(path, "a") as data:
        data.createDimension("Many", 10**9)
        data["ObsValue"].createVariable("windEastward", "f4", ("Many",), chunksizes=(10**6,))
    assert path.stat().st_size < 100_000

    def read(*_):
        raise AssertionError("values were read")

    monkeypatch.setattr(ioda_module, "_place", read)
    report = decode_file(path).report
    assert report.rejected == {"too_large": 1}
    assert "1000000000" in report.quarantined[0].detail
    whole = DecodeContext(limits=MessageLimits(values=10**9))
    report = decode_file(path, context=whole).report
    assert report.rejected == {"too_large": 1}
    assert "values in a file" in report.quarantined[0].detail


def test_ioda_aloft_with_errors_and_marks(tmp_path):
    decoded = ioda(
        tmp_path,
        {
            "airTemperature": np.float32([250, 251, -3.3687953e38]),
            "windEastward": np.float32([1, 2, 3]),
        },
        meta={"pressure": np.float32([50000, 60000, 70000])},
        errors={"airTemperature": np.float32([0.8, 0.9, 1.0])},
        marks={"airTemperature": np.int32([2, 9, 2])},
        units={"airTemperature": "K", "windEastward": "m s-1"},
    )
    rows = decoded.table.to_pylist()
    assert [(r["variable"], r["vertical"], r["obs_value"]) for r in rows] == [
        ("temperature", 50000.0, 250.0),
        ("temperature", 60000.0, 251.0),
        ("u_component_of_wind", 50000.0, 1.0),
        ("u_component_of_wind", 60000.0, 2.0),
        ("u_component_of_wind", 70000.0, 3.0),
    ]
    assert [r["rejected_by"] for r in rows] == [None, "preqc", None, None, None]
    assert rows[1]["obs_error"] == pytest.approx(0.9)
    assert rows[2]["obs_error"] is None
    assert [r["station_id"] for r in rows] == ["a", "b", "a", "b", "c"]
    assert rows[1]["lon"] == -170.0
    assert rows[0]["time"] == NOON and rows[4]["time"].hour == 13


def test_ioda_at_the_surface_and_units(tmp_path):
    decoded = ioda(
        tmp_path,
        {"airTemperature": np.float32([10, 11, 12]), "stationPressure": np.float32([1e5] * 3),
         "odd": np.float32([1, 2, 3])},
        meta={"pressure": np.float32([1e5] * 3), "stationElevation": np.float32([5, 6, 7])},
        units={"airTemperature": "degC"},
        options={"report_type": "synop"},
    )  # fmt: skip
    assert decoded.report.rows_by_variable == {"2m_temperature": 3, "surface_pressure": 3}
    assert decoded.table["obs_value"].to_pylist()[:3] == pytest.approx([283.15, 284.15, 285.15])
    assert decoded.table["elevation"].to_pylist()[:3] == [5.0, 6.0, 7.0]
    assert decoded.report.rejected == {"unsupported_variable": 1}
    assert decoded.report.notes["units_assumed_si"] == 1


def test_ioda_foreign_units_are_refused(tmp_path):
    decoded = ioda(
        tmp_path, {"stationPressure": np.float32([750] * 3)}, units={"stationPressure": "mmHg"}
    )
    assert decoded.report.rejected == {"invalid_table": 1}
    assert "mmHg" in decoded.report.quarantined[0].detail


def test_ioda_without_groups(realdata_dir):
    decoded = decode_file(realdata_dir / "obs_netcdf/ncarg__950318_sao.cdf")
    assert "MetaData, ObsValue" in decoded.report.quarantined[0].detail


def write_odb(path, **columns):
    frame = {
        "date@hdr": 20240101,
        "time@hdr": [120000, 93000, 120000, 250000],
        "lat@hdr": [50.0, 51.0, 52.0, 53.0],
        "lon@hdr": [350.0, 10.0, 10.0, 10.0],
        "statid@hdr": ["10381", "EU1", "x", "y"],
        "stalt@hdr": 50.0,
        "obstype@hdr": [1, 2, 5, 1],
        "codetype@hdr": [14, 144, 35, 14],
        "seqno@hdr": [1, 2, 3, 4],
        "varno@body": [39, 2, 3, 39],
        "vertco_type@body": [2, 1, 1, 2],
        "vertco_reference_1@body": [50.0, 25000.0, 50000.0, 50.0],
        "obsvalue@body": [281.5, 221.0, 12.5, 280.0],
        "datum_status@body": [1, 4, 1, 1],
        "final_obs_error@errstat": [1.0, 1.2, 2.0, 1.0],
        **columns,
    }
    table = pd.DataFrame({n: np.broadcast_to(v, 4) for n, v in frame.items()})
    pyodc.encode_odb(table, str(path))
    return path


def test_odb_rows(tmp_path):
    decoded = decode_file(write_odb(tmp_path / "x.odb"))
    validate_table(decoded.table)
    rows = decoded.table.to_pylist()
    assert [(r["report_type"], r["variable"], r["vertical_kind"], r["vertical"]) for r in rows] == [
        ("synop", "2m_temperature", "surface", None),
        ("aircraft", "temperature", "pressure", 25000.0),
        ("temp", "u_component_of_wind", "pressure", 50000.0),
    ]
    assert rows[0]["time"] == NOON
    assert rows[1]["time"] == datetime(2024, 1, 1, 9, 30, tzinfo=UTC)
    assert [r["rejected_by"] for r in rows] == [None, "preqc", None]
    assert [r["obs_value"] for r in rows] == [281.5, 221.0, 12.5]
    assert [r["lon"] for r in rows] == [-10.0, 10.0, 10.0]
    assert rows[0]["station_id"] == "10381"
    assert decoded.report.rejected == {"no_time": 1}  # 25 o'clock


def test_a_leap_second_in_odb(tmp_path):
    times = {"date@hdr": 20161231, "time@hdr": [235960, 235961, 236000, 240000]}
    decoded = decode_file(write_odb(tmp_path / "x.odb", **times))
    assert decoded.table["time"].to_pylist() == [datetime(2017, 1, 1, tzinfo=UTC)]
    assert decoded.report.rejected == {"no_time": 3}


class NotRead(Exception):
    """Raised in place of reading the data of a frame."""


@pytest.fixture
def headers_only(monkeypatch):
    def refuse(*_):
        raise NotRead

    monkeypatch.setattr(pyodc.frame.Frame, "_dataframe_internal", refuse)


def repeats(path, rows, frames):
    """Write frames of equal rows, two bytes each."""
    columns = {f"constant_{n}@hdr": 1 for n in range(4)}
    table = pd.DataFrame({n: np.full(rows, 1) for n in ("date@hdr", *columns)})
    pyodc.encode_odb(table, str(path))
    path.write_bytes(frames * path.read_bytes())
    return path


@pytest.mark.parametrize(("rows", "values"), [(299, 10_000), (300, 1_499)])
def test_odb_repeats_are_refused_by_their_headers(
    tmp_path, monkeypatch, headers_only, rows, values
):
    path = repeats(tmp_path / "x.odb", 100, 3)
    monkeypatch.setattr(FileBudget, "FLAT", values)
    monkeypatch.setattr(FileBudget, "PER_BYTE", 0)
    context = DecodeContext(limits=MessageLimits(values=rows))
    report = decode_file(path, context=context).report
    assert dict(report.rejected) == {"too_large": 1}
    monkeypatch.setattr(FileBudget, "FLAT", 1_500)
    context = DecodeContext(limits=MessageLimits(values=300))
    assert "NotRead" in decode_file(path, context=context).report.quarantined[0].detail


def test_odb_frames_of_fewer_than_no_rows_hide_no_others(tmp_path, headers_only):
    path = repeats(tmp_path / "x.odb", 100, 3)
    count = (100).to_bytes(8, "little")
    assert path.read_bytes().count(count) == 3
    path.write_bytes(path.read_bytes().replace(count, (-200).to_bytes(8, "little", signed=True), 1))
    report = decode_file(path).report
    assert "zero rows or more" in report.quarantined[0].detail


def test_odb_units_and_clock_of_other_writers(tmp_path):
    path = write_odb(
        tmp_path / "x.odb",
        **{"time@hdr": 1200, "varno@body": 1, "obsvalue@body": 5500.0, "vertco_type@body": 1},
    )
    options = {"units": {"geopotential": "gpm"}, "clock": "hhmm"}
    rows = decode_file(path, context=DecodeContext(options=options)).table.to_pylist()
    assert rows[0]["obs_value"] == pytest.approx(5500.0 * 9.80665)
    assert rows[0]["time"] == NOON


def test_odb_unknown_variables_are_counted(tmp_path):
    decoded = decode_file(write_odb(tmp_path / "x.odb", **{"varno@body": 119}))
    assert decoded.report.rejected == {"unsupported_variable": 1}
    assert "varno 119: 4 rows" in decoded.report.quarantined[0].detail


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # inside pyodc
def test_real_odb_of_surface_pressures(realdata_dir):
    # 11 pressures and 2 humidities, of two stations, by pyodc on the same file.
    path = realdata_dir / "odb/pyodc__data1.odb"
    with path.open("rb") as file:
        values = [v for frame in pyodc.read_odb(file) for v in frame["obsvalue@body"]]
    decoded = decode_file(path)
    assert decoded.table["obs_value"].to_pylist() == values
    assert decoded.report.rows_by_variable == {"surface_pressure": 11, "2m_relative_humidity": 2}
    assert set(decoded.table["station_id"].to_pylist()) == {"61997", "61998"}


def test_every_real_file_ends_in_rows_or_a_reason(realdata_dir):
    for path in sorted((realdata_dir / "odb").iterdir()):
        decoded = decode_file(path)
        assert_accounted(decoded, path.name)
