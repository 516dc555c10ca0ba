"""One bad cell costs its own row, under its line or feature; marks of missing values are no values."""

import json
from datetime import UTC, datetime

import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.domain.errors import DecodeError
from model.domain.observations import validate_table
from worker.observations.decoders.base import DecodeContext, parse_times
from worker.observations.decoders.bufr.identity import compose_time
from worker.observations.decoders.decode import decode_file
from worker.observations.decoders.table import decode_csv

HEADER = "time,lat,lon,variable,obs_value"
GOOD = "2025-01-01T12:00Z,52,13,t2m,275"
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def csv(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    decoded = decode_file(path)
    validate_table(decoded.table)
    return decoded


def details(decoded):
    return [q.detail for q in decoded.report.quarantined]


@pytest.mark.parametrize(
    ("column", "cell", "shown"),
    [
        ("profile_id", "1039320250105", "1039320250105"),
        ("profile_id", "3000000000", "3000000000"),
        ("profile_id", "-3000000000", "-3000000000"),
        ("profile_id", "1.5", "1.5"),
        ("profile_id", "inf", "inf"),
        ("update_sequence", "40000", "40000"),
        ("update_sequence", "1.5", "1.5"),
        ("elevation", "1e300", "1e+300"),
        ("obs_error", "-inf", "-inf"),
        ("elevation", "low", "'low'"),
    ],
)
def test_a_number_that_its_column_cannot_hold(tmp_path, column, cell, shown):
    decoded = csv(tmp_path, f"{HEADER},{column}\n{GOOD},1\n{GOOD},{cell}\n{GOOD},\n")
    assert len(decoded.table) == 2
    assert details(decoded) == [f"column '{column}', line 3: got {shown}"]
    assert decoded.report.quarantined[0].report == 3
    assert decoded.table[column].to_pylist() == [1, None]


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([2**60 + 1, 1], pa.int64(), [1]),
        ([1.5, 1.0], pa.float64(), [1]),
        ([True, True], pa.bool_(), [1, 1]),
        ([40_000_000_000, 7], pa.uint64(), [7]),
    ],
)
def test_numbers_of_a_parquet_column(tmp_path, values, kind, kept):
    path = tmp_path / "x.parquet"
    columns = {"time": ["2025-01-01T12:00Z"] * 2, "lat": [1.0] * 2, "lon": [50.0] * 2}
    columns |= {"variable": ["t2m"] * 2, "obs_value": [280.0] * 2}
    pq.write_table(pa.table({**columns, "profile_id": pa.array(values, kind)}), path)
    assert decode_file(path).table["profile_id"].to_pylist() == kept


def test_times_that_nanoseconds_cannot_hold(tmp_path):
    """The year 9999 wrapped around to 1816."""
    path = tmp_path / "x.parquet"
    columns = {
        "lat": [1.0] * 2,
        "lon": [50.0] * 2,
        "variable": ["t2m"] * 2,
        "obs_value": [280.0] * 2,
    }
    times = pa.array([253_370_764_800, 1_735_732_800], pa.timestamp("s"))
    pq.write_table(pa.table({"time": times, **columns}), path)
    decoded = decode_file(path)
    assert decoded.table["time"].to_pylist() == [NOON]
    assert details(decoded) == ["column 'time', row 1"]
    text = f"{HEADER}\n9999-01-01T00:00Z,52,13,t2m,275\n2025-01,52,13,t2m,275\n2025,52,13,t2m,275\n"
    assert dict(csv(tmp_path, text).report.rejected) == {"no_time": 3}


LEAP = {
    "2016-12-31T23:59:60Z": datetime(2017, 1, 1, tzinfo=UTC),
    "2016-12-31 23:59:60": datetime(2017, 1, 1, tzinfo=UTC),
    "20161231T235960.25Z": datetime(2017, 1, 1, 0, 0, 0, 250_000, tzinfo=UTC),
    "2017-01-01T00:59:60+01:00": datetime(2017, 1, 1, tzinfo=UTC),
    "2016-12-31T23:59:61Z": None,
    "2016-12-31T23:60:60Z": None,
    "2016-12-31T23:59:600Z": None,
}


