"""Results in the hands of CDO, NCO, GDAL, cftime and MetPy: what they read is what went in."""

import json
import shutil
import subprocess

import cftime
import eccodes
import numpy as np
import pytest
import xarray as xr
from scipy.io import netcdf_file

from model.domain.windows import HOUR
from tests.worker.outputs.products import T31, TINY, make_product
from worker.results.outputs import cf, grib2

MEMBERS, HOURS = 3, 2
LEVELS = (300, 500)
tools = pytest.mark.skipif(
    not all(map(shutil.which, ("cdo", "ncks"))), reason="cdo or nco is not installed"
)
gdal = pytest.mark.skipif(not shutil.which("gdallocationinfo"), reason="gdal is not installed")


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(*command):
    return np.array(run(*command).split(), dtype=float)


class Written:
    """Files of one result, and what must be found in them."""

    def __init__(self, folder, grid, kind="filtering"):
        product = make_product(grid, kind=kind, times=HOURS, members=MEMBERS, levels=LEVELS)
        self.grid, self.times = grid, product.times
        self.tolerance = 0.05 if grid is T31 else 0.5  # K, of means over the sphere
        ((self.netcdf, _),) = cf.write_netcdf_product(product, folder)
        found = {
            path.name.split(".", 1)[1]: path for path, _ in grib2.write_product(product, folder)
        }
        self.members, self.mean, self.spread = (
            found[name] for name in ("grib2", "mean.grib2", "spread.grib2")
        )
        self.place = {channel.name: n for n, channel in enumerate(product.channels)}
        self.states = product.states.astype(np.float64)

    def field(self, channel):
        """Members of a channel, (M, T, Y, X)."""
        return self.states[:, :, self.place[channel]]

    def area_mean(self, fields):
        """Area-weighted means, (...,)."""
        rows = fields.mean(axis=-1)
        return rows @ (self.grid.area_weights / self.grid.area_weights.sum())


@pytest.fixture(scope="module", params=["gaussian", "regular", "forecast"])
def written(request, tmp_path_factory):
    grid = T31 if request.param == "gaussian" else TINY
    kind = "forecast" if request.param == "forecast" else "filtering"
    return Written(tmp_path_factory.mktemp(request.param), grid, kind)


@tools
def test_cdo_knows_grid_and_times(written):
    lines = dict(
        line.replace(" ", "").split("=", 1)
        for line in run("cdo", "-s", "griddes", "-selname,msl_mean", written.netcdf).splitlines()
        if "=" in line
    )
    kind = {"gaussian": "gaussian", "regular": "lonlat"}[written.grid.kind]
    assert (lines["gridtype"], int(lines["xsize"]), int(lines["ysize"])) == (
        kind, written.grid.nlon, written.grid.nlat,
    )  # fmt: skip
    stamps = [f"{time:%Y-%m-%dT%H:%M:%S}" for time in written.times]
    for path in (written.netcdf, written.mean, written.spread, written.members):
        assert run("cdo", "-s", "showtimestamp", path).split() == stamps


@tools
def test_cdo_means_over_the_sphere_are_those_of_the_states(written):
    """CDO's cells lie between great circles, which tells at 30 degrees and not at 3.75."""
    exact = written.area_mean(written.field("2m_temperature").mean(axis=0))
    found = numbers("cdo", "-s", "outputf,%.6f,1", "-fldmean", "-selname,t2m_mean", written.netcdf)
    assert found == pytest.approx(exact, abs=written.tolerance)
    found = numbers("cdo", "-s", "outputf,%.6f,1", "-fldmean", "-selname,2t", written.mean)
    assert found == pytest.approx(exact, abs=written.tolerance)


@tools
@pytest.mark.parametrize("what", ["mean", "spread"])
def test_cdo_reads_all_fields_of_all_hours_from_grib(written, what):
    """In another order than hour by hour it gave up after the first field, or refused the file."""
    path = getattr(written, what)
    assert numbers("cdo", "-s", "ntime", path) == [HOURS]
    names = run("cdo", "-s", "showname", path).split()
    assert sorted(names) == sorted(
        ["2t", "10u", "10v", "msl", "sst", "tp", "t", "u", "v", "z", "q"]
    )
    levels = numbers("cdo", "-s", "showlevel", "-selname,z", path)
    assert sorted(levels) == [100.0 * level for level in LEVELS]


