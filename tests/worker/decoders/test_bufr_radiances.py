"""Radiances of sounders: channels, angles and flags by hand, and against eccodes' own values."""

import eccodes
import numpy as np
import pytest

from lab.encoders.ncep import fortran_records
from lab.encoders.ncep_files import AMSU_DUMP
from tests.worker.decoders.bufr_messages import CONTEXT, decode, message
from worker.observations.decoders.decode import decode_file

AMSU_A = 3
ZENITH, HEIGHT = 57.51, 823_900.0
EDGE = np.rad2deg(np.arcsin(6_371_008.8 / (6_371_008.8 + HEIGHT) * np.sin(np.deg2rad(ZENITH))))
"""The sine rule in the triangle of the Earth's centre, the satellite and the spot."""


def bit(number, width):
    """A flag table with one bit, numbered from the left."""
    return 1 << (width - number)


def amsu(spots=(1, 15, 30), zenith=(ZENITH, 2.0, ZENITH), sensor=AMSU_A, first=28, **columns):
    """A scan line (310009) with brightness temperatures in three channels."""
    brightness = {
        f"#{n}#brightnessTemperature": np.array([200.0, 201.0, 202.0]) + 10.0 * n for n in (1, 2, 3)
    }
    channels = {
        f"#{n}#tovsOrAtovsOrAvhrrInstrumentationChannelNumber": first + n - 1 for n in (1, 2, 3)
    }
    return message(
        (310_009,), 3,
        {
            "#1#satelliteIdentifier": 4, "#1#satelliteSensorIndicator": sensor,
            "#1#fieldOfViewNumber": np.array(spots), "#1#second": 0,
            "#1#latitude": np.array([10.0, 11.0, 12.0]), "#1#longitude": np.array([3.0, 4.0, 5.0]),
            "#1#heightOfStation": HEIGHT, "#1#satelliteZenithAngle": np.array(zenith),
            **channels, **brightness, **columns,
        },
        subsets=3,
    )  # fmt: skip


def test_channels_are_the_sensors_own_and_angles_are_seen_from_the_satellite():
    decoded = decode(amsu())
    rows = decoded.table.to_pylist()
    assert len(rows) == 9
    assert {(r["report_type"], r["station_id"], r["platform"]) for r in rows} == {
        ("satellite", "sat004", "amsu-a")
    }
    assert {r["vertical_kind"] for r in rows} == {"channel"}
    first = [r for r in rows if round(r["lat"]) == 10]
    assert [(r["vertical"], r["obs_value"]) for r in first] == [(1, 210.0), (2, 220.0), (3, 230.0)]
    middle = np.rad2deg(np.arcsin(np.sin(np.deg2rad(2.0)) * 6_371_008.8 / (6_371_008.8 + HEIGHT)))
    angles = [next(r["scan_angle"] for r in rows if round(r["lat"]) == lat) for lat in (10, 11, 12)]
    assert angles == pytest.approx([-EDGE, -middle, EDGE], abs=1e-4)
    assert (
        pytest.approx(48.3, abs=0.05) == EDGE
    )  # AMSU-A's outermost spot: 14.5 steps of 10/3 degrees
    assert all(r["obs_error"] is None and r["elevation"] is None for r in rows)


def test_without_zenith_angle_the_number_of_the_spot_counts():
    decoded = decode(amsu(zenith=(np.nan, np.nan, np.nan)))
    found = sorted(set(decoded.table["scan_angle"].to_pylist()))
    assert found == pytest.approx([-14.5 * 10 / 3, -0.5 * 10 / 3, 14.5 * 10 / 3], abs=1e-4)


@pytest.mark.parametrize(
    ("key", "number", "flagged"),
    [
        ("#2#channelQualityFlagsForAtovs", 1, 3),  # no good blackbody counts
        ("#2#channelQualityFlagsForAtovs", 5, 0),  # some bad space views: used
        ("#1#scanLineStatusFlagsForAtovs", 1, 9),  # do not use
        ("#1#scanLineQualityFlagsForAtovs", 6, 0),  # fewer lines than preferred
        ("#1#fieldOfViewQualityFlagsForAtovs", 23, 9),  # suspect
    ],
)
def test_flags_of_the_provider(key, number, flagged):
    table = decode(amsu(**{key: bit(number, 24)})).table
    outcomes = table["rejected_by"].to_pylist()
    assert outcomes.count("preqc") == flagged
    if flagged == 3:
        assert {r["vertical"] for r in table.to_pylist() if r["rejected_by"]} == {2.0}


