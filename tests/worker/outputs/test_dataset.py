"""The CF form of a result, against the conventions' own words and numbers computed apart."""

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from model.domain.errors import InvalidInput
from model.domain.variables import LEVELS_T31, channels
from tests.worker.outputs.products import NOON, T31, TINY, make_product, make_states
from worker.contract.jobs import JobRecord
from worker.contract.kinds import ReanalysisSpec
from worker.results.outputs.dataset import to_dataset
from worker.results.outputs.formats import product_file


def test_dimensions_names_and_coordinates():
    ds = to_dataset(make_product(members=3, times=2))
    assert ds["t"].dims == ("time", "realization", "air_pressure", "latitude", "longitude")
    assert ds["t2m"].dims == ("time", "realization", "latitude", "longitude")
    assert ds["q_mean"].dims == ("time", "air_pressure", "latitude", "longitude")
    assert ds["t"].shape == (2, 3, 8, 48, 96)
    np.testing.assert_array_equal(ds["air_pressure"], 100.0 * np.array(LEVELS_T31))
    assert ds["air_pressure"].attrs["positive"] == "down"
    assert ds["latitude"].values[0] > 0 > ds["latitude"].values[-1]
    assert ds["time"].values[-1] == np.datetime64("2025-03-20T12:00")
    assert set(ds.data_vars) >= {"t", "u", "v", "z", "q", "t2m", "u10", "v10", "msl", "sst", "tp"}


def test_levels_are_in_their_places():
    product = make_product()
    ds = to_dataset(product)
    place = [c.name for c in product.channels].index("geopotential_500hPa")
    np.testing.assert_array_equal(
        ds["z"].sel(air_pressure=50000.0).transpose("realization", ...), product.states[:, :, place]
    )


@pytest.mark.parametrize("grid", [T31, TINY])
def test_cell_bounds_cover_the_sphere_once(grid):
    ds = to_dataset(make_product(grid, members=2))
    edges = ds["latitude_bnds"].values
    assert (edges[0, 0], edges[-1, 1]) == (90.0, -90.0)
    np.testing.assert_allclose(edges[1:, 0], edges[:-1, 1])
    rows = -np.diff(np.sin(np.deg2rad(edges)), axis=1)[:, 0] / 2
    np.testing.assert_allclose(rows, grid.area_weights, atol=1e-14)
    assert (edges[:, 0] >= ds["latitude"].values).all() and (
        edges[:, 1] <= ds["latitude"].values
    ).all()
    columns = ds["longitude_bnds"].values
    assert columns[-1, 1] - columns[0, 0] == pytest.approx(360.0)


def test_mean_and_spread_are_those_of_the_members():
    product = make_product(members=5)
    ds = to_dataset(product)
    members = product.states[:, 0, 0].astype(np.float64)
    np.testing.assert_allclose(ds["t2m_mean"][0], members.sum(0) / 5, rtol=1e-6)
    variance = ((members - members.sum(0) / 5) ** 2).sum(0) / 4
    np.testing.assert_allclose(ds["t2m_spread"][0], np.sqrt(variance), rtol=1e-5)
    assert ds["t2m_mean"].attrs["cell_methods"] == "time: point realization: mean"
    assert ds["t2m_spread"].attrs["cell_methods"].endswith("realization: standard_deviation")


