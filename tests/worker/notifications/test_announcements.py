"""Results are told of by the products worker; those it missed, by the scheduler."""

import json
import shutil

from test_webhooks import manifest

from tests.faults.steps import sender
from tests.worker.processes import wait_for
from worker.contract.layout import Layout
from worker.contract.queues import ANNOUNCE_RESULT, submit
from worker.results.manifest import AnalysisManifest
from worker.tasks.products import MissedResults, announce


def put(layout: Layout, name: str) -> AnalysisManifest:
    """A published result that nobody told of."""
    layout.analysis(name).mkdir(parents=True)
    made = manifest(name)
    layout.manifest(name).write_text(made.model_dump_json())
    return made


def told(stores) -> list[str]:
    return [event.data["analysis_id"] for _, event in stores.events.after("0-0")]


def test_a_products_worker_tells_and_keeps_latest_json(stores, processes):
    layout = Layout(processes.data).create()
    put(layout, "an-1")
    processes.appa("worker", "products")
    with sender(processes) as app:
        for name in ("an-1", "an-1", "an-gone"):  # a message that came twice, one too late
            submit(app, ANNOUNCE_RESULT, name)
    wait_for(lambda: told(stores) and "not announced" in processes.log(), 60.0)
    assert told(stores) == ["an-1"]
    assert json.loads(layout.latest_file.read_text())["filtering"]["id"] == "an-1"


def test_what_was_missed_is_told_once(stores, tmp_path):
    layout = Layout(tmp_path).create()
    announce(layout, stores.events, put(layout, "an-1"))
    put(layout, "an-2")
    put(layout, "an-3")
    shutil.rmtree(layout.analysis("an-3"))
    (layout.analyses / "no-manifest").mkdir()
    missed = MissedResults(layout, stores.events, every=0.0)
    wait_for(lambda: missed.tick() == 1)
    assert told(stores) == ["an-1", "an-2"]
    assert missed.tick() == 0
    assert MissedResults(layout, stores.events, every=0.0).tick() == 0  # another scheduler
    assert told(stores) == ["an-1", "an-2"]


def test_a_redis_that_lost_everything_is_not_told_of_the_whole_day_again(stores, tmp_path):
    layout = Layout(tmp_path).create()
    announce(layout, stores.events, put(layout, "an-1"))
    assert MissedResults(layout, stores.events, every=0.0).tick() == 0
    stores.redis.delete(*stores.redis.keys(f"{stores.keys.prefix}:*"))
    missed = MissedResults(layout, stores.events, every=0.0)
    for _ in range(3):
        assert missed.tick() == 0
    assert told(stores) == []
    put(layout, "an-2")  # published, and not announced, after the loss
    wait_for(lambda: missed.tick() == 1)
    assert told(stores) == ["an-2"]


def test_old_results_are_left_alone(stores, tmp_path):
    """A folder that was there before there were events does not ring everybody up."""
    layout = Layout(tmp_path).create()
    put(layout, "an-1")
    assert MissedResults(layout, stores.events, every=0.0, back=0.0).tick() == 0
    assert MissedResults(layout, stores.events, every=3600.0).tick() == 0  # may be told any moment
    assert told(stores) == []
