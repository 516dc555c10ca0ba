"""Positions, levels and times in the units of the file; refused where only another unit makes sense."""

from datetime import UTC, datetime, timedelta

import netCDF4
import numpy as np
import pandas as pd
import pyodc
import pytest

from model.domain.observations import validate_table
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def read(path, **options):
    decoded = decode_file(path, context=DecodeContext(options=options))
    validate_table(decoded.table)
    return decoded


def detail(decoded):
    assert dict(decoded.report.rejected) == {"invalid_table": 1}
    return decoded.report.quarantined[0].detail


META = {
    "latitude": ([52.0, 53.0, 54.0], "degrees_north"),
    "longitude": ([346.0, 14.0, 15.0], "degrees_east"),
    "dateTime": (np.int64([0, 60, 120]), "seconds since 2025-01-01T12:00:00Z"),
}


def ioda(path, **meta):
    """A file of three temperatures with the given (values, units) of MetaData."""
    with netCDF4.Dataset(path, "w") as data:
        data.createDimension("Location", 3)
        group = data.createGroup("MetaData")
        for name, (values, units) in {**META, **meta}.items():
            array = np.asarray(values)
            variable = group.createVariable(name, array.dtype, ("Location",))
            variable[:] = array
            if units is not None:
                variable.units = units
        station = group.createVariable("stationIdentification", str, ("Location",))
        station[:] = np.array(["a", "b", "c"], dtype=object)
        value = data.createGroup("ObsValue").createVariable("airTemperature", "f4", ("Location",))
        value.units, value[:] = "K", [275.0, 250.0, 220.0]
    return path


@pytest.mark.parametrize(
    ("values", "units"),
    [
        ([850.0, 500.0, 250.0], "hPa"),
        ([850.0, 500.0, 250.0], "mbar"),
        ([85.0, 50.0, 25.0], "kPa"),
        ([85000.0, 50000.0, 25000.0], "Pa"),
        ([85000.0, 50000.0, 25000.0], None),
    ],
)
def test_ioda_pressures(tmp_path, values, units):
    decoded = read(ioda(tmp_path / "x.nc4", pressure=(values, units)))
    assert decoded.table["vertical"].to_pylist() == [85000.0, 50000.0, 25000.0]


def test_ioda_levels_are_those_of_each_location(tmp_path):
    """Some sondes of a file have no sensor of pressure; the third location has no level at all."""
    path = ioda(
        tmp_path / "x.nc4",
        pressure=([85000.0, np.nan, np.nan], "Pa"),
        height=([1457.0, 5574.0, np.nan], "m"),
    )
    decoded = read(path)
    assert decoded.table["vertical_kind"].to_pylist() == ["pressure", "height"]
    assert decoded.table["vertical"].to_pylist() == [85000.0, 5574.0]
    assert dict(decoded.report.values_set_aside) == {"no_level temperature": 1}


def test_ioda_heights_positions_and_unknown_units(tmp_path):
    path = ioda(
        tmp_path / "x.nc4",
        height=([1.5, 5.5, 10.25], "km"),
        stationElevation=([100.0, 200.0, 300.0], "ft"),
        latitude=(np.deg2rad([52.0, 53.0, 54.0]), "radians"),
        longitude=(np.deg2rad([346.0, 14.0, 15.0]), "radian"),
    )
    table = read(path).table
    assert table["vertical"].to_pylist() == [1500.0, 5500.0, 10250.0]
    assert table["elevation"].to_pylist() == pytest.approx([30.48, 60.96, 91.44])
    assert table["lat"].to_pylist() == pytest.approx([52.0, 53.0, 54.0])
    assert table["lon"].to_pylist() == pytest.approx([-14.0, 14.0, 15.0])
    path = ioda(tmp_path / "y.nc4", pressure=([850.0, 500.0, 250.0], "furlong"))
    assert "MetaData/pressure" in detail(read(path)) and "furlong" in detail(read(path))


def test_ioda_without_units(tmp_path):
    path = ioda(tmp_path / "x.nc4", pressure=([850.0, 500.0, 250.0], None))
    assert "all below 1100 as in hPa" in detail(read(path))
    assert read(path, pressure_units="hPa").table["vertical"].to_pylist() == [85000, 50000, 25000]
    assert read(path, pressure_units="Pa").table["vertical"].to_pylist() == [850, 500, 250]
    position = {
        "latitude": (np.deg2rad([52.0, 53.0, 54.0]), None),
        "longitude": (np.deg2rad([-14.0, 14.0, 15.0]), None),
    }
    path = ioda(tmp_path / "y.nc4", **position)
    assert "angle_units" in detail(read(path))
    assert read(path, angle_units="radians").table["lat"].to_pylist() == pytest.approx([52, 53, 54])


