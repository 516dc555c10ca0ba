"""Derived forms as tables: what a sender writes, what comes in, and faults by column and row."""

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.domain.errors import DecodeError
from model.domain.observations import validate_table
from tests.worker.tables import make_table
from worker.observations.decoders.base import DecodeContext, FileBudget, MessageLimits
from worker.observations.decoders.decode import decode_file
from worker.observations.export import ROW_FORMATS
from worker.observations.units import conversion

CONTEXT = DecodeContext(batch_id="b1", received_time=datetime(2024, 1, 1, 13, tzinfo=UTC))
HEADER = "time,lat,lon,variable,obs_value"


def csv(tmp_path, text, context=CONTEXT):
    path = tmp_path / "table.csv"
    path.write_text(text)
    decoded = decode_file(path, context=context)
    validate_table(decoded.table)
    return decoded


def faults(decoded):
    return [(q.reason, q.detail) for q in decoded.report.quarantined]


def test_the_least_table(tmp_path):
    decoded = csv(tmp_path, f"{HEADER}\n2024-01-01T12:00:00Z,50.5,190.0,2m_temperature,281.5\n")
    (row,) = decoded.table.to_pylist()
    assert row["time"] == datetime(2024, 1, 1, 12, tzinfo=UTC)
    assert (row["lat"], row["lon"], row["obs_value"]) == (50.5, -170.0, 281.5)
    assert (row["report_type"], row["vertical_kind"], row["vertical"]) == ("other", "surface", None)
    assert (row["batch_id"], row["received_time"]) == ("b1", CONTEXT.received_time)
    assert row["obs_error"] is None
    assert decoded.report.rows_by_variable == {"2m_temperature": 1}


@pytest.mark.parametrize(
    ("time", "hour"),
    [("2024-01-01T12:00", 12), ("2024-01-01 14:00:00+02:00", 12), ("2024-01-01T12:00:00.000Z", 12)],
)
def test_times_with_and_without_zone(tmp_path, time, hour):
    decoded = csv(tmp_path, f"{HEADER}\n{time},1,1,msl,101325\n")
    assert decoded.table["time"][0].as_py() == datetime(2024, 1, 1, hour, tzinfo=UTC)
    assert decoded.table["variable"][0].as_py() == "mean_sea_level_pressure"


def test_faulty_rows_are_named_and_the_others_kept(tmp_path):
    decoded = csv(
        tmp_path,
        f"{HEADER},vertical_kind,vertical\n"
        "2024-01-01T12:00:00Z,50,10,2m_temperature,281,,\n"
        "yesterday,50,10,2m_temperature,281,,\n"
        "2024-01-01T12:00:00Z,north,10,2m_temperature,281,,\n"
        "2024-01-01T12:00:00Z,50,,2m_temperature,281,,\n"
        "2024-01-01T12:00:00Z,50,10,wind,281,,\n"
        "2024-01-01T12:00:00Z,50,10,2m_temperature,warm,,\n"
        "2024-01-01T12:00:00Z,50,10,temperature,281,,\n"
        "2024-01-01T12:00:00Z,50,10,temperature,281,pressure,85000\n"
        "2024-01-01T12:00:00Z,50,10,temperature,281,pressure,85000,extra\n"
        "2024-01-01T12:00:00Z,50,10,temperature,281,model,85000\n",
    )
    assert len(decoded.table) == 2
    found = dict.fromkeys(faults(decoded))
    assert ("no_time", "column 'time', line 3: got 'yesterday'") in found
    assert ("no_position", "column 'lat', line 4: got 'north'") in found
    assert ("no_position", "column 'lon', line 5") in found
    assert ("unsupported_variable", "column 'variable', line 6: got 'wind'") in found
    assert ("invalid_table", "column 'obs_value', line 7: got 'warm'") in found
    assert ("invalid_table", "column 'vertical', line 8: got 'temperature'") in found
    assert ("invalid_table", "column 'vertical_kind', line 11: got 'model'") in found
    assert sum(decoded.report.rejected.values()) == 8


def test_missing_value_stays_as_missing(tmp_path):
    decoded = csv(tmp_path, f"{HEADER}\n2024-01-01T12:00:00Z,50,10,2m_temperature,\n")
    assert decoded.table["obs_value"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("header", "named"),
    [("time,lat,lon,variable", "missing: obs_value"), (f"{HEADER},colour", "unknown: colour")],
)
def test_faulty_headers_refuse_the_file(tmp_path, header, named):
    decoded = csv(tmp_path, f"{header}\n" + ",".join("1" * len(header.split(","))) + "\n")
    assert len(decoded.table) == 0
    assert named in decoded.report.quarantined[0].detail


