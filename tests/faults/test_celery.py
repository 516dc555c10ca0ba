"""What Celery does for us, seen on real processes: retries, limits, remote control, events."""

import json
import signal
import threading
from datetime import timedelta

import pytest

from tests.faults.steps import (
    finishes,
    published,
    sender,
    submit_job,
    wait_phase,
    wait_state,
    wait_worker,
)
from tests.worker.processes import wait_for
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.jobs import JobState, Phase
from worker.contract.queues import INGEST_BATCH, RUN_ASSIMILATION, submit
from worker.contract.records import new_id, utc_now
from worker.process import send_command, wait_until_idle


def upload(stores, processes) -> BatchRecord:
    batch_id = new_id("batch")
    record = BatchRecord(id=batch_id, sha256=batch_id, size=1, container="csv")
    batch, _ = stores.batches.create(record)
    with sender(processes) as app:
        submit(app, INGEST_BATCH, batch.id)
    return batch


def names(stores) -> list[str]:
    return [report.name for report in stores.workers.alive() if "gpu" in report.queues]


def hold(processes, phase: str):
    path = processes.data / f"pause-{phase}"
    path.touch()
    return path


# -- retries


def test_a_fault_of_ours_is_retried_later_and_the_record_says_when_and_why(stores, processes):
    processes.stub_worker(
        APPA_RETRY_BACKOFF_SECONDS="43200", APPA_RETRY_BACKOFF_MAX_SECONDS="43200"
    )
    fault = processes.data / "fault-sampling"
    fault.touch()
    job = submit_job(stores, processes)
    wait_for(lambda: stores.jobs.get(job.id).retry_at)
    waiting = stores.jobs.get(job.id)
    assert (waiting.state, waiting.attempts) == (JobState.QUEUED, 1)
    assert waiting.error.code == "storage_error"
    assert waiting.progress.message == "waiting: torn file"
    assert utc_now() < waiting.retry_at < utc_now() + timedelta(hours=12)
    fault.unlink()
    with sender(processes) as app:
        submit(app, RUN_ASSIMILATION, job.id)  # a duplicate does not cut the pause short
    following = submit_job(stores, processes)
    wait_state(stores, following.id, JobState.SUCCEEDED)
    assert stores.jobs.get(job.id) == waiting


def test_a_job_succeeds_once_the_fault_has_passed(stores, processes):
    processes.stub_worker(APPA_RETRY_BACKOFF_SECONDS="1", APPA_RETRY_BACKOFF_MAX_SECONDS="1")
    fault = processes.data / "fault-writing"
    fault.touch()
    job = submit_job(stores, processes)
    wait_for(lambda: stores.jobs.get(job.id).attempts >= 3)
    fault.unlink()
    done = wait_state(stores, job.id, JobState.SUCCEEDED, JobState.FAILED)
    assert (done.state, done.error, done.retry_at) == (JobState.SUCCEEDED, None, None)
    assert finishes(stores, job.id) == 1
    assert published(processes) == [job.analysis_id]


def test_a_lost_message_is_sent_again_although_duplicates_of_others_wait(stores, processes):
    processes.stub_worker()
    processes.appa("worker", "scheduler")
    held = hold(processes, "sampling")
    running = submit_job(stores, processes)
    wait_phase(stores, running.id, Phase.SAMPLING)
    lost = submit_job(stores, processes, copies=0)
    repeated = submit_job(stores, processes, copies=3)
    wait_for(lambda: f"id={lost.id}" in processes.log() and "sent again" in processes.log())
    held.unlink()
    for job in (running, lost, repeated):
        done = wait_state(stores, job.id, JobState.SUCCEEDED)
        assert (done.attempts, finishes(stores, job.id)) == (1, 1)


# -- time limits


def test_an_upload_that_takes_too_long_fails_with_the_reason(stores, processes):
    processes.stub_worker(
        APPA_STUB_QUEUE="ingest", APPA_INGEST_LIMIT_SECONDS="1", APPA_JOB_LIMIT_SECONDS="60"
    )
    held = hold(processes, "ingest")
    slow = upload(stores, processes)
    wait_for(lambda: stores.batches.get(slow.id).state is BatchState.FAILED)
    assert stores.batches.get(slow.id).error.code == "ingest_too_long"
    assert stores.batches.get(slow.id).attempts == 1
    held.unlink()
    quick = upload(stores, processes)
    wait_for(lambda: stores.batches.get(quick.id).state is BatchState.INGESTED)


def test_an_upload_that_hangs_ends_its_process_and_fails_in_the_end(stores, processes):
    processes.stub_worker(
        APPA_STUB_QUEUE="ingest", APPA_STUB_DEAF="1", APPA_INGEST_LIMIT_SECONDS="1"
    )
    processes.appa("worker", "scheduler", APPA_LOST_WORKERS="2")
    held = hold(processes, "ingest")
    hanging = upload(stores, processes)
    wait_for(lambda: stores.batches.get(hanging.id).state is BatchState.FAILED, 60)
    failed = stores.batches.get(hanging.id)
    assert (failed.error.code, failed.lost) == ("worker_lost", 2)
    held.unlink()
    following = upload(stores, processes)
    wait_for(lambda: stores.batches.get(following.id).state is BatchState.INGESTED)


