"""What is taken from the queue first; a real worker on a real broker."""

from datetime import UTC, datetime

import pytest

from tests.faults.steps import sender, wait_phase, wait_state
from tests.worker.processes import wait_for
from worker.contract.jobs import JobRecord, JobState, Phase
from worker.contract.kinds import FilteringSpec, ForecastSpec, ReanalysisSpec
from worker.contract.queues import GPU_QUEUE, PRIORITIES, RUN_ASSIMILATION, queue_keys, submit
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
def test_a_waiting_message_is_found_whatever_its_priority(stores, processes, spec):
    with sender(processes) as app:
        reaper = Reaper(stores, app, attempts=1, grace_seconds=0, resend_seconds=0)
        queue(stores, app, spec)
        keys = queue_keys(stores.keys.prefix, GPU_QUEUE)
        assert sum(stores.redis.llen(key) for key in keys) == 1
        assert reaper.sweep() == 0
        stores.redis.delete(*keys)  # lost with the broker
        wait_for(lambda: reaper.sweep() == 1)
        assert stores.redis.llen(keys[PRIORITIES.index(spec.priority)]) == 1
