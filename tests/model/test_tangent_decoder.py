"""The stand-in decoder at observed values against the whole decode, and its adjoint."""

from types import SimpleNamespace

import numpy as np
import torch

from model.linear_decoder import LinearDecoder
from model.tangent_decoder import TangentDecoder

T, C, Y, X, c = 5, 3, 8, 12, 4


class Reads:
    """An operator that sums neighbouring read values, so that its adjoint mixes them."""

    state_shape = (T, C, Y, X)

    def __init__(self, columns: np.ndarray) -> None:
        self.columns = columns

    def observe(self, values: torch.Tensor) -> torch.Tensor:
        return values[..., 1:] + 2 * values[..., :-1]


def parts() -> tuple[TangentDecoder, Reads, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    decoder = LinearDecoder(c, C, (4, 4))
    decoder.weight.copy_(torch.randn(decoder.weight.shape, generator=generator))
    decoder.bias.copy_(torch.randn(decoder.bias.shape, generator=generator))
    mean, std = torch.tensor([1.0, -2.0, 300.0]), torch.tensor([2.0, 0.1, 5.0])
    rng = np.random.default_rng(0)
    # The second state is read whole, the fourth not at all, the others in one channel here and there.
    flat = np.arange(T * C * Y * X).reshape(T, C, Y, X)
    some = [rng.choice(flat[t, ch].ravel(), 7, replace=False) for t, ch in ((0, 2), (2, 2), (4, 0))]
    columns = np.sort(np.concatenate([flat[1].ravel(), *some]))
    latents = torch.randn(2, T, c, Y // 4, X // 4, generator=generator)
    return TangentDecoder(lambda: decoder, mean, std), Reads(columns), latents


def test_the_values_are_those_of_the_whole_decode():
    tangent, operator, latents = parts()
    whole = tangent(latents).flatten(1)[:, torch.from_numpy(operator.columns)]
    torch.testing.assert_close(tangent.at(latents, operator), whole)


def test_the_adjoint_belongs_to_the_map():
    tangent, operator, latents = parts()
    x = latents.double().requires_grad_()
    values = tangent.at(x, operator)
    v = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).double()
    (pulled,) = torch.autograd.grad(values, x, v, create_graph=True)
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    moved = tangent.at(x.detach() + u, operator) - values.detach()
    torch.testing.assert_close((pulled * u).sum(), (v * moved).sum())
    assert pulled[:, 3].abs().max() == 0


def test_it_can_be_differentiated_twice():
    tangent, operator, latents = parts()
    x = latents[:1].double().requires_grad_()
    torch.autograd.gradgradcheck(lambda z: tangent.at(z, operator)[:, ::9].square(), (x,))


def test_the_map_is_fitted_only_when_it_is_used():
    asked = SimpleNamespace(count=0)

    def fit() -> LinearDecoder:
        asked.count += 1
        return LinearDecoder(c, C, (4, 4))

    tangent = TangentDecoder(fit, torch.zeros(C), torch.ones(C))
    assert asked.count == 0
    tangent(torch.zeros(1, c, 2, 3))
    tangent(torch.zeros(1, c, 2, 3))
    assert asked.count == 1
