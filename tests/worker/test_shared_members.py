"""Members of a job over real model workers: the same ensemble, whoever draws which part or dies."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from tests.faults.steps import finishes, manifest, published, submit_job, wait_state
from tests.worker.processes import Processes, wait_for
from tests.worker.tables import make_table, store_observations
from worker.backgrounds.restarts import RESTART_NAME, read_restart
from worker.contract.jobs import JobState
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.pipeline.parts import SharedMembers, cut_members
from worker.replay.comparison import ReplayOutcome
from worker.replay.replay import replay

ENDS = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
SECOND = timedelta(seconds=1)
NOON = make_table(1)["time"][0].as_py().to_pydatetime()
JOB = {"valid_time": NOON, "members": 8, "background": "climatology", "outputs": ["netcdf"]}


@pytest.mark.parametrize(
    ("members", "workers", "min_members", "sizes"),
    [
        (8, 2, 4, [4, 4]),
        (8, 5, 4, [4, 4]),
        (8, 3, 2, [2, 2, 4]),
        (9, 2, 4, [4, 5]),
        (7, 4, 2, [2, 2, 3]),
        (3, 4, 2, [3]),
        (64, 8, 4, [8] * 8),
        (6, 2, 3, [6]),
        (2, 1, 1, [2]),
    ],
)
def test_pairs_stay_together_and_nobody_is_left_out(members, workers, min_members, sizes):
    parts = cut_members(members, workers, min_members)
    assert sorted(len(part) for part in parts) == sorted(sizes)
    assert [m for part in parts for m in part] == list(range(members))
    assert all(part.start % 2 == 0 for part in parts)


def test_a_part_has_one_holder_and_is_free_again_when_that_one_is_silent(stores):
    mine = stores.parts.announce("job-1", 3, [range(4), range(4, 8)], "a", SECOND)
    theirs = stores.parts.find("job-1", "b", SECOND)
    assert (theirs.token, theirs.parts) == (3, (range(4), range(4, 8)))
    assert (mine.take(), theirs.take(), mine.take()) == (0, 1, None)
    with mine.held(0):
        assert mine.report(0, 2, 10) == (2, 20)
        wait_for(lambda: mine.take() == 1, 5)  # b has not been heard of; a has
    assert mine.done() == {0: "a"}
    with pytest.raises(RuntimeError), mine.held(1):
        raise RuntimeError
    assert theirs.take() == 1
    with theirs.held(1):
        theirs.report(1, 10, 10)
    assert mine.done() == {0: "a", 1: "b"} and mine.progress() == (12, 20)
    later = stores.parts.announce("job-1", 4, [range(4), range(4, 8)], "c", SECOND)
    with mine.held(0):  # of the attempt before
        mine.report(0, 3, 10)
    assert later.done() == {} and later.progress() == (0, 0)
    later.withdraw()
    theirs.report(1, 10, 10)
    assert stores.parts.find("job-1", "b", SECOND) is None
    assert not stores.redis.exists(later.key)


class NoProgress:
    shared = None

    def wait(self):
        """As if the job went on."""

    adopt_shared_progress = wait


def test_a_broker_that_forgets_the_parts_costs_help_and_no_part_twice(stores, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    board = stores.parts.announce("job-2", 1, [range(2), range(2, 4)], "a", SECOND)
    drawn = []

    def draw(members, **_):
        drawn.append(members)
        board.withdraw()  # all that it knew is gone, while members are drawn
        return SimpleNamespace(latents=torch.full((len(members), 1), float(members.start)))

    shared = SharedMembers(board, folder, NoProgress(), lambda: None, interval=0.01)
    latents, own = shared(draw)
    assert latents.flatten().tolist() == [0, 0, 2, 2] and own.latents[0] == 2
    assert drawn == [range(2), range(2, 4)] and not folder.exists()


@pytest.fixture(scope="module")
def system(shared_broker, checkpoint, tmp_path_factory):
    """(stores, processes) with two model workers and observations near the model's mean."""
    data = tmp_path_factory.mktemp("data")
    processes = Processes(shared_broker.url, "test-members", data, {"APPA_MODELS": str(checkpoint)})
    stores = open_stores(shared_broker.url, "test-members")
    store_observations(data, checkpoint)
    for _ in range(2):
        processes.appa("worker", "gpu")
    processes.appa("worker", "scheduler")
    wait_for(lambda: len(idle(stores)) == 2, 120)  # they load torch
    yield stores, processes
    processes.end()
    stores.redis.close()


