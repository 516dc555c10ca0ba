"""Jobs on a real model worker: a tiny checkpoint with random weights, everything else in earnest."""

import resource
from datetime import timedelta

import netCDF4
import numpy as np
import pytest
import torch

from model.checkpoints.bundle import load_checkpoint
from tests.faults.steps import finishes, manifest, published, submit_job, wait_phase, wait_state
from tests.worker.processes import Processes, wait_for
from tests.worker.tables import RECEIVED, make_table
from worker.backgrounds.restarts import RESTART_NAME, read_restart
from worker.contract.jobs import JobState, Phase
from worker.contract.kinds import ForecastSpec, ReanalysisSpec
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore

ENDS = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
SMALL = {"members": 2, "steps": 3, "outputs": ["netcdf"]}


@pytest.fixture(scope="module")
def noon(checkpoint):
    """The hour of the observations in the store."""
    return make_table(1)["time"][0].as_py().to_pydatetime()


@pytest.fixture(scope="module")
def system(shared_broker, checkpoint, tmp_path_factory):
    """(stores, processes) with one model worker and observations near the model's mean."""
    data = tmp_path_factory.mktemp("data")
    processes = Processes(
        shared_broker.url, "test-model", data, {"APPA_LEASE_SECONDS": "5", "APPA_ATTEMPTS": "2"}
    )
    stores = open_stores(shared_broker.url, "test-model")
    mean = float(load_checkpoint(checkpoint).state_normalisation.mean[0])
    table = assign_errors(make_table(30, obs_value=np.full(30, mean)))
    layout = Layout(data).create()
    ObservationStore(str(layout.observations)).publish(table, "b1", RECEIVED)
    processes.worker = processes.appa("worker", "gpu", APPA_MODELS=str(checkpoint))
    processes.appa("worker", "scheduler")
    yield stores, processes
    processes.end()
    stores.redis.close()


def run(system, **values):
    stores, processes = system
    job = submit_job(stores, processes, **values)
    return wait_state(stores, job.id, *ENDS, seconds=90)


def test_the_file_holds_what_the_model_returned(system, checkpoint, noon):
    job = run(system, valid_time=noon, **SMALL)
    assert job.state is JobState.SUCCEEDED, (job.error, system[1].log())
    result = manifest(system[1], job)
    assert result.observations["used"] > 0
    assert result.flags == ["simulated", "cold_start"]
    folder = Layout(system[1].data).analysis(job.analysis_id)
    restart = read_restart(folder / RESTART_NAME)
    model = load_checkpoint(checkpoint)
    with torch.no_grad():
        states = model.decode(restart.latents[:, -1]).numpy()
    data = next(file.name for file in result.files if file.name.endswith(".nc"))
    with netCDF4.Dataset(folder / data) as dataset:
        stored = dataset["t2m"][0].filled(np.nan)
        temperature = dataset["t"][0].filled(np.nan)
    levels = len(model.card.levels)
    for got, wanted in ((stored, states[:, 0]), (temperature, states[:, 6 : 6 + levels])):
        assert got.shape == wanted.shape
        spread = np.abs(np.diff(wanted, axis=0)).mean()
        assert np.abs(got - wanted).max() < 0.05 * spread  # what bit rounding may take


def test_the_same_job_gives_the_same_members(system, noon):
    names = ["first", "again", "other"]
    jobs = [run(system, valid_time=noon, **SMALL, seed=int(n == "other")) for n in names]
    layout = Layout(system[1].data)
    latents = [
        read_restart(layout.analysis_file(job.analysis_id, RESTART_NAME)).latents for job in jobs
    ]
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=0)
    assert not torch.allclose(latents[0], latents[2])


def test_an_unknown_model_fails_the_job_and_not_the_worker(system, noon):
    job = run(system, valid_time=noon, **SMALL, model="era5-huge")
    assert job.state is JobState.FAILED
    assert job.error.code == "unknown_name"
    assert "tiny" in job.error.message
    assert job.attempts == 1
    assert run(system, valid_time=noon, **SMALL).state is JobState.SUCCEEDED


