"""The challenger of the cycles: which hours it makes, after whom, and how its trial ends."""

from datetime import datetime, timedelta

import pytest

from model.domain.errors import ConfigurationError
from tests.worker.cycling.conftest import Installation, at
from worker.contract import suites as suites_module
from worker.contract.cycles import CycleState
from worker.contract.events import EventType
from worker.contract.jobs import JobRecord
from worker.contract.queues import Capabilities, ModelInfo, WorkerReport
from worker.contract.record_store import MoveRefused
from worker.contract.suites import CHALLENGER, CHALLENGES, Outcome, SuiteStore, suite_of
from worker.cycling.policy import read_policy
from worker.cycling.tick import Cycling
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.publication import update_latest
from worker.results.verification.paired import CHALLENGE

WIDER = {"name": "wider", "errors": {"representativeness": {"factor": 2.0}}, "spin_up_hours": 0}


@pytest.fixture
def suites(installation: Installation) -> SuiteStore:
    return SuiteStore(installation.layout.suites_file)


def challengers(installation: Installation) -> list[JobRecord]:
    return [job for job in installation.jobs() if job.flavour == CHALLENGER]


def work_for_the_champion(installation: Installation, scheduler: Cycling, now: datetime) -> None:
    """Do all jobs but the challenger's."""
    for _ in range(100):
        moved = scheduler.tick(now)
        waiting = [j for j in installation.jobs() if j.state == "queued"]
        ours = [j for j in waiting if j.flavour != CHALLENGER]
        if ours:
            installation.do(ours[0])
        elif not moved:
            return
    raise AssertionError("no end")


def scored(job: JobRecord) -> dict:
    """Squares of a challenger a tenth smaller than the champion's, or a little more or less."""
    if job.flavour != CHALLENGER:
        return {}
    hour = job.spec.valid_time.hour
    line = {"network": "synop", "variable": "2m_temperature", "count": 10}
    line |= {"champion": 10.0, "challenger": 9.0 + 0.1 * (-1) ** hour}
    return {CHALLENGE: {"analysis_id": job.cycle[CHALLENGES]["analysis_id"], "errors": [line]}}


def test_every_final_analysis_is_made_again_from_the_same_arrivals(installation, suites):
    installation.policy(challenger=WIDER, end=at(3).isoformat())
    installation.run_until(at(7))
    champions = {j.cycle["key"]: j for j in installation.jobs() if j.flavour == "final"}
    made = {job.cycle["key"]: job for job in challengers(installation)}
    assert list(made) == list(champions)
    assert len(made) == 4
    for key, job in made.items():
        champion = champions[key]
        same = {"outputs": job.spec.outputs}
        assert job.spec == champion.spec.model_copy(update=same)  # cut-off and seed included
        assert job.cycle[CHALLENGES]["analysis_id"] == champion.analysis_id
        assert job.created >= champion.finished
        assert suite_of(job.cycle).errors == WIDER["errors"]
        assert "suite" not in champion.cycle
    assert suites.counts(suites.trial()) == {"published": 4}


def test_it_goes_behind_everything_and_one_at_a_time(installation):
    installation.policy(challenger=WIDER, end=at(3).isoformat())
    work_for_the_champion(installation, installation.scheduler(), at(7))
    assert len(installation.of(CycleState.PUBLISHED)) == 8
    [job] = challengers(installation)
    assert job.spec.valid_time == at(0)
    priorities = installation.messages.priorities
    assert priorities[job.id] == job.priority == 6
    assert {n for i, n in priorities.items() if i != job.id} == {0}


def test_what_it_makes_is_in_no_list(installation):
    installation.policy(challenger=WIDER, end=at(1).isoformat())
    installation.run_until(at(5))
    layout, made = installation.layout, {j.analysis_id for j in challengers(installation)}
    update_latest(layout)
    text = layout.latest_file.read_text()
    with Catalogue(layout) as catalogue:
        assert made == {e.id for e in catalogue.entries(ResultFilter(flavour=CHALLENGER))}
        assert not made & {e.id for e in catalogue.entries(ResultFilter())}
        assert catalogue.latest(ResultFilter("filtering")).id not in made
        assert made < {e.id for e in catalogue.entries()}  # retention sees them
    assert not any(name in text for name in made)


