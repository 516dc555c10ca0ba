"""The replay of what a model worker made, by the command, in another process."""

import json
import os
import subprocess
import sys

import numpy as np

from model.checkpoints.bundle import load_checkpoint
from tests.faults.steps import manifest, submit_job, wait_state
from tests.worker.processes import REPOSITORY
from tests.worker.tables import RECEIVED, make_table
from worker.contract.jobs import JobState
from worker.contract.layout import Layout
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore

ENDS = (JobState.SUCCEEDED, JobState.FAILED)


def test_identical_with_another_number_of_threads(stores, processes, checkpoint):
    """Threads change the order of sums: the replay takes as many as the first run had."""
    mean = float(load_checkpoint(checkpoint).state_normalisation.mean[0])
    layout = Layout(processes.data).create()
    table = assign_errors(make_table(30, obs_value=np.full(30, mean)))
    ObservationStore(str(layout.observations)).publish(table, "b1", RECEIVED)
    processes.appa("worker", "gpu", APPA_MODELS=str(checkpoint), OMP_NUM_THREADS="1")
    noon = table["time"][0].as_py().to_pydatetime()
    job = submit_job(stores, processes, valid_time=noon, members=2, steps=3)
    done = wait_state(stores, job.id, *ENDS, seconds=90)
    assert done.state is JobState.SUCCEEDED, (done.error, processes.log())
    environment = manifest(processes, job).provenance["environment"]
    assert environment["threads"] == 1
    command = [sys.executable, "-m", "deploy.cli", "replay", job.analysis_id, "--json"]
    command += ["--data-dir", str(layout.root), "--model", str(checkpoint)]
    ended = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, (ended.stdout[-2000:], ended.stderr[-2000:])
    verdict = json.loads(ended.stdout)
    assert verdict["outcome"] == "identical"
    differing = [f for f in verdict["findings"] if not f["same"] and f["name"] != "code"]
    assert differing == []