@pytest.mark.parametrize("form", ["csv", "geojson"])
def test_a_leap_second_is_the_second_that_follows(tmp_path, form):
    if form == "csv":
        rows = "".join(f"{time},52,13,t2m,275\n" for time in LEAP)
        decoded = csv(tmp_path, f"{HEADER}\n{rows}")
    else:
        decoded = geojson(
            tmp_path, [feature({"time": time, "values": {"t2m": 275.0}}) for time in LEAP]
        )
    assert decoded.table["time"].to_pylist() == [time for time in LEAP.values() if time]
    assert dict(decoded.report.rejected) == {"no_time": 3}


def test_a_leap_second_is_that_of_bufr():
    parts = (np.array([float(n)]) for n in (2016, 12, 31, 23, 59, 60))
    assert parse_times(np.array(["2016-12-31T23:59:60Z"], object)) == compose_time(*parts)


def test_lines_are_those_of_the_file(tmp_path):
    text = (
        f"{HEADER}\n"
        f"{GOOD}\n"
        "\n"
        "2025-01-01T12:00Z,52,13,4,t2m,275\n"
        '2025-01-01T12:00Z,52,"13,4",t2m,275\n'
        '2025-01-01T12:00Z,52,"13,t2m,275\n'
        "2025-01-01T12:00Z,52,east,t2m,275\n"
        f"{GOOD}\n\n"
    )
    for ends in ("\n", "\r\n", "\r"):
        decoded = csv(tmp_path, text.replace("\n", ends))
        assert len(decoded.table) == 2
        assert sorted(details(decoded)) == [
            "column 'lon', line 5: got '13,4'",
            "column 'lon', line 7: got 'east'",
            "line 4: 6 columns; the header has 5",
            "line 6: a quote that does not close",
        ]


def test_lines_of_a_file_of_several_blocks(tmp_path):
    """Beyond 1 MB pyarrow reads in blocks; a longer line ended the whole file."""
    lines = [HEADER, *[GOOD] * 60_000]
    lines[30_000], lines[50_000] = "1,2", GOOD.replace("52", "north")
    lines[10] = GOOD.replace("t2m", "t" * 2_000_000)
    decoded = csv(tmp_path, "\n".join(lines))
    assert len(decoded.table) == 59_997
    assert sorted(details(decoded)) == [
        "column 'lat', line 50001: got 'north'",
        "line 11: too long",
        "line 30001: 2 columns; the header has 5",
    ]


def test_commas_at_the_line_ends_and_headers_without_a_name(tmp_path):
    decoded = csv(tmp_path, f"{HEADER},,\n{GOOD},,\n")
    assert len(decoded.table) == 1
    assert decoded.report.notes["ignored_empty_column"] == 2
    decoded = csv(tmp_path, f"{HEADER},\n{GOOD},7\n")
    assert "name for column 6 in the header; it holds '7'" in details(decoded)[0]


def test_a_header_that_is_none(tmp_path):
    assert "--data-binary" in details(csv(tmp_path, HEADER + GOOD + GOOD))[0]
    assert "got lat more than once" in details(csv(tmp_path, f"{HEADER},lat\n{GOOD},5\n"))[0]


def test_placeholders_of_positions_and_elevations(tmp_path):
    places = [
        "52,-999,", "52,999.999,", "-999,13,", "99999,13,", "52,9999,", "52,-9999.9,",
        "52,13,9999", "52,13,-999.9", "52,13,99999.0", "52,13,-9999", "52,13,32767", "52,13,1e20",
        "52,13,9.96921e36", "52,13,-3.4e38", "52,13,999",
    ]  # fmt: skip
    rows = "".join(f"2025-01-01T12:00Z,{place},t2m,275\n" for place in places)
    decoded = csv(tmp_path, f"time,lat,lon,elevation,variable,obs_value\n{rows}")
    assert dict(decoded.report.rejected) == {"no_position": 6}
    assert decoded.table["elevation"].to_pylist() == [None] * 8 + [999.0]
    assert set(decoded.table["obs_value"].to_pylist()) == {275.0}


