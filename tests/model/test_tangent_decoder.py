"""The stand-in decoder at observed values against the whole decode, and its adjoint."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.linear_decoder import (
    LinearDecoder,
    TangentDecoder,
    fit_linear_decoder,
    neighbours,
    neighbours_at,
    neighbours_transposed,
)

T, C, Y, X, c = 5, 3, 8, 12, 4


class Reads:
    """An operator that sums neighbouring read values, so that its adjoint mixes them."""

    state_shape = (T, C, Y, X)

    def __init__(self, columns: np.ndarray) -> None:
        self.columns = columns

    def observe(self, values: torch.Tensor) -> torch.Tensor:
        return values[..., 1:] + 2 * values[..., :-1]


def parts(reach: int = 1) -> tuple[TangentDecoder, Reads, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    decoder = LinearDecoder(c, C, (4, 4), reach)
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


@pytest.mark.parametrize("reach", [0, 1])
def test_the_values_are_those_of_the_whole_decode(reach):
    tangent, operator, latents = parts(reach)
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


def test_neighbours_are_periodic_in_longitude_and_end_at_the_poles():
    latents = torch.arange(12.0).reshape(1, 1, 3, 4)
    around = neighbours(latents, 1)[0]
    assert around[1, 0].tolist() == [3, 0, 1, 7, 4, 5, 11, 8, 9]
    assert around[0, 3].tolist() == [0, 0, 0, 2, 3, 0, 6, 7, 4]


def test_neighbours_of_chosen_places_are_those_of_all():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 5, 6, generator=generator)
    places = torch.tensor([0, 7, 29, 30, 58, 89])
    every = torch.stack([neighbours(row, 1).flatten(0, 2) for row in latents])
    torch.testing.assert_close(neighbours_at(latents, 1, places), every[:, places])


def test_the_transposed_of_neighbours_belongs_to_them():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 6, generator=generator).double()
    y = torch.randn(2, 4, 6, 27, generator=generator).double()
    forward = (neighbours(x, 1) * y).sum()
    torch.testing.assert_close(forward, (x * neighbours_transposed(y, 1)).sum())


def test_a_convolution_is_found_exactly_with_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(2, c, 3, 3, generator=generator).double()

    def convolve(z: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(z, (1, 1, 0, 0), mode="circular")
        return torch.nn.functional.conv2d(torch.nn.functional.pad(padded, (0, 0, 1, 1)), kernel)

    latents = torch.randn(20, 1, c, 6, 8, generator=generator).double()
    pairs = [(z, convolve(z)) for z in latents]
    errors = []
    for reach in (0, 1):
        decoder = fit_linear_decoder(LinearDecoder(c, 2, (1, 1), reach).double(), pairs, 1e-9)
        z = torch.randn(1, c, 6, 8, generator=generator).double()
        errors.append(float((decoder(z) - convolve(z)).abs().max()))
    assert errors[1] < 1e-5 < errors[0]
