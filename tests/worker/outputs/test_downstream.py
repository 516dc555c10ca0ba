"""Inputs of other weather models: their layout by the documentation, their values by scipy."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import eccodes
import numpy as np
import pytest
import xarray as xr
from products import NOON, make_product
from scipy.interpolate import RegularGridInterpolator
from typer.testing import CliRunner

from deploy.commands.export import export_app
from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import LEVELS_ERA5_13
from worker.downstream.export import plan_export, write_export
from worker.downstream.models import MODELS, ReducedGrid
from worker.downstream.sources import MEAN, AnalysisFields, open_fill
from worker.results.outputs.cf import write_netcdf_product

OURS = Grid("ours", "regular", 19, 36)
COARSE = Grid("coarse", "regular", 13, 24)
N32 = ReducedGrid("n32", "reduced_gg_pl_32_grib2")
BEFORE = NOON - timedelta(hours=6)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory) -> Path:
    """Three members on 13 levels, of the seven hours up to noon."""
    folder = tmp_path_factory.mktemp("analysis")
    made = make_product(OURS, members=3, times=7, levels=LEVELS_ERA5_13)
    return write_netcdf_product(made, folder)[0][0]


def at_points(path: Path, name: str, time, level, lat, lon) -> np.ndarray:
    """What scipy makes of a field of the file, at latitudes and longitudes of any shape."""
    with xr.open_dataset(path, decode_timedelta=False) as opened:
        field = opened[name].sel(time=np.datetime64(time.replace(tzinfo=None), "ns"))
        field = field if level is None else field.sel(air_pressure=100.0 * level)
        values = np.concatenate([field.values, field.values[:, :1]], axis=1)[::-1]
        rows = field["latitude"].values[::-1]
    columns = np.linspace(0.0, 360.0, values.shape[1])
    return RegularGridInterpolator((rows, columns), values)(np.stack([lat, lon], axis=-1))


def on_grid(path: Path, name: str, time, level=None, grid: Grid = COARSE) -> np.ndarray:
    return at_points(
        path, name, time, level, *np.meshgrid(grid.latitude, grid.longitude, indexing="ij")
    )


def fill_file(path: Path, grid: Grid = COARSE) -> Path:
    """What ERA5 adds, on two times: w in Pa s-1, z and lsm of the surface, 100 m wind, water."""
    shape = (2, 13, *grid.shape)
    lat, lon = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)
    wave = np.broadcast_to(np.cos(lat) * np.cos(lon), shape)
    dims, flat = (
        ("valid_time", "pressure_level", "latitude", "longitude"),
        ("latitude", "longitude"),
    )
    surface = (dims[0], *flat)
    times = [np.datetime64(t.replace(tzinfo=None), "ns") for t in (BEFORE, NOON)]
    step = np.arange(2)[:, None, None, None] + np.arange(13)[:, None, None]
    xr.Dataset(
        {
            "w": (dims, wave + step, {"units": "Pa s**-1"}),
            "orog": (flat, 1000.0 * wave[0, 0] + 1000.0, {"units": "m"}),
            "lsm": (flat, (wave[0, 0] > 0).astype(float), {"units": "(0 - 1)"}),
            "slt": (flat, np.ones(grid.shape), {"units": "~"}),
            "u100": (surface, wave[:, 0], {"units": "m s**-1"}),
            "v100": (surface, -wave[:, 0], {"units": "m s**-1"}),
            "tcwv": (surface, 20 + wave[:, 0], {"units": "kg m**-2"}),
        },
        {
            "valid_time": times,
            "pressure_level": ("pressure_level", list(LEVELS_ERA5_13), {"units": "hPa"}),
            "latitude": grid.latitude,
            "longitude": grid.longitude,
        },
    ).to_netcdf(path)
    return path


def plan_for(name: str, *sources, grid: Grid | ReducedGrid = COARSE):
    return plan_export(replace(MODELS[name], grid=grid), NOON, sources, sources[0].attributes)


@pytest.mark.parametrize(
    ("name", "fields", "hours", "shape"),
    [
        ("aifs", 94, (-6, 0), (542_080,)),
        ("graphcast", 84, (-6, 0), (721, 1440)),
        ("fcn3", 72, (0,), (721, 1440)),
        ("pangu", 69, (0,), (721, 1440)),
        ("aurora", 72, (-6, 0), (721, 1440)),
    ],
)
def test_models_take_what_their_papers_say(name, fields, hours, shape):
    model = MODELS[name]
    assert (len(model.inputs), model.hours) == (fields, hours)
    grid = model.grid
    assert (grid.shape if isinstance(grid, Grid) else grid.points[0].shape) == shape


def test_pangu_gets_two_arrays_from_the_ground_up(analysis: Path, tmp_path: Path):
    written = write_export(plan_for("pangu", AnalysisFields(analysis)), tmp_path)
    assert [p.name for p in written] == ["input_surface.npy", "input_upper.npy", "provenance.json"]
    surface, upper = (np.load(path) for path in written[:2])
    assert surface.dtype == upper.dtype == np.float32
    assert (surface.shape, upper.shape) == ((4, *COARSE.shape), (5, 13, *COARSE.shape))
    for i, name in enumerate(("msl", "u10", "v10", "t2m")):
        np.testing.assert_allclose(
            surface[i], on_grid(analysis, f"{name}_mean", NOON), rtol=1e-5, atol=1e-4
        )
    for v, name in enumerate("zqtuv"):
        for k, level in ((0, 1000), (5, 500), (12, 50)):
            np.testing.assert_allclose(
                upper[v, k], on_grid(analysis, f"{name}_mean", NOON, level), rtol=1e-5, atol=1e-4
            )


def test_a_member_is_taken_as_it_is(analysis: Path, tmp_path: Path):
    write_export(plan_for("pangu", AnalysisFields(analysis, 2), grid=OURS), tmp_path)
    with xr.open_dataset(analysis, decode_timedelta=False) as opened:
        member = opened["t2m"].isel(time=-1, realization=2).values
    np.testing.assert_array_equal(np.load(tmp_path / "input_surface.npy")[3], member)
    with pytest.raises(InvalidInput, match="member below 3"):
        AnalysisFields(analysis, 3)


def test_graphcast_gets_two_frames_south_to_north_and_its_constants(analysis, tmp_path: Path):
    fill = open_fill(fill_file(tmp_path / "era5.nc"))
    plan = plan_for("graphcast", AnalysisFields(analysis), fill)
    write_export(plan, tmp_path / "out")
    with xr.open_dataset(tmp_path / "out" / "input.nc", decode_timedelta=True) as found:
        assert found["temperature"].dims == ("batch", "time", "level", "lat", "lon")
        assert found["land_sea_mask"].dims == ("lat", "lon")
        assert list(found["time"].values / np.timedelta64(1, "h")) == [-6, 0]
        assert str(found["datetime"].values[0, 1])[:13] == "2025-03-20T12"
        np.testing.assert_allclose(found["lat"], COARSE.latitude[::-1])
        for t, time in enumerate((BEFORE, NOON)):
            here = found["temperature"].sel(level=850)[0, t].values[::-1]
            wanted = on_grid(analysis, "t_mean", time, 850)
            np.testing.assert_allclose(here, wanted, rtol=1e-5)
        lat, lon = np.deg2rad(COARSE.latitude)[:, None], np.deg2rad(COARSE.longitude)
        wave = np.cos(lat) * np.cos(lon)
        rise = found["vertical_velocity"].sel(level=1000)[0, 1].values[::-1]
        np.testing.assert_allclose(rise, wave + 1 + 12, atol=1e-5)
        height = found["geopotential_at_surface"].values[::-1]
        np.testing.assert_allclose(height, 9.80665 * (1000 * wave + 1000), rtol=1e-6)
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert said["fields"]["temperature_850hPa"] == {
        "2025-03-20T06:00:00Z": analysis.name,
        "2025-03-20T12:00:00Z": analysis.name,
    }
    assert set(said["fields"]["land_sea_mask"].values()) == {"era5.nc"}
    assert "simulated" in said["analysis"]["flags"]


def test_aurora_and_fcn3_get_their_names(analysis: Path, tmp_path: Path):
    fill = open_fill(fill_file(tmp_path / "era5.nc"))
    for name in ("aurora", "fcn3"):
        write_export(plan_for(name, AnalysisFields(analysis), fill), tmp_path / name)
    with xr.open_dataset(tmp_path / "aurora" / "input.nc") as found:  # as aurora.Batch.from_netcdf
        assert found["surf_2t"].dims == ("batch", "history", "latitude", "longitude")
        assert found["atmos_z"].shape == (1, 2, 13, *COARSE.shape)
        assert list(found["level"].values) == list(LEVELS_ERA5_13)
        assert found["time"].values.astype("datetime64[h]").tolist() == [NOON.replace(tzinfo=None)]
        np.testing.assert_allclose(
            found["atmos_q"][0, 0, 3], on_grid(analysis, "q_mean", BEFORE, 200), atol=1e-8
        )
    with xr.open_dataset(tmp_path / "fcn3" / "input.nc") as found:
        assert found["input"].dims == ("time", "variable", "lat", "lon")
        names = [str(n) for n in found["variable"].values]
        assert names[:8] == ["u10m", "v10m", "u100m", "v100m", "t2m", "msl", "tcwv", "u50"]
        assert (names[20], names[33], names[-1]) == ("v50", "z50", "q1000")
        np.testing.assert_allclose(
            found["input"].sel(variable="z500")[0],
            on_grid(analysis, "z_mean", NOON, 500),
            rtol=1e-5,
        )


def grib_file(path: Path, times=(BEFORE, NOON)) -> tuple[Path, dict[str, np.ndarray]]:
    """The fields that AIFS takes and analyses lack, on its own points; values by name."""
    lat, _ = N32.points
    levels = [("w", "isobaricInhPa", level) for level in LEVELS_ERA5_13]
    others = [(n, "surface", 0) for n in ("skt", "sp", "lsm", "z", "slor", "sdor")]
    soil = [("sot", "soilLayer", 1), ("sot", "soilLayer", 2)]
    soil += [("vsw", "soilLayer", 1), ("vsw", "soilLayer", 2)]
    whole = [("2d", "heightAboveGround", 2), ("tcw", "entireAtmosphere", 0)]
    written = {}
    with path.open("wb") as file:
        for number, (short, kind, level) in enumerate([*levels, *others, *soil, *whole]):
            for time in times:
                handle = eccodes.codes_grib_new_from_samples(N32.sample)
                eccodes.codes_set(handle, "shortName", short)
                eccodes.codes_set(handle, "typeOfLevel", kind)
                eccodes.codes_set(handle, "level", level)
                eccodes.codes_set(handle, "dataDate", int(f"{time:%Y%m%d}"))
                eccodes.codes_set(handle, "dataTime", int(f"{time:%H%M}"))
                eccodes.codes_set(handle, "bitsPerValue", 24)
                values = np.abs(lat) + number + (time == NOON)
                eccodes.codes_set_values(handle, values)
                assert eccodes.codes_get(handle, "shortName") == short
                eccodes.codes_write(handle, file)
                eccodes.codes_release(handle)
                written[short, level, time] = values
    return path, written


def field_of(short: str, level: int, value: float, **keys) -> bytes:
    """A field on the points of `N32`, the same everywhere."""
    handle = eccodes.codes_grib_new_from_samples(N32.sample)
    keys |= {"shortName": short, "level": level, "dataDate": int(f"{NOON:%Y%m%d}"),
             "dataTime": int(f"{NOON:%H%M}")}  # fmt: skip
    for key, found in keys.items():
        eccodes.codes_set(handle, key, found)
    eccodes.codes_set_values(handle, np.full(len(N32.points[0]), value))
    message: bytes = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    return message


def test_fields_that_are_no_states_fill_nothing(tmp_path: Path):
    path, filled = grib_file(tmp_path / "era5.grib")
    wanted = {
        (w.quantity.id, w.level): w
        for w in plan_for("aifs", _Nothing(), _Nothing(), grid=N32).missing[NOON]
    }
    wind, land = wanted["vertical_velocity", 500], wanted["land_sea_mask", None]
    spread = field_of("w", 500, 0.5, productDefinitionTemplateNumber=2, derivedForecast=4)
    path.write_bytes(spread + path.read_bytes())
    found = open_fill(path).plane(wind, NOON, N32)
    np.testing.assert_allclose(found, filled["w", 500, NOON], atol=2e-5)
    climate = {"typeOfGeneratingProcess": 9}
    others = spread + field_of("w", 500, 0.5, **climate)
    fixed = field_of("lsm", 0, 0.25, typeOfLevel="surface", **climate)
    (tmp_path / "others.grib").write_bytes(others + fixed)
    fill = open_fill(tmp_path / "others.grib")
    assert not fill.holds(wind, NOON)
    np.testing.assert_allclose(fill.plane(land, NOON, N32), 0.25)  # what never changes


def test_aifs_gets_points_of_a_reduced_grid(analysis: Path, tmp_path: Path):
    path, filled = grib_file(tmp_path / "era5.grib")
    plan = plan_for("aifs", AnalysisFields(analysis), open_fill(path), grid=N32)
    write_export(plan, tmp_path / "out")
    found = np.load(tmp_path / "out" / "input.npz")
    lat, lon = N32.points
    np.testing.assert_array_equal(found["latitudes"], lat)
    assert found["date"] == np.datetime64("2025-03-20T12:00:00")
    assert found["t_850"].shape == (2, len(lat))
    for t, time in enumerate((BEFORE, NOON)):
        wanted = at_points(analysis, "v_mean", time, 300, lat, lon)
        np.testing.assert_allclose(found["v_300"][t], wanted, rtol=1e-5, atol=1e-4)
        for name, key in {"w_500": ("w", 500), "stl2": ("sot", 2), "swvl1": ("vsw", 1)}.items():
            np.testing.assert_allclose(found[name][t], filled[*key, time], atol=2e-5)
    np.testing.assert_array_equal(found["lsm"][0], found["lsm"][1])


def test_what_is_missing_is_named_and_nothing_is_written(tmp_path: Path):
    [(path, _), *_] = write_netcdf_product(make_product(COARSE, members=1), tmp_path)
    plan = plan_for("fcn3", AnalysisFields(path))
    with pytest.raises(InvalidInput) as raised:
        write_export(plan, tmp_path / "out")
    said = str(raised.value)
    assert "100m_u_component_of_wind; 100m_v_component_of_wind; total_column_water_vapour" in said
    assert "temperature at 150, 250, 400, 600, 1000 hPa" in said  # no level is made up
    assert "--fill" in said
    assert not (tmp_path / "out").exists()
    # Six hours earlier is another analysis: asked for, not assumed.
    assert set(plan_for("graphcast", AnalysisFields(path)).missing) == {BEFORE, NOON}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["w"].attrs.update(units="m s-1"), "Pa s-1"),
        (lambda d: d["w"].attrs.pop("units"), "units of 'w'"),
        (lambda d: d["w"].values.__setitem__((0, 0, 3, 3), np.nan), "have no value"),
    ],
)
def test_a_fill_that_is_not_what_it_says_is_refused(analysis, tmp_path: Path, change, said: str):
    with xr.open_dataset(fill_file(tmp_path / "good.nc")) as good:
        bad = good.load()
    change(bad)
    bad.to_netcdf(tmp_path / "bad.nc")
    plan = plan_for("graphcast", AnalysisFields(analysis), open_fill(tmp_path / "bad.nc"))
    with pytest.raises(InvalidInput, match=said):
        write_export(plan, tmp_path / "out")
    assert not (tmp_path / "out" / "input.nc").exists()


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "text").write_text("no fields")
    with pytest.raises(InvalidInput, match="Expected NetCDF or GRIB"):
        open_fill(tmp_path / "text")
    fill = fill_file(tmp_path / "era5.nc")
    with pytest.raises(InvalidInput, match="NetCDF file of an analysis"):
        AnalysisFields(tmp_path / "text", MEAN)
    assert "2m_temperature" in [
        f.name for f in plan_for("pangu", _Nothing(), open_fill(fill)).missing[NOON]
    ]


class _Nothing:
    name = "nothing"
    attributes: dict[str, str] = {}

    def holds(self, wanted, time) -> bool:
        return False


def test_the_command_checks_before_it_writes(analysis: Path, tmp_path: Path):
    run = CliRunner().invoke
    done = run(
        export_app, ["--for", "fcn3", str(analysis), str(tmp_path / "o"), "--check", "--json"]
    )
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["missing"] == {
        "2025-03-20T12:00Z": [
            "100m_u_component_of_wind",
            "100m_v_component_of_wind",
            "total_column_water_vapour",
        ]
    }
    fill = str(fill_file(tmp_path / "era5.nc"))
    done = run(
        export_app,
        ["--for", "fcn3", str(analysis), str(tmp_path / "o"), "--check", "--fill", fill],
        env={"COLUMNS": "80"},
    )
    assert done.exit_code == 0, done.output
    assert "era5.nc" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not (tmp_path / "o").exists()
    refused = run(export_app, ["--for", "gfs", str(analysis), "o"])
    assert "aifs, graphcast, fcn3, pangu, aurora" in str(refused.exception)
