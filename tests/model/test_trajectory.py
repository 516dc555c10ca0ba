"""Blankets: identities of fold and unfold, and the reference's arrays."""

import pytest
import torch
from azula.noise import VESchedule
from safetensors.torch import load_file
from torch import Tensor

from model.domain.errors import InvalidInput, ResourceExhausted
from model.execution import Batching
from model.trajectory import MODES, Blankets, TrajectoryDenoiser, fold, fold_weights, unfold

LAYOUTS = [(1, 4, 2), (2, 4, 3), (5, 4, 1), (3, 6, 6), (4, 5, 2)]


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folding_the_unfolded_gives_the_trajectory_back(mode, layout) -> None:
    blankets = Blankets(*layout)
    x = torch.randn(2, blankets.length, 3, 2, 2, dtype=torch.float64)
    parts = unfold(x, blankets.size, blankets.stride)
    assert parts.shape == (2, blankets.count, blankets.size, 3, 2, 2)
    torch.testing.assert_close(fold(parts, blankets.stride, mode), x, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_a_state_add_to_one(mode, layout) -> None:
    blankets = Blankets(*layout)
    weights = fold_weights(blankets, mode)
    total = torch.zeros(blankets.length, dtype=torch.float64)
    for n, start in enumerate(blankets.starts):
        total[start : start + blankets.size] += weights[n]
    torch.testing.assert_close(total, torch.ones_like(total))


def test_symmetrical_keeps_the_middle_by_hand() -> None:
    expected = [[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert fold_weights(Blankets(3, 6, 2), "symmetrical").tolist() == expected


def test_causal_keeps_the_end_by_hand() -> None:
    expected = [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert fold_weights(Blankets(3, 4, 1), "causal").tolist() == expected


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (6, 2), (6, 3)])
def test_fold_and_unfold_match_the_reference(parity_dir, size, stride) -> None:
    arrays = load_file(parity_dir / "golden_f64.safetensors")
    inputs = load_file(parity_dir / "golden.safetensors")
    parts = unfold(inputs["traj.fold_x"].double().reshape(2, 12, 7), size, stride)
    name = f"{size}.{stride}"
    assert torch.equal(parts.reshape(-1, size * 7), arrays[f"traj.unfold.{name}"])
    count = parts.shape[1]
    scaled = parts * torch.arange(1, 2 * count + 1).reshape(2, count, 1, 1)
    for mode in MODES:
        ours, theirs = fold(scaled, stride, mode).flatten(1), arrays[f"traj.fold.{mode}.{name}"]
        # The reference accumulates averages in float32, whatever its type.
        rtol = 1e-6 if mode == "average" else 1e-12
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12 if rtol < 1e-9 else 1e-6)
    dates = unfold(inputs["traj.date"], size, stride)
    assert torch.equal(dates.repeat(2, 1, 1, 1).flatten(0, 1), arrays[f"traj.unfold_date.{name}"])


def test_gaps_between_blankets_are_refused() -> None:
    with pytest.raises(InvalidInput, match="stride between 1 and 4"):
        Blankets(3, 4, 5)
    with pytest.raises(InvalidInput, match="4 states plus a multiple of 3; got 9"):
        unfold(torch.zeros(1, 9, 1), 4, 3)


def test_the_fewest_blankets_cover() -> None:
    assert Blankets.covering(3, 4, 2) == Blankets(1, 4, 2)
    assert Blankets.covering(9, 4, 3) == Blankets(3, 4, 3)
    assert Blankets.covering(10, 4, 3).length == 10


class Shrink:
    """A denoiser of white noise that also knows the hour, so that dates matter."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        if len(x_t) > self.limit:
            raise torch.OutOfMemoryError("no room")
        self.batches.append(len(x_t))
        return x_t / (1 + sigma**2) + date[:, :, 3, None, None, None]


def trajectory(denoise: Shrink, batching: Batching) -> TrajectoryDenoiser:
    dates = torch.stack([torch.tensor([2021, 1, 1, hour]) for hour in range(8)])
    return TrajectoryDenoiser(denoise, VESchedule(), dates, Blankets(3, 4, 2), batching=batching)


def test_blankets_and_members_see_their_own_dates_and_states() -> None:
    x = torch.randn(2, 8, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor(0.5, dtype=torch.float64)
    hours = torch.arange(8).reshape(1, 8, 1, 1, 1)
    _, sigma = VESchedule()(t)
    out = trajectory(Shrink(), Batching(rows=100))(x, t).mean
    torch.testing.assert_close(out, x / (1 + sigma**2) + hours)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 100])
def test_sub_batches_change_nothing(rows) -> None:
    x, t = torch.randn(2, 8, 1, 2, 2), torch.tensor(0.4)
    denoise = Shrink()
    out = trajectory(denoise, Batching(rows=rows))(x, t).mean
    assert sum(denoise.batches) == 6 and max(denoise.batches) <= rows
    assert torch.equal(out, trajectory(Shrink(), Batching(rows=6))(x, t).mean)


def test_running_out_of_memory_halves_the_sub_batches() -> None:
    denoise = Shrink(limit=2)
    x, t = torch.randn(2, 8, 1, 2, 2), torch.tensor(0.4)
    out = trajectory(denoise, Batching(rows=6))(x, t).mean
    assert max(denoise.batches) <= 2
    assert torch.equal(out, trajectory(Shrink(), Batching(rows=6))(x, t).mean)


def test_a_row_that_never_fits_is_an_error() -> None:
    with pytest.raises(ResourceExhausted, match="one blanket of one member"):
        trajectory(Shrink(limit=0), Batching(rows=4))(torch.randn(1, 8, 1, 1, 1), torch.tensor(0.4))


def test_the_memory_of_one_row_sets_the_sub_batch() -> None:
    weight = torch.randn(64, 64)
    budget = Batching(budget=20 * 64 * 4 * 2)

    def work(part: slice) -> Tensor:
        x = torch.ones(part.stop - part.start, 64, requires_grad=True)
        return (x * x).detach()  # keeps x twice: one storage of 64 floats a row

    del weight
    assert budget(work, 50).shape == (50, 64)
    assert budget.rows == 20
