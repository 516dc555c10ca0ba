"""GRIB fields as observations: encoded here, decoded there."""

from datetime import UTC, datetime

import eccodes
import numpy as np
import pytest

from model.domain.observations import validate_table
from tests.worker.decoders.accounting import assert_accounted
from tests.worker.decoders.grib_messages import LAT, LON, message
from worker.observations.columns import float_column
from worker.observations.decoders.base import DecodeContext, FileBudget, MessageLimits
from worker.observations.decoders.decode import decode_file

SLOPE = 250.0 + LAT[:, None] / 10.0 + 0.0 * LON[None, :]


def decode(tmp_path, *messages, limits=None, fields=None, **options):
    path = tmp_path / "x.grib"
    path.write_bytes(b"".join(messages))
    context = DecodeContext(options=options, limits=limits or MessageLimits(), **(fields or {}))
    decoded = decode_file(path, context=context)
    validate_table(decoded.table)
    return decoded


@pytest.mark.parametrize("edition", [1, 2])
def test_values_levels_times_and_errors(tmp_path, edition):
    decoded = decode(tmp_path, message(SLOPE, edition=edition), errors={"temperature": 1.5})
    table = decoded.table
    # The grid is coarser than the 2.5 degree cells: every point keeps its own value.
    assert len(table) == SLOPE.size
    np.testing.assert_allclose(
        float_column(table, "obs_value"), 250.0 + float_column(table, "lat") / 10.0, atol=1e-4
    )
    first = table.to_pylist()[0]
    assert (first["report_type"], first["vertical"], first["obs_error"]) == (
        "gridded",
        50000.0,
        1.5,
    )
    assert first["time"] == datetime(2024, 1, 1, 12, tzinfo=UTC)
    assert table["lon"].to_numpy().min() == -180.0


def test_fine_fields_are_averaged_over_cells(tmp_path):
    lat, lon = np.linspace(90, -90, 181), np.arange(360.0)
    field = np.broadcast_to(280.0 + np.sin(np.deg2rad(lat))[:, None], (181, 360))
    grid = {"kind": "regular", "nlat": 19, "nlon": 36}
    decoded = decode(tmp_path, message(field, lat=lat, lon=lon), grid=grid)
    assert len(decoded.table) == 19 * 36
    np.testing.assert_allclose(
        float_column(decoded.table, "obs_value"),
        280.0 + np.sin(np.deg2rad(float_column(decoded.table, "lat"))),
        atol=2e-3,
    )


def test_names_and_units_become_ours(tmp_path):
    ones = np.ones((19, 36))
    decoded = decode(
        tmp_path,
        message(5500.0 * ones, short="gh"),
        message(54000.0 * ones, short="z"),
        message(60.0 * ones, short="r"),
        message(281.0 * ones, short="2t", kind="surface"),
        message(101300.0 * ones, short="msl", kind="surface"),
    )
    means = {}
    for row in decoded.table.to_pylist():
        means.setdefault((row["variable"], row["vertical_kind"]), set()).add(
            round(row["obs_value"], 2)
        )
    assert means == {
        ("geopotential", "pressure"): {round(5500 * 9.80665, 2), 54000.0},
        ("relative_humidity", "pressure"): {0.6},
        ("2m_temperature", "surface"): {281.0},
        ("mean_sea_level_pressure", "surface"): {101300.0},
    }


def test_scanning_order_does_not_matter(tmp_path):
    upside_down = message(SLOPE[::-1], lat=LAT[::-1])
    table = decode(tmp_path, upside_down).table
    np.testing.assert_allclose(
        float_column(table, "obs_value"), 250.0 + float_column(table, "lat") / 10.0, atol=1e-4
    )


ALONG, ACROSS = 5, 4
PROJECTIONS = {
    "lambert": {"Nx": ALONG, "Ny": ACROSS, "LoVInDegrees": 10, "LaDInDegrees": 45, "Latin1InDegrees": 45,
                "Latin2InDegrees": 45, "DxInMetres": 100_000, "DyInMetres": 100_000},
    "polar_stereographic": {"Nx": ALONG, "Ny": ACROSS, "orientationOfTheGridInDegrees": 10,
                            "LaDInDegrees": 60, "DxInMetres": 100_000, "DyInMetres": 100_000},
    "regular_ll": {"Ni": ALONG, "Nj": ACROSS, "iDirectionIncrementInDegrees": 1,
                   "jDirectionIncrementInDegrees": 1, "longitudeOfLastGridPointInDegrees": 9,
                   "latitudeOfLastGridPointInDegrees": 43},
}  # fmt: skip


def scanned(values, kind, **flags):
    """A field of 5 x 4 points from 40 N 5 E, with its values in the order in which they are stored."""
    handle = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
    keys = {"shortName": "t", "gridType": kind, **PROJECTIONS[kind],
            "latitudeOfFirstGridPointInDegrees": 40, "longitudeOfFirstGridPointInDegrees": 5,
            "iScansNegatively": 0, "jScansPositively": 1, **flags}  # fmt: skip
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, np.ravel(values))
    content = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return content


def at_places(table):
    rows = table.select(["lat", "lon", "obs_value"]).to_pylist()
    return {(round(r["lat"], 3), round(r["lon"], 3)): round(r["obs_value"], 2) for r in rows}


