"""Removal: gone everywhere at once, readers undisturbed, nothing that was pinned."""

import json
from pathlib import Path

import pytest

from tests.worker.retention import results
from worker.contract.layout import Layout
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import Pin, pin, read_manifest
from worker.results.retention.plan import RetentionItem, RetentionPlan
from worker.results.retention.run import remove, remove_all, sweep_removed


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path).create()


def item(what: str, name: str) -> RetentionItem:
    return RetentionItem(what=what, name=name, size=1, age_days=1.0, reason="test")


def test_a_result_vanishes_everywhere_at_once(layout: Layout) -> None:
    for hour in (0, 1, 2):
        results.publish(layout, f"an-{hour}", age_days=1, hour=hour, flavour="final")
    index = Catalogue(layout)
    assert index.latest(ResultFilter()).id == "an-2"
    with (layout.analysis_file("an-2", "a.nc")).open("rb") as reader:
        assert reader.read(10) == results.DATA[:10]
        told = []
        gone = remove_all(layout, RetentionPlan((item("analysis", "an-2"),), {}), told.append)
        assert reader.read() == results.DATA[10:]
    assert [i.name for i in gone] == [i.name for i in told] == ["an-2"]
    assert index.find("an-2") is None
    assert [m.id for m in index.select(ResultFilter(), None, 10).items] == ["an-1", "an-0"]
    latest = json.loads(layout.latest_file.read_text())
    assert latest["filtering"]["id"] == latest["filtering/final"]["id"] == "an-1"
    assert sorted(e.id for e in index.entries(ResultFilter(with_restart=True))) == ["an-0", "an-1"]
    assert list(layout.tmp.iterdir()) == []


def test_the_last_result_leaves_no_latest(layout: Layout) -> None:
    results.publish(layout, "an-0", age_days=1)
    remove_all(layout, RetentionPlan((item("analysis", "an-0"),), {}))
    assert json.loads(layout.latest_file.read_text()) == {}


def test_a_pin_that_comes_late_still_holds(layout: Layout) -> None:
    results.publish(layout, "an-0", age_days=1)
    plan = RetentionPlan((item("analysis", "an-0"), item("restart", "an-0")), {})
    pin(layout, Pin(analysis_id="an-0"))  # after the plan was made
    assert remove_all(layout, plan) == []
    assert layout.analysis_file("an-0", "restart.safetensors").exists()


def test_a_restart_file_goes_and_the_manifest_says_so(layout: Layout) -> None:
    results.publish(layout, "an-0", age_days=1)
    index = Catalogue(layout)
    assert len(index.get("an-0").files) == 2
    assert remove(layout, item("restart", "an-0"))
    for manifest in (read_manifest(layout, "an-0"), index.get("an-0")):
        assert [file.name for file in manifest.files] == ["a.nc"]
        assert manifest.flags == ["restart_removed"]
    assert sorted(p.name for p in layout.analysis("an-0").iterdir()) == ["a.nc", "manifest.json"]
    assert index.entries(ResultFilter(with_restart=True)) == []


def test_the_rest_and_what_is_gone_already(layout: Layout) -> None:
    results.upload(layout, "batch-1", 1)
    day = layout.observations / "date=2025-01-01" / "hour=00"
    day.mkdir(parents=True)
    (layout.logs / "a.log").write_text("x")
    items = [item("upload", "batch-1"), item("observations", "2025-01-01"), item("log", "a.log")]
    plan = RetentionPlan((*items, item("analysis", "an-none")), {})
    assert remove_all(layout, plan) == items
    for folder in (layout.raw, layout.observations, layout.logs, layout.tmp):
        assert list(folder.iterdir()) == []


def test_a_killed_run_is_finished_by_the_next(layout: Layout) -> None:
    results.publish(layout, "an-0", age_days=1)
    layout.analysis("an-0").rename(layout.tmp / "deleted-an-0")
    assert sweep_removed(layout) == 1
    assert list(layout.tmp.iterdir()) == []
