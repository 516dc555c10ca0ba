"""The store against a plain list: any order of arrivals, compactions, crashes and questions."""

import contextlib
import random
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from model.domain.errors import StorageError
from model.domain.windows import AssimilationWindow
from tests.worker.tables import make_table
from worker.observations.store import compaction as compaction_module
from worker.observations.store import store as store_module
from worker.observations.store.compaction import compact
from worker.observations.store.store import ObservationStore

DAY = datetime(2024, 1, 1, tzinfo=UTC)


def keys(table):
    return sorted(
        zip(table["batch_id"].to_pylist(), table["observation_id"].to_pylist(), strict=True)
    )


def publish_random(store, rng, name, received):
    """A batch of up to six rows in the first six hours; returns what a reader should see."""
    minutes = [rng.randrange(360) for _ in range(rng.randrange(1, 7))]
    times = np.datetime64("2024-01-01T00:00", "ns") + np.array(minutes) * np.timedelta64(1, "m")
    store.publish(
        make_table(len(minutes), batch_id=name, received=received, time=times), name, received
    )
    return [(DAY + timedelta(minutes=m), received, name, i) for i, m in enumerate(minutes)]


def dying_put(module, rng):
    """`write_file` that fails before one of the next writes."""
    left = [rng.randrange(3)]
    real = module.write_file

    def put(*args, **options):
        if left[0] == 0:
            raise StorageError("power cut")
        left[0] -= 1
        real(*args, **options)

    return put


@pytest.mark.parametrize("seed", range(4))
def test_reads_equal_a_plain_list(tmp_path, seed, monkeypatch):
    rng = random.Random(seed)
    store, rows = ObservationStore(str(tmp_path)), []
    for step in range(25):
        received = DAY + timedelta(hours=rng.randrange(24))
        action = rng.random()
        if action < 0.5:
            rows += publish_random(store, rng, f"b{step}", received)
        elif action < 0.65:
            with monkeypatch.context() as patch:
                patch.setattr(store_module, "write_file", dying_put(store_module, rng))
                with contextlib.suppress(StorageError):
                    rows += publish_random(store, rng, f"b{step}", received)
        elif action < 0.75:
            with monkeypatch.context() as patch:
                patch.setattr(compaction_module, "write_file", dying_put(compaction_module, rng))
                with contextlib.suppress(StorageError):
                    compact(store.files, DAY, DAY + timedelta(hours=6), min_files=2)
        else:
            grace = timedelta(0) if rng.random() < 0.5 else timedelta(hours=1)
            compact(store.files, DAY, DAY + timedelta(hours=6), min_files=2, grace=grace)
        start = DAY + timedelta(minutes=rng.randrange(-60, 300))
        window = AssimilationWindow(start, start + timedelta(minutes=rng.randrange(1, 300)))
        cut_off = DAY + timedelta(hours=rng.randrange(24)) if rng.random() < 0.5 else None
        expected = sorted(
            (name, i)
            for time, arrival, name, i in rows
            if time in window and (cut_off is None or arrival <= cut_off)
        )
        assert keys(store.read_window(window, cut_off=cut_off)) == expected


def test_readers_beside_writers_and_compaction(tmp_path):
    store = ObservationStore(str(tmp_path))
    window = AssimilationWindow(DAY, DAY + timedelta(hours=3))
    times = np.datetime64("2024-01-01T00:30", "ns") + np.arange(4) * np.timedelta64(30, "m")
    done, faults, seen = threading.Event(), [], Counter()

    def write():
        for i in range(25):
            name = f"b{i:03d}"
            store.publish(make_table(4, batch_id=name, time=times), name, DAY + timedelta(hours=3))
        done.set()

    def tidy():
        while not done.is_set():
            compact(
                store.files,
                DAY,
                DAY + timedelta(hours=3),
                min_files=3,
                grace=timedelta(seconds=1),
            )

    def read():
        while not done.is_set():
            counts = Counter(store.read_window(window)["batch_id"].to_pylist())
            seen.update(counts.keys())
            faults.extend(item for item in counts.items() if item[1] != 4)

    threads = [threading.Thread(target=task) for task in (write, tidy, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert seen
    assert Counter(store.read_window(window)["batch_id"].to_pylist()) == {
        f"b{i:03d}": 4 for i in range(25)
    }