def test_numbers_as_station_identifiers(tmp_path):
    rows = "".join(f"{GOOD},{name}\n" for name in ("10384.0", "06030", "0-20000-0-10384", ""))
    decoded = csv(tmp_path, f"{HEADER},station_id\n{rows}")
    assert decoded.table["station_id"].to_pylist() == ["10384", "06030", "0-20000-0-10384", ""]
    features = [feature({"station_id": 10384.0, "values": {"t2m": 275.0}})]
    assert geojson(tmp_path, features).table["station_id"].to_pylist() == ["10384"]


def feature(properties, coordinates=(13.4, 52.47, 48.0)):
    return {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": list(coordinates)},
        "properties": {"time": "2025-01-01T12:00:00Z", **properties},
    }


def geojson(tmp_path, features):
    path = tmp_path / "x.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    decoded = decode_file(path)
    validate_table(decoded.table)
    return decoded


def test_features_are_numbered_and_null_is_unknown(tmp_path):
    two = {"values": {"t2m": 275.0, "msl": 1e5}}
    decoded = geojson(
        tmp_path,
        [
            feature(two, (13.4, 52.47, None)),
            {"type": "Feature", "geometry": None, "properties": {}},
            feature(two, (None, 52.47)),
            feature({**two, "profile_id": 10**12}),
            feature(two, (13.4, 10**400)),
            feature({"values": {"t2m": "warm", "msl": 1e5}}, (13.4, 52.47, "NaN")),
            feature({**two, "station_id": "\ud800"}),
        ],
    )
    assert details(decoded)[1:] == [
        *["column 'lon', feature 3"] * 2,
        *["column 'profile_id', feature 4: got 1000000000000"] * 2,
        *["column 'lat', feature 5: got inf"] * 2,
        "column 'obs_value', feature 6: got 'warm'",
    ]
    assert details(decoded)[0].startswith("feature 2: ")
    assert decoded.table["elevation"].to_pylist() == [None] * 3 + [48.0] * 2
    assert decoded.table["station_id"].to_pylist()[-1] == "?"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["06260", 1], "'[\"06260\", 1]'"),
        ({"wigos": "0-20000-0-10384"}, '\'{"wigos": "0-20000-0-10384"}\''),
        ([], "'[]'"),
        (True, "'true'"),
        (["x" * 1000], f"'[\"{'x' * 78}'"),
    ],
    ids=["list", "object", "empty", "true", "long"],
)
@pytest.mark.parametrize("name", ["station_id", "platform", "units", "time", "elevation"])
def test_a_property_that_is_neither_text_nor_number(tmp_path, name, value, shown):
    """`['06260', 1]`, as Python writes a list, was taken for the name of a station."""
    good, units = {"variable": "t2m", "obs_value": 275.0}, {"units": "K"}
    decoded = geojson(tmp_path, [feature({**good, **units, name: value}), feature(good)])
    assert len(decoded.table) == 1
    assert dict(decoded.report.rejected) == {"invalid_table": 1}
    assert details(decoded) == [f"column '{name}', feature 1: got {shown}"]


def test_other_places_where_geojson_has_lists_and_objects(tmp_path):
    values = {"t2m": {"value": [275.0]}, "msl": {"value": 1e5, "units": {"a": 1}}, "sst": [1]}
    decoded = geojson(
        tmp_path,
        [
            feature({"values": values}),
            feature({"values": {"t2m": 275.0}}, ([13.4], 52.47)),
            feature({"variable": ["t2m"], "obs_value": 275.0}),
            {**feature({"values": {"t2m": 275.0}}), "geometry": {"type": ["Point"]}},
            feature({"values": {"t2m": 275.0}}),
        ],
    )
    assert len(decoded.table) == 1
    assert sorted(details(decoded)) == [
        "column 'lon', feature 2: got '[13.4]'",
        "column 'obs_value', feature 1: got '[1]'",
        "column 'obs_value', feature 1: got '[275.0]'",
        "column 'units', feature 1: got '{\"a\": 1}'",
        "column 'variable', feature 3: got '[\"t2m\"]'",
        'feature 4: expected a Point; got ["Point"]',
    ]
    path = tmp_path / "none.geojson"
    path.write_text('{"features": [], "type": {"Feature": true}}')
    assert details(decode_file(path))[0].endswith('got type {"Feature": true}.')