def test_a_failed_job_is_tried_again_and_the_next_hour_goes_on(installation, suites):
    installation.policy(challenger=WIDER, end=at(1).isoformat(), retries=1)
    scheduler = installation.scheduler()
    for _ in range(40):
        scheduler.tick(at(5))
        waiting = [j for j in installation.jobs() if j.state == "queued"]
        for job in waiting:
            fails = job.flavour == CHALLENGER and job.spec.valid_time == at(0)
            installation.do(job, fail="broken" if fails else "")
    assert [j.cycle["attempt"] for j in challengers(installation)] == [1, 2, 1]
    assert suites.counts(suites.trial()) == {"failed": 1, "published": 1}
    assert len(installation.of(CycleState.PUBLISHED)) == 4


def test_hours_too_old_are_left_out(installation, suites):
    installation.policy(challenger=WIDER, end=at(3).isoformat(), catch_up={"max_age_hours": 12.0})
    scheduler = installation.scheduler()
    work_for_the_champion(installation, scheduler, at(7))
    installation.run_until(at(20))  # its first job is done at last
    assert [j.spec.valid_time for j in challengers(installation)] == [at(0)]
    assert suites.counts(suites.trial()) == {"published": 1, "skipped": 3}


def test_it_begins_with_the_newest_that_there_is(installation, suites):
    installation.policy(end=at(3).isoformat())
    installation.run_until(at(7))
    installation.policy(challenger=WIDER, end=at(4).isoformat())
    installation.run_until(at(8))
    assert [j.spec.valid_time for j in challengers(installation)] == [at(3), at(4)]
    assert {j.cycle[CHALLENGES]["branched"] for j in challengers(installation)} == {
        at(3).isoformat()
    }


def test_it_waits_for_workers_that_have_its_checkpoint(installation, stores, suites):
    installation.policy(challenger={"name": "next", "model": "other"}, end=at(0).isoformat())
    able = WorkerReport(
        name="able", queues=["gpu"], ready=True,
        capabilities=Capabilities(models=[ModelInfo(name="t31"), ModelInfo(name="other")]),
    )  # fmt: skip
    unable = able.model_copy(
        update={"name": "unable", "capabilities": Capabilities(models=[ModelInfo(name="t31")])}
    )
    for report in (able, unable):
        stores.workers.register(report, timedelta(seconds=60))
    installation.run_until(at(4))
    assert challengers(installation) == []
    assert suites.trial().note == "'other' is not loaded by unable"
    stores.workers.leave("unable")
    installation.run_until(at(4))
    [job] = challengers(installation)
    assert (job.spec.model, suites.trial().note) == ("other", "")


def test_the_evidence_grows_and_the_verdict_is_told_once(installation, stores, suites):
    installation.scores = scored
    installation.policy(challenger={**WIDER, "least_cycles": 4}, end=at(5).isoformat())
    installation.run_until(at(5, 30))  # three final ones
    assert suites.trial().verdict == "undecided"
    installation.run_until(at(9))
    trial = suites.trial()
    whole = trial.differences[0]
    assert (whole.cycles, whole.values) == (6, 60)
    assert whole.percent == pytest.approx(-10.0)
    assert whole.low < -10.0 < whole.high < 0.0
    assert trial.verdict == "better"
    told = [e for e in stores.events.last() if e.type == EventType.CHALLENGER_DECIDED]
    assert [e.data["verdict"] for e in told] == ["better"]


def test_the_first_hours_are_not_counted(installation, suites):
    installation.scores = scored
    installation.policy(challenger={**WIDER, "spin_up_hours": 2}, end=at(5).isoformat())
    installation.run_until(at(9))
    assert suites.trial().differences[0].cycles == 4
    assert suites.counts(suites.trial()) == {"published": 6}


def test_promoted_it_makes_the_cycles_and_no_longer_runs_beside_them(installation, suites):
    installation.policy(challenger=WIDER)
    installation.run_until(at(5))
    trial = suites.trial()
    suites.end(trial, Outcome.PROMOTED, by="key", note="better")
    before = len(challengers(installation))
    installation.run_until(at(7))
    later = [j for j in installation.jobs() if j.flavour and j.spec.valid_time > at(4)]
    assert {suite_of(j.cycle).id for j in later} == {trial.suite_id}
    assert len(challengers(installation)) == before
    assert suites.trial() is None
    [known] = suites.trials()
    assert (known.outcome, known.by, known.note) == (Outcome.PROMOTED, "key", "better")
    assert suites.champion() == trial.suite
    with pytest.raises(MoveRefused):
        suites.end(trial, Outcome.DROPPED)


