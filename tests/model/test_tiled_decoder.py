"""Decoding in tiles: against the whole decoding, its Jacobian and its transpose, in float64."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.guidance.solvers import Tangent
from model.tiled_decoder import DecodedPoints, needed_tiles

SHAPE = 90, 160
PLACES = {
    "date line": [(40, 0), (41, 159), (60, 159)],
    "poles": [(0, 80), (0, 0), (89, 3)],
    "inland": [(44, 77), (45, 78), (30, 20)],
    "all over": [(int(y), int(x)) for y, x in np.random.default_rng(1).integers(0, 90, (40, 2))],
}


def autoencoder(**changes):
    values = {
        "in_channels": 3,
        "lat_channels": 2,
        "shape": SHAPE,
        "resize": 16,
        "hid_channels": (4, 5, 6, 6, 8),
        "hid_blocks": (1, 2, 1, 1, 1),
    }
    torch.manual_seed(0)
    made = Autoencoder(AutoencoderConfig(**(values | changes)))
    return made.double().requires_grad_(False).eval()


def flat(places, channels=(0, 2), states=2):
    """Values of some channels; each state after the first reads one place less."""
    found = []
    for state in range(states):
        for channel in channels:
            for y, x in places[state:]:
                found.append(((state * 3 + channel) * SHAPE[0] + y) * SHAPE[1] + x)
    return np.unique(found)


def latents(model, members=2, states=2):
    draw = torch.Generator().manual_seed(3)
    shape = (members, states, *model.latent_shape)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def whole(model, index):
    return lambda z: model.decode(z).flatten(1).index_select(1, torch.from_numpy(index))


@pytest.mark.parametrize("changes", [{}, {"halo": 1}, {"kernel_size": 5}, {"ffn_factor": 2}])
@pytest.mark.parametrize("where", PLACES)
def test_values_and_both_products_are_those_of_the_whole(where, changes):
    model = autoencoder(**changes)
    index, z = flat(PLACES[where]), latents(model)
    points = DecodedPoints(model, index, 2)
    assert points.share < 0.95
    ours, theirs = Tangent(points, z), Tangent(whole(model, index), z)
    draw = torch.Generator().manual_seed(4)
    w = torch.randn(theirs.y.shape, generator=draw, dtype=torch.float64)
    u = torch.randn(z.shape, generator=draw, dtype=torch.float64)
    assert theirs.y.abs().max() > 1e-3
    for mine, other in (
        (ours.y, theirs.y),
        (ours.vjp(w), theirs.vjp(w)),
        (ours.jvp(u), theirs.jvp(u)),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-11)
    # Without the adjoint recorded, as where the value alone is wanted.
    with torch.no_grad():
        torch.testing.assert_close(points(z), theirs.y, rtol=1e-10, atol=1e-11)


def test_the_adjoint_is_the_transpose():
    model = autoencoder()
    index, z = flat(PLACES["all over"]), latents(model)
    tangent = Tangent(DecodedPoints(model, index, 2), z)
    draw = torch.Generator().manual_seed(4)
    w = torch.randn(tangent.y.shape, generator=draw, dtype=torch.float64)
    u = torch.randn(z.shape, generator=draw, dtype=torch.float64)
    forth, back = (tangent.jvp(u) * w).sum(), (tangent.vjp(w) * u).sum()
    torch.testing.assert_close(forth, back, rtol=1e-12, atol=0)


def test_a_value_depends_on_the_same_latents():
    model = autoencoder(hid_blocks=(1, 0, 0, 0, 0))
    index, z = flat([(44, 77)], states=1), latents(model, 1, 1)
    one = torch.ones(1, len(index), dtype=torch.float64)
    fields = [
        Tangent(f, z).vjp(one) != 0 for f in (DecodedPoints(model, index, 1), whole(model, index))
    ]
    assert torch.equal(*fields)
    assert fields[0].any() and not fields[0].all()


def test_fewer_points_are_less_work_and_many_are_the_whole():
    model = autoencoder()
    shares = [
        DecodedPoints(model, flat(PLACES[w], states=1), 1).share for w in ("inland", "all over")
    ]
    assert shares[0] < shares[1] < 1
    everywhere = np.arange(3 * SHAPE[0] * SHAPE[1])
    levels, share = needed_tiles(model, [np.ones((96, 192), dtype=bool)])
    assert (levels, share) == ([], 1.0)
    points, z = DecodedPoints(model, everywhere, 1), latents(model, 1, 1)
    torch.testing.assert_close(points(z), model.decode(z).flatten(1), rtol=1e-10, atol=1e-11)


def test_a_decoder_in_training_is_decoded_whole():
    model = autoencoder().requires_grad_(True)
    assert DecodedPoints(model, flat(PLACES["inland"]), 2).share == 1.0


def test_the_work_counted_is_that_of_the_share():
    model = autoencoder()
    z, index = latents(model), flat(PLACES["inland"])
    points = DecodedPoints(model, index, 2)
    counts = []
    for run in (points, whole(model, index)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(z)
        counts.append(counter.get_total_flops())
    assert counts[0] == pytest.approx(points.share * counts[1], rel=1e-6)
