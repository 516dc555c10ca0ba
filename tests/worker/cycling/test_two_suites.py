"""Two suites on a real broker, model worker and gateway: a challenger with errors thrice as large.

Two hours side by side, then the challenger is promoted; an hour of its own with a third suite beside
it; then that is dropped, and one more hour. Every step is a command.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from deploy.commands.challenger import app
from model.checkpoints.bundle import load_checkpoint
from tests.service.gateway_process import GatewayProcess
from tests.worker.processes import Processes, wait_for
from tests.worker.tables import make_table
from worker.contract.events import EventType
from worker.contract.layout import Layout
from worker.contract.store import Stores, open_stores
from worker.contract.suites import CHALLENGER, SuiteStore, suite_of
from worker.cycling.tick import Cycling
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore
from worker.process import message_sender
from worker.results.manifest import AnalysisManifest, read_manifest
from worker.settings import WorkerSettings

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PREFIX = "test-suites"
POLICY = {
    "start": NOON.isoformat(),
    "early_cut_off_minutes": 20,
    "final_cut_off_minutes": 50,
    "ingest_grace_seconds": 0,
    "window_hours": 1,
    "members": 2,
    "steps": 2,
    "outputs": ["feedback"],
    "withhold": 0.3,
}
WIDER = {"name": "wider", "errors": {"representativeness": {"factor": 3.0}}, "spin_up_hours": 0}
THIRD = {"name": "third", "checks": {"thinning": {"enabled": False}}}


@dataclass
class Story:
    """What was published, and what the commands said, in the order of the story."""

    layout: Layout
    stores: Stores
    before: dict
    promoted: dict
    beside: dict
    dropped: dict
    audit: list[dict]

    def results(self, flavour: str) -> dict[datetime, AnalysisManifest]:
        """Return the results of a flavour by valid time."""
        found = (read_manifest(self.layout, path.name) for path in self.layout.analyses.iterdir())
        return {m.valid_time: m for m in found if m.flavour == flavour}

    def feedback(self, manifest: AnalysisManifest) -> dict[str, dict]:
        """Return the rows of the feedback by station."""
        path = self.layout.analysis_file(manifest.id, manifest.feedback_name)
        return {row["station_id"]: row for row in pq.read_table(path).to_pylist()}


@pytest.fixture(scope="module")
def story(shared_broker, checkpoint, tmp_path_factory) -> Iterator[Story]:
    data = tmp_path_factory.mktemp("data")
    layout = Layout(data).create()
    _observe(layout, float(load_checkpoint(checkpoint).state_normalisation.mean[0]))
    processes = Processes(shared_broker.url, PREFIX, data)
    gateway = GatewayProcess(shared_broker.url, data, PREFIX)
    stores = open_stores(shared_broker.url, PREFIX, layout)
    settings = WorkerSettings(
        redis_url=shared_broker.url, redis_prefix=PREFIX, data_dir=data, disk_low_bytes=0
    )
    try:
        processes.appa("worker", "gpu", APPA_MODELS=str(checkpoint), APPA_DISK_LOW_BYTES="0")
        gateway.start()
        with message_sender(settings) as sender:
            scheduler = Cycling(stores, layout, sender, settings)
            yield _tell(scheduler, layout, stores, gateway, processes)
    finally:
        gateway.stop()
        processes.end()
        stores.redis.close()


def _observe(layout: Layout, mean: float) -> None:
    """Forty stations report every hour, ten minutes after it; one says how good it is."""
    store, count = ObservationStore(str(layout.observations)), 40
    for hour in range(5):
        time, received = NOON + hour * HOUR, NOON + hour * HOUR + HOUR / 6
        errors = np.full(count, np.nan)
        errors[0] = 0.7
        table = make_table(
            count, batch_id=f"b{hour}", received=received, obs_error=errors,
            time=np.datetime64(time.replace(tzinfo=None), "ns"),
            obs_value=mean + np.linspace(-2.0, 2.0, count) + hour,
        )  # fmt: skip
        store.publish(assign_errors(table), f"b{hour}", received)


def _tell(scheduler, layout, stores, gateway, processes) -> Story:
    def cycled(hours: int, challengers: int, **policy) -> None:
        """Cycle until so many hours are final, and so many results of challengers are there."""
        layout.cycles_file.write_text(yaml.safe_dump(POLICY | policy))
        now = NOON + (hours - 1) * HOUR + timedelta(minutes=55)

        def done() -> bool:
            scheduler.tick(now)
            trials = SuiteStore(layout.suites_file).trials()
            made = [SuiteStore(layout.suites_file).counts(t).get("published", 0) for t in trials]
            assert not stores.cycles.count("failed"), processes.log()
            return stores.cycles.count("published") == 2 * hours and sum(made) == challengers

        wait_for(done, 120)

    def command(*words: str) -> dict:
        ran = CliRunner().invoke(app, [*words, "--url", gateway.url, "--json"])
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)

    cycled(2, 2, challenger=WIDER)
    before = command("status")
    promoted = command("promote", "--note", "better in autumn")
    cycled(3, 2, challenger=WIDER)
    cycled(4, 4, challenger=THIRD)  # of the hour before, too: the newest when its trial begins
    beside = command("status")
    dropped = command("drop")
    cycled(5, 4, challenger=THIRD)
    for _ in range(5):
        scheduler.tick(NOON + 5 * HOUR)
    path = layout.audit_file
    wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= 2, 30)
    audit = [json.loads(line) for line in path.read_text().splitlines()]
    return Story(layout, stores, before, promoted, beside, dropped, audit)


def test_both_see_the_same_observations_with_errors_of_their_own(story):
    champions, challengers = story.results("final"), story.results(CHALLENGER)
    for time in (NOON, NOON + HOUR):
        ours, theirs = (story.feedback(m[time]) for m in (champions, challengers))
        assert ours.keys() == theirs.keys()
        assert champions[time].cut_off == challengers[time].cut_off
        for station, row in ours.items():
            larger = theirs[station]["obs_error"] ** 2 - row["obs_error"] ** 2
            # 7.5 K in place of 2.5 K, but for the station whose sender knew its error
            expected = 0.0 if station == "00000" else 7.5**2 - 2.5**2
            assert larger == pytest.approx(expected, abs=1e-4)
        withheld = [
            {s for s, r in f.items() if r["rejected_by"] == "withheld"} for f in (ours, theirs)
        ]
        assert withheld[0] == withheld[1] != set()


def test_the_chains_do_not_mix(story):
    champions, challengers = story.results("final"), story.results(CHALLENGER)
    first, second = challengers[NOON], challengers[NOON + HOUR]
    assert "cold_start" in first.flags  # there was nothing to branch from
    assert second.background["analysis_id"] == first.id
    assert champions[NOON + HOUR].background["analysis_id"] == champions[NOON].id
    assert suite_of(champions[NOON].cycle) is None
    assert suite_of(second.cycle).errors == WIDER["errors"]


def test_the_errors_are_compared_as_the_feedback_has_them(story):
    """Once more from both feedback files, by hand."""
    assert story.before["challenger"]["cycles"] == {"published": 2}
    whole = story.before["challenger"]["differences"][0]
    means = []
    for time in (NOON, NOON + HOUR):
        ours = story.feedback(story.results("final")[time])
        theirs = story.feedback(story.results(CHALLENGER)[time])
        both = [s for s in ours if ours[s]["rejected_by"] == "withheld"]
        scale = np.array([ours[s]["obs_error"] for s in both])
        means.append(
            [
                np.mean((np.array([f[s]["analysis_departure"] for s in both]) / scale) ** 2)
                for f in (ours, theirs)
            ]
        )
    champion, challenger = np.mean(means, axis=0)
    assert champion != challenger
    assert whole["percent"] == pytest.approx(100 * (challenger / champion - 1), rel=1e-5)
    assert whole["cycles"] == 2
    assert story.before["challenger"]["verdict"] == "undecided"


def test_promoted_it_goes_on_from_its_own_chain(story):
    assert story.promoted["outcome"] == "promoted"
    suite = story.promoted["suite_id"]
    third = story.results("final")[NOON + 2 * HOUR]
    assert third.cycle["suite"]["id"] == suite
    assert third.background["analysis_id"] == story.results(CHALLENGER)[NOON + HOUR].id
    assert story.feedback(third)["00001"]["obs_error"] > 7.0
    assert story.feedback(story.results("early")[NOON])["00001"]["obs_error"] < 3.0
    assert story.beside["champion"]["suite_id"] == suite
    [known] = story.beside["history"]
    assert (known["suite_id"], known["note"]) == (suite, "better in autumn")


def test_the_next_challenger_branches_from_the_champion_once(story):
    challengers, champions = story.results(CHALLENGER), story.results("final")
    first, second = (challengers[NOON + i * HOUR] for i in (2, 3))
    assert suite_of(first.cycle).name == "third"
    assert suite_of(first.cycle).errors == {}  # upon the installation's, not the champion's
    assert first.provenance["quality_control"]["thinning"]["enabled"] is False
    branched = read_manifest(story.layout, first.background["analysis_id"])
    assert (branched.flavour, branched.valid_time) == ("final", NOON + HOUR)
    assert second.background["analysis_id"] == first.id
    fourth = champions[NOON + 3 * HOUR]
    assert fourth.background["analysis_id"] == champions[NOON + 2 * HOUR].id


def test_dropped_it_makes_nothing_more(story):
    assert story.dropped["outcome"] == "dropped"
    assert NOON + 4 * HOUR in story.results("final")
    assert max(story.results(CHALLENGER)) == NOON + 3 * HOUR


def test_what_was_done_is_told(story):
    done = [(e["action"], e["record"], e["status"]) for e in story.audit]
    assert done == [
        ("promote_challenger", story.promoted["suite_id"], 200),
        ("drop_challenger", story.dropped["suite_id"], 200),
    ]
    ended = [e.data for e in story.stores.events.last() if e.type == EventType.CHALLENGER_ENDED]
    assert [e["outcome"] for e in ended] == ["dropped", "promoted"]
    published = [e for e in story.stores.events.last(100) if e.type == EventType.ANALYSIS_PUBLISHED]
    assert all(e.data["flavour"] != CHALLENGER for e in published)
