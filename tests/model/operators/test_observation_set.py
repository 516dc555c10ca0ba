"""Building sets of observations, restricting them, and accounting for every row."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.domain.errors import InvalidInput
from model.domain.observations import QC_FLAGS, empty_table, validate_table
from model.operators.observation_set import build_observation_set
from tests.model.operators import worlds

GRID = worlds.GRIDS["regular"]


def build(columns):
    return build_observation_set(
        worlds.table(columns), GRID, worlds.CHANNELS, worlds.TIMES, worlds.statics(GRID)
    )


def test_rows_keep_their_order_across_families():
    kinds = ["pressure", "surface", "surface", "pressure"]
    chosen, _ = build(
        {
            "variable": [
                "temperature",
                "mean_sea_level_pressure",
                "10m_wind_speed",
                "temperature",
            ],
            "vertical_kind": kinds,
            "vertical": [50_000.0, None, None, 85_000.0],
            "obs_value": [1.0, 2.0, 3.0, 4.0],
            "obs_error": [0.1, 0.2, 0.3, 0.4],
        }
    )
    states = torch.zeros(worlds.LENGTH, len(worlds.CHANNELS), *GRID.shape)
    states[:, worlds.index("temperature", 500)] = 10.0
    states[:, worlds.index("temperature", 850)] = 40.0
    states[:, worlds.index("mean_sea_level_pressure")] = 20.0
    states[:, worlds.index("10m_u_component_of_wind")] = 30.0
    assert chosen.rows.tolist() == [0, 1, 2, 3]
    assert chosen.values.tolist() == [1, 2, 3, 4]
    assert chosen.error_std.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert chosen.operator(states).tolist() == [10, 20, 30, 40]
    assert chosen.operator(states.half()).dtype == torch.float32
    picked = chosen.select(np.array([False, True, False, True]))
    assert picked.operator(states).tolist() == [20, 40]
    assert picked.rows.tolist() == [1, 3]


def test_every_row_is_accounted_for():
    chosen, after = build(
        {
            "variable": ["temperature"] * 4 + ["2m_dewpoint_temperature", "temperature"],
            "vertical_kind": ["pressure"] * 4 + ["column", "pressure"],
            "vertical": [50_000.0, 50_000.0, 100.0, 50_000.0, None, 50_000.0],
            "obs_value": [1.0, np.nan, 1.0, 1.0, 1.0, 1.0],
            "hours": [0, 0, 0, 99, 0, 0],
            "rejected_by": [None] * 5 + ["buddy"],
            "qc_flag": np.array([0, 0, 0, 0, 0, QC_FLAGS["buddy"].number], np.uint8),
        }
    )
    validate_table(after)
    names = after["rejected_by"].to_pylist()
    assert names == [None, "missing", "domain", "domain", "passive", "buddy"]
    numbers = [0 if n is None else QC_FLAGS[n].number for n in names]
    assert after["qc_flag"].to_pylist() == numbers
    assert chosen.rows.tolist() == [0]


def test_no_observations():
    states = worlds.random_states(GRID, 2).requires_grad_()
    for table in (empty_table(), worlds.table({"variable": ["brightness_temperature"]})):
        chosen, after = build_observation_set(table, GRID, worlds.CHANNELS, worlds.TIMES)
        assert len(chosen) == len(chosen.values) == 0
        out = chosen.operator(states)
        assert out.shape == (2, 0)
        (gradient,) = torch.autograd.grad(out.sum(), states)
        assert gradient.abs().max() == 0
        assert len(chosen.for_blanket(0, 2)) == 0
        assert after.num_rows == table.num_rows


def test_blankets_hold_the_whole_time_support():
    hours = [-0.3, 0.0, 0.5, 1.0, 1.5, 2.0, 3.4]
    chosen, _ = build({"variable": ["mean_sea_level_pressure"] * len(hours), "hours": hours})
    assert chosen.for_blanket(0, 2).rows.tolist() == [0, 1, 2, 3]
    assert chosen.for_blanket(1, 2).rows.tolist() == [3]
    assert chosen.for_blanket(2, 4).rows.tolist() == [5, 6]
    # A blanket of a blanket counts from its own start.
    states = worlds.random_states(GRID)
    inner = chosen.for_blanket(1, 4).for_blanket(1, 3)
    torch.testing.assert_close(
        inner.operator(states[2:4]), chosen.operator(states)[torch.tensor([5, 6])]
    )
    with pytest.raises(InvalidInput, match=r"within the 4 states; got \[2, 6\)"):
        chosen.for_blanket(2, 6)


def test_states_of_another_shape_are_refused():
    chosen, _ = build({"variable": ["mean_sea_level_pressure"]})
    with pytest.raises(InvalidInput, match="Expected states with shape"):
        chosen.operator(torch.zeros(1, 1, 2, 2))


def test_a_table_in_several_chunks():
    one = worlds.table({"variable": ["mean_sea_level_pressure"], "obs_value": [1.0]})
    two = worlds.table({"variable": ["2m_temperature"], "obs_value": [2.0]})
    joined = pa.concat_tables([one, two, one]).unify_dictionaries()
    chosen, _ = build_observation_set(joined, GRID, worlds.CHANNELS, worlds.TIMES)
    assert chosen.values.tolist() == [1, 2, 1]
    assert chosen.to(torch.float64).values.dtype == torch.float64