@pytest.mark.parametrize(
    ("value_units", "error_units", "wanted"),
    [("degC", "K", 1.5), ("degF", None, 1.5 * 5 / 9), ("K", "degF", 1.5 * 5 / 9)],
)
def test_ioda_errors_have_units_of_their_own(tmp_path, value_units, error_units, wanted):
    path = ioda(tmp_path / "x.nc4", pressure=([850.0, 500.0, 250.0], "hPa"))
    with netCDF4.Dataset(path, "a") as data:
        data["ObsValue/airTemperature"].units = value_units
        error = data.createGroup("ObsError").createVariable("airTemperature", "f4", ("Location",))
        error[:] = 1.5
        if error_units is not None:
            error.units = error_units
    assert read(path).table["obs_error"].to_pylist() == pytest.approx([wanted] * 3)


@pytest.mark.parametrize(
    ("values", "units"),
    [
        (np.float64([0.0, 0.5, 1.1]), "hours since 2025-01-01T12:00:00Z"),
        (np.float32([0.0, 0.5, 1.1]), "hours since 2025-01-01 12:00"),
        (np.float64([0.0, 30.0, 66.0]), "minutes since 2025-1-1 14:00:00 +02:00"),
        (np.float64([20089.5, 20089.5 + 0.5 / 24, 20089.5 + 1.1 / 24]), "days since 1970-01-01"),
        (np.int32([0, 1800, 3960]), "s since 2025-01-01T12:00:00Z"),
        (np.int64([0, 1_800_000_000_000, 3_960_000_000_000]), "nanoseconds since 2025-01-01 12:00"),
    ],
)
def test_ioda_times(tmp_path, values, units):
    decoded = read(ioda(tmp_path / "x.nc4", dateTime=(values, units)))
    wanted = [NOON, NOON + timedelta(minutes=30), NOON + timedelta(minutes=66)]
    for found, time in zip(decoded.table["time"].to_pylist(), wanted, strict=True):
        assert abs(found - time) <= timedelta(milliseconds=2)


@pytest.mark.parametrize(
    ("values", "units", "named"),
    [
        (np.float64([0, 1, 2]), None, "seconds since"),
        (np.float64([0, 1, 2]), "fortnights since 2025-01-01", "fortnights"),
        (np.float64([0, 1, 2]), "hours since yesterday", "yesterday"),
        (np.float32([1.7357328e9] * 3), "seconds since 1970-01-01", "128 s only"),
    ],
)
def test_ioda_times_that_say_too_little(tmp_path, values, units, named):
    assert named in detail(read(ioda(tmp_path / "x.nc4", dateTime=(values, units))))


def odb(path, without=(), **columns):
    frame = {
        "date@hdr": 20250101,
        "time@hdr": [120000, 93000],
        "lat@hdr": [50.0, 51.0],
        "lon@hdr": [10.0, 11.0],
        "statid@hdr": ["10381", "10382"],
        "obstype@hdr": 5,
        "codetype@hdr": 35,
        "varno@body": 2,
        "vertco_type@body": 1,
        "vertco_reference_1@body": [85000.0, 50000.0],
        "obsvalue@body": [275.0, 250.0],
        **columns,
    }
    frame = {name: column for name, column in frame.items() if name not in without}
    pyodc.encode_odb(pd.DataFrame({n: np.broadcast_to(v, 2) for n, v in frame.items()}), str(path))
    return path


def test_odb_clocks(tmp_path):
    path = odb(tmp_path / "x.odb", **{"time@hdr": [1200, 930]})
    assert "before 00:24" in detail(read(path))
    hours = [t.hour for t in read(path, clock="hhmm").table["time"].to_pylist()]
    assert hours == [12, 9]
    minutes = [t.minute for t in read(path, clock="hhmmss").table["time"].to_pylist()]
    assert minutes == [12, 9]
    midnight = read(odb(tmp_path / "y.odb", **{"time@hdr": 0}))
    assert [t.hour for t in midnight.table["time"].to_pylist()] == [0, 0]


def test_odb_radians_and_pressures(tmp_path):
    radians = {"lat@hdr": np.deg2rad([50.0, 51.0]), "lon@hdr": np.deg2rad([10.0, 11.0])}
    path = odb(tmp_path / "x.odb", **radians)
    assert "angle_units" in detail(read(path))
    assert read(path, angle_units="radians").table["lat"].to_pylist() == pytest.approx([50, 51])
    path = odb(tmp_path / "y.odb", **radians, **{"latlon_rad@hdr": 1})
    assert read(path).table["lon"].to_pylist() == pytest.approx([10, 11])
    path = odb(tmp_path / "z.odb", **{"vertco_reference_1@body": [850.0, 500.0]})
    assert "pressure_units" in detail(read(path))
    assert read(path, pressure_units="hPa").table["vertical"].to_pylist() == [85000.0, 50000.0]


