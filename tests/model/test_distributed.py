"""Several ranks (gloo) make the same trajectory as one process."""

import multiprocessing
import os
from datetime import UTC, datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from checkpoint_parts import tiny_model
from test_assimilate import observe

from model.assimilate import Trajectory, assimilate
from model.assimilation_settings import AssimilationSettings
from model.distributed import Ranks, Share
from model.domain.errors import ConfigurationError
from model.domain.windows import WindowPlan
from model.guidance.jacobian import MMPSSettings
from model.samplers.sampling import SamplerSettings
from model.trajectory import Blankets, fold, unfold

NOON = datetime(2021, 3, 4, 12, tzinfo=UTC)
PLAN = WindowPlan.reanalysis(NOON, 13, stride=2)  # 6 blankets of 4 states cover 14 states
SETTINGS = AssimilationSettings(
    sampler=SamplerSettings(name="pc", steps=2, corrections=1),
    guidance=MMPSSettings(iterations=2),
    batch_rows=3,
)


def make(ranks: Ranks | None = None, plan: WindowPlan = PLAN) -> Trajectory:
    model = tiny_model().double()
    seen = observe(model, 13, [0, 5, 6, 12])
    return assimilate(model, seen, plan, 2, 5, settings=SETTINGS, ranks=ranks)


def work(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
    )
    ranks = Ranks()
    # The exchange alone, in every mode: with overlaps that reach past the next rank.
    whole = Blankets(2 * count, 6, 1)
    x = torch.randn(1, whole.length, 2, generator=torch.Generator().manual_seed(0))
    found = {"made": make(ranks), "share": ranks.share(whole)}
    share = found["share"]
    parts = unfold(x, 6, 1)[:, share.first : share.stop] * torch.arange(
        share.first + 1, share.stop + 1
    ).reshape(1, -1, 1, 1)
    mine = torch.zeros(1, share.blankets.length, 2)
    for n in range(parts.shape[1]):
        mine[:, n : n + 6] += parts[:, n] / 6
    found["exchanged"] = ranks.exchange(whole, mine)
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[3])
def ranks(request, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["torch.distributed", "model.assimilate"])
    count = request.param
    mp.start_processes(work, (count, str(folder)), nprocs=count, start_method="forkserver")
    files = [folder / f"{rank}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=False) for file in files]


@pytest.fixture(scope="module")
def alone() -> Trajectory:
    return make()


def test_the_written_states_of_all_ranks_are_those_of_one_process(ranks, alone) -> None:
    times = [time for rank in ranks for time in rank["made"].times]
    assert tuple(times) == alone.times
    states = torch.cat([rank["made"].states for rank in ranks], dim=1)
    torch.testing.assert_close(states, alone.states, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_states_held_twice_are_equal_to_the_last_bit(ranks) -> None:
    made = [rank["made"] for rank in ranks]
    for left, right in zip(made[:-1], made[1:], strict=True):
        shift = int((right.first_time - left.first_time).total_seconds() // 3600)
        shared = left.latents.shape[1] - shift
        assert shared > 0
        assert torch.equal(left.latents[:, shift:], right.latents[:, :shared])


def test_a_rank_holds_its_blankets_and_no_more(ranks) -> None:
    blankets = 6 // len(ranks)
    for rank in ranks:
        assert rank["made"].latents.shape[1] <= (blankets - 1) * 2 + 4


def test_contributions_add_up_over_more_than_the_next_rank(ranks) -> None:
    whole = Blankets(2 * len(ranks), 6, 1)
    x = torch.randn(1, whole.length, 2, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(1, whole.count + 1).reshape(1, -1, 1, 1)
    parts = unfold(x, 6, 1) * numbers
    counts = fold(torch.ones_like(parts), 1, "average")  # 1 everywhere: the weights add to one
    assert torch.allclose(counts, torch.ones_like(counts))
    expected = torch.zeros_like(x)
    for n in range(whole.count):
        expected[:, n : n + 6] += parts[:, n] / 6
    for rank in ranks:
        start, stop = rank["share"].states
        torch.testing.assert_close(rank["exchanged"], expected[:, start:stop])


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_every_state_has_one_owner(count) -> None:
    whole = Blankets(7, 5, 2)
    edges = [rank * 7 // count for rank in range(count + 1)]
    owned = [
        state
        for a, b in zip(edges[:-1], edges[1:], strict=True)
        for state in range(*Share(whole, a, b).owned)
    ]
    assert owned == list(range(whole.length))


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield Ranks()
    dist.destroy_process_group()


def test_one_rank_is_the_process_alone(one_rank, alone) -> None:
    assert torch.equal(make(one_rank).latents, alone.latents)


def test_plans_that_cannot_be_shared_are_refused(one_rank) -> None:
    plan = WindowPlan.forecast(NOON, past=2, lead_hours=8, new_states_per_pass=2)
    model = tiny_model().double()
    background = torch.zeros(1, 2, *model.latent_shape)
    with pytest.raises(ConfigurationError, match="one after the other"):
        assimilate(model, None, plan, 1, 1, background=background, ranks=one_rank)
    one_rank.count = 3
    with pytest.raises(ConfigurationError, match="at least one blanket for each of 3 ranks"):
        one_rank.shares(Blankets(2, 4, 2))