def test_a_promotion_cut_short_has_not_happened(installation, suites, monkeypatch):
    """The end of the trial and the new champion are one step."""
    installation.policy(challenger=WIDER)
    installation.run_until(at(4))
    trial = suites.trial()

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(suites_module, "_set_champion", dies)
        suites.end(trial, Outcome.PROMOTED)
    assert suites.trial() == trial
    assert suites.champion() is None
    suites.end(trial, Outcome.PROMOTED)
    assert suites.champion() == trial.suite


def test_a_promotion_can_be_taken_back(installation, suites):
    installation.policy(challenger=WIDER)
    installation.run_until(at(4))
    suites.end(suites.trial(), Outcome.PROMOTED)
    assert suites.revert(note="storms").suite_id == ""
    assert suites.champion() is None
    assert [r.note for r in suites.champion_periods()] == ["storms", ""]
    assert suites.revert().suite_id == suites.trials()[0].suite_id  # and that, too


def test_a_suite_that_was_dropped_gets_no_other_trial(installation, suites):
    installation.policy(challenger=WIDER)
    installation.run_until(at(4))
    suites.end(suites.trial(), Outcome.DROPPED)
    installation.run_until(at(6))
    assert suites.trial() is None
    installation.policy(challenger={**WIDER, "errors": {"representativeness": {"factor": 1.5}}})
    installation.run_until(at(6))
    assert suites.trial().suite.errors["representativeness"]["factor"] == 1.5
    assert suites.trial().suite_id != suites.trials()[1].suite_id


def test_the_policy_replaces_and_withdraws(installation, stores, suites):
    installation.policy(challenger=WIDER)
    installation.run_until(at(4))
    installation.policy(challenger={"name": "other"})
    installation.run_until(at(4))
    installation.policy()
    installation.run_until(at(4))
    assert [t.outcome for t in suites.trials()] == [Outcome.WITHDRAWN, Outcome.REPLACED]
    told = [e.data["outcome"] for e in stores.events.last()]
    assert told == ["withdrawn", "replaced"]


def test_faulty_files_hold_up_nothing(installation, suites):
    installation.policy(challenger={"name": "next", "errors": "errors-next.yaml"})
    installation.run_until(at(4))
    assert suites.trial() is None
    assert installation.of(CycleState.PUBLISHED)
    folder = installation.layout.root
    (folder / "errors-next.yaml").write_text("representativeness: {factor: 1.3}")
    installation.run_until(at(4))
    assert suites.trial().suite.errors == {"representativeness": {"factor": 1.3}}
    (folder / "errors-next.yaml").write_text("representativeness: {factor: -1}")
    installation.run_until(at(5))
    assert suites.counts(suites.trial())["published"] == 2  # as it was frozen


def test_two_schedulers_make_each_job_once(installation, suites):
    installation.policy(challenger=WIDER, end=at(3).isoformat())
    both = installation.scheduler(), installation.scheduler()
    for _ in range(60):
        for scheduler in both:
            scheduler.tick(at(7))
        installation.work()
    assert len(challengers(installation)) == 4
    assert suites.counts(suites.trial()) == {"published": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outputs": ["netcdf"]}, "'feedback' in 'outputs'"),
        ({"withhold": 0.0}, "'withhold' above 0"),
        ({"challenger": {"name": "A-1"}}, "challenger.name"),
        ({"challenger": {"name": "a", "setings": {}}}, "challenger.setings"),
        ({"challenger": {"name": "a", "settings": {"members": 0}}}, "settings.members"),
    ],
)
def test_a_mistake_in_the_policy_is_named(installation, changes, words):
    installation.policy(**{"challenger": WIDER, **changes})
    with pytest.raises(ConfigurationError, match=words):
        read_policy(installation.layout.cycles_file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checks": {"withholding": {"share": 0.5}}}, "no 'withholding'"),
        ({"checks": {"nothing": {}}}, "Unknown check 'nothing'"),
        ({"errors": {"entries": [{"variable": "x"}]}}, "entries"),
        ({"errors": "absent.yaml"}, "absent.yaml"),
    ],
)
def test_a_mistake_in_errors_and_checks_is_named(installation, suites, changes, words, capsys):
    installation.policy(challenger={"name": "a", **changes})
    installation.run_until(at(4))
    assert suites.trial() is None
    assert words in capsys.readouterr().out
