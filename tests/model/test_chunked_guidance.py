"""Guidance in chunks of states: against the whole at once, and against dense linear algebra."""

import numpy as np
import pytest
import torch
from checkpoint_parts import tiny_model

from model.execution import Batching, Chunks
from model.guidance.base import BlanketRows
from model.guidance.jacobian import MMPS, SDA, Linearisation, MMPSSettings
from model.guidance.observed import DecodedObservations, JointObservations, TiedStates
from model.nn import frozen

SIGMA = torch.tensor(0.7, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    return tiny_model().double()


class Pairs:
    """Differences and squares of values of neighbouring states: reads across any two chunks."""

    def __init__(self, shape, count, seed):
        draw = np.random.default_rng(seed)
        values = int(np.prod(shape[1:]))
        place = draw.choice(values, count, replace=False)
        hour = draw.integers(0, shape[0] - 1, count)
        self._support = hour, hour + 1
        entries = np.stack((hour * values + place, (hour + 1) * values + place))
        self.columns, where = np.unique(entries, return_inverse=True)
        self._where = torch.from_numpy(where.reshape(entries.shape))
        self.state_shape = shape
        self.values = torch.from_numpy(draw.normal(size=count))
        self.error_std = torch.from_numpy(draw.uniform(0.5, 1.0, size=count))

    def __len__(self):
        return len(self.values)

    @property
    def operator(self):
        return self

    @property
    def time_support(self):
        return self._support

    def observe(self, values):
        early, late = values[..., self._where[0]], values[..., self._where[1]]
        return late - 0.5 * early + 0.01 * early * late

    def __call__(self, states):
        return self.observe(states.flatten(-4)[..., torch.from_numpy(self.columns)])


class Corner(Pairs):
    """The same in one corner of the grid."""

    def __init__(self, shape, seed):
        super().__init__(shape, 12, seed)
        time, channel, _, _ = np.unravel_index(self.columns, shape)
        draw = np.random.default_rng(seed)
        y, x = draw.integers(0, 2, (2, len(time)))
        entries = np.ravel_multi_index((time, channel, y, x), shape)[self._where.numpy()]
        self.columns, where = np.unique(entries, return_inverse=True)
        self._where = torch.from_numpy(where.reshape(entries.shape))


class WholeStates:
    """The same without columns: an operator of whole states alone."""

    def __init__(self, inner):
        self.values, self.error_std, self.time_support = (
            inner.values,
            inner.error_std,
            inner.time_support,
        )
        self._inner = inner

    def __len__(self):
        return len(self.values)

    def operator(self, states):
        return self._inner(states)


def case(model, rows=3, count=12):
    shape = (4, *model.state_shape)
    draw = torch.Generator().manual_seed(3)
    x_t = torch.randn(rows, 4, *model.latent_shape, generator=draw, dtype=torch.float64)
    date = torch.tensor([[[2021, 3, 4, hour] for hour in range(4)]] * rows)
    blanket = torch.tensor([0, 0, 1])[:rows]
    member = torch.tensor([0, 1, 0])[:rows]
    seen = [Pairs(shape, count, 1), Pairs(shape, count - 3, 2)]
    return x_t, date, BlanketRows(blanket, member), seen


def conditions(model, seen, tied=False):
    kinds = [DecodedObservations(seen, model.decode_standardised)]
    if tied:
        known = torch.zeros(1, 4, *model.latent_shape, dtype=torch.float64)
        kinds.append(TiedStates(known, torch.tensor([True, False, False, False]), [0, 0], 4))
    return JointObservations(kinds)


CHUNKS = [(1, 0), (1, 3), (2, 0), (3, 5), (100, 100)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("states", "kept"), CHUNKS)
@pytest.mark.parametrize("guidance", [MMPS, SDA])
def test_chunks_change_nothing(model, guidance, states, kept, tied):
    x_t, date, rows, seen = case(model)
    given = conditions(model, seen, tied)
    expected = guidance(given)(model.denoise, x_t, SIGMA, date, rows)
    chunked = guidance(given, chunks=Chunks(states=states, kept=kept))
    assert (expected - model.denoise(x_t, SIGMA, date)).abs().max() > 1e-3
    ours = chunked(model.denoise, x_t, SIGMA, date, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("states", "kept"), CHUNKS)
@pytest.mark.parametrize("guidance", [MMPS, SDA])
def test_decoding_only_what_is_observed_changes_nothing(model, guidance, states, kept):
    x_t, date, rows, _ = case(model)
    seen = [Corner((4, *model.state_shape), seed) for seed in (1, 2)]
    partly = model.decode_partly
    given = DecodedObservations(seen, partly)
    pieces = given.select(rows, x_t).split(1, 4).pieces
    assert all(piece.share < 1 for piece in pieces)
    through = DecodedObservations(seen, lambda z: model.decode(z, mask=False))
    expected = guidance(through)(model.denoise, x_t, SIGMA, date, rows)
    ours = guidance(given, chunks=Chunks(states=states, kept=kept))
    assert (expected - model.denoise(x_t, SIGMA, date)).abs().max() > 1e-3
    ours = ours(model.denoise, x_t, SIGMA, date, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_operators_of_whole_states_are_taken_at_once(model):
    x_t, date, rows, seen = case(model)
    expected = MMPS(conditions(model, seen))(model.denoise, x_t, SIGMA, date, rows)
    whole = conditions(model, [WholeStates(s) for s in seen])
    ours = MMPS(whole, chunks=Chunks(states=1))(model.denoise, x_t, SIGMA, date, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_one_state_at_a_time_is_the_dense_solution(model, kept):
    x_t, date, rows, seen = case(model, rows=1, count=6)
    observations = seen[0]

    def denoise(x):
        return model.denoise(x.reshape(x_t.shape), SIGMA, date).flatten()

    def observe(x):
        states = model.decode_standardised(x.reshape(x_t.shape[1:]))
        return observations(states)

    start = x_t.flatten()
    x_hat = denoise(start)
    j = torch.autograd.functional.jacobian(denoise, start)
    h = torch.autograd.functional.jacobian(observe, x_hat)
    system = torch.diag(observations.error_std**2) + SIGMA**2 * h @ j.T @ h.T
    v = torch.linalg.solve(system, observations.values - observe(x_hat))
    expected = x_hat + SIGMA**2 * j.T @ h.T @ v
    guide = MMPS(
        conditions(model, seen), MMPSSettings(iterations=6), chunks=Chunks(states=1, kept=kept)
    )
    ours = guide(model.denoise, x_t, SIGMA, date, rows).flatten()
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


def test_blocks_that_compute_their_hidden_image_again_give_the_same(model, monkeypatch):
    x_t, date, rows, seen = case(model)
    expected = MMPS(conditions(model, seen))(model.denoise, x_t, SIGMA, date, rows)
    monkeypatch.setattr(frozen, "LARGE_IMAGE", 0)
    ours = MMPS(conditions(model, seen))(model.denoise, x_t, SIGMA, date, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_linearised_block_refuses_second_derivatives_in_the_state(model):
    z = torch.randn(1, *model.latent_shape, dtype=torch.float64).requires_grad_()
    with frozen.linearising():
        y = model.decode_standardised(z)
    (adjoint,) = torch.autograd.grad(y, z, torch.ones_like(y), create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative in the state was asked for"):
        torch.autograd.grad(adjoint.square().sum(), z)


class Small:
    """A device that holds few decoded states, and few rows, at once."""

    def __init__(self, model, states, rows):
        self.model, self.states, self.rows = model, states, rows
        self.peak = 0

    def decode(self, z):
        if len(z) > self.states:
            raise torch.OutOfMemoryError("no room")
        self.peak = max(self.peak, len(z))
        return self.model.decode_standardised(z)

    def denoise(self, x_t, sigma, date):
        if len(x_t) > self.rows:
            raise torch.OutOfMemoryError("no room")
        return self.model.denoise(x_t, sigma, date)


def test_out_of_memory_asks_for_smaller_chunks_and_then_for_fewer_rows(model):
    x_t, date, rows, seen = case(model)
    expected = MMPS(conditions(model, seen))(model.denoise, x_t, SIGMA, date, rows)

    def run(states, max_rows, chunks):
        device = Small(model, states, max_rows)
        given = DecodedObservations(seen, device.decode)
        guide = MMPS(given, MMPSSettings(recycle=False), chunks=chunks)
        batching = Batching(rows=3, chunks=chunks)
        done = batching(
            lambda part: guide(device.denoise, x_t[part], SIGMA, date[part], rows[part]), 3
        )
        torch.testing.assert_close(done, expected, rtol=1e-9, atol=1e-9)
        return batching.use

    use = run(states=3, max_rows=3, chunks=Chunks(states=100, kept=100))
    # 12 states of 3 rows: 12, 6, 3.
    assert (use.rows, use.states, use.kept_states, use.retries) == (3, 3, 3, 2)
    use = run(states=100, max_rows=1, chunks=Chunks(states=2, kept=1))
    # Nothing was decoded yet: smaller chunks would not have helped.
    assert (use.rows, use.states, use.kept_states, use.retries) == (1, 2, 1, 1)


def test_the_budget_sets_chunks_and_what_is_kept(model):
    x_t, date, rows, seen = case(model, rows=1)
    split = conditions(model, seen).select(rows, x_t).split

    def chosen(budget):
        chunks = Chunks(budget)
        Linearisation(model.denoise, lambda x: x, x_t, SIGMA, date, split, chunks)
        return chunks

    little, much = chosen(1), chosen(1 << 30)
    assert (little.states, little.kept) == (1, 0)
    assert much.used == (4, 4)
    sizes = [chosen(budget).kept for budget in (1 << 18, 1 << 19, 1 << 20, 1 << 21)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
