"""Counts and values of real files and of our own against pdbufr, which decodes through eccodes.

pdbufr's flat form gives each report as one line of ranked elements; the expected rows are derived
here from those elements, by the rule of each network, with conversions written out.
"""

import warnings

import numpy as np
import pandas as pd
import pdbufr
import pyarrow.compute as pc
import pytest
from encoded_reports import write_file

from worker.observations.decoders.decode import decode_file

SURFACE = (
    # variable, pdbufr element, factor
    ("surface_pressure", "#1#nonCoordinatePressure", 1.0),
    ("mean_sea_level_pressure", "#1#pressureReducedToMeanSeaLevel", 1.0),
    ("2m_temperature", "#1#airTemperature", 1.0),
    ("2m_dewpoint_temperature", "#1#dewpointTemperature", 1.0),
    ("2m_relative_humidity", "#1#relativeHumidity", 0.01),
)
SURFACE_FILES = (
    "surface_land/pdbufr__obs_3day.bufr",
    "surface_land/pybufrkit__bssh_170.bufr",
    "surface_land/synop2bufr__A_ISMD01YRBK211200_C_EDZW_20220321120500_12524783.bin",
    "surface_land/libecbufr__ismd01_okpr.bufr",
    "surface_land/e-soh__SYNOP_BUFR_2718.bufr",
    "surface_land/wis2box__WIGOS_multi-message.bufr4",
    "surface_land/bufr2geojson__A_ISIA21EIDB202100_C_EDZW_20220320210902_11839953.bin",
    "surface_land/dballe__synop-groundtemp.bufr",
    "surface_sea/e-soh__SurfaceSee_subset_12.buf",
    *(f"encoded/{network}" for network in ("synop", "ship", "buoy", "drifter")),
)


@pytest.fixture
def bufr_file(request, tmp_path):
    """Return the path of a real file by its name, or of one of ours (`encoded/NETWORK`)."""

    def find(name: str):
        folder, _, network = name.partition("/")
        if folder == "encoded":
            return write_file(tmp_path, network)
        return request.getfixturevalue("realdata_dir") / "bufr" / name

    return find


def flat(path) -> pd.DataFrame:
    """One line per report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pdbufr.read_bufr(path, columns="all", flat=True)


def column(frame: pd.DataFrame, *names: str) -> np.ndarray:
    """The first of the elements that the frame has, NaN where missing or if it has none."""
    for name in names:
        if name in frame:
            return pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
    return np.full(len(frame), np.nan)


def ours(path, variable: str, **more):
    """Our rows of a variable; a correction without values has a row with none, which withdraws."""
    table = decode_file(path).table
    given = pc.is_finite(table["obs_value"])
    return table.filter(pc.and_(pc.equal(table["variable"], variable), given))


def usable(frame: pd.DataFrame) -> np.ndarray:
    """Reports with a time and a position."""
    parts = [
        column(frame, f"#1#{n}") for n in ("year", "month", "day", "hour", "latitude", "longitude")
    ]
    return np.isfinite(parts).all(axis=0)


def same(found, expected: np.ndarray, rtol: float = 0.0) -> None:
    np.testing.assert_allclose(
        np.array(found.to_pylist()), expected[np.isfinite(expected)], rtol=rtol
    )


def components(speed: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Note 180 to table B: a direction of 0 with some speed is light and variable.
    direction = np.where((direction == 0.0) & (speed > 0.0), np.nan, direction)
    angle = np.radians(np.where(speed == 0, 0.0, direction))
    return -speed * np.sin(angle), -speed * np.cos(angle)


@pytest.mark.parametrize("name", SURFACE_FILES)
def test_surface_reports(bufr_file, name):
    path = bufr_file(name)
    frame = flat(path)
    frame = frame[usable(frame)]
    total = 0
    for variable, element, factor in SURFACE:
        fallback = element.replace("airTemperature", "airTemperatureAt2M").replace(
            "dewpointTemperature", "dewpointTemperatureAt2M"
        )
        expected = column(frame, element, fallback) * factor
        found = ours(path, variable)
        same(found["obs_value"], expected, rtol=1e-15)
        total += found.num_rows
        kept = np.isfinite(expected)
        same(found["lat"], column(frame, "#1#latitude")[kept])
        same(found["lon"], column(frame, "#1#longitude")[kept], rtol=1e-12)
    assert total > 0


@pytest.mark.parametrize("name", SURFACE_FILES)
def test_surface_wind(bufr_file, name):
    path = bufr_file(name)
    frame = flat(path)
    frame = frame[usable(frame)]
    speed = column(frame, "#1#windSpeed", "#1#windSpeedAt10M")
    direction = column(frame, "#1#windDirection", "#1#windDirectionAt10M")
    u, v = components(speed, direction)
    np.testing.assert_allclose(
        ours(path, "10m_u_component_of_wind")["obs_value"].to_numpy(), u[np.isfinite(u)], atol=1e-12
    )
    np.testing.assert_allclose(
        ours(path, "10m_v_component_of_wind")["obs_value"].to_numpy(), v[np.isfinite(v)], atol=1e-12
    )


SONDE_FILES = (
    "upperair_sonde_wind/pdbufr__temp_small.bufr",
    "upperair_sonde_wind/earthkit-data__temp_10.bufr",
    "upperair_sonde_wind/pdbufr__temp_hires.bufr",
    "upperair_sonde_wind/e-soh__VerticalSoundings_Radiosonde.buf",
    "upperair_sonde_wind/dballe__temp-gts1.bufr",
    "encoded/temp",
)


def hierarchical(path, *elements: str) -> pd.DataFrame:
    """One line per level with all the elements present."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pdbufr.read_bufr(path, columns=list(elements), required_columns=list(elements))


