"""What processes have counted adds up in Redis: over processes, restarts and outages, exactly once."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import torch
from celery import Celery
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.worker.processes import REPOSITORY
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.jobs import JobRecord, Phase
from worker.contract.kinds import FilteringSpec
from worker.contract.measures import JobMeter, Measures, SharedMeasures
from worker.contract.queues import ANNOUNCE_RESULT, ProcessFigures, celery_settings, submit
from worker.contract.records import Problem, new_id, utc_now
from worker.contract.redis_server import connect
from worker.contract.store import open_stores, waiting
from worker.loaded_models import LoadedModels


def shown(stores) -> dict[tuple, float]:
    """Samples as Prometheus reads them from a gateway, by name and values of labels."""
    shared = SharedMeasures(stores.redis, stores.keys)
    shared.read()
    registry = CollectorRegistry()
    registry.register(shared)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


@pytest.fixture
def measures(stores) -> Measures:
    return Measures(stores.redis, stores.keys)


def test_two_processes_add_up_and_a_push_counts_once(stores, measures):
    other = Measures(stores.redis, stores.keys)
    measures.lost_workers.labels("job").inc(2)
    other.lost_workers.labels("job").inc()
    for _ in range(2):
        assert measures.push() and other.push()
    measures.lost_workers.labels("job").inc()
    assert measures.push()
    assert shown(stores)[("appa_workers_lost_total", "job")] == 4


_CHILD = """
import os, signal, sys
from worker.contract.measures import Measures
from worker.contract.redis_server import Keyspace, connect

measures = Measures(connect(sys.argv[1]), Keyspace(sys.argv[2]))
measures.resent.labels("job").inc()
measures.push("ingest")
measures.resent.labels("job").inc(100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_it_had_pushed_and_takes_nothing_away(shared_broker, stores):
    for expected in (1, 2):  # the second one is its restart
        command = [sys.executable, "-c", _CHILD, shared_broker.url, stores.keys.prefix]
        assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == -9
        found = shown(stores)
        assert found[("appa_messages_resent_total", "job")] == expected
    assert found[("appa_process_cpu_seconds_total", "ingest")] > 0.2  # of both: their imports


def test_nothing_is_lost_or_counted_twice_while_the_server_is_away(own_broker):
    redis = connect(own_broker.url, retries=0)
    measures = Measures(redis)
    measures.ticks.labels("reap").observe(0.3)
    assert measures.push()
    own_broker.kill()
    measures.ticks.labels("reap").observe(0.3)
    assert not measures.push()
    own_broker.start()
    assert measures.push()
    stores = open_stores(own_broker.url)
    assert shown(stores)[("appa_scheduler_tick_seconds_count", "reap")] == 2
    stores.redis.close()
    redis.close()


def test_histograms_are_whole_and_cumulative(stores, measures):
    other = Measures(stores.redis, stores.keys)
    for value, process in ((0.05, measures), (7.0, other), (7.0, measures), (90_000.0, other)):
        process.webhook_delay.observe(value)
    measures.push()
    other.push()
    found = shown(stores)
    name = "appa_webhook_delay_seconds"
    bounds = {float(k[1]): v for k, v in found.items() if k[0] == f"{name}_bucket"}
    assert [bounds[le] for le in sorted(bounds)] == sorted(bounds.values())
    at = [bounds[le] for le in (0.1, 5.0, 10.0, 86400.0, float("inf"))]
    assert at == [1, 1, 3, 3, 4]
    assert found[(f"{name}_count",)] == 4
    assert found[(f"{name}_sum",)] == pytest.approx(90_014.05)


def test_measures_of_another_release_are_another_hash(stores, measures):
    class Next(Measures):
        def _declare_work(self):
            super()._declare_work()
            self.more = self._counter("appa_more", "Something new.")

    names = {Measures(None, stores.keys).key, measures.key}
    assert len(names) == 1
    assert Next(None, stores.keys).key not in names


def test_phases_and_steps_are_timed_by_the_clock(measures, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("worker.contract.measures.time.monotonic", lambda: now[0])
    meter = JobMeter(measures, "filtering")
    for phase, seconds, steps in (
        (Phase.GATHERING, 1.0, 0),
        (Phase.SAMPLING, 8.0, 4),
        (Phase.WRITING, 3.0, 0),
    ):
        meter.phase(phase)
        for _ in range(steps):
            meter.step()
            now[0] += seconds / steps
        now[0] += 0.0 if steps else seconds
    meter.end()
    get = measures.registry.get_sample_value
    about = {"kind": "filtering"}
    took = {
        phase: get("appa_job_seconds_sum", about | {"phase": phase})
        for phase in ("gathering", "sampling", "writing")
    }
    assert took == {"gathering": 1.0, "sampling": 8.0, "writing": 3.0}
    assert get("appa_diffusion_steps_total", about) == 4
    assert get("appa_diffusion_seconds_total", about) == 8.0


def test_an_upload_is_counted_by_network_and_outcome(measures):
    batch = BatchRecord(
        id="batch-1",
        sha256="0" * 64,
        size=700,
        container="bufr",
        created=utc_now() - timedelta(seconds=20),
    )
    summary = IngestSummary(
        observations=12,
        by_report_type={"synop": 10, "temp": 2},
        by_rejection={"domain": 3},
        rejected_by_report_type={"synop": {"domain": 3}},
        decode_report={"messages": 5, "rejected": {"no_position": 2}},
    )
    measures.ingested(batch, summary)
    get = measures.registry.get_sample_value
    values = {
        (network, outcome): get(
            "appa_qc_values_total", {"stage": "arrival", "network": network, "outcome": outcome}
        )
        for network, outcome in (("synop", "accepted"), ("synop", "domain"), ("temp", "accepted"))
    }
    assert values == {("synop", "accepted"): 7, ("synop", "domain"): 3, ("temp", "accepted"): 2}
    rejected = {"format": "bufr", "reason": "no_position"}
    assert get("appa_decode_rejects_total", rejected) == 2
    assert get("appa_ingest_bytes_total", {"format": "bufr"}) == 700
    delay = get("appa_ingest_delay_seconds_sum", {"lane": "small"})
    assert delay == pytest.approx(20, abs=2)


def stored_at(measures, monkeypatch, when: float, *networks: str) -> None:
    """Ingest an upload of these networks at a time, in seconds since 1970."""
    monkeypatch.setattr("worker.contract.measures.time.time", lambda: when)
    batch = BatchRecord(id="batch-1", sha256="0" * 64, size=700, container="bufr")
    measures.ingested(batch, IngestSummary(by_report_type=dict.fromkeys(networks, 3)))
    monkeypatch.undo()


def arrivals(stores) -> dict[str, float]:
    return {k: float(v) for k, v in stores.redis.hgetall(stores.keys.arrivals).items()}


def test_the_last_arrival_of_a_network_is_that_of_whichever_process_stored_it(
    stores, measures, monkeypatch
):
    other = Measures(stores.redis, stores.keys)
    stored_at(measures, monkeypatch, 1000.0, "synop", "temp")
    assert measures.push()
    stored_at(other, monkeypatch, 2000.0, "synop")
    assert other.push()
    measures.resent.labels("job").inc()
    assert measures.push()  # nothing new of its own: it does not set the clock back
    assert arrivals(stores) == {"synop": 2000.0, "temp": 1000.0}


def test_an_arrival_is_sent_once_the_server_is_back(own_broker, monkeypatch):
    measures = Measures(connect(own_broker.url, retries=0))
    own_broker.kill()
    stored_at(measures, monkeypatch, 1000.0, "synop")
    assert not measures.push()
    own_broker.start()
    assert measures.push()
    stores = open_stores(own_broker.url)
    assert arrivals(stores) == {"synop": 1000.0}
    stores.redis.close()


def put_job(stores, minutes: float) -> JobRecord:
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, tzinfo=UTC))
    created = utc_now() - timedelta(minutes=minutes)
    job = JobRecord(id=new_id("job", created), analysis_id="an-1", spec=spec, created=created)
    return stores.jobs.create(job)[0]


