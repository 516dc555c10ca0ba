"""Which earlier result is found: newest time, highest revision, same model, still there."""

import shutil
from datetime import UTC, datetime, timedelta

import pytest
import torch

from worker.backgrounds.restarts import (
    RESTART_NAME,
    Restart,
    RestartRanking,
    find_restart,
    write_restart,
)
from worker.contract.kinds import FilteringSpec
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, describe_file

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path).create()


def publish(
    layout, name: str, time: datetime, *, revision=1, model="m", flavour="", suite=""
) -> None:
    """A result of two states that ends at `time`."""
    folder = layout.analysis(name)
    folder.mkdir()
    restart = Restart((time - HOUR, time), torch.zeros(3, 2, 1, 2, 2), model)
    write_restart(restart, folder / RESTART_NAME)
    manifest = AnalysisManifest(
        id=name,
        job_id="job",
        kind="filtering",
        valid_time=time,
        times=[time],
        revision=revision,
        flavour=flavour,
        cycle={"suite": {"id": suite, "name": suite}} if suite else {},
        files=[describe_file(folder / RESTART_NAME, "restart")],
        members=3,
        spec=FilteringSpec(valid_time=time),
    )
    layout.manifest(name).write_text(manifest.model_dump_json())


def found(layout, at: datetime, hours: float = 12, **values) -> str | None:
    result = find_restart(layout, "m", at, hours * HOUR, **values)
    return result.manifest.id if result else None


def test_the_newest_up_to_the_time_is_found(layout):
    for hour in range(4):
        publish(layout, f"an-{hour}", NOON + hour * HOUR)
    assert found(layout, NOON + 2 * HOUR) == "an-2"
    assert found(layout, NOON + 9 * HOUR) == "an-3"
    assert found(layout, NOON - HOUR) is None


def test_age_is_bounded(layout):
    publish(layout, "an-0", NOON)
    assert found(layout, NOON + 6 * HOUR, hours=6) == "an-0"
    assert found(layout, NOON + 7 * HOUR, hours=6) is None


def test_the_highest_revision_counts_and_another_model_does_not(layout):
    publish(layout, "an-z-early", NOON, revision=1)
    publish(layout, "an-a-final", NOON, revision=2)
    publish(layout, "an-other", NOON, revision=3, model="another")
    assert found(layout, NOON) == "an-a-final"
    assert found(layout, NOON, analysis_id="an-z-early") == "an-z-early"


def test_a_deleted_result_is_passed_by(layout):
    publish(layout, "an-0", NOON)
    publish(layout, "an-1", NOON + HOUR)
    shutil.rmtree(layout.analysis("an-1"))
    assert found(layout, NOON + HOUR) == "an-0"


def test_states_up_to_a_time_are_counted(layout):
    publish(layout, "an-0", NOON)
    result = find_restart(layout, "m", NOON, HOUR)
    assert [result.hours_to(NOON + i * HOUR) for i in (-2, -1, 0, 1)] == [0, 1, 2, 2]


def test_the_cycles_continue_their_own_results_before_those_of_others(layout):
    publish(layout, "an-early", NOON - HOUR, flavour="early", revision=1)
    publish(layout, "an-final", NOON - HOUR, flavour="final", revision=2)
    publish(layout, "an-experiment", NOON, revision=9)
    assert found(layout, NOON) == "an-experiment"
    assert found(layout, NOON, ranking=RestartRanking()) == "an-final"
    assert (
        found(layout, NOON, hours=0, ranking=RestartRanking()) == "an-experiment"
    )  # better than a cold start


def test_nobody_goes_on_from_a_challenger_but_its_own_suite(layout):
    publish(layout, "an-champion", NOON - HOUR, flavour="final")
    publish(layout, "an-on-trial", NOON, flavour="challenger", suite="new")
    assert found(layout, NOON) == "an-champion"
    assert found(layout, NOON, ranking=RestartRanking()) == "an-champion"
    assert found(layout, NOON, ranking=RestartRanking("other", challenger=True)) is None
    assert found(layout, NOON, ranking=RestartRanking("new", challenger=True)) == "an-on-trial"
    assert found(layout, NOON, ranking=RestartRanking("new")) == "an-on-trial"  # promoted
    assert found(layout, NOON, analysis_id="an-on-trial") == "an-on-trial"


def test_a_challenger_branches_from_the_champion_before_its_first_hour(layout):
    publish(layout, "an-1", NOON - HOUR, flavour="final")
    publish(layout, "an-2", NOON, flavour="final")
    publish(layout, "an-experiment", NOON - HOUR, revision=9)
    branch = RestartRanking("new", challenger=True, branched=NOON)
    assert found(layout, NOON - HOUR, ranking=branch) == "an-1"
    assert found(layout, NOON, ranking=branch) == "an-1"  # its own first hour was not made
    publish(layout, "an-own", NOON - 2 * HOUR, flavour="challenger", suite="new")
    assert found(layout, NOON, ranking=branch) == "an-own"


def test_a_champion_goes_on_from_its_suite_before_the_one_before(layout):
    publish(layout, "an-old", NOON, flavour="final")
    publish(layout, "an-new", NOON - HOUR, flavour="final", suite="new")
    assert found(layout, NOON, ranking=RestartRanking("new")) == "an-new"
    assert found(layout, NOON, ranking=RestartRanking()) == "an-old"
    assert (
        found(layout, NOON, hours=0, ranking=RestartRanking("new")) == "an-old"
    )  # better than a cold start
