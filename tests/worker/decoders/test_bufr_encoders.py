"""Tables encoded as BUFR and read again by pdbufr, and by our decoder in the precision of BUFR."""

import warnings

import numpy as np
import pandas as pd
import pdbufr
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from bufr_messages import decode, values
from encoded_reports import HOUR, MINUTE, STATIONS, WIND, WIND10, N, ascent, observations, observed

from lab.encoders.bufr import ENCODERS, encode_bufr
from lab.encoders.message import reported_direction
from model.domain.errors import InvalidInput, UnknownName

TOLERANCE = {
    # Half of the smallest step of the element; wind: whole degrees and 0.1 m/s at 20 m/s.
    "2m_temperature": 0.005, "2m_dewpoint_temperature": 0.005, "surface_pressure": 5.0,
    "mean_sea_level_pressure": 5.0, "2m_relative_humidity": 0.005, "total_precipitation": 5e-5,
    "sea_surface_temperature": 0.005, "temperature": 0.005, "specific_humidity": 6e-6,
    **dict.fromkeys((*WIND10, *WIND), 0.25),
}  # fmt: skip


@pytest.mark.parametrize("report_type", STATIONS)
@pytest.mark.parametrize(("reports", "compressed"), [(1, True), (5, True), (5, False)])
def test_every_network_comes_back(report_type, reports, compressed):
    data = encode_bufr(observations(report_type), report_type, reports, compressed)
    decoded = decode(data)
    assert decoded.report.messages == -(-N // reports)
    assert not decoded.report.rejected
    assert set(decoded.table["report_type"].to_pylist()) == {report_type}
    assert set(decoded.table["rejected_by"].to_pylist()) == {None}
    for variable, given in observed(report_type).items():
        rows = decoded.table.filter(pc.equal(decoded.table["variable"], variable))
        np.testing.assert_allclose(rows["obs_value"].to_numpy(), given, atol=TOLERANCE[variable])
        assert rows["station_id"].to_pylist() == STATIONS[report_type]
        coarse = 0.005 if report_type == "ship" else 1e-5
        np.testing.assert_allclose(
            rows["lat"].to_numpy(), np.linspace(-70, 70, N).round(2), atol=coarse
        )
        times = rows["time"].cast(pa.int64()).to_numpy()
        np.testing.assert_array_equal(times, (HOUR + np.arange(N) * MINUTE).astype(np.int64))
        if report_type in ("aircraft", "amv"):
            # Flight levels are whole metres, pressures of vectors 10 Pa.
            np.testing.assert_allclose(
                rows["vertical"].to_numpy(), np.linspace(20_000, 90_000, N).round(-1), atol=8.0
            )


def test_another_reader_finds_the_same_elements(tmp_path):
    path = tmp_path / "synop.bufr"
    path.write_bytes(encode_bufr(observations("synop"), "synop"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pdbufr.read_bufr(path, columns="all", flat=True)
    given = observed("synop")
    assert len(frame) == N
    np.testing.assert_allclose(frame["#1#airTemperature"], given["2m_temperature"], atol=0.0051)
    np.testing.assert_allclose(
        frame["#1#nonCoordinatePressure"].astype(float), given["surface_pressure"], atol=5.1
    )
    rain = pd.to_numeric(frame["#1#totalPrecipitationOrTotalWaterEquivalent"])
    np.testing.assert_allclose(rain, given["total_precipitation"] * 1000, atol=0.051)
    assert (frame["#4#timePeriod"] == -1).all()
    assert (frame["#7#heightOfSensorAboveLocalGroundOrDeckOfMarinePlatform"] == 10).all()
    assert frame["#1#stationNumber"].tolist() == list(range(N))


def test_an_ascent_comes_back_with_its_drift():
    decoded = decode(encode_bufr(ascent(), "temp"))
    assert decoded.report.messages == 1 and set(decoded.report.rows_by_report_type) == {"temp"}
    temperature = decoded.table.filter(pc.equal(decoded.table["variable"], "temperature"))
    np.testing.assert_allclose(
        temperature["obs_value"].to_numpy(), 288.0 - 10.0 * np.arange(5), atol=0.005
    )
    np.testing.assert_allclose(temperature["lat"].to_numpy(), np.linspace(50.0, 50.2, 5), atol=1e-5)
    np.testing.assert_allclose(temperature["lon"].to_numpy(), np.linspace(10.0, 10.5, 5), atol=1e-5)
    times = temperature["time"].cast(pa.int64()).to_numpy()
    np.testing.assert_array_equal(times, (HOUR + np.arange(5) * 5 * MINUTE).astype(np.int64))
    humidity = values(decoded.table, "specific_humidity")
    # Dewpoint to 0.01 K: about 0.1 % of the humidity.
    np.testing.assert_allclose(humidity, [8e-3, 6e-3, 3e-3, 5e-4, 2e-5], rtol=1e-3)
    # 601 hPa is no standard level.
    expected = np.array([110.0, 780.0, 1_500.0, 9_300.0]) * 9.80665
    np.testing.assert_allclose(values(decoded.table, "geopotential"), expected, atol=5.0)


def test_wigos_stations_keep_their_identifier():
    table = observations("synop")
    at = table.schema.get_field_index("station_id")
    names = pa.array(["0-20000-0-06260"] * table.num_rows).dictionary_encode()
    table = table.set_column(at, table.schema.field(at), names)
    found = decode(encode_bufr(table, "synop")).table["station_id"].to_pylist()
    assert set(found) == {"0-20000-0-06260"}


def test_corrections_outrank_the_original():
    data = encode_bufr(observations("synop"), "synop", update_sequence=2)
    assert set(decode(data).table["update_sequence"].to_pylist()) == {2}


def test_nothing_to_encode():
    assert encode_bufr(observations("synop"), "ship") == b""


def test_errors_name_what_does_not_fit():
    with pytest.raises(UnknownName, match="gnss"):
        encode_bufr(observations("synop"), "gnss")
    table = observations("synop")
    at = table.schema.get_field_index("obs_value")
    table = table.set_column(at, table.schema.field(at), pa.array(np.full(table.num_rows, 1e9)))
    with pytest.raises(InvalidInput):
        encode_bufr(table, "synop")


@pytest.mark.parametrize(("report_type", "width"), [("aircraft", 8), ("ship", 9), ("synop", 20)])
def test_a_name_too_long_for_its_element_is_not_cut(report_type, width):
    """Cut, `aircraft-0001` and `aircraft-0002` would be one aircraft."""
    table = observations(report_type)
    at = table.schema.get_field_index("station_id")
    field = table.schema.field(at)

    def named(length):
        names = pa.array(["P" * length] * table.num_rows).dictionary_encode().cast(field.type)
        return encode_bufr(table.set_column(at, field, names), report_type)

    assert set(decode(named(width)).table["station_id"].to_pylist()) == {"P" * width}
    with pytest.raises(InvalidInput, match=f"at most {width} characters"):
        named(width + 1)


def test_every_encoder_belongs_to_a_network():
    assert set(ENCODERS) == set(STATIONS) | {"temp", "dropsonde"}


def test_a_north_wind_is_360_and_calm_0():
    """Half a degree east of north rounds to north, not to the 0 that stands for variable winds."""
    u, v = np.array([-0.01, 0.01, 0.0, 0.0]), np.array([-5.0, -5.0, -5.0, 0.0])
    assert reported_direction(u, v).tolist() == [360.0, 360.0, 360.0, 0.0]
