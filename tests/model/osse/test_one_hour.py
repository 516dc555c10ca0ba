"""Optimal interpolation of a checkpoint's state."""

from datetime import UTC, datetime

import pytest
import torch

from lab.osse.baselines import one_hour_analysis
from lab.osse.network import Network, simulate_observations
from model.domain.errors import ConfigurationError
from model.operators.observation_set import build_observation_set
from tests.model.checkpoint_parts import DATE, tiny_model

END = datetime(2021, 3, 4, 3, tzinfo=UTC)


def world(model):
    """A background, and observations that agree with it exactly."""
    background = torch.randn(model.state_shape, generator=torch.Generator().manual_seed(1))
    network = Network(stations=20, ships=5, sondes=3, scan_lines=6)
    table = simulate_observations(
        background[None],
        model.grid,
        model.channels,
        [END],
        seed=0,
        statics=model.statics,
        network=network,
    )
    seen, _ = build_observation_set(table, model.grid, model.channels, [END], model.statics)
    return background, with_values(table, seen.operator(background[None].double()).numpy())


def with_values(table, values):
    place = table.schema.get_field_index("obs_value")
    return table.set_column(place, table.schema.field(place), [values])


def test_only_innovations_change_the_background():
    model = tiny_model(based=True)
    background, table = world(model)
    quiet = one_hour_analysis(model, table, END, background, DATE[0], members=40)
    torch.testing.assert_close(quiet, background, rtol=0, atol=1e-3)
    warm = table["variable"].cast("string").to_numpy(zero_copy_only=False) == "2m_temperature"
    values = table["obs_value"].to_numpy() + 30.0 * warm
    found = one_hour_analysis(
        model, with_values(table, values), END, background, DATE[0], members=40
    )
    assert (found - background)[0].max() > 0.1


def test_a_checkpoint_without_a_prior_is_refused():
    model = tiny_model()
    background, table = world(model)
    with pytest.raises(ConfigurationError, match="closed-form prior"):
        one_hour_analysis(model, table, END, background, DATE[0])
