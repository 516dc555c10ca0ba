"""Model equivalents of few hours: the same values as of all, and no state decoded that nobody reads."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch

from model.diagnostics.equivalents import model_equivalents, observation_set
from tests.model.checkpoint_parts import tiny_model
from tests.worker.tables import make_table

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOURS = 6
"""States of the trajectory, the last one at noon."""


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def latents(model):
    torch.manual_seed(3)
    return torch.randn(2, HOURS, *model.latent_shape)


def observed(model, minutes_before_noon):
    times = [NOON - timedelta(hours=h) for h in reversed(range(HOURS))]
    time = np.datetime64("2024-01-01T12:00", "ns") - np.timedelta64(minutes_before_noon, "m")
    table = make_table(3, time=time, obs_error=np.ones(3))
    chosen, _ = observation_set(table, model, times)
    assert len(chosen)
    return chosen


def decoded_hours(model, latents, monkeypatch):
    """Returns the list to which the states that are decoded are added, each by its hour."""
    found = []
    decode = type(model).decode

    def spy(self, z, **options):
        for state in z:
            found.append(next(h for h in range(HOURS) if (latents[:, h] == state).all(-1).any()))
        return decode(self, z, **options)

    monkeypatch.setattr(type(model), "decode", spy)
    return found


@pytest.mark.parametrize(
    ("minutes", "read"), [(0, {5}), (90, {3, 4}), (60, {4})], ids=["on", "between", "earlier"]
)
def test_decodes_what_observations_read(model, latents, monkeypatch, minutes, read):
    chosen = observed(model, minutes)
    with torch.no_grad():
        whole = torch.stack([chosen.operator(model.decode(z, mask=False)) for z in latents])
    hours = decoded_hours(model, latents, monkeypatch)
    found = model_equivalents(latents, model, chosen)
    np.testing.assert_allclose(found, whole.double().numpy(), rtol=1e-5)
    assert sorted(hours) == sorted(2 * list(read))


def test_a_caller_sees_the_hours_it_looks_at(model, latents, monkeypatch):
    with torch.no_grad():
        whole = model.decode(latents)
    hours = decoded_hours(model, latents, monkeypatch)
    seen = {}
    model_equivalents(latents, model, observed(model, 90), seen.__setitem__, hours=[0])
    assert sorted(hours) == [0, 0, 3, 3, 4, 4]
    for member, states in seen.items():
        torch.testing.assert_close(states[0], whole[member, 0], equal_nan=True)
        assert states[[1, 2, 5]].isnan().all()


def test_all_hours_are_decoded_for_a_caller_that_names_none(model, latents):
    with torch.no_grad():
        whole = model.decode(latents)
    seen = {}
    model_equivalents(latents, model, observed(model, 0), seen.__setitem__)
    for member, states in seen.items():
        torch.testing.assert_close(states, whole[member], equal_nan=True)


def test_without_observations_the_hours_of_the_caller_alone_are_decoded(
    model, latents, monkeypatch
):
    none = observed(model, 0)
    none = none.select(np.zeros(len(none), dtype=bool))
    hours = decoded_hours(model, latents, monkeypatch)
    model_equivalents(latents, model, none, lambda member, states: None, hours=[5, 2])
    assert sorted(hours) == [2, 2, 5, 5]
    assert model_equivalents(latents, model, none).shape == (2, 0)
    assert len(hours) == 4