def test_a_text_where_netcdf_should_hold_numbers(tmp_path):
    path = tmp_path / "x.nc4"
    with netCDF4.Dataset(path, "w") as data:
        data.createDimension("Location", 2)
        meta = data.createGroup("MetaData")
        for name in ("latitude", "longitude"):
            meta.createVariable(name, "f4", ("Location",))[:] = np.float32([50, 51])
        time = meta.createVariable("dateTime", "i8", ("Location",))
        time.units, time[:] = "seconds since 1970-01-01T00:00:00Z", [1, 2]
        height = meta.createVariable("stationElevation", str, ("Location",))
        height[:] = np.array(["low", "high"], dtype=object)
        data.createGroup("ObsValue").createVariable("airTemperature", "f4", ("Location",))[:] = (
            280.0
        )
    decoded = decode_file(path)
    assert dict(decoded.report.rejected) == {"invalid_table": 1}
    assert "MetaData/stationElevation" in details(decoded)[0]


@pytest.mark.parametrize("fill", ["9.969209968386869e36", "-9.97e36", "1e20", "-3.4028235e38"])
def test_a_fill_value_is_no_value(tmp_path, fill):
    """What netCDF and GRIB tools put where there is none; a job has no use for it either."""
    text = f"{HEADER}\n{GOOD}\n{GOOD.replace('275', fill)}\n"
    assert csv(tmp_path, text).table["obs_value"].to_pylist() == [275.0, None]


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (b"", "empty_file", "empty"),
        (b"\xef\xbb\xbf\r\n\r\n", "empty_file", "empty"),
        (f"{HEADER}\n".encode(), "no_values", "rows after the header"),
        (f"{HEADER}\n{GOOD}\n".encode("utf-16"), "invalid_table", "UTF-16"),
        (f"{HEADER}\n{GOOD}\n".encode("utf-16-le"), "invalid_table", "UTF-16"),
        (f"{HEADER}\n{GOOD}\n".replace(",", ";").encode(), "invalid_table", "semicolons"),
        (f"{HEADER}\n{GOOD}\n".replace(",", "\t").encode(), "invalid_table", "tabs"),
    ],
)
def test_a_csv_file_without_rows_is_refused_by_what_it_is(tmp_path, content, reason, words):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=words) as caught:
        decode_csv(path, DecodeContext())
    assert caught.value.context["reason"] == reason


def test_every_feature_of_geojson_gives_rows_or_a_reason(tmp_path):
    good = {"time": "2025-01-01T12:00Z", "values": {"t2m": 275.0}}
    place = {"type": "Point", "coordinates": [13.0, 52.0]}
    features = [
        {"geometry": place, "properties": {**good, "values": {}}},
        {"geometry": place, "properties": {**good, "values": []}},
        {"geometry": place, "properties": {**good, "values": {"t2m": {"units": "K"}}}},
        {"geometry": place, "properties": {"time": good["time"]}},
        {"geometry": place, "properties": {**good, "lat": 1.0}},
        {"geometry": {"type": "Point", "coordinates": [13.0]}, "properties": good},
        None,
        {"geometry": place, "properties": good},
    ]
    path = tmp_path / "x.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    decoded = decode_file(path)
    assert len(decoded.table) == 1
    assert details(decoded) == [
        "feature 1: expected values by variable; got none",
        "feature 2: expected values by variable; got none",
        "feature 3: no value of t2m",
        "feature 4: neither values nor variable and obs_value",
        "feature 5: the property lat is not that of the point",
        "feature 6: expected the coordinates longitude and latitude; got fewer",
        "feature 7: expected a feature; got null or another type",
    ]