@pytest.mark.parametrize("name", SONDE_FILES)
def test_sonde_temperatures(bufr_file, name):
    path = bufr_file(name)
    frame = hierarchical(path, "pressure", "airTemperature").dropna()
    found = ours(path, "temperature")
    assert found.num_rows == len(frame) > 0
    same(found["obs_value"], frame["airTemperature"].to_numpy())
    same(found["vertical"], frame["pressure"].to_numpy().astype(np.float32))


@pytest.mark.parametrize("name", SONDE_FILES)
def test_sonde_winds(bufr_file, name):
    path = bufr_file(name)
    frame = hierarchical(path, "pressure", "windDirection", "windSpeed").dropna()
    u, _ = components(frame["windSpeed"].to_numpy(), frame["windDirection"].to_numpy())
    found = ours(path, "u_component_of_wind")
    assert found.num_rows == len(frame)
    np.testing.assert_allclose(found["obs_value"].to_numpy(), u, atol=1e-12)


def test_sonde_drift(realdata_dir):
    path = realdata_dir / "bufr/upperair_sonde_wind/e-soh__VerticalSoundings_Radiosonde.buf"
    frame = hierarchical(path, "pressure", "latitudeDisplacement", "airTemperature").dropna()
    launch = flat(path)["#1#latitude"].iloc[0]
    expected = launch + frame["latitudeDisplacement"].to_numpy()
    np.testing.assert_allclose(ours(path, "temperature")["lat"].to_numpy(), expected, rtol=1e-12)


AIRCRAFT_FILES = (
    "aircraft/pdbufr__aircraft_small.bufr",
    "aircraft/pybufrkit__b004_145.bufr",
    "aircraft/pdbufr__aircraft_mrar_compressed.bufr",
    "aircraft/wreport__mode-s.bufr",
    "encoded/aircraft",
)


@pytest.mark.parametrize("name", AIRCRAFT_FILES)
def test_aircraft(bufr_file, name):
    path = bufr_file(name)
    frame = flat(path)
    frame = frame[usable(frame)]
    same(ours(path, "temperature")["obs_value"], column(frame, "#1#airTemperature"))
    u, v = components(column(frame, "#1#windSpeed"), column(frame, "#1#windDirection"))
    assert np.isfinite(u).any()
    np.testing.assert_allclose(
        ours(path, "u_component_of_wind")["obs_value"].to_numpy(), u[np.isfinite(u)], atol=1e-12
    )
    np.testing.assert_allclose(
        ours(path, "v_component_of_wind")["obs_value"].to_numpy(), v[np.isfinite(v)], atol=1e-12
    )


@pytest.mark.parametrize(
    "name",
    ["sat_winds_amv/pybufrkit__go15_87.bufr", "sat_winds_amv/wreport__issue43.bufr",
     "sat_winds_amv/pybufrkit__modw_87.bufr", "encoded/amv"],
)  # fmt: skip
def test_satellite_winds(bufr_file, name):
    path = bufr_file(name)
    frame = flat(path)
    u, _ = components(column(frame, "#1#windSpeed"), column(frame, "#1#windDirection"))
    found = ours(path, "u_component_of_wind")
    kept = np.isfinite(u)
    assert kept.any()
    np.testing.assert_allclose(found["obs_value"].to_numpy(), u[kept], atol=1e-12)
    same(found["vertical"], column(frame, "#1#pressure")[kept].astype(np.float32))


def test_scatterometer(realdata_dir):
    path = realdata_dir / "bufr/surface_satellite/pybufr-ecmwf__ascat_l2_example.bufr"
    frame = flat(path)
    index = column(frame, "#1#indexOfSelectedWindVector").astype(int)
    speed, direction = (
        np.array([frame[f"#{k}#{name}"].iloc[i] for i, k in enumerate(index)], dtype=float)
        for name in ("windSpeedAt10M", "windDirectionAt10M")
    )
    u, v = components(speed, direction)
    assert set(index) == {1, 2}
    np.testing.assert_allclose(
        ours(path, "10m_u_component_of_wind")["obs_value"].to_numpy(), u, atol=1e-12
    )
    np.testing.assert_allclose(
        ours(path, "10m_v_component_of_wind")["obs_value"].to_numpy(), v, atol=1e-12
    )


def test_ground_gnss(realdata_dir):
    path = realdata_dir / "bufr/surface_sea/wreport__GPSR_work.bufr"
    same(
        ours(path, "total_column_water_vapour")["obs_value"],
        column(flat(path), "#1#precipitableWater"),
    )


@pytest.mark.parametrize(
    "name",
    ["pybufrkit__bssh_170.bufr", "libecbufr__ismd01_okpr.bufr", "e-soh__SYNOP_BUFR_2718.bufr"],
)
def test_rain_of_one_hour(realdata_dir, name):
    """Pdbufr's SYNOP reader resolves the periods by its own accessors."""
    path = realdata_dir / "bufr/surface_land" / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pdbufr.read_bufr(path, reader="synop")
    expected = frame["precipitation_1h"].dropna().astype(float).to_numpy()
    assert len(expected) > 20
    found = ours(path, "total_precipitation")["obs_value"].to_numpy()
    np.testing.assert_allclose(found, np.maximum(expected, 0.0) / 1_000.0, rtol=1e-12)
