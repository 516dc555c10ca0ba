"""Observations of a window that is shorter than a blanket, on both ways to decode."""

import numpy as np
import pytest
import torch

from model.domain.windows import WindowPlan
from model.guidance.base import BlanketRows
from model.guidance.observed import DecodedObservations
from model.linear_decoder import LinearDecoder, TangentDecoder
from model.operators.observation_set import ObservationSet, build_observation_set
from model.passes import blanket_observations, plan_passes
from tests.model.operators import worlds

GRID = worlds.GRIDS["gaussian"]
SIZE, LATENT = 7, 3
"""States of a blanket, of which the window of four hours fills the last."""


def observed() -> ObservationSet:
    """Surface and upper air, linear and not, at and between the hours."""
    names = ["2m_temperature", "10m_wind_speed", "temperature", "mean_sea_level_pressure"]
    chosen, _ = build_observation_set(
        worlds.table(
            {
                "variable": names,
                "vertical_kind": ["surface", "surface", "pressure", "surface"],
                "vertical": [None, None, 50_000.0, None],
                "lat": np.array([12.0, -40.0, 55.0, 3.0]),
                "lon": np.array([5.0, 100.0, -60.0, 170.0]),
                "hours": np.array([0.0, 1.5, 3.0, 2.25]),
            }
        ),
        GRID,
        worlds.CHANNELS,
        worlds.TIMES,
        worlds.statics(GRID),
    )
    assert len(chosen) == 4
    return chosen.to(torch.float64)


def tangent() -> TangentDecoder:
    generator = torch.Generator().manual_seed(0)
    decoder = LinearDecoder(LATENT, len(worlds.CHANNELS), (4, 4)).double()
    for part in (decoder.weight, decoder.bias):
        part.copy_(torch.randn(part.shape, generator=generator))
    mean, spread = worlds.scales()
    return TangentDecoder(lambda: decoder, mean, spread)


@pytest.mark.parametrize("whole", [True, False], ids=["whole states", "read values"])
def test_a_short_window_at_the_end_of_a_blanket(whole: bool) -> None:
    chosen, decode = observed(), tangent()
    plan = WindowPlan.filtering(worlds.TIMES[-1], worlds.LENGTH)
    assert plan.times == worlds.TIMES
    [part] = plan_passes(plan, SIZE, SIZE)
    assert part.first == worlds.LENGTH - SIZE
    seen = blanket_observations(chosen, plan, part)
    shape = (2, SIZE, LATENT, GRID.nlat // 4, GRID.nlon // 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    rows = BlanketRows(torch.zeros(2, dtype=torch.long), torch.arange(2))
    through = (lambda z: decode(z)) if whole else decode
    found = DecodedObservations(seen, through).select(rows, latents)
    assert found is not None
    expected = chosen.operator(decode(latents)[:, SIZE - worlds.LENGTH :])
    torch.testing.assert_close(found.predict(latents), expected)


def test_an_operator_in_the_middle_reads_where_it_says() -> None:
    """`observe` on the values at `columns` is the operator; what lies around them is not read."""
    chosen = observed()
    plan = WindowPlan.filtering(worlds.TIMES[-1], worlds.LENGTH)
    [seen] = blanket_observations(chosen, plan, plan_passes(plan, SIZE, SIZE)[0])
    assert seen is not None
    states = worlds.random_states(GRID, length=SIZE)
    columns = torch.from_numpy(seen.operator.columns)
    assert seen.operator.state_shape == tuple(states.shape)
    expected = chosen.operator(states[SIZE - worlds.LENGTH :])
    torch.testing.assert_close(seen.operator.observe(states.flatten()[columns]), expected)
    blind = torch.full_like(states, float("nan")).flatten()
    blind[columns] = states.flatten()[columns]
    torch.testing.assert_close(seen.operator(blind.view_as(states)), expected)
    first, last = seen.time_support
    assert (first.tolist(), last.tolist()) == ([3, 4, 6, 5], [3, 5, 6, 6])
