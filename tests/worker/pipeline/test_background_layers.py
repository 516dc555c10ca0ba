"""Biases of sounders by the thickness of the background: in a window whose states are known."""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.domain.physics import GAS_CONSTANT_DRY, GRAVITY, height_of_pressure
from model.domain.windows import WindowPlan
from tests.model.operators.worlds import CHANNELS, FIRST, GRIDS, TIMES, index, statics, table
from worker.contract.kinds import ObservationSelection
from worker.observations.bias import BIAS_CHECK, LAYERS, BiasState, SensorBias
from worker.observations.columns import float_column
from worker.observations.qc.base import load_parameters
from worker.pipeline.departures import BackgroundLayers, check_window
from worker.solver import Background

GRID = GRIDS["regular"]
WARM = np.array([[4.0, 6.0], [-3.0, 1.0]])
"""Warmth in K of the two layers over the standard atmosphere, in each of two members."""
_BOUNDS = {925: 0, 300: 0, 200: 1, 50: 1}
"""Levels that bound the layers; the lower one ends with the model's levels, at 925 hPa."""


def states():
    """Two members whose layers are warmer by `WARM`, and by 1 K more each hour."""
    found = torch.full((2, len(TIMES), len(CHANNELS), *GRID.shape), 250.0).double()
    for member in range(2):
        for hour in range(len(TIMES)):
            for level, layer in _BOUNDS.items():
                z = GRAVITY * float(height_of_pressure(np.array(100.0 * level)))
                if level in (300, 50):
                    bottom = {300: 925, 50: 200}[level]
                    z += GAS_CONSTANT_DRY * np.log(bottom / level) * (WARM[member, layer] + hour)
                found[member, hour, index("geopotential", level)] = z
    return found


def stub_model():
    """A model whose latents are its states."""
    surroundings = statics(GRID)
    return SimpleNamespace(
        grid=GRID,
        channels=CHANNELS,
        statics=surroundings,
        dtype=torch.float64,
        device=torch.device("cpu"),
        state_shape=(len(CHANNELS), *GRID.shape),
        decode=lambda latents, mask: latents,
        state_normalisation=SimpleNamespace(missing=None),
        card=SimpleNamespace(levels=(50, 200, 300, 925)),
    )


def sounder(hours, channels):
    count = len(hours)
    return table(
        {
            "variable": ["brightness_temperature"] * count,
            "vertical_kind": ["channel"] * count,
            "vertical": channels,
            "report_type": ["satellite"] * count,
            "station_id": ["sat004"] * count,
            "platform": ["amsu-a"] * count,
            "scan_angle": [25.0] * count,
            "hours": hours,
            "lat": np.full(count, 10.0),
            "lon": np.linspace(3.0, 90.0, count),
            "obs_value": np.full(count, 251.0),
            "obs_error": np.full(count, 0.5),
        }
    )


def test_layers_are_those_of_the_mean_of_the_members_at_their_time():
    observed = sounder([0.0, 1.5, 1.5, 3.0], [5.0, 5.0, 6.0, 5.0])
    found = BackgroundLayers(observed, np.array([0, 1, 2]), stub_model(), TIMES)
    for member, trajectory in enumerate(states()):
        found(member, trajectory)
    predictors = found.predictors()
    hours = np.array([0.0, 1.5, 1.5])
    for layer, name in enumerate(LAYERS):
        expected = (WARM[:, layer].mean() + hours) / 10.0
        assert predictors[name][:3] == pytest.approx(expected, abs=1e-6)
        assert np.isnan(predictors[name][3])


def test_a_window_takes_off_the_bias_of_its_background_and_learns_by_it():
    """The bias known before is 0.4 K + 2 K a unit of the lower layer; what is left is 0.6 - 0.14."""
    name = "satellite/brightness_temperature/sat004 amsu-a#5"
    predictors = load_parameters()[BIAS_CHECK]["sensors"]["satellite/brightness_temperature"]
    known = SensorBias(
        mean=[0.4, 0.0, 0.0, 2.0, 0.0],
        covariance=(np.eye(5) * 1e-3).tolist(),
        count=10,
        seen=datetime(2021, 2, 28, 21, tzinfo=UTC),
        predictors=predictors["predictors"],
    )
    count = len(TIMES)
    plan = WindowPlan(TIMES, *((True,) * count for _ in range(3)))
    checks = load_parameters({"superobbing": {"enabled": False}, "late": {"enabled": False}})
    checked = check_window(
        sounder([0.0, 1.0, 2.0], [5.0] * 3),
        plan,
        ObservationSelection(),
        stub_model(),
        Background(TIMES, states(), "previous_analysis"),
        checks,
        BiasState(until=FIRST.replace(hour=21), sensors={name: known}),
    )
    warm = (WARM[:, 0].mean() + np.arange(3)) / 10.0
    bias = 0.4 + 2.0 * warm
    assert float_column(checked.feedback, "obs_bias") == pytest.approx(bias, abs=1e-6)
    # All temperatures are 250 K and the weights sum to 1: H(x) is 250 K.
    assert checked.observations.obs_values == pytest.approx(251.0 - bias, abs=1e-6)
    assert float_column(checked.feedback, "background_departure") == pytest.approx(
        1.0 - bias, abs=1e-5
    )
    after = checked.biases.sensors[name]
    assert after.count == 13
    assert after.mean[1] > 0.0 and after.mean[1] == pytest.approx(2.0 * after.mean[2], rel=1e-3)
