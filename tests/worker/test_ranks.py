"""One model worker of several processes: the same reanalysis, whether they are asked, stopped or die."""

import subprocess
import sys
from datetime import timedelta

import psutil
import pytest

from model.domain.errors import ConfigurationError
from tests.faults.steps import finishes, manifest, published, submit_job, wait_state
from tests.worker.processes import Processes, wait_for
from tests.worker.tables import make_table, store_observations
from worker.contract.jobs import JobState, Phase
from worker.contract.kinds import ReanalysisSpec
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.ranks import RankGroup, RanksLost, SharedBlankets, device_of
from worker.replay.replay import replay

ENDS = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
NOON = make_table(1)["time"][0].as_py().to_pydatetime()


@pytest.fixture(scope="module")
def system(shared_broker, checkpoint, tmp_path_factory):
    """(stores, processes) with one model worker of two ranks."""
    data = tmp_path_factory.mktemp("data")
    processes = Processes(shared_broker.url, "test-ranks", data, {"APPA_MODELS": str(checkpoint)})
    stores = open_stores(shared_broker.url, "test-ranks")
    store_observations(data, checkpoint)
    processes.worker = processes.appa("worker", "gpu", "--ranks", "2", APPA_DEVICE="cpu")
    processes.appa("worker", "scheduler")
    wait_for(lambda: stores.workers.ready("gpu"), 120)  # two processes that load torch
    yield stores, processes
    for follower in followers(processes):
        follower.kill()
    processes.end()
    stores.redis.close()


def followers(processes):
    if not psutil.pid_exists(processes.worker.pid):
        return []
    children = psutil.Process(processes.worker.pid).children(recursive=True)
    return [child for child in children if "worker.ranks" in " ".join(child.cmdline())]


def shares(stores, job):
    """Whether the ranks are at their blankets: drawing the background is done by one of them."""
    progress = stores.jobs.get(job.id).progress
    return progress.phase is Phase.SAMPLING and progress.eta_seconds is not None


def reanalyse(system, steps, hours=12):
    spec = ReanalysisSpec(
        start=NOON - timedelta(hours=hours),
        end=NOON,
        members=2,
        steps=steps,
        background="climatology",
        outputs=["netcdf"],
    )
    return submit_job(*system, spec=spec)


def test_two_ranks_make_the_reanalysis_of_one_process(system, checkpoint):
    stores, processes = system
    job = reanalyse(system, 3)
    assert [worker.ranks for worker in stores.workers.ready("gpu")] == [2]
    done = wait_state(stores, job.id, *ENDS, seconds=120)
    assert done.state is JobState.SUCCEEDED, (done.error, processes.log()[-3000:])
    made = manifest(processes, job)
    assert made.provenance["ranks"] == 2 and len(made.times) == 13
    layout = Layout(processes.data)
    names = {f.name for f in made.files} | {"manifest.json"}
    assert {p.name for p in layout.analysis(job.analysis_id).iterdir()} == names
    alone = replay(layout, job.analysis_id, checkpoints=[str(checkpoint)])
    (latents,) = [a for a in alone.arrays if a.name == "latents"]
    assert latents.max_difference < 1e-4


def test_windows_that_cannot_be_shared_are_drawn_by_one(system):
    job = reanalyse(system, 2, hours=1)  # a single blanket
    assert wait_state(system[0], job.id, *ENDS, seconds=60).state is JobState.SUCCEEDED
    assert "ranks" not in manifest(system[1], job).provenance


def test_a_cancel_stops_all_ranks_and_they_draw_again(system):
    stores, processes = system
    job = reanalyse(system, 200)
    wait_for(lambda: shares(stores, job), 60)
    stores.jobs.cancel(job.id)
    wait_state(stores, job.id, JobState.CANCELLED)
    assert not list(Layout(processes.data).tmp.iterdir())
    again = reanalyse(system, 2)
    assert wait_state(stores, again.id, *ENDS, seconds=60).state is JobState.SUCCEEDED
    assert manifest(processes, again).provenance["ranks"] == 2


def test_kill_9_of_a_rank_costs_an_attempt_and_not_the_job(system):
    stores, processes = system
    job = reanalyse(system, 60)
    wait_for(lambda: shares(stores, job), 60)
    (follower,) = followers(processes)
    follower.kill()
    done = wait_state(stores, job.id, *ENDS, seconds=120)
    assert done.state is JobState.SUCCEEDED, (done.error, processes.log()[-3000:])
    assert done.attempts == 2
    assert "ranks given up" in processes.log()
    assert finishes(stores, job.id) == 1
    assert published(processes).count(job.analysis_id) == 1
    assert "ranks" not in manifest(processes, job).provenance


def test_a_rank_that_ended_before_the_request_costs_an_attempt_too(tmp_path):
    group = RankGroup.__new__(RankGroup)  # without a follower that loads torch
    ended = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, text=True)
    ended.wait()
    group.count, group._others, group._folder = 2, [ended], tmp_path / "meeting"
    spec = ReanalysisSpec(start=NOON - timedelta(hours=12), end=NOON, members=2)
    folder = tmp_path / "ranks"
    folder.mkdir()

    def on_step(step, steps):
        raise AssertionError("nothing is drawn")

    shared = SharedBlankets(group, spec, None, folder, on_step)
    with pytest.raises(RanksLost):
        shared(on_step)
    assert not group.whole
    assert not folder.exists()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    assert device_of(1, 2, "cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of(rank, 2, "auto") for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    with pytest.raises(ConfigurationError, match="GPU for each of 3 ranks; this machine shows 2"):
        device_of(0, 3, "cuda")
