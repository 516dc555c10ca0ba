"""`latest.json` keeps the newest result of each kind, whatever the order of announcements."""

import json
from datetime import UTC, datetime, timedelta

from worker.jobs.kinds import FilteringSpec
from worker.jobs.layout import Layout
from worker.jobs.manifest import AnalysisManifest
from worker.latest import update_latest

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def result(hours: int, revision: int = 1) -> AnalysisManifest:
    time = NOON + timedelta(hours=hours)
    return AnalysisManifest(
        id=f"an-{hours}-{revision}",
        job_id="job",
        kind="filtering",
        valid_time=time,
        times=[time],
        revision=revision,
        files=[],
        members=1,
        spec=FilteringSpec(valid_time=time),
    )


def test_later_times_and_higher_revisions_win(tmp_path):
    layout = Layout(tmp_path)
    assert update_latest(layout, result(0))
    assert update_latest(layout, result(2))
    assert not update_latest(layout, result(1))
    assert update_latest(layout, result(2))  # the same hour again, finished later
    assert update_latest(layout, result(2, revision=2))
    assert not update_latest(layout, result(2, revision=1))
    entry = json.loads(layout.latest_file.read_text())["filtering"]
    assert (entry["id"], entry["revision"]) == ("an-2-2", 2)
