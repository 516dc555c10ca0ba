"""The run itself; needs jcm (the ``training`` extra), so it is skipped where that is absent."""

from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec

import numpy as np
import pytest
import xarray as xr

pytestmark = [
    pytest.mark.skipif(find_spec("jcm") is None, reason="could not import 'jcm'"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def nature_run():
    """The module under test, imported late: it loads jax."""
    import lab.training.nature_run as module

    return module


def config(module, path, **changes):
    base = module.NatureRunConfig(path, datetime(2000, 2, 28), days=2, spin_up_days=1, block_days=1)
    return replace(base, **changes)


def test_two_days_at_once_and_one_and_one_are_the_same_bit_for_bit(nature_run, tmp_path):
    whole = config(nature_run, tmp_path / "whole.zarr", block_days=2)
    nature_run.run(whole)
    parts = config(nature_run, tmp_path / "parts.zarr", days=1)
    nature_run.run(parts)
    nature_run.run(replace(parts, days=2))

    a, b = np.load(whole.state_path), np.load(parts.state_path)
    assert a.files == b.files
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])
    xr.testing.assert_identical(
        xr.open_zarr(whole.output, chunks=None).load(),
        xr.open_zarr(parts.output, chunks=None).load(),
    )
    check_physics(xr.open_zarr(whole.output, chunks=None).load())


def check_physics(store):
    """What must hold on any day: grid, mass of the atmosphere, hydrostatics, signs."""
    assert store.time.values[0] == np.datetime64("2000-02-28T00")
    assert store.sizes["time"] == 48
    assert (np.diff(store.latitude) < 0).all()
    np.testing.assert_allclose(store.latitude, -store.latitude[::-1], atol=1e-4)
    np.testing.assert_allclose(store.longitude, np.arange(96) * 3.75, atol=1e-4)
    gauss = np.polynomial.legendre.leggauss(48)[0][::-1]
    np.testing.assert_allclose(np.sin(np.deg2rad(store.latitude)), gauss, atol=1e-6)
    # Land and sea the right way round: the Sahara, the South Pole, the Pacific.
    mask = store.land_sea_mask
    assert float(mask.sel(latitude=24, longitude=11, method="nearest")) > 0.9
    assert float(mask.sel(latitude=-87, longitude=0, method="nearest")) > 0.9
    assert float(mask.sel(latitude=0, longitude=200, method="nearest")) < 0.1
    everest = store.geopotential_at_surface.sel(latitude=33, longitude=88, method="nearest")
    assert float(everest) / 9.81 > 4000
    sea = store.sea_surface_temperature
    assert (np.isnan(sea[0]) == (mask >= 0.5)).all()
    for name in set(store.data_vars) - {"sea_surface_temperature"}:
        assert np.isfinite(store[name]).all(), name
    assert (store.specific_humidity >= 0).all()
    assert (store.total_precipitation >= 0).all()
    virtual = store.temperature * (1 + 0.608 * store.specific_humidity)
    thickness = store.geopotential.sel(level=500) - store.geopotential.sel(level=700)
    layer = (virtual.sel(level=500) + virtual.sel(level=700)) / 2
    ratio = thickness / (287.06 * layer * np.log(700 / 500))
    # Two levels see an inversion between them badly, so the mean is what must agree.
    assert float(ratio.mean()) == pytest.approx(1.0, abs=2e-3)


def test_other_seed_is_refused_in_the_same_store_and_is_another_truth(nature_run, tmp_path):
    first = config(nature_run, tmp_path / "a.zarr", days=1)
    nature_run.run(first)
    with pytest.raises(nature_run.ConfigurationError, match="another run"):
        nature_run.run(replace(first, seed=1))
    other = replace(first, seed=1, output=tmp_path / "b.zarr")
    nature_run.run(other)
    a = xr.open_zarr(first.output, chunks=None).mean_sea_level_pressure
    b = xr.open_zarr(other.output, chunks=None).mean_sea_level_pressure
    assert float(abs(a - b).max()) > 1.0


def test_years_count_their_leap_days(nature_run):
    assert nature_run.days_in(datetime(2000, 1, 1), 7) == 2557
    assert nature_run.days_in(datetime(2001, 1, 1), 1) == 365