def test_columns_can_be_renamed(tmp_path):
    options = {"columns": {"T": "obs_value"}, "report_type": "synop"}
    context = DecodeContext(options=options)
    text = "time,lat,lon,variable,T\n2024-01-01T12:00:00Z,50,10,2m_temperature,281\n"
    row = csv(tmp_path, text, context).table.to_pylist()[0]
    assert (row["obs_value"], row["report_type"]) == (281.0, "synop")


def test_faulty_renaming_is_named(tmp_path):
    context = DecodeContext(options={"columns": ["T"]})
    decoded = csv(tmp_path, f"{HEADER}\n2024-01-01,1,1,msl,1e5\n", context)
    assert decoded.report.rejected == {"invalid_table": 1}


def test_units_are_converted_or_refused(tmp_path):
    decoded = csv(
        tmp_path,
        f"{HEADER},units,obs_error\n"
        "2024-01-01T12:00:00Z,50,10,2m_temperature,10,degC,2\n"
        "2024-01-01T12:00:00Z,50,10,mean_sea_level_pressure,1013,hPa,1\n"
        "2024-01-01T12:00:00Z,50,10,10m_wind_speed,36,km/h,\n"
        "2024-01-01T12:00:00Z,50,10,2m_relative_humidity,50,%,10\n"
        "2024-01-01T12:00:00Z,50,10,2m_temperature,10,hPa,\n"
        "2024-01-01T12:00:00Z,50,10,2m_temperature,280,,\n"
        "2024-01-01T12:00:00Z,50,10,2m_temperature,10,furlong,\n",
    )
    np.testing.assert_allclose(
        decoded.table["obs_value"].to_numpy(), [283.15, 101300.0, 10.0, 0.5, 280.0]
    )
    np.testing.assert_allclose(
        decoded.table["obs_error"].to_numpy(), [2.0, 100.0, np.nan, 0.1, np.nan], rtol=1e-6
    )
    assert [f[0] for f in faults(decoded)] == ["invalid_table"] * 2


def test_conversions():
    assert conversion("gpm", "geopotential") == (9.80665, 0.0)
    assert conversion("mm", "total_precipitation") == (1e-3, 0.0)
    assert conversion("mm", "2m_temperature") is None
    assert conversion("SI", "geopotential") == (1.0, 0.0)


def test_our_own_exports_come_back(tmp_path):
    table = make_table(5, obs_error=np.full(5, 1.5), rejected_by=["preqc", None, None, None, None])
    for name in ("parquet", "csv"):
        path = tmp_path / f"export.{name}"
        path.write_bytes(ROW_FORMATS[name].encode(table))
        decoded = decode_file(path, context=CONTEXT)
        assert decoded.report.rejected == {}
        back = decoded.table
        for column in ("time", "lat", "lon", "variable", "obs_value", "obs_error", "rejected_by"):
            assert back[column].to_pylist() == table[column].to_pylist(), column
        assert back["qc_flag"].to_pylist() == [11, 0, 0, 0, 0]


def test_parquet_from_pandas(tmp_path):
    frame = pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01", periods=3, freq="h", tz="Europe/Rome"),
            "lat": [1, 2, 3],
            "lon": np.array([4, 5, 6], dtype=np.float32),
            "variable": pd.Categorical(["t2m", "t2m", "msl"]),
            "obs_value": [280.0, np.nan, 1e5],
        },
        index=[7, 8, 9],
    )
    path = tmp_path / "frame.parquet"
    frame.to_parquet(path)
    decoded = decode_file(path, context=CONTEXT)
    assert decoded.report.rejected == {}
    assert decoded.table["time"][0].as_py() == datetime(2023, 12, 31, 23, tzinfo=UTC)
    assert decoded.table["obs_value"].to_pylist() == [280.0, None, 1e5]


def test_row_limit(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(make_table(20), path)
    decoded = decode_file(path, context=DecodeContext(limits=MessageLimits(values=10)))
    assert decoded.report.rejected == {"too_large": 1}


def test_parquet_of_runs_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """A million equal values in the lists of two rows: a few kilobytes."""
    monkeypatch.setattr(FileBudget, "FLAT", 100_000)
    path = tmp_path / "runs.parquet"
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1_000_000, "i1")), 500_000)
    pq.write_table(pa.table({"lat": lists}), path)
    assert path.stat().st_size < 50_000

    def read(*_):
        raise AssertionError("values were read")

    monkeypatch.setattr("worker.observations.decoders.table._decode", read)
    report = decode_file(path, context=CONTEXT).report
    assert report.rejected == {"too_large": 1}
    assert "values in a file" in report.quarantined[0].detail


