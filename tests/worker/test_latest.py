"""`latest.json` keeps the newest result of each kind, whatever the order of announcements."""

import json
import shutil
from datetime import UTC, datetime, timedelta

from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest
from worker.results.publication import update_latest

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def result(layout: Layout, hours: int, revision: int = 1, flavour: str = "") -> AnalysisManifest:
    """A result that is there."""
    time = NOON + timedelta(hours=hours)
    name = f"an-{hours}-{revision}" + (f"-{flavour}" if flavour else "")
    layout.analysis(name).mkdir(parents=True, exist_ok=True)
    manifest = AnalysisManifest(
        id=name,
        flavour=flavour,
        job_id="job",
        kind="filtering",
        valid_time=time,
        times=[time],
        revision=revision,
        files=[],
        members=1,
        spec=FilteringSpec(valid_time=time),
    )
    layout.manifest(name).write_text(manifest.model_dump_json())
    return manifest


def update(layout: Layout, _: AnalysisManifest) -> bool:
    """Announces a result that was just published."""
    return update_latest(layout)


def test_later_times_and_higher_revisions_win(tmp_path):
    layout = Layout(tmp_path)
    assert update(layout, result(layout, 0))
    assert update(layout, result(layout, 2))
    assert not update(layout, result(layout, 1))
    assert update(layout, result(layout, 2))  # the same hour again, finished later
    assert update(layout, result(layout, 2, revision=2))
    assert not update(layout, result(layout, 2, revision=1))
    entry = json.loads(layout.latest_file.read_text())["filtering"]
    assert (entry["id"], entry["revision"]) == ("an-2-2", 2)


def test_flavours_have_entries_of_their_own(tmp_path):
    layout = Layout(tmp_path)
    announced = [
        result(layout, 0, 1, "early"),
        result(layout, 1, 1, "early"),
        result(layout, 0, 2, "final"),
        result(layout, 2, 1, "early"),
        result(layout, 1, 2, "final"),
        result(layout, 0, 3, "final"),  # a rerun of an older hour
        result(layout, 2),  # outside the cycles
    ]
    for manifest in announced:
        update(layout, manifest)
    entries = json.loads(layout.latest_file.read_text())
    assert {name: entry["id"] for name, entry in entries.items()} == {
        "filtering": "an-2-1",
        "filtering/early": "an-2-1-early",
        "filtering/final": "an-1-2-final",
    }


def test_a_deleted_result_makes_way(tmp_path):
    layout = Layout(tmp_path)
    assert update(layout, result(layout, 2))
    shutil.rmtree(layout.analysis("an-2-1"))
    assert update(layout, result(layout, 1))
    assert json.loads(layout.latest_file.read_text())["filtering"]["id"] == "an-1-1"