def start(system, steps, **values):
    stores, processes = system
    wait_for(lambda: len(idle(stores)) == 2, 60)
    return submit_job(stores, processes, spec=FilteringSpec(**JOB | values, steps=steps))


def idle(stores):
    return [w for w in stores.workers.ready("gpu") if w.busy_with is None]


def latents(system, job):
    layout = Layout(system[1].data)
    return read_restart(layout.analysis_file(job.analysis_id, RESTART_NAME)).latents


def held_by(stores, job):
    """Which worker holds each part of a job, as far as any is held."""
    board = stores.parts.find(job.id, "test", SECOND)
    if board is None:
        return {}
    leases = [stores.redis.get(board._lease(n)) for n in range(len(board.parts))]
    return {n: worker for n, worker in enumerate(leases) if worker}


def both_at_work(stores, job):
    wait_for(lambda: len(held_by(stores, job)) == 2, 60)
    return held_by(stores, job)


def done_steps(stores, job):
    """Diffusion steps of all members' parts."""
    return stores.jobs.get(job.id).progress.steps


def process_of(system, name):
    (report,) = [w for w in system[0].workers.alive() if w.name == name]
    (found,) = [p for p in system[1].running if p.pid == report.pid]
    return found


def assert_whole(system, job):
    """The result was published once and is that of one process that draws the same parts."""
    stores, processes = system
    done = wait_state(stores, job.id, *ENDS, seconds=90)
    assert done.state is JobState.SUCCEEDED, (done.error, processes.log()[-3000:])
    assert finishes(stores, job.id) == 1
    assert published(processes).count(job.analysis_id) == 1
    made = manifest(processes, job)
    names = {f.name for f in made.files} | {"manifest.json"}
    assert {p.name for p in Layout(processes.data).analysis(job.analysis_id).iterdir()} == names
    assert made.provenance["parts"] == [[0, 4], [4, 8]]
    assert len(made.provenance["seeds"]) == made.members == 8
    assert stores.parts.find(job.id, "test", SECOND) is None


def test_two_workers_draw_the_ensemble_of_one(system, checkpoint):
    stores, processes = system
    job = start(system, 40)
    holders = both_at_work(stores, job)
    assert len(set(holders.values())) == 2
    assert_whole(system, job)
    events = [d for _, kind, d in stores.jobs.events(job.id) if kind == "progress"]
    told = [d["step"] for d in events if d["phase"] == "sampling"]
    assert told[1:] == sorted(told[1:])  # the first repeats the last step of the background
    etas = [d["eta_seconds"] for d in events if d["eta_seconds"] is not None]
    assert all(0 <= eta < 600 for eta in etas)
    assert done_steps(stores, job) == 80
    verdict = replay(Layout(processes.data), job.analysis_id, checkpoints=[str(checkpoint)])
    assert verdict.outcome is ReplayOutcome.IDENTICAL, verdict.findings
    alone = start(system, 40, members=3)  # too few to split
    wait_state(stores, alone.id, *ENDS, seconds=60)
    assert "parts" not in manifest(processes, alone).provenance
    shared, single = latents(system, job)[:3], latents(system, alone)
    torch.testing.assert_close(shared, single, rtol=1e-4, atol=1e-4)


def test_a_cancel_stops_all_who_draw(system):
    stores, processes = system
    job = start(system, 300)
    both_at_work(stores, job)
    stores.jobs.cancel(job.id)
    wait_state(stores, job.id, JobState.CANCELLED)
    wait_for(lambda: len(idle(stores)) == 2, 10)
    assert job.analysis_id not in published(processes)
    assert not list(Layout(processes.data).tmp.iterdir())


@pytest.mark.parametrize("who", ["helper", "holder"])
def test_kill_9_of_one_of_them(system, checkpoint, who):
    stores, processes = system
    job = start(system, 60)
    workers = set(both_at_work(stores, job).values())
    holder = stores.jobs.get(job.id).worker
    (helper,) = workers - {holder}
    processes.kill(process_of(system, helper if who == "helper" else holder))
    if who == "helper":  # another for the next test
        processes.appa("worker", "gpu")
    done = wait_state(stores, job.id, *ENDS, seconds=90)
    assert done.state is JobState.SUCCEEDED, (done.error, processes.log()[-3000:])
    if who == "helper":
        assert done.attempts == 1
        assert_whole(system, job)
    assert finishes(stores, job.id) == 1
    assert published(processes).count(job.analysis_id) == 1
    assert not list(Layout(processes.data).tmp.iterdir())