def test_zero_observations_give_the_background_and_say_so(system, noon):
    before = run(system, valid_time=noon, **SMALL)
    job = run(system, valid_time=noon + timedelta(hours=9), **SMALL)
    assert job.state is JobState.SUCCEEDED, job.error
    result = manifest(system[1], job)
    assert "zero_observations" in result.flags
    assert result.observations == {"used": 0}
    assert result.background["analysis_id"] == before.analysis_id
    assert result.background["age_hours"] == 9.0


def test_forecast_and_reanalysis_are_the_same_walk(system, noon):
    run(system, valid_time=noon, **SMALL)
    forecast = run(system, spec=ForecastSpec(valid_time=noon, lead_hours=5, **SMALL))
    assert forecast.state is JobState.SUCCEEDED, forecast.error
    hours = [noon + timedelta(hours=i) for i in range(1, 6)]
    assert manifest(system[1], forecast).times == hours
    again = ReanalysisSpec(start=noon - timedelta(hours=2), end=noon, **SMALL)
    reanalysis = run(system, spec=again)
    assert reanalysis.state is JobState.SUCCEEDED, reanalysis.error
    assert manifest(system[1], reanalysis).times == [noon + timedelta(hours=i) for i in (-2, -1, 0)]


def test_a_forecast_without_an_analysis_says_what_is_missing(system, noon):
    job = run(system, spec=ForecastSpec(valid_time=noon - timedelta(days=30), **SMALL))
    assert (job.state, job.error.code) == (JobState.FAILED, "invalid_input")
    assert "Run a filtering job" in job.error.message


def test_a_full_disk_fails_the_job_and_shows_nothing(system, noon):
    stores, processes = system
    before = published(processes)
    worker = processes.worker.pid
    limits = resource.prlimit(worker, resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    try:
        job = run(system, valid_time=noon, **SMALL)
    finally:
        resource.prlimit(worker, resource.RLIMIT_FSIZE, limits)
    assert job.state is JobState.FAILED
    assert job.error.code in ("disk_full", "storage_error")
    assert published(processes) == before
    assert not list(Layout(processes.data).tmp.iterdir())
    assert run(system, valid_time=noon, **SMALL).state is JobState.SUCCEEDED


def test_a_cancel_is_honoured_within_a_step(system, noon):
    stores, processes = system
    job = submit_job(stores, processes, valid_time=noon, **{**SMALL, "steps": 1000})
    wait_for(lambda: stores.jobs.get(job.id).progress.step > 0)
    assert stores.jobs.cancel(job.id) is JobState.CANCELLING
    wait_state(stores, job.id, JobState.CANCELLED)
    states = [(kind, data.get("state")) for _, kind, data in stores.jobs.events(job.id)]
    after = states[states.index(("state", "cancelling")) + 1 :]
    assert after == [("state", "cancelled")]
    assert job.analysis_id not in published(processes)


def test_a_worker_without_a_usable_model_says_why_and_ends(system, tmp_path):
    _, processes = system
    worker = processes.appa("worker", "gpu", APPA_MODELS=str(tmp_path / "nothing"))
    assert worker.wait(60) == 2
    assert "error: Expected a checkpoint folder" in processes.log()


def test_kill_9_of_the_model_worker_in_mid_job(system, checkpoint, noon):
    stores, processes = system
    job = submit_job(stores, processes, valid_time=noon, **{**SMALL, "steps": 40})
    wait_phase(stores, job.id, Phase.SAMPLING)
    processes.kill(processes.worker)
    processes.worker = processes.appa("worker", "gpu", APPA_MODELS=str(checkpoint))
    done = wait_state(stores, job.id, *ENDS, seconds=90)
    assert done.state is JobState.SUCCEEDED, (done.error, processes.log())
    assert done.attempts >= 2
    assert finishes(stores, job.id) == 1
    assert published(processes).count(job.analysis_id) == 1
    assert not list(Layout(processes.data).tmp.iterdir())