def test_torn_parquet(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(make_table(20), path)
    for size in (4, 100, path.stat().st_size - 3):
        torn = tmp_path / "torn.parquet"
        torn.write_bytes(path.read_bytes()[:size])
        assert decode_file(torn).report.rejected == {"undecodable": 1}


def test_nested_columns_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {"time": ["2024-01-01"], "lat": [1.0], "lon": [1.0], "variable": ["msl"]}
    pq.write_table(pa.table({**columns, "obs_value": [[1.0]]}), path)
    assert decode_file(path).report.rejected == {"invalid_table": 1}


# ---------------------------------------------------------------- earth2studio


def test_earth2studio_frame(tmp_path):
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime(["2024-01-01T12:00"] * 7).astype("datetime64[ns]"),
            "lat": np.float32([50, 51, 52, 53, 54, 55, 56]),
            "lon": np.float32([350, 10, 10, 10, 10, 10, 10]),
            "elev": np.float32([120, 9000, np.nan, 5000, 3, 3, 3]),
            "pres": np.float32([np.nan, 30000, np.nan, np.nan, np.nan, np.nan, np.nan]),
            "station": list("abcdefg"),
            "class": ["conv"] * 7,
            "observation": np.float32([281, 230, 250, 20, 1e5, 3, 1]),
            "variable": ["t2m", "t", "t500", "u", "msl", "fg10m", "tp"],
        }
    )
    path = tmp_path / "e2s.parquet"
    frame.to_parquet(path)
    decoded = decode_file(path, context=CONTEXT)
    rows = decoded.table.to_pylist()
    assert [(r["variable"], r["vertical_kind"], r["vertical"]) for r in rows] == [
        ("2m_temperature", "surface", None),
        ("temperature", "pressure", 30000.0),
        ("temperature", "pressure", 50000.0),
        ("u_component_of_wind", "height", 5000.0),
        ("mean_sea_level_pressure", "surface", None),
    ]
    assert rows[0]["lon"] == -10.0
    assert (rows[0]["elevation"], rows[0]["station_id"]) == (120.0, "a")
    assert decoded.report.rejected == {"unsupported_variable": 2}
    frame.to_csv(tmp_path / "e2s.csv", index=False)
    again = decode_file(tmp_path / "e2s.csv", context=CONTEXT)
    assert again.table["variable"].to_pylist() == decoded.table["variable"].to_pylist()


# ---------------------------------------------------------------- GeoJSON


def feature(properties, coordinates=(10.0, 50.0, 120.0), kind="Point"):
    geometry = {"type": kind, "coordinates": list(coordinates)}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def geojson(tmp_path, *features):
    path = tmp_path / "points.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return decode_file(path, context=CONTEXT)


def test_geojson_single_and_several_values(tmp_path):
    time = "2024-01-01T12:00:00Z"
    decoded = geojson(
        tmp_path,
        feature({"time": time, "station_id": "x", "variable": "t2m", "obs_value": 281.0}),
        feature(
            {
                "time": time,
                "report_type": "synop",
                "values": {
                    "2m_temperature": {"value": 10.0, "units": "degC", "error": 1.5},
                    "mean_sea_level_pressure": 101300,
                },
            },
            (10.0, 50.0),
        ),
    )
    rows = decoded.table.to_pylist()
    assert [(r["variable"], r["obs_value"], r["obs_error"]) for r in rows] == [
        ("2m_temperature", 281.0, None),
        ("2m_temperature", pytest.approx(283.15), 1.5),
        ("mean_sea_level_pressure", 101300.0, None),
    ]
    assert [r["elevation"] for r in rows] == [120.0, None, None]
    assert [r["report_type"] for r in rows] == ["other", "synop", "synop"]


