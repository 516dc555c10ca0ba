"""Orography and land-sea mask from NetCDF, GRIB and zarr: units, order, grids, refusals."""

import eccodes
import numpy as np
import pytest
import structlog
import torch
import xarray as xr
from checkpoint_parts import tiny_model, write_layout

from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.checkpoints.discovery import read_static
from model.checkpoints.released import load_released
from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from worker.loaded_models import load_models

GRID = Grid("regular-9x14", "regular", 9, 14)
G = 9.80665
LAT, LON = np.linspace(90, -90, 9), np.arange(14) * 360 / 14


def height(lat, lon):
    """Smooth on the sphere, in m."""
    lat, lon = np.meshgrid(np.deg2rad(lat), np.deg2rad(lon), indexing="ij")
    return 1000 + 500 * np.sin(lat) + 300 * np.cos(lat) * np.cos(lon)


def land(lat, lon):
    lat, lon = np.meshgrid(lat, lon, indexing="ij")
    return ((lat > 0) & (lon % 360 < 180)).astype(float)


def dataset(lat=LAT, lon=LON, *, z="z", units="m**2 s**-2", factor=G):
    dims = ("latitude", "longitude")
    return xr.Dataset(
        {
            z: (dims, height(lat, lon) * factor, {"units": units}),
            "lsm": (dims, land(lat, lon), {"units": "(0 - 1)"}),
        },
        {"latitude": lat, "longitude": lon},
    )


def check(found, atol):
    assert found["orography"].dtype == torch.float32
    assert np.allclose(found["orography"], height(LAT, LON), atol=atol)


@pytest.mark.parametrize(
    ("z", "units", "factor"),
    [
        ("z", "m**2 s**-2", G),
        ("geopotential_at_surface", "", G),
        ("orography", "m", 1.0),
        ("z", "m", 1.0),
    ],
)
def test_units_of_netcdf(tmp_path, z, units, factor):
    dataset(z=z, units=units, factor=factor).expand_dims(time=[0, 1]).to_netcdf(
        tmp_path / "era5.nc"
    )
    found = read_static(tmp_path / "era5.nc", GRID)
    check(found, 1e-3)
    assert np.array_equal(found["land_sea_mask"], land(LAT, LON))


def test_south_first_and_longitudes_from_minus_180(tmp_path):
    lon = np.sort((LON + 180) % 360 - 180)
    dataset(LAT[::-1], lon).to_zarr(tmp_path / "era5.zarr", zarr_format=2, consolidated=True)
    found = read_static(tmp_path / "era5.zarr", GRID)
    check(found, 1e-3)
    assert np.array_equal(found["land_sea_mask"], land(LAT, LON))


def test_finer_fields_are_averaged_and_coarser_interpolated(tmp_path):
    lat, lon = np.linspace(90, -90, 181), np.arange(360.0)
    dataset(lat, lon).to_netcdf(tmp_path / "fine.nc")
    fine = read_static(tmp_path / "fine.nc", GRID)
    check(fine, 60.0)
    # The mean over a cell: half land at the coast, and the sphere's mean is kept.
    assert float(fine["land_sea_mask"].mean()) == pytest.approx(0.25, abs=0.03)
    assert 0.2 < float(fine["land_sea_mask"][4, 3]) < 0.8  # the row of the equator
    lat, lon = np.linspace(90, -90, 7), np.arange(8) * 45.0
    dataset(lat, lon).to_netcdf(tmp_path / "coarse.nc")
    check(read_static(tmp_path / "coarse.nc", GRID), 80.0)


def write_grib(path, edition, messages):
    with path.open("wb") as file:
        for name, level, values in messages:
            handle = eccodes.codes_grib_new_from_samples(f"regular_ll_sfc_grib{edition}")
            for key, value in {
                "Ni": 14, "Nj": 9,
                "latitudeOfFirstGridPointInDegrees": 90.0,
                "latitudeOfLastGridPointInDegrees": -90.0,
                "longitudeOfFirstGridPointInDegrees": 0.0,
                "longitudeOfLastGridPointInDegrees": float(LON[-1]),
                "jDirectionIncrementInDegrees": 22.5,
                "iDirectionIncrementInDegrees": float(LON[1]),
                "bitsPerValue": 24,
            }.items():  # fmt: skip
                eccodes.codes_set(handle, key, value)
            eccodes.codes_set(handle, "shortName", name)
            eccodes.codes_set(handle, "typeOfLevel", level)
            eccodes.codes_set_values(handle, values.ravel())
            eccodes.codes_write(handle, file)
            eccodes.codes_release(handle)


@pytest.mark.parametrize("edition", [1, 2])
def test_grib_takes_the_ground_and_not_a_pressure_level(tmp_path, edition):
    z = height(LAT, LON) * G
    messages = [
        ("z", "isobaricInhPa", z + 5e4),
        ("z", "surface", z),
        ("lsm", "surface", land(LAT, LON)),
        ("t", "surface", z),
    ]
    write_grib(tmp_path / "era5.grib", edition, messages)
    found = read_static(tmp_path / "era5.grib", GRID)
    check(found, 0.1)
    assert np.allclose(found["land_sea_mask"], land(LAT, LON), atol=1e-5)


def levels():
    field = dataset().drop_vars("lsm").expand_dims(level=[500, 850])
    return field.transpose("level", "latitude", "longitude")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: dataset(units="m", factor=G), "outside -600 to 9000"),
        (lambda: dataset(LAT[2:5], LON), "over the whole globe"),
        (lambda: dataset().where(dataset()["lsm"] > 0), "over the whole globe"),
        (levels, "got none of them"),
    ],
)
def test_what_is_no_global_surface_field_is_refused(tmp_path, made, text):
    made().to_netcdf(tmp_path / "bad.nc")
    with pytest.raises(InvalidInput, match=text):
        read_static(tmp_path / "bad.nc", GRID)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("orography")
    with pytest.raises(InvalidInput, match="NetCDF, GRIB or zarr"):
        read_static(tmp_path / "notes.txt", GRID)


def test_the_bundle_has_the_fields_and_says_what_is_inert_without(tmp_path):
    write_layout(tmp_path / "tree")
    dataset().to_netcdf(tmp_path / "era5.nc")
    without = load_released(tmp_path / "tree")
    assert len(without.inactive_features) == 4
    assert "none given" in without.card.provenance["static"]
    save_checkpoint(load_released(tmp_path / "tree", static=[tmp_path / "era5.nc"]), tmp_path / "b")
    model = load_checkpoint(tmp_path / "b")
    assert model.card.provenance["static"] == {"orography": "era5.nc", "land_sea_mask": "era5.nc"}
    assert np.allclose(model.statics.orography, height(LAT, LON), atol=1e-3)
    assert model.inactive_features == ("representativeness in the observation errors",)
    sst = [c.variable for c in model.channels].index("sea_surface_temperature")
    decoded = model.decode(torch.randn(1, *model.latent_shape))[0, sst]
    assert np.array_equal(decoded.isnan(), land(LAT, LON) > 0.5)
    with pytest.raises(InvalidInput, match="one source of orography"):
        load_released(tmp_path / "tree", static=[tmp_path / "era5.nc"] * 2)


def test_the_worker_names_inert_checks_at_start(tmp_path):
    for name, static in (("bare", False), ("whole", True)):
        save_checkpoint(tiny_model(static=static), tmp_path / name)
        with structlog.testing.capture_logs() as logs:
            load_models([str(tmp_path / name)], "cpu")
        told = [entry["inert"] for entry in logs if entry["event"] == "checks without effect"]
        assert len(told) == 1
        assert ("station heights" in told[0]) is not static
