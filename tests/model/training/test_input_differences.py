"""Weights of differences: the same function of the states, with gradients of its own."""

import pytest
import torch

from lab.training.preconditioning import InputDifferences, learn_differences, restore_inputs
from model.backbone import Backbone, BackboneConfig
from model.domain.errors import ConfigurationError

STATES, CHANNELS = 9, 3


def backbone(patch=(STATES, 1, 1)) -> Backbone:
    torch.manual_seed(0)
    return Backbone(
        BackboneConfig(
            in_channels=CHANNELS,
            blanket_size=STATES,
            shape=(2, 4),
            mod_features=8,
            hid_channels=16,
            hid_blocks=1,
            patch_size=patch,
            attention_heads=2,
        )
    )


def inputs():
    x = torch.randn(2, STATES, CHANNELS, 2, 4, generator=torch.Generator().manual_seed(1))
    return x, torch.zeros(2), torch.tensor([2024, 5, 6, 7]).expand(2, STATES, 4)


def test_the_network_stays_the_same_function_and_gets_its_weights_back() -> None:
    network = backbone()
    names, before = set(network.state_dict()), network.in_proj.weight.detach().clone()
    expected = network(*inputs())
    learn_differences(network)
    torch.testing.assert_close(network(*inputs()), expected)
    restore_inputs(network)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network.in_proj.weight, before)


def test_what_is_learned_multiplies_one_state_and_scaled_differences() -> None:
    mapped = InputDifferences(STATES, CHANNELS, reference=-7, scale=8.0)  # keeps state 2
    learned = torch.randn(5, CHANNELS * STATES + 4)
    x = torch.randn(CHANNELS, STATES)
    steps = 8.0 * x.diff(dim=1)  # from state k to k + 1
    features = torch.cat([steps[:, :2], x[:, 2:3], steps[:, 2:]], dim=1)
    dates = torch.randn(4)
    by_states = mapped(learned) @ torch.cat([x.flatten(), dates])
    by_differences = learned @ torch.cat([features.flatten(), dates])
    torch.testing.assert_close(by_states, by_differences, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mapped.right_inverse(mapped(learned)), learned, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_what_all_states_share_reaches_one_weight_alone() -> None:
    mapped = InputDifferences(STATES, 1)
    learned = torch.zeros(1, STATES, requires_grad=True)
    (mapped(learned) @ torch.ones(STATES)).sum().backward()
    kept = torch.nn.functional.one_hot(torch.tensor(2), STATES).float()
    torch.testing.assert_close(learned.grad[0], kept)


def test_patches_of_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="whole blankets"):
        learn_differences(backbone((3, 1, 1)))
