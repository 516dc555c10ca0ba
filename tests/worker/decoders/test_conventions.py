"""What numbers and groups stand for: light winds, reports taken back, years, numbers as names."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyodc
import pytest
from bufr_messages import decode, synop, value, values

from model.domain.errors import DecodeError
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file
from worker.observations.formats import FORMATS

ARRIVAL = datetime(2026, 1, 17, 12, 40, tzinfo=UTC)
STATIONS = {"10384": {"lat": 52.47, "lon": 13.4, "elevation": 48.0}}


def text(tmp_path, body, name="bulletin"):
    path = tmp_path / name
    path.write_bytes(body.replace("\n", "\r\r\n").encode("ascii"))
    context = DecodeContext(received_time=ARRIVAL, options={"stations": STATIONS})
    return decode_file(path, context=context)


def test_a_direction_of_0_is_north_in_no_surface_report():
    """Note 180 to BUFR table B: calm 0/0, light and variable 0 with a speed, else 1 to 360 degrees."""
    variable = decode(synop(windDirection=0, windSpeed=1.5)).table
    assert value(variable, "10m_wind_speed") == pytest.approx(1.5)
    assert not values(variable, "10m_u_component_of_wind")
    north = decode(synop(windDirection=360, windSpeed=1.5)).table
    assert value(north, "10m_v_component_of_wind") == pytest.approx(-1.5)
    calm = decode(synop(windDirection=0, windSpeed=0.0)).table
    assert value(calm, "10m_u_component_of_wind") == value(calm, "10m_v_component_of_wind") == 0.0


@pytest.mark.parametrize(
    ("body", "version"),
    [
        ("SMDL01 EDZW 171200 CCA\nAAXX 17121\n10384 NIL=\n", 1),
        ("SMDL01 EDZW 171200 CCB\nAAXX 17121\n10384 46/// /////=\n", 2),
        ("SADL31 EDDB 171220 CCA\nMETAR EDDB 171220Z NIL=\n", 1),
    ],
)
def test_a_correction_that_says_nothing_takes_the_report_back(tmp_path, body, version):
    decoded = text(tmp_path, body)
    (row,) = decoded.table.to_pylist()
    assert (row["update_sequence"], row["obs_value"]) == (version, None)
    assert not decoded.report.rejected
    first = text(tmp_path, body.replace(" CCA", "").replace(" CCB", ""))
    assert len(first.table) == 0 and dict(first.report.rejected) == {"no_values": 1}


@pytest.mark.parametrize(
    "time",
    ["2025", "2025-01", "2025-01-17", 1735732800, 5.0, True, "9999-12-31T23:00:00Z",
     "0001-01-01T00:00:00Z", "9999-12-31T23:00:00-12:00"],
)  # fmt: skip
def test_reference_times_are_a_date_and_a_clock_of_our_years(time):
    with pytest.raises(DecodeError, match="reference_time"):
        FORMATS["text"].options.of({"reference_time": time})
    with pytest.raises(DecodeError, match="reference_time"):
        FORMATS["archive"].options.of({"text": {"reference_time": time}})


@pytest.mark.parametrize("stamp", ["99991231235959", "00010101000000", "20251399000000"])
def test_a_file_name_of_an_impossible_time_leaves_the_arrival(tmp_path, stamp):
    body = "SMDL01 EDZW 171200\nAAXX 17121\n10384 41680 69902 10037=\n"
    decoded = text(tmp_path, body, f"A_SMDL01EDZW171200_C_EDZW_{stamp}.txt")
    assert {str(r["time"])[:16] for r in decoded.table.to_pylist()} == {"2026-01-17 12:00"}


def odb(tmp_path, **columns):
    path = tmp_path / "x.odb"
    given = {
        "date@hdr": [20250101], "time@hdr": [120000], "lat@hdr": [52.0], "lon@hdr": [13.0],
        "statid@hdr": ["10384"], "obstype@hdr": [5], "varno@body": [2], "vertco_type@body": [1],
        "vertco_reference_1@body": [85000.0], "obsvalue@body": [280.0], **columns,
    }  # fmt: skip
    pyodc.encode_odb(pd.DataFrame(given), str(path))
    return decode_file(path)


@pytest.mark.parametrize("date", [250101, 16000101, 22620501, 99991231])
def test_a_year_that_nanoseconds_cannot_count_is_no_time(tmp_path, date):
    assert dict(odb(tmp_path, **{"date@hdr": [date]}).report.rejected) == {"no_time": 1}


def _csv_of(stations: list[str]) -> str:
    rows = [f"2025-01-01T12:00Z,52,5,2m_temperature,280,synop,{name}\n" for name in stations]
    return "time,lat,lon,variable,obs_value,report_type,station_id\n" + "".join(rows)


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64()])
def test_a_column_of_numbers_has_lost_the_zero_of_blocks_01_to_09(tmp_path, kind):
    columns = {
        "time": ["2025-01-01T12:00Z"] * 3, "lat": [52.0, 52.1, 52.2], "lon": [5.2] * 3,
        "variable": ["2m_temperature"] * 3, "obs_value": np.full(3, 280.0),
        "report_type": ["synop", "synop", "buoy"], "station_id": pa.array([6260, 10384, 6260], kind),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = decode_file(tmp_path / "x.parquet").table["station_id"].to_pylist()
    assert found == ["06260", "10384", "6260"]
    (tmp_path / "x.csv").write_text(_csv_of(["6260", "10384", "0-20000-0-06260"]))
    found = decode_file(tmp_path / "x.csv").table["station_id"].to_pylist()
    assert found == ["06260", "10384", "0-20000-0-06260"]
    (tmp_path / "x.csv").write_text(_csv_of(["6260", "10384", "06270"]))  # zeros are kept here
    assert decode_file(tmp_path / "x.csv").table["station_id"].to_pylist()[0] == "6260"
    assert odb(tmp_path, **{"statid@hdr": [6260.0]}).table["station_id"].to_pylist() == ["06260"]