def test_a_value_that_cannot_be_read_costs_no_other_value_of_its_feature(tmp_path):
    values = {
        "2m_temperature": 281.0,
        "10m_u_component_of_wind": {"units": "m s**-1"},
        "10m_v_component_of_wind": {"value": 3.0, "colour": "red"},
        "mean_sea_level_pressure": 101300,
    }
    decoded = geojson(tmp_path, feature({"time": "2024-01-01T12:00:00Z", "values": values}))
    assert decoded.table["variable"].to_pylist() == ["2m_temperature", "mean_sea_level_pressure"]
    assert decoded.report.rejected == {"invalid_table": 2}
    assert [q.detail for q in decoded.report.quarantined] == [
        "feature 1: no value of 10m_u_component_of_wind",
        "feature 1: unknown properties 'colour' of 10m_v_component_of_wind",
    ]


def test_geojson_faults_are_isolated(tmp_path):
    good = feature({"time": "2024-01-01T12:00:00Z", "variable": "t2m", "obs_value": 281.0})
    decoded = geojson(
        tmp_path,
        good,
        feature({"variable": "t2m", "obs_value": 281.0}),
        feature(good["properties"], kind="LineString"),
        feature({**good["properties"], "colour": "red"}),
        feature(good["properties"], (10.0,)),
        {"type": "Feature"},
        7,
    )
    assert len(decoded.table) == 1
    assert decoded.report.rejected == {"invalid_table": 6}
    assert "feature 2" in decoded.report.quarantined[0].detail


@pytest.mark.parametrize(
    "text", ['{"type": "Feature"', '{"type": "FeatureCollection", "features": {}}', "[" * 100000]
)
def test_geojson_that_is_none(tmp_path, text):
    path = tmp_path / "x.geojson"
    path.write_text(text)
    with pytest.raises(DecodeError):
        from worker.observations.decoders.geojson import decode_geojson

        decode_geojson(path, CONTEXT)


def parquet(tmp_path, **columns):
    given = {
        "time": [datetime(2025, 1, 1, 12)], "lat": [52.0], "lon": [13.0], "variable": ["t2m"],
        "obs_value": [275.0],
    }  # fmt: skip
    table = pa.table({**given, **columns})
    pq.write_table(table, tmp_path / "table.parquet")
    return table


def refusal(path, **options):
    decoded = decode_file(path, context=DecodeContext(options=options))
    assert decoded.table.num_rows == 0
    return faults(decoded)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "table.parquet"
    table = parquet(tmp_path)
    pq.write_table(table.append_column("lat", table["lon"]), path)
    ((reason, detail),) = refusal(path)
    assert reason == "invalid_table"
    assert detail == "Expected each column once in the schema; got lat more than once."


@pytest.mark.parametrize("columns", [{"other": "obs_value"}, {"lat": "obs_value"}])
def test_two_columns_that_the_sender_calls_the_same_are_refused(tmp_path, columns):
    parquet(tmp_path, other=[290.0])
    ((reason, detail),) = refusal(tmp_path / "table.parquet", columns=columns)
    assert reason == "invalid_table" and "obs_value more than once" in detail


def test_a_renamed_column_that_is_not_there_is_noted(tmp_path):
    context = DecodeContext(options={"columns": {"sigma": "obs_error"}})
    decoded = csv(tmp_path, f"{HEADER}\n2024-01-01T12:00Z,50,1,msl,101325\n", context)
    assert decoded.report.notes == {"no_column_sigma": 1}


def test_columns_without_end_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"{HEADER}{',' * 90_000}\n2024-01-01T12:00Z,1,1,msl,101325{',' * 90_000}\n")
    assert refusal(path) == [("invalid_table", "Expected at most 1000 columns; got 90005.")]
    wide = tmp_path / "wide.parquet"
    pq.write_table(pa.table({f"c{n}": [1] for n in range(1_001)}), wide)
    assert refusal(wide) == [("invalid_table", "Expected at most 1000 columns; got 1001.")]


def test_variables_of_a_wrong_type_in_a_frame_of_earth2studio(tmp_path):
    table = parquet(tmp_path, variable=pa.array([["t2m"]])).rename_columns(
        {"obs_value": "observation"}
    )
    pq.write_table(table, tmp_path / "table.parquet")
    detail = "Expected text in column 'variable'; got list<element: string>."
    assert refusal(tmp_path / "table.parquet") == [("invalid_table", detail)]


def test_a_name_that_geojson_repeats(tmp_path):
    path = tmp_path / "points.geojson"
    path.write_text(
        '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [13, 52]}, "properties": '
        '{"time": "2025-01-01T12:00Z", "values": {"t2m": 275.0, "t2m": 276.0}}}'
    )
    detail = "Expected GeoJSON; the name 't2m' is repeated in an object."
    assert refusal(path) == [("undecodable", detail)]