@tools
def test_cdo_reads_a_level_of_all_hours_from_grib(written):
    field = written.field("temperature_500hPa")
    exact = written.area_mean(field.mean(axis=0))
    found = numbers(
        "cdo", "-s", "outputf,%.6f,1", "-fldmean", "-sellevel,50000", "-selname,t", written.mean
    )
    assert found == pytest.approx(exact, abs=written.tolerance)


@tools
@pytest.mark.parametrize("form", ["-3", "-6", "-7"])
def test_nco_writes_the_classic_models(written, tmp_path, form):
    """Formats 3 and 6 are read back by SciPy, which knows no HDF5."""
    classic = tmp_path / "classic.nc"
    run("ncks", "-O", form, written.netcdf, classic)
    if form == "-7":
        with xr.open_dataset(classic) as found, xr.open_dataset(written.netcdf) as wanted:
            xr.testing.assert_equal(found, wanted)
        return
    with netcdf_file(classic, mmap=False) as file, xr.open_dataset(written.netcdf) as wanted:
        assert file.dimensions["time"] is None  # unlimited
        seconds = [time.timestamp() for time in written.times]
        np.testing.assert_array_equal(file.variables["time"][:], seconds)
        np.testing.assert_array_equal(file.variables["msl"][:], wanted["msl"].values)


def places(grid):
    """A place of the grid off land, and its row and column."""
    row, column = grid.nlat // 3, 5 * grid.nlon // 12
    return float(grid.latitude[row]), float(grid.longitude[column]), row, column


@gdal
def test_gdal_reads_values_of_netcdf_where_they_are(written):
    lat, lon, row, column = places(written.grid)
    source = f'NETCDF:"{written.netcdf}":msl_mean'
    found = numbers("gdallocationinfo", "-valonly", "-geoloc", source, lon, lat)
    exact = written.field("mean_sea_level_pressure").mean(axis=0)[:, row, column]
    assert found == pytest.approx(exact, abs=20.0)
    told = json.loads(run("gdalinfo", "-json", source))
    assert told["size"] == [written.grid.nlon, written.grid.nlat]
    assert {band["unit"] for band in told["bands"]} == {"Pa"} and len(told["bands"]) == HOURS


@gdal
def test_gdal_reads_grib(written):
    """Band by band as QGIS shows them, without values on land; it turns kelvins into degrees Celsius."""
    lat, lon, row, column = places(written.grid)
    found = numbers("gdallocationinfo", "-valonly", "-geoloc", written.mean, lon, lat)
    with written.mean.open("rb") as file:
        assert len(found) == eccodes.codes_count_in_file(file) == HOURS * (6 + 5 * len(LEVELS))
    exact = written.field("2m_temperature").mean(axis=0)[:, row, column] - 273.15
    assert found[[0, len(found) // 2]] == pytest.approx(exact, abs=0.01)
    told = json.loads(run("gdalinfo", "-json", written.mean))
    sea = next(b for b in told["bands"] if b["metadata"][""]["GRIB_ELEMENT"] == "WTMP")
    assert sea["noDataValue"] == 9999.0
    land = numbers(
        "gdallocationinfo", "-valonly", "-geoloc", "-b", sea["band"], written.mean, 60, 30
    )
    assert land == [9999.0]


def test_cftime_reads_the_times(written):
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    with xr.open_dataset(written.netcdf, decode_times=coder) as found:
        expected = [cftime.DatetimeGregorian(*time.timetuple()[:6]) for time in written.times]
        assert found["time"].values.tolist() == expected
        before = found["time_bnds"].values[:, 0].tolist()
    assert before == [time - HOUR for time in expected]


@pytest.mark.filterwarnings("ignore")
def test_metpy_knows_units_and_axes(written):
    pytest.importorskip("metpy.xarray")
    from metpy.units import units

    with xr.open_dataset(written.netcdf) as dataset:
        known = dataset.metpy.parse_cf().metpy.quantify()
        level = known["t_mean"].metpy.sel(vertical=500 * units.hPa)
        exact = written.field("temperature_500hPa").mean(axis=0)
        np.testing.assert_allclose(level.metpy.convert_units("degC").metpy.dequantify(),
                                   exact - 273.15, atol=0.2)  # fmt: skip
        for name, unit in (
            ("q_mean", ""),
            ("z_mean", "m**2/s**2"),
            ("tp_mean", "m"),
            ("u_spread", "m/s"),
        ):
            assert known[name].metpy.units == units(unit).units
        axes = known["u_mean"].metpy.coordinates("time", "vertical", "latitude", "longitude")
        assert [axis.name for axis in axes] == ["time", "air_pressure", "latitude", "longitude"]
