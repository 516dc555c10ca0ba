"""What is taken from the queue first; a real worker on a real broker."""

from datetime import UTC, datetime

import pytest

from tests.faults.steps import sender, wait_phase, wait_state
from tests.worker.processes import wait_for
from worker.contract.jobs import JobRecord, JobState, Phase
from worker.contract.kinds import FilteringSpec, ForecastSpec, ReanalysisSpec
from worker.contract.queues import GPU_QUEUE, PRIORITIES, RUN_ASSIMILATION, submit
from worker.contract.records import new_id
from worker.scheduler import Reaper

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
ANALYSIS = FilteringSpec(valid_time=NOON)
FORECAST = ForecastSpec(valid_time=NOON)
PAST = ReanalysisSpec(start=NOON, end=NOON)


def queue(stores, app, spec) -> JobRecord:
    job_id = new_id("job")
    record = JobRecord(id=job_id, analysis_id=job_id.replace("job", "an"), spec=spec)
    job, _ = stores.jobs.create(record)
    submit(app, RUN_ASSIMILATION, job.id, job.spec.priority)
    return job


def test_each_kind_has_a_priority_that_there_is():
    numbers = [spec.priority for spec in (ANALYSIS, FORECAST, PAST)]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(PRIORITIES)


def test_an_analysis_does_not_wait_for_forecasts_and_reanalyses(stores, processes):
    processes.stub_worker()
    hold = processes.data / "pause-sampling"
    hold.touch()
    with sender(processes) as app:
        running = queue(stores, app, PAST)
        wait_phase(stores, running.id, Phase.SAMPLING)
        past, forecast, analysis = (queue(stores, app, spec) for spec in (PAST, FORECAST, ANALYSIS))
    hold.unlink()
    done = [
        wait_state(stores, job.id, JobState.SUCCEEDED)
        for job in (running, analysis, forecast, past)
    ]
    starts = [job.started for job in done]
    assert starts == sorted(starts)


@pytest.mark.parametrize("spec", [ANALYSIS, FORECAST, PAST])
def test_a_lost_message_is_sent_again_with_its_priority(stores, processes, spec):
    with sender(processes) as app, app.connection_for_write() as connection:
        broker = connection.default_channel
        reaper = Reaper(stores, app, lost_workers=1, grace_seconds=0, resend_seconds=0)
        queue(stores, app, spec)
        assert broker.queue_declare(GPU_QUEUE).message_count == 1
        assert reaper.sweep() == 0
        broker.queue_purge(GPU_QUEUE)  # lost with the broker
        wait_for(lambda: reaper.sweep() == 1)
        message = broker.basic_get(GPU_QUEUE, no_ack=True)
        assert message.properties["priority"] == spec.priority
        assert broker.basic_get(GPU_QUEUE, no_ack=True) is None