# -- remote control


def test_a_drained_worker_finishes_its_job_and_takes_no_other(stores, processes):
    processes.stub_worker()
    wait_worker(stores)
    (first,) = names(stores)
    held = hold(processes, "sampling")
    running = submit_job(stores, processes)
    wait_phase(stores, running.id, Phase.SAMPLING)
    with sender(processes) as app:
        assert list(send_command(app, "drain", [first])) == [first]  # answers while it works
        (report,) = stores.workers.alive()
        assert (report.ready, report.draining) == (False, True)
        waiting = submit_job(stores, processes)
        assert not wait_until_idle(app, [first], 1.0)
        held.unlink()
        wait_state(stores, running.id, JobState.SUCCEEDED)
        assert wait_until_idle(app, [first], 10.0)
        assert stores.jobs.get(waiting.id).state is JobState.QUEUED
        processes.stub_worker()  # an undrained one takes it
        done = wait_state(stores, waiting.id, JobState.SUCCEEDED)
        assert done.worker != first
        send_command(app, "drain", [done.worker])
        last = submit_job(stores, processes)
        send_command(app, "resume", [first])
        assert wait_state(stores, last.id, JobState.SUCCEEDED).worker == first


def test_shutdown_from_afar_finishes_the_running_job_first(stores, processes):
    worker = processes.stub_worker()
    wait_worker(stores)
    held = hold(processes, "sampling")
    job = submit_job(stores, processes)
    wait_phase(stores, job.id, Phase.SAMPLING)
    with sender(processes) as app:
        app.control.shutdown(destination=names(stores))
        waiting = submit_job(stores, processes)
    with pytest.raises(AssertionError):
        wait_for(lambda: worker.poll() is not None, 2.0)
    held.unlink()
    assert worker.wait(20) == 0
    done = stores.jobs.get(job.id)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1), processes.log()
    assert stores.jobs.get(waiting.id).state is JobState.QUEUED
    assert stores.workers.alive() == []


def test_a_worker_told_to_stop_at_once_loses_no_job(stores, processes):
    worker = processes.stub_worker(APPA_STUB_STEPS="1000", APPA_STUB_STEP_SECONDS="0.05")
    job = submit_job(stores, processes)
    wait_phase(stores, job.id, Phase.SAMPLING)
    worker.send_signal(signal.SIGQUIT)
    worker.wait(20)  # the job would have taken 50 s
    assert "Traceback" not in processes.log()
    assert stores.jobs.get(job.id).state is JobState.QUEUED
    processes.appa("worker", "scheduler")
    processes.stub_worker()
    wait_state(stores, job.id, JobState.SUCCEEDED)
    assert finishes(stores, job.id) == 1


# -- events


def test_events_show_what_is_sent_started_and_done_and_beat_during_a_job(stores, processes):
    seen: list[str] = []
    processes.stub_worker()
    wait_worker(stores)
    held = hold(processes, "sampling")
    with sender(processes) as app, app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, {"*": lambda event: seen.append(event["type"])})
        listening = threading.Thread(
            target=receiver.capture, kwargs={"limit": None, "timeout": None}, daemon=True
        )
        listening.start()
        wait_for(lambda: "worker-heartbeat" in seen)
        job = submit_job(stores, processes)
        wait_phase(stores, job.id, Phase.SAMPLING)
        seen.clear()
        wait_for(lambda: "worker-heartbeat" in seen)  # alive, though it works
        held.unlink()
        wait_for(lambda: "task-succeeded" in seen)
        following = submit_job(stores, processes)
        wait_state(stores, following.id, JobState.SUCCEEDED)
        wait_for(lambda: seen.count("task-succeeded") == 2)
        assert {"task-sent", "task-received", "task-started"} <= set(seen)
        receiver.should_stop = True
        listening.join(10)


# -- command line


def test_the_command_line_lists_drains_and_stops_workers(stores, processes):
    worker = processes.stub_worker()
    wait_worker(stores)
    (name,) = names(stores)

    def ran(*arguments: str) -> int:
        return processes.appa("workers", *arguments).wait(60)

    assert ran("list") == 0
    assert ran("drain", "nobody@nowhere") == 1
    assert f"Expected workers of {name}; got nobody@nowhere." in processes.log()
    assert ran("drain", "--queue", "gpu", "--wait", "10") == 0
    assert f"{name}: takes no more from gpu" in processes.log()
    assert stores.workers.alive()[0].draining
    assert ran("resume", name, "--json") == 0
    answer = {"name": name, "answer": "takes work from gpu"}
    assert json.dumps({"command": "resume", "workers": [answer]})[:-1] in processes.log()
    assert ran("celery", "inspect", "ping") == 0
    assert f"{name}: OK" in processes.log()
    assert ran("stop", name) == 0
    assert worker.wait(20) == 0