def test_odb_levels_without_their_kind(tmp_path):
    """As the Met Office writes profilers: a reference, and no column that says of what."""
    path = odb(tmp_path / "x.odb", without=("vertco_type@body",))
    assert "'vertco': 'pressure' or 'height'" in detail(read(path))
    table = read(path, vertco="pressure").table
    assert table["vertical"].to_pylist() == [85000.0, 50000.0]
    assert set(table["vertical_kind"].to_pylist()) == {"pressure"}


def test_odb_placeholders_and_numeric_identifiers(tmp_path):
    path = odb(
        tmp_path / "x.odb",
        **{"lon@hdr": [-999.0, 11.0], "stalt@hdr": 9999.0, "statid@hdr": [10384.0, 6030.0]},
    )
    decoded = read(path)
    assert dict(decoded.report.rejected) == {"no_position": 1}
    assert decoded.report.quarantined[0].report == 1
    (row,) = decoded.table.to_pylist()
    assert (row["station_id"], row["elevation"]) == ("06030", None)


def table(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text)
    return path


def test_tables_with_pressures_in_hpa(tmp_path):
    header = "time,lat,lon,variable,obs_value,vertical_kind,vertical\n"
    row = "2025-01-01T12:00Z,52,13,temperature,275,{},{}\n"
    path = table(tmp_path, header + row.format("pressure", 850) + row.format("pressure", 500))
    assert "column 'vertical'" in detail(read(path))
    assert read(path, pressure_units="hPa").table["vertical"].to_pylist() == [85000.0, 50000.0]
    # Heights below 1100 m are heights, and one pressure in Pa settles the others.
    path = table(tmp_path, header + row.format("height", 850))
    assert read(path).table["vertical"].to_pylist() == [850.0]
    path = table(tmp_path, header + row.format("pressure", 900) + row.format("pressure", 5000))
    assert read(path).table["vertical"].to_pylist() == [900.0, 5000.0]


def test_tables_with_positions_in_radians(tmp_path):
    header = "time,lat,lon,variable,obs_value,report_type,station_id\n"
    row = "2025-01-01T12:00Z,{},{},t2m,275,{},{}\n"
    path = table(tmp_path, header + row.format(0.9076, 0.2339, "synop", "A"))
    assert "no land" in detail(read(path))
    assert read(path, angle_units="radians").table["lat"][0].as_py() == pytest.approx(
        52.0, abs=0.01
    )
    moored = table(tmp_path, header + row.format(0.0, -0.1, "buoy", "31007"))  # PIRATA at 0N 0E
    assert read(moored).table["lat"].to_pylist() == [0.0]
    assert read(moored).report.notes["positions_within_pi"] == 1


def frame(tmp_path, **columns):
    path = tmp_path / "e2s.parquet"
    pd.DataFrame(
        {
            "time": pd.to_datetime(["2025-01-01T12:00"] * 3),
            "lat": [52.2] * 3,
            "lon": [14.1] * 3,
            "station": [10393.0] * 3,
            "observation": [272.0, 250.0, 220.0],
            "variable": ["t"] * 3,
            **columns,
        }
    ).to_parquet(path)
    return path


def test_earth2studio_pressures_are_known_by_their_heights(tmp_path):
    low = {"pres": [850.0, 500.0, 250.0]}
    decoded = read(frame(tmp_path, **low, elev=[1500.0, 5500.0, 10360.0]))
    assert decoded.table["vertical"].to_pylist() == [85000.0, 50000.0, 25000.0]
    assert decoded.report.notes["pressures_were_hpa"] == 3
    assert decoded.table["station_id"].to_pylist() == ["10393"] * 3
    assert "pressure_units" in detail(read(frame(tmp_path, **low)))
    high = frame(tmp_path, **low, elev=[32_000.0, 36_000.0, 41_000.0])  # 8.7, 4.9, 2.4 hPa
    assert read(high).table["vertical"].to_pylist() == [850.0, 500.0, 250.0]


def test_earth2studio_cell_that_is_no_number(tmp_path):
    path = frame(tmp_path, pres=["85000", "high", "25000"])
    decoded = read(path)
    assert decoded.table["vertical"].to_pylist() == [85000.0, 25000.0]
    assert decoded.report.quarantined[0].detail == "column 'pres', row 2: got 'high'"