@pytest.mark.parametrize(("members", "divisor"), [(4, 4.0), (5, 5 - 1 / 5)])
def test_the_spread_of_pairs_is_divided_by_the_number_of_members(members, divisor):
    # Five members are two pairs and one alone, which moves the mean: v = 1 / 25, M (1 - v) = 4.8.
    product = make_product(members=members, mirrored=True)
    ds = to_dataset(product)
    states = product.states[:, 0, 0].astype(np.float64)
    square = ((states - states.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(ds["t2m_spread"][0], np.sqrt(square / divisor), rtol=1e-5)
    assert ds["t2m_spread"].attrs["ensemble_divisor"] == pytest.approx(divisor)
    assert "ensemble_divisor" in ds["t2m_spread"].attrs["comment"]
    assert ds.attrs["mirrored_members"] == "true"
    assert ds.attrs["ranked_members"] == members - 2


def test_files_of_independent_members_say_so():
    ds = to_dataset(make_product(members=5))
    assert ds["t2m_spread"].attrs["ensemble_divisor"] == 4.0
    assert "comment" not in ds["t2m_spread"].attrs
    assert (ds.attrs["mirrored_members"], ds.attrs["ranked_members"]) == ("false", 5)
    ahead = to_dataset(make_product(kind="forecast"))
    assert ahead["t2m_spread"].attrs["ensemble_divisor"] == 3.0
    assert "ranked_members" not in ahead.attrs  # nothing observed


def test_one_member_keeps_its_dimension_and_has_no_spread():
    ds = to_dataset(make_product(members=1))
    assert ds["t2m"].dims[1] == "realization" and ds.sizes["realization"] == 1
    assert "t2m_mean" in ds and "t2m_spread" not in ds


@pytest.mark.parametrize(
    ("fields", "present", "absent"),
    [("members", "t", "t_mean"), ("mean", "t_mean", "t"), ("mean", "t_spread", "t2m")],
)
def test_fields_asked_for(fields, present, absent):
    ds = to_dataset(make_product(spec={"fields": fields}))
    assert present in ds and absent not in ds
    assert ds.sizes["realization"] == 4


def test_humidity_and_precipitation_are_never_negative_and_the_cells_are_counted():
    product = make_product()
    ds = to_dataset(product)
    for short, first in (
        ("tp", 5),
        ("q", [i for i, c in enumerate(product.channels) if c.variable == "specific_humidity"]),
    ):
        before = product.states[:, :, first]
        assert (before < 0).any()
        assert ds[short].values.min() == 0
        assert ds[short].attrs["clipped_cells"] == (before < 0).sum()
        assert ds[f"{short}_mean"].values.min() >= 0
    assert "clipped_cells" not in ds["t"].attrs


def test_missing_sea_surface_stays_missing():
    product = make_product()
    ds = to_dataset(product)
    np.testing.assert_array_equal(
        np.isnan(ds["sst"].transpose("realization", ...)), np.isnan(product.states[:, :, 4])
    )
    np.testing.assert_array_equal(np.isnan(ds["sst_mean"])[0], np.isnan(product.states[0, 0, 4]))


def test_precipitation_is_the_sum_of_the_hour_before():
    ds = to_dataset(make_product(times=2))
    assert ds["tp"].attrs["cell_methods"] == "time: sum"
    assert ds["tp"].attrs["standard_name"] == "lwe_thickness_of_precipitation_amount"
    np.testing.assert_array_equal(ds["time_bnds"][:, 1], ds["time"])
    assert (np.diff(ds["time_bnds"].values, axis=1) == np.timedelta64(1, "h")).all()


def test_analysis_has_a_window_and_no_reference_time():
    ds = to_dataset(make_product(spec={"observations": {"cut_off": NOON}}))
    assert "forecast_reference_time" not in ds and "forecast_period" not in ds
    assert ds.attrs["forecast_type"] == "analysis"
    assert ds["assimilation_window_start"] == np.datetime64("2025-03-19T12:00")
    assert ds["assimilation_window_end"] == np.datetime64("2025-03-20T12:00")
    assert ds["cut_off_time"] == np.datetime64("2025-03-20T12:00")


def test_forecast_has_a_reference_time_and_lead_times():
    ds = to_dataset(make_product(kind="forecast", times=3))
    assert ds["forecast_reference_time"] == np.datetime64("2025-03-20T12:00")
    np.testing.assert_array_equal(ds["forecast_period"], [1.0, 2.0, 3.0])
    assert ds.attrs["forecast_type"] == "forecast"
    assert "assimilation_window_start" not in ds and "observations_used" not in ds.attrs


def test_what_went_in_is_recorded():
    ds = to_dataset(make_product())
    assert ds.attrs["checkpoint_sha256"] == "ab" * 32
    assert ds.attrs["observations_used"] == 812
    assert json.loads(ds.attrs["observations_by_outcome"])["background_check"] == 9
    assert json.loads(ds.attrs["configuration"]) == {"steps": 8, "guidance": "mmps"}
    assert json.loads(ds.attrs["background"])["source"] == "previous_analysis"
    np.testing.assert_array_equal(ds["member_seed"], [100, 101, 102, 103])


def test_a_simulation_is_called_one():
    simulated = to_dataset(make_product())
    assert simulated.attrs["title"] == "Simulated ensemble analysis of 2025-03-20 12 UTC"
    assert simulated.attrs["comment"].startswith("simulated")
    real = to_dataset(make_product(flags=("zero_observations",)))
    assert real.attrs["title"] == "Ensemble analysis of 2025-03-20 12 UTC"
    assert "no observation" in real.attrs["comment"]


def test_channels_in_another_order_are_refused():
    order = channels(LEVELS_T31)
    with pytest.raises(InvalidInput, match="neighbouring channels"):
        to_dataset(make_product(channels=(*order[:6], *order[7:14], order[6], *order[14:])))


def test_made_up_states_are_plausible():
    states = make_states(T31, 1, 4)
    assert np.nanmin(states[:, :, 0]) > 180 and np.nanmax(states[:, :, 0]) < 330


def test_a_reanalysis_is_filed_under_its_first_time(tmp_path):
    product = make_product(TINY, members=2, times=3)
    start = NOON - timedelta(hours=2)
    asked = ReanalysisSpec(start=start, end=NOON, members=2)
    product = replace(product, job=JobRecord(id="j2", spec=asked, analysis_id="a2"))
    assert product_file(product, tmp_path, "nc").name == "appa_ra_20250320T10Z_v1.nc"
    ds = to_dataset(product)
    assert ds.attrs["forecast_type"] == "reanalysis" and ds.sizes["time"] == 3
    assert ds.attrs["title"] == "Simulated ensemble reanalysis of 2025-03-20 10 UTC"