@pytest.mark.parametrize("kind", list(PROJECTIONS))
def test_values_stay_at_their_places_however_rows_are_scanned(tmp_path, kind):
    """The first row runs east from 40 N 5 E; the next one lies north of it."""
    values = 250.0 + np.arange(ACROSS)[:, None] + 0.1 * np.arange(ALONG)
    fine = {"grid": {"kind": "regular", "nlat": 721, "nlon": 1440}}
    plain = at_places(decode(tmp_path, scanned(values, kind), **fine).table)
    assert len(plain) == values.size
    southmost = sorted(plain, key=lambda place: plain[place])[:ALONG]
    assert [lon for _, lon in southmost] == sorted(lon for _, lon in southmost)
    to_and_fro = values.copy()
    to_and_fro[1::2] = to_and_fro[1::2, ::-1]
    by_columns = values.T.copy()
    both = by_columns.copy()
    both[1::2] = both[1::2, ::-1]
    for stored, flags in (
        (to_and_fro, {"alternativeRowScanning": 1}),
        (by_columns, {"jPointsAreConsecutive": 1}),
        (both, {"alternativeRowScanning": 1, "jPointsAreConsecutive": 1}),
    ):
        found = decode(tmp_path, scanned(stored, kind, **flags), **fine)
        assert at_places(found.table) == plain, flags


@pytest.mark.parametrize("flags", [{"jScansPositively": 0}, {"iScansNegatively": 1}])
def test_projected_grids_that_eccodes_misplaces_are_refused(tmp_path, flags):
    decoded = decode(tmp_path, scanned(np.full((ACROSS, ALONG), 250.0), "lambert", **flags))
    assert len(decoded.table) == 0
    assert "eastwards and northwards" in decoded.report.quarantined[0].detail


def test_missing_points_leave_no_rows(tmp_path):
    field = SLOPE.copy()
    field[:, :18] = np.nan
    table = decode(tmp_path, message(field)).table
    assert len(table) == SLOPE.size // 2
    assert np.isfinite(float_column(table, "obs_value")).all()


def test_torn_messages_do_not_hide_the_rest(tmp_path):
    good = message(SLOPE)
    torn = good[:200]
    broken = good[:-4] + b"7770"
    decoded = decode(tmp_path, b"junk", good, broken, b"more", good, torn)
    assert len(decoded.table) == 2 * SLOPE.size
    assert decoded.report.messages == 2
    assert decoded.report.rejected == {"bad_frame": 1, "truncated": 1}


def test_accumulations_members_and_unknown_fields_are_named(tmp_path):
    ones = np.ones((19, 36))
    decoded = decode(
        tmp_path,
        message(ones, short="tp", kind="surface", stepRange="0-6"),
        message(ones, short="tp", kind="surface", stepRange="5-6"),
        message(ones, short="w"),
        message(SLOPE),
        variables=["temperature", "total_precipitation"],
    )
    assert decoded.report.rejected == {"unsupported_variable": 2}
    details = " ".join(q.detail for q in decoded.report.quarantined)
    assert "accumulated over 6 h" in details and "w on isobaricInhPa" in details
    assert set(decoded.report.rows_by_variable) == {"temperature", "total_precipitation"}


def test_limits(tmp_path):
    decoded = decode(tmp_path, message(SLOPE), limits=MessageLimits(values=100))
    assert decoded.report.rejected == {"too_large": 1}
    decoded = decode(tmp_path, message(SLOPE), limits=MessageLimits(message_bytes=100))
    assert decoded.report.rejected == {"too_large": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"errors": {"wind": 1.0}},
        {"errors": {"temperature": 0}},
        {"errors": [1]},
        {"grid": {"kind": "cube", "nlat": 3, "nlon": 4}},
    ],
)
def test_faulty_options(tmp_path, options):
    assert decode(tmp_path, message(SLOPE), **options).report.rejected == {"invalid_table": 1}


def test_a_message_that_brought_a_process_down_is_left_out(tmp_path):
    first, second = message(SLOPE), message(SLOPE, short="u")
    seen = []
    ours = {"skip": {0: "crashed"}, "mark": seen.append}
    decoded = decode(tmp_path, first, second, fields=ours)
    assert decoded.report.rejected == {"crashed": 1}
    assert set(decoded.report.rows_by_variable) == {"u_component_of_wind"}
    assert seen == [len(first)]


def test_both_winds_of_a_shared_message(realdata_dir):
    path = realdata_dir / "grib/global_multivar/pygrib__gfs.t12z.pgrbf120.2p5deg.grib2"
    context = DecodeContext(options={"variables": ["u_component_of_wind", "v_component_of_wind"]})
    report = decode_file(path, context=context).report
    # 26 pressure levels of 73 x 144 points (wgrib2 inventory: UGRD and VGRD at 26 levels).
    points = 73 * 144
    assert report.rows_by_variable == {
        "u_component_of_wind": 26 * points,
        "v_component_of_wind": 26 * points,
    }


def test_every_real_grib1_file_ends_in_rows_or_a_reason(realdata_dir):
    for path in sorted((realdata_dir / "grib/grib1").iterdir())[::3]:
        decoded = decode_file(path)
        assert_accounted(decoded, path.name)


def test_a_file_of_more_points_than_its_bytes_can_mean_is_refused(tmp_path, monkeypatch):
    """Constant fields take no bytes for their values."""
    constant = message(np.full(SLOPE.shape, 250.0))
    monkeypatch.setattr(FileBudget, "FLAT", 5 * SLOPE.size)
    monkeypatch.setattr(FileBudget, "PER_BYTE", 0)
    assert decode(tmp_path, *[constant] * 5).report.decoded == 5
    decoded = decode(tmp_path, *[constant] * 6)
    assert len(decoded.table) == 0
    assert dict(decoded.report.rejected) == {"too_large": 1}
    assert f"at most {5 * SLOPE.size} values" in decoded.report.quarantined[0].detail