def put_upload(stores, number: int, size: int, minutes: float) -> None:
    created = utc_now() - timedelta(minutes=minutes)
    stores.batches.create(
        BatchRecord(
            id=new_id("batch", created),
            sha256=f"{number:064x}",
            size=size,
            container="bufr",
            created=created,
        )
    )


def test_queues_tell_their_length_and_the_age_of_their_oldest(stores, shared_broker):
    held = put_job(stores, minutes=60)
    put_job(stores, minutes=5)
    put_upload(stores, 1, 700, minutes=2)
    put_upload(stores, 2, 700, minutes=1)
    put_upload(stores, 3, 9_000_000, minutes=30)
    found = {k: (v.length, round(v.oldest_seconds / 60)) for k, v in waiting(stores).items()}
    assert found == {"gpu": (2, 60), "ingest": (2, 2), "ingest-large": (1, 30), "products": (0, 0)}
    # One that waits for the time of its retry is not late.
    held = stores.jobs.claim(held.id, "w", timedelta(seconds=30))
    problem = Problem(code="storage_error", message="torn file", retryable=True)
    stores.jobs.requeue(held.id, held.token, problem, utc_now() + timedelta(hours=1))
    assert round(waiting(stores)["gpu"].oldest_seconds / 60) == 5


def test_messages_of_the_broker_tell_when_they_were_sent(stores, shared_broker, monkeypatch):
    app = Celery("sender", set_as_current=False)
    app.conf.update(celery_settings(shared_broker.url, stores.keys.prefix, 3600))
    hour_ago = utc_now() - timedelta(hours=1)
    monkeypatch.setattr("worker.contract.queues.utc_now", lambda: hour_ago)
    submit(app, ANNOUNCE_RESULT, "an-1")
    monkeypatch.undo()
    submit(app, ANNOUNCE_RESULT, "an-2")
    found = waiting(stores)["products"]
    assert found.length == 2
    assert found.oldest_seconds == pytest.approx(3600, abs=10)
    app.close()


@pytest.mark.parametrize("nvml", [True, False])
def test_a_gpu_tells_its_memory_and_where_it_can_its_utilisation(monkeypatch, nvml):
    gib = 2**30

    def utilization(device):
        if not nvml:
            raise ModuleNotFoundError("pynvml does not seem to be installed")
        return 75  # percent

    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (50 * gib, 80 * gib))
    monkeypatch.setattr("torch.cuda.utilization", utilization)
    figures = ProcessFigures()
    LoadedModels((), torch.device("cpu")).measure_device(figures)
    assert figures == ProcessFigures()
    LoadedModels((), torch.device("cuda:0")).measure_device(figures)
    assert (figures.device_used_bytes, figures.device_total_bytes) == (30 * gib, 80 * gib)
    assert figures.device_utilisation == (0.75 if nvml else None)
