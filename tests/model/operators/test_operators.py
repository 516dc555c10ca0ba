"""What every observation operator must do, for every entry of the registry and on both grids."""

import numpy as np
import pytest
import torch

from model.domain.variables import ATMOSPHERIC, SURFACE
from model.operators.observation_set import OPERATORS, ObservationSet, build_observation_set
from tests.model.operators import worlds

COUNT = 40

OBSERVED = {
    "brightness": [("brightness_temperature", "channel")],
    "column": [("total_column_water_vapour", "column")],
    "height_level": [("temperature", "height"), ("u_component_of_wind", "height")],
    "pressure_level": [(variable, "pressure") for variable in ATMOSPHERIC],
    "relative_humidity": [("relative_humidity", "pressure"), ("relative_humidity", "height")],
    "surface": [(variable, "surface") for variable in SURFACE],
    "surface_dewpoint": [("2m_dewpoint_temperature", "surface")],
    "surface_humidity": [("2m_relative_humidity", "surface")],
    "surface_pressure": [("surface_pressure", "surface")],
    "thickness": [("geopotential_thickness", "layer")],
    "wind_speed": [
        ("10m_wind_speed", "surface"),
        ("wind_speed", "pressure"),
        ("wind_speed", "height"),
    ],
}


def observations(family: str, grid_kind: str) -> ObservationSet:
    """Random places and times, poles and date line among them."""
    rng = np.random.default_rng(7)
    pairs = OBSERVED[family]
    chosen = [pairs[i % len(pairs)] for i in range(COUNT)]
    lat, lon = rng.uniform(-90, 90, COUNT), rng.uniform(-180, 180, COUNT)
    lat[:4], lon[:4] = (90, -90, 89, -88.5), (0, 77, 179.9, -180)
    vertical = {
        "pressure": rng.uniform(6_000, 90_000, COUNT),
        "height": rng.uniform(1_200, 19_000, COUNT),
        "channel": rng.integers(5, 7, COUNT),
        "layer": rng.uniform(60_000, 90_000, COUNT),
    }
    world = worlds.table(
        {
            "variable": [v for v, _ in chosen],
            "vertical_kind": [k for _, k in chosen],
            "vertical": [
                None if k not in vertical else float(vertical[k][i])
                for i, (_, k) in enumerate(chosen)
            ],
            "vertical_top": [30_000.0] * COUNT,
            "elevation": rng.uniform(0, 1_500, COUNT),
            "lat": lat,
            "lon": lon,
            "hours": rng.uniform(-0.4, worlds.LENGTH - 0.6, COUNT),
        }
    )
    grid = worlds.GRIDS[grid_kind]
    chosen_set, _ = build_observation_set(
        world, grid, worlds.CHANNELS, worlds.TIMES, worlds.statics(grid)
    )
    return chosen_set


def test_every_entry_is_tested():
    assert set(OBSERVED) == set(OPERATORS)


@pytest.fixture(params=[(f, g) for f in sorted(OPERATORS) for g in worlds.GRIDS], ids="-".join)
def case(request):
    family, grid_kind = request.param
    chosen = observations(family, grid_kind)
    states = worlds.random_states(worlds.GRIDS[grid_kind], 3)
    _, spread = worlds.scales()
    direction = torch.randn(states.shape, dtype=torch.float64) * spread
    return OPERATORS[family], chosen, states, direction


def jvp(operator, states, direction):
    """Tangent linear by double backward, as the guidance takes it."""
    states = states.detach().requires_grad_()
    out = operator(states)
    probe = torch.zeros_like(out, requires_grad=True)
    (pulled,) = torch.autograd.grad(out, states, probe, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, probe, direction)
    return pushed


def test_adjoint(case):
    _, chosen, states, direction = case
    assert len(chosen) > COUNT / 2
    states.requires_grad_()
    out = chosen.operator(states)
    w = torch.randn_like(out) / chosen.error_std.double()
    (adjoint,) = torch.autograd.grad(out, states, w)
    forward = (jvp(chosen.operator, states, direction) * w).sum()
    torch.testing.assert_close(forward, (direction * adjoint).sum(), rtol=1e-10, atol=0)


def test_tangent_linear_against_finite_differences(case):
    _, chosen, states, direction = case
    step = 1e-5  # near a calm, speeds curve too much for more
    ahead = chosen.operator(states + step * direction)
    behind = chosen.operator(states - step * direction)
    tangent = jvp(chosen.operator, states, direction)
    scale = tangent.abs().max()
    torch.testing.assert_close((ahead - behind) / (2 * step), tangent, rtol=1e-5, atol=1e-6 * scale)


def test_forward_mode_agrees_with_double_backward(case):
    _, chosen, states, direction = case
    _, tangent = torch.func.jvp(chosen.operator, (states,), (direction,))
    torch.testing.assert_close(tangent, jvp(chosen.operator, states, direction))


def test_linear_where_it_says_so(case):
    family, chosen, states, direction = case
    if not family.linear:
        pytest.skip("nonlinear")
    op = chosen.operator
    combined = op(2.0 * states - 0.5 * direction)
    zero = op(torch.zeros_like(states))
    expected = 2.0 * (op(states) - zero) - 0.5 * (op(direction) - zero) + zero
    torch.testing.assert_close(combined, expected, rtol=1e-9, atol=1e-9)


def test_members_are_observed_one_by_one_alike(case):
    _, chosen, states, _ = case
    together = chosen.operator(states)
    alone = torch.stack([chosen.operator(member) for member in states])
    torch.testing.assert_close(together, alone)
    mapped = torch.func.vmap(chosen.operator)(states)
    torch.testing.assert_close(together, mapped)


def test_a_blanket_sees_what_the_whole_window_sees(case):
    _, chosen, states, _ = case
    part = chosen.for_blanket(1, 3)
    first, last = chosen.time_support
    inside = (first >= 1) & (last < 3)
    assert np.array_equal(part.rows, chosen.rows[inside])
    torch.testing.assert_close(
        part.operator(states[:, 1:3]), chosen.operator(states)[:, torch.from_numpy(inside)]
    )