def test_channels_of_another_sensor_and_unknown_sensors_are_counted_not_taken():
    decoded = decode(amsu(first=42))  # AMSU-A 15, then two of AMSU-B
    assert decoded.table["vertical"].to_pylist() == [15.0] * 3
    assert decoded.report.not_used["012063 brightnessTemperature"] == 6
    unknown = decode(amsu(sensor=6))
    assert len(unknown.table) == 0
    assert unknown.report.rejected == {"no_values": 3}
    assert "hirs, msu, amsu-a, amsu-b, mhs, atms" in unknown.report.quarantined[0].detail


def test_atms_with_flags_after_each_channel():
    columns = {"#1#satelliteIdentifier": 224, "#1#satelliteInstruments": 621, "#1#second": 0,
               "#1#fieldOfViewNumber": np.array([1, 96]), "#1#latitude": 1.0, "#1#longitude": 2.0,
               "#1#height": 829_920.0, "#1#satelliteZenithAngle": 63.86}  # fmt: skip
    for n, channel in enumerate((5, 6, 22), start=1):
        columns |= {
            f"#{n}#channelNumber": channel,
            f"#{n}#brightnessTemperature": 240.0 + n,
            f"#{n}#channelDataQualityFlags": bit(10, 12) if channel == 6 else 0,
        }
    decoded = decode(message((310_061,), 21, columns, subsets=2, counts={"extended": (3,)}))
    rows = decoded.table.to_pylist()
    assert [(r["vertical"], r["obs_value"], r["rejected_by"]) for r in rows[:3]] == [
        (5.0, 241.0, None), (6.0, 242.0, "preqc"), (22.0, 243.0, None)
    ]  # fmt: skip
    # ATMS' outermost spot: 47.5 steps of 1.11 degrees.
    angles = [r["scan_angle"] for r in rows]
    assert angles == pytest.approx([-52.725] * 3 + [52.725] * 3, abs=0.2)


def test_dumps_of_ncep(tmp_path):
    when = (2024, 3, 1, 6)
    report = {"SAID": 209, "SIID": 570, "YEAR": 2024, "MNTH": 3, "DAYS": 1, "HOUR": 6, "MINU": 10,
              "SECO": 5, "CLAT": 45.5, "CLON": -120.25, "SAZA": ZENITH, "HMSL": HEIGHT,
              "BRIT": [{"CHNM": n, "TMBR": 200.0 + n / 4} for n in range(1, 16)]}  # fmt: skip
    reports = [{**report, "FOVN": spot} for spot in (1, 30)]
    body = AMSU_DUMP.message("NC021023", reports, when, 21)
    path = tmp_path / "gdas.t06z.1bamua.tm00.bufr_d"
    path.write_bytes(fortran_records([AMSU_DUMP.definitions(when), body]))
    decoded = decode_file(path, context=CONTEXT)
    rows = decoded.table.to_pylist()
    assert [(r["vertical"], r["obs_value"]) for r in rows[:15]] == [
        (n, 200.0 + n / 4) for n in range(1, 16)
    ]
    assert {(r["station_id"], r["platform"], r["lat"], r["lon"]) for r in rows} == {
        ("sat209", "amsu-a", 45.5, -120.25)
    }
    expected = [-EDGE] * 15 + [EDGE] * 15
    assert [r["scan_angle"] for r in rows] == pytest.approx(expected, abs=1e-2)
    assert str(rows[0]["time"]).startswith("2024-03-01 06:10:05")


@pytest.mark.parametrize(
    ("name", "sensor", "edge"),
    [
        ("sat_soundings/trollbufr__metop_mhs.bufr", "mhs", 49.44),
        ("sat_soundings/dballe__obs3-3.1.bufr", "amsu-a", 48.33),
        ("radiances/wreport__atms1.bufr", "atms", 52.73),
    ],
)
def test_real_files_hold_what_eccodes_reads(realdata_dir, name, sensor, edge):
    path = realdata_dir / "bufr" / name
    table = decode_file(path, context=CONTEXT).table
    expected = []
    with path.open("rb") as file:
        while (handle := eccodes.codes_bufr_new_from_file(file)) is not None:
            eccodes.codes_set(handle, "unpack", 1)
            count = eccodes.codes_get(handle, "numberOfSubsets")
            values = eccodes.codes_get_array(handle, "brightnessTemperature")
            channels = len(values) // count
            expected += values.reshape(channels, count).T.ravel().tolist()
            eccodes.codes_release(handle)
    given = [value for value in expected if value > 0]
    assert table["obs_value"].to_pylist() == pytest.approx(given)
    angle = table["scan_angle"].to_numpy()
    assert set(table["platform"].to_pylist()) == {sensor}
    assert (angle.min(), angle.max()) == pytest.approx((-edge, edge), abs=0.2)
