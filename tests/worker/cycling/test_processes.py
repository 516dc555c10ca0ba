"""Real schedulers and a real worker process on an accelerated clock; one scheduler is killed."""

import time

import yaml

from tests.worker.cycling.conftest import at
from tests.worker.processes import wait_for
from worker.contract import clock
from worker.contract.cycles import CycleState

SPEED = 3600  # an hour in a second


def test_hours_are_cycled_by_two_schedulers_of_which_one_is_killed(stores, processes):
    policy = {
        "start": at(0).isoformat(),
        "end": at(3).isoformat(),
        "early_cut_off_minutes": 20,
        "final_cut_off_minutes": 60,
        "members": 1,
        "forecast": {"hours": [2], "lead_hours": 6},
        "ingest_grace_seconds": 5,
    }
    (processes.data / "cycles.yaml").write_text(yaml.safe_dump(policy))
    processes.environment["APPA_CLOCK"] = clock.clock_text(at(0), time.time(), SPEED)
    processes.environment["APPA_DISK_LOW_BYTES"] = "0"
    processes.stub_worker()
    killed = processes.appa("worker", "scheduler")
    processes.appa("worker", "scheduler")
    cycles = stores.cycles
    wait_for(lambda: cycles.count(CycleState.PUBLISHED) >= 1, 60)
    processes.kill(killed)
    wait_for(lambda: cycles.count(CycleState.PUBLISHED) == 8, 60)
    records = cycles.select(limit=100).items
    assert len(records) == 8, processes.log()
    assert {(r.flavour.value, r.revision, r.attempts) for r in records} == {
        ("early", 1, 1), ("final", 2, 1),
    }  # fmt: skip
    jobs = stores.jobs.page(limit=100).items
    assert len(jobs) == 9  # and one forecast
    assert all(record.freshness_seconds >= 0.0 for record in records)
