"""Physical states, standardised states, latents: where each number goes."""

import pytest
import torch
from checkpoint_parts import DATE, tiny_model

from model.domain.errors import InvalidInput
from model.domain.variables import Channel
from model.latent_model import LatentNormalisation, StateNormalisation

CHANNELS = (Channel("2m_temperature"), Channel("sea_surface_temperature"))


def test_standardisation_in_numbers():
    norm = StateNormalisation(torch.tensor([280.0, 290.0]), torch.tensor([10.0, 5.0]), CHANNELS)
    states = torch.tensor([300.0, float("nan")]).reshape(2, 1, 1)
    assert norm.standardise(states).flatten().tolist() == [2.0, 0.0]
    assert norm.physical(torch.tensor([2.0, -1.0]).reshape(2, 1, 1)).flatten().tolist() == [
        300,
        285,
    ]


def test_sea_surface_temperature_is_missing_on_land_and_nowhere_else():
    sea = torch.tensor([[True, False]])
    norm = StateNormalisation(torch.zeros(2), torch.ones(2), CHANNELS, sea)
    states = norm.physical(torch.zeros(3, 2, 1, 2), mask=True)
    assert states.isnan().sum() == 3
    assert states[:, 1, 0, 1].isnan().all()
    assert not norm.physical(torch.zeros(3, 2, 1, 2)).isnan().any()


def test_latent_variance_is_enlarged_by_the_noise():
    norm = LatentNormalisation(torch.tensor([1.0]), torch.tensor([3.0]), noise=4.0)
    assert norm.standardise(torch.tensor([11.0]).reshape(1, 1, 1)).item() == 2.0
    assert norm.restore(torch.tensor([2.0]).reshape(1, 1, 1)).item() == 11.0


@pytest.mark.parametrize("std", [[1.0, 0.0], [1.0, float("nan")], [1.0]])
def test_unusable_statistics_are_refused(std):
    with pytest.raises(InvalidInput, match="Expected"):
        StateNormalisation(torch.zeros(2), torch.tensor(std), CHANNELS)


def test_encode_and_decode_are_the_steps_in_order():
    model = tiny_model()
    states = 50 * torch.randn(2, 3, *model.state_shape)
    mean = model.state_normalisation.mean
    std = model.state_normalisation.std
    latents = model.encode(states)
    assert latents.shape == (2, 3, *model.latent_shape)
    z = model.autoencoder.encode((states - mean) / std)
    latent_mean, latent_std = model.latent_normalisation.mean, model.latent_normalisation.std
    assert torch.allclose(latents * latent_std + latent_mean, z, atol=1e-5)
    decoded = model.autoencoder.decode(z)
    assert torch.allclose(model.decode_standardised(latents), decoded, atol=1e-4)
    assert torch.allclose(model.decode(latents, mask=False), decoded * std + mean, atol=1e-3)


def test_decoded_sea_surface_temperature_is_missing_on_land():
    model = tiny_model()
    states = model.decode(torch.zeros(1, *model.latent_shape))
    land = model.static["land_sea_mask"] > 0.5
    sst = [c.variable for c in model.channels].index("sea_surface_temperature")
    assert torch.equal(states[0, sst].isnan(), land)
    assert states.isnan().sum() == land.sum()
    # and a state with missing values encodes
    assert model.encode(states).isfinite().all()


def test_it_knows_what_operators_need():
    model = tiny_model()
    domain = model.domain(5)
    assert (domain.grid, domain.channels, domain.length) == (model.grid, model.channels, 5)
    assert domain.statics.orography.max() == 500.0
    assert domain.statics.land_sea_mask.shape == model.grid.shape
    assert model.blanket_size == 4
    assert model.schedule.sigma_max == 1e3


def test_weighting_functions_are_named_by_sensor_and_channel():
    model = tiny_model()
    weights = torch.linspace(0.0, 1.0, len(model.card.levels))
    model.static |= {"weighting_function.amsu-a.5": weights, "weighting_function.9": 1.0 - weights}
    found = model.statics.weighting_functions
    assert set(found) == {("amsu-a", 5), 9}
    assert torch.allclose(torch.tensor(found["amsu-a", 5]), weights.double())


def test_bfloat16_stays_close_to_float32_and_returns_float32():
    model = tiny_model()
    states = 50 * torch.randn(2, *model.state_shape)
    latents, x = model.encode(states), torch.randn(1, 4, *model.latent_shape)
    full = model.decode_standardised(latents), model.denoise(x, torch.tensor(1.0), DATE)
    model.denoise.precision = model.precision = "bfloat16"
    fast = model.decode_standardised(latents), model.denoise(x, torch.tensor(1.0), DATE)
    for a, b in zip(full, fast, strict=True):
        assert b.dtype == torch.float32
        assert 0 < (a - b).square().mean().sqrt() < 0.05 * a.square().mean().sqrt()


def test_it_moves_to_another_type_as_a_whole():
    model = tiny_model(based=False).double()
    assert model.dtype == torch.float64
    states = torch.randn(1, *model.state_shape)
    assert model.decode(model.encode(states)).dtype == torch.float64
