"""Retention and compaction as the scheduler does them, against a real Valkey server."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from model.domain.errors import ConfigurationError
from model.domain.windows import AssimilationWindow
from tests.worker.processes import Processes, wait_for
from tests.worker.retention import results
from tests.worker.tables import make_table
from worker.contract.batches import BatchRecord
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.contract.records import utc_now
from worker.contract.store import RetentionFigures, Stores
from worker.observations.store.store import ObservationStore
from worker.results.retention.plan import find_in_use
from worker.results.retention.run import RetentionRunner, run_retention


@dataclass(frozen=True)
class Disk:
    disk_low_bytes: int = 0
    disk_low_percent: float = 0.0


ROOMY, LOW = Disk(), Disk(disk_low_bytes=2**60)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path).create()


def rules(layout: Layout, **more: object) -> None:
    """Analyses outside the cycles go after a day; the newest one stays."""
    content = {"analyses": {"manual": {"days": 1, "keep": 1}}, "compaction": None, **more}
    layout.retention_file.write_text(yaml.safe_dump(content))


def rows(table: pa.Table) -> list[str]:
    return sorted(map(repr, table.to_pylist()))


def left(layout: Layout) -> set[str]:
    return {path.name for path in layout.analyses.iterdir()}


def test_unfinished_jobs_and_uploads_are_asked_for(layout: Layout, stores: Stores) -> None:
    job = results.waiting(FilteringSpec(valid_time=results.BASE, background_batch="batch-0"))
    stores.jobs.create(job)
    stores.batches.create(BatchRecord(id="batch-1", sha256="ab", size=1, container="csv"))
    found = find_in_use(stores)
    assert [j.id for j in found.jobs] == [job.id]
    assert found.batches == {"batch-0", "batch-1"}
    assert found.observed_from == results.BASE - timedelta(hours=240)
    stores.jobs.cancel(job.id)
    assert find_in_use(stores).jobs == ()


def test_a_run_removes_counts_and_spares_what_jobs_need(layout: Layout, stores: Stores) -> None:
    rules(layout)
    for hour in range(4):
        results.publish(layout, f"an-{hour}", age_days=10 - hour, hour=hour)
    spec = FilteringSpec(valid_time=results.BASE + timedelta(hours=2), background_max_age_hours=1)
    stores.jobs.create(results.waiting(spec))  # may continue hours 0 and 1
    gone = run_retention(layout, stores, ROOMY)
    assert [item.name for item in gone] == ["an-2"]
    assert left(layout) == {"an-0", "an-1", "an-3"}
    figures = RetentionFigures(stores.redis, stores.keys).read()
    assert figures.items == {"analysis": 1}
    assert figures.size == {"analysis": gone[0].size}
    assert abs(figures.last_run - utc_now().timestamp()) < 60


def test_two_schedulers_do_it_once_and_not_too_often(layout: Layout, stores: Stores) -> None:
    rules(layout)
    for hour in range(3):
        results.publish(layout, f"an-{hour}", age_days=10, hour=hour)
    pair = [RetentionRunner(stores, layout, ROOMY), RetentionRunner(stores, layout, ROOMY)]
    started = sum(one.tick() for one in pair for _ in range(5))
    for one in pair:
        one.join(30)
    assert started == 1
    assert len(left(layout)) == 1
    assert RetentionFigures(stores.redis, stores.keys).read().items == {"analysis": 2}


def test_a_low_disk_is_answered_at_once(layout: Layout, stores: Stores) -> None:
    rules(layout)
    upkeep = RetentionRunner(stores, layout, ROOMY)
    assert upkeep.tick() == 1
    upkeep.join(30)
    for hour in range(3):
        results.publish(layout, f"an-{hour}", age_days=10, hour=hour)
    assert upkeep.tick() == 0  # it ran a moment ago
    upkeep.disk = LOW
    assert upkeep.tick() == 1
    upkeep.join(30)
    assert len(left(layout)) == 1


def test_the_store_is_compacted(layout: Layout, stores: Stores) -> None:
    store = ObservationStore(str(layout.observations))
    hour = (utc_now() - timedelta(hours=10)).replace(minute=0, second=0, microsecond=0)
    observed = np.datetime64(hour.replace(tzinfo=None) + timedelta(minutes=30), "ns")
    for i in range(5):
        received = hour + timedelta(hours=1, minutes=i)
        table = make_table(3, batch_id=f"b{i}", received=received, time=observed)
        store.publish(table, f"b{i}", received)
    window = AssimilationWindow(hour, hour + timedelta(hours=1))
    before = store.read_window(window)
    rules(layout, compaction={"after_hours": 2, "look_back_hours": 24})
    upkeep = RetentionRunner(stores, layout, ROOMY)
    assert upkeep.tick() == 2
    upkeep.join(30)
    assert len(store.files.visible(hour).paths) == 1
    assert rows(store.read_window(window)) == rows(before)
    assert before.num_rows == 15


def test_a_broken_policy_stops_deletion(layout: Layout, stores: Stores) -> None:
    results.publish(layout, "an-0", age_days=1000)
    layout.retention_file.write_text("analyses: {manuel: {days: 1}}")
    with pytest.raises(ConfigurationError):
        RetentionRunner(stores, layout, ROOMY).tick()
    assert left(layout) == {"an-0"}


def test_two_scheduler_processes(layout: Layout, stores: Stores, processes: Processes) -> None:
    rules(layout)
    for hour in range(6):
        results.publish(layout, f"an-{hour}", age_days=10, hour=hour)
    (layout.tmp / "deleted-an-before").mkdir()
    for _ in range(2):
        processes.appa("worker", "scheduler")
    wait_for(lambda: len(left(layout)) == 1, 60)
    wait_for(lambda: not list(layout.tmp.glob("deleted-*")))
    figures = RetentionFigures(stores.redis, stores.keys)
    wait_for(lambda: figures.read().items == {"analysis": 5})
    # While the disk is low a third one, told so, does it again without waiting for its turn.
    results.publish(layout, "an-late", age_days=20)
    processes.appa("worker", "scheduler", APPA_DISK_LOW_BYTES=str(2**60))
    wait_for(lambda: "an-late" not in left(layout), 60)
    wait_for(lambda: "disk_low" in processes.log())
