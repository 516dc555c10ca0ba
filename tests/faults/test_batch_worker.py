"""A worker in a batch job of SLURM: the script itself, a real worker, the signal before the limit."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.steps import finishes, submit_job, wait_phase, wait_state, wait_worker
from tests.worker.processes import REPOSITORY, STUB, wait_for
from worker.contract.jobs import JobState, Phase

SCRIPT = REPOSITORY / "deploy" / "slurm" / "worker.sbatch"


@pytest.fixture
def start(processes, tmp_path):
    """Start the script where `appa worker gpu` counts steps instead of sampling."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shim = folder / "appa"
    shim.write_text(
        "#!/bin/bash\n"
        f'worker() {{ "$@" {sys.executable} {STUB}; exit; }}\n'
        '[ "$*" = "worker gpu" ] && worker ${APPA_TEST_WRAPPED:-exec}\n'
        f'exec {sys.executable} -m deploy.cli "$@"\n'
    )
    shim.chmod(0o755)
    scontrol = folder / "scontrol"
    scontrol.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/scontrol\n')
    scontrol.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"

    def begin(**environment: str) -> subprocess.Popen:
        return processes.start("bash", str(SCRIPT), PATH=path, **environment)

    return begin


def test_a_batch_job_hands_its_work_back_before_its_time_is_over(
    stores, processes, start, tmp_path
):
    hold: Path = processes.data / "pause-sampling"
    hold.touch()
    first, second = submit_job(stores, processes), submit_job(stores, processes)
    batch = start(APPA_FINISH_SECONDS="1", APPA_AGAIN="1", SLURM_JOB_ID="77")
    wait_phase(stores, first.id, Phase.SAMPLING)
    batch.send_signal(signal.SIGUSR1)  # as --signal=B:USR1 does: the shell alone
    assert batch.wait(60) == 0
    assert stores.jobs.get(first.id).state is JobState.QUEUED  # at once, with its lease
    assert not stores.redis.exists(stores.keys.lease("job", first.id))
    assert stores.workers.alive() == []
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"
    assert processes.log().count("draining") == 1  # it was asked before it was told

    batch = start(APPA_FINISH_SECONDS="60", APPA_TEST_WRAPPED="env")  # as in `apptainer exec`
    wait_worker(stores)
    wait_for(lambda: any(stores.jobs.get(j.id).state is JobState.RUNNING for j in (first, second)))
    batch.send_signal(signal.SIGUSR1)
    wait_for(lambda: any(report.draining for report in stores.workers.alive()))
    hold.unlink()
    assert batch.wait(60) == 0
    states = sorted(stores.jobs.get(j.id).state for j in (first, second))
    assert states == [JobState.QUEUED, JobState.SUCCEEDED]  # finished one, took no other

    batch = start()
    wait_state(stores, first.id, JobState.SUCCEEDED)
    wait_state(stores, second.id, JobState.SUCCEEDED)
    assert [finishes(stores, j.id) for j in (first, second)] == [1, 1]
    hold.touch()
    third = submit_job(stores, processes)
    wait_phase(stores, third.id, Phase.SAMPLING)
    batch.send_signal(signal.SIGUSR1)
    wait_for(lambda: any(report.draining for report in stores.workers.alive()))
    batch.send_signal(signal.SIGTERM)  # cancelled, while it waits for the job to end
    batch.wait(30)
    assert stores.jobs.get(third.id).state is JobState.QUEUED
    wait_for(lambda: stores.workers.alive() == [])
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"


def test_the_script_has_time_for_what_it_does():
    text = SCRIPT.read_text()
    (before,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", text, re.MULTILINE)
    (finish,) = re.findall(r"APPA_FINISH_SECONDS:-(\d+)", text)
    assert int(finish) + 60 <= int(before)
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    bare = {k: v for k, v in os.environ.items() if not k.startswith("APPA_")}
    refused = subprocess.run(["bash", str(SCRIPT)], env=bare, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "APPA_REDIS_URL: the address of Redis" in refused.stderr
