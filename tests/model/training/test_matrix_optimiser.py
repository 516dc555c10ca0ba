"""Updates of hidden matrices are nearly orthogonal, all others AdamW's; a run goes on exactly."""

import pytest
import torch
from torch import nn

from lab.training.loop import MatrixOptimiser


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.inwards = nn.Linear(24, 32)
        self.blocks = nn.ModuleList([nn.Linear(32, 48)])

    def forward(self, x):
        return self.blocks[0](self.inwards(x))


def backward(network, step):
    # Inputs of very unequal size: plain gradients have singular values far apart.
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(1))
    target = torch.randn(64, 48, generator=torch.Generator().manual_seed(step))
    (network(x * torch.logspace(-1, 0, 24)) - target).square().mean().backward()


def learn(network, optimiser, steps):
    for step in steps:
        backward(network, step)
        optimiser.step(1.0)


def made():
    torch.manual_seed(0)
    network = Network()
    return network, MatrixOptimiser(network, 0.02, 0.001, weight_decay=0.0)


def test_an_update_of_a_hidden_matrix_has_equal_singular_values_of_the_wanted_size():
    network, optimiser = made()
    before = network.blocks[0].weight.detach().clone()
    backward(network, 0)
    plain = torch.linalg.svdvals(network.blocks[0].weight.grad)
    optimiser.step(1.0)
    update = network.blocks[0].weight.detach() - before
    values = torch.linalg.svdvals(update)
    assert values[0] / values[20] < 2.5
    assert plain[0] / plain[20] > 10
    # As AdamW's: a root mean square of 0.2 learning rates.
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2 * 0.02, rel=0.3)


def test_what_is_no_hidden_matrix_moves_as_under_adamw():
    network, optimiser = made()
    before = network.inwards.weight.detach().clone()
    learn(network, optimiser, range(1))
    # The first step of Adam is the sign of the gradient.
    update = (network.inwards.weight.detach() - before).abs()
    assert float(update.median()) == pytest.approx(0.001, rel=0.01)


def test_a_run_goes_on_as_if_it_had_not_ended():
    network, optimiser = made()
    learn(network, optimiser, range(6))
    first, half = made()
    learn(first, half, range(3))
    second, rest = made()
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    learn(second, rest, range(3, 6))
    for a, b in zip(network.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
