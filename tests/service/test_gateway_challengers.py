"""Champion and challenger over HTTP, by the clients and commands, on a real gateway."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import acting_worker
import httpx
import pytest
from gateway_process import GatewayProcess
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from appa_client import AppaClient, AsyncAppaClient, Challengers, GatewayError
from deploy.commands.challenger import app
from service.keys import KeyFile, Scope
from service.openapi import CHALLENGER
from service.routes.challengers import ChallengersView
from worker.contract.suites import Difference, Suite, SuiteStore, Trial, TrialCycle

DAY = datetime(2014, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SUITE = Suite(name="wider", errors={"representativeness": {"factor": 1.2}})


def difference(percent: float, reach: float, cycles: int = 60, **groups) -> Difference:
    groups = {"network": "all", "variables": "all", **groups}
    ends = {"low": percent - reach, "high": percent + reach}
    return Difference(cycles=cycles, values=600, percent=percent, correlation=0.4, **ends, **groups)


def begin(suites: SuiteStore, *found: Difference, cycles: int = 1, suite: Suite = SUITE) -> Trial:
    """A trial with so many published cycles."""
    trial = suites.begin(
        Trial(
            id=0, suite=suite, suite_id=suite.id, champion_id="", begun=DAY, first_time=DAY,
            counted_from=DAY + 48 * HOUR, least_cycles=48, differences=list(found),
        )
    )  # fmt: skip
    for hour in range(cycles):
        time = DAY + hour * HOUR
        key = f"{time:%Y%m%dT%H}Z_final"
        row = TrialCycle(key, time, "published", 1, f"job-{hour}", f"an-{hour}", "an-champion", "")
        suites.note_cycle(trial, row)
    return trial


@pytest.fixture
def suites(gateway: GatewayProcess) -> Iterator[SuiteStore]:
    """None has been on trial before; the other tests of this gateway find none."""
    path = gateway.layout.suites_file
    path.unlink(missing_ok=True)
    yield SuiteStore(path)
    path.unlink(missing_ok=True)


@pytest.fixture
def client(gateway: GatewayProcess):
    with AppaClient(gateway.url) as found:
        yield found


def run(gateway: GatewayProcess, *words: str, status: int = 0) -> str:
    arguments = [*words, "--url", gateway.url]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == status, result.output
    return result.output


def test_the_example_is_an_answer():
    ChallengersView.model_validate(CHALLENGER)
    Challengers.model_validate(CHALLENGER)


def test_without_a_challenger_there_is_nothing_to_end(gateway, suites, client):
    found = client.challengers()
    assert (found.challenger, found.history, found.champion.suite_id) == (None, [], "")
    assert not suites.path.exists()
    with pytest.raises(GatewayError) as error:
        client.promote_challenger(SUITE.id)
    assert error.value.code == "not_found"
    assert "no challenger; name one in cycles.yaml" in run(gateway, "status")
    with pytest.raises(GatewayError) as error:
        client.revert_champion()
    assert error.value.code == "move_refused"


def test_status_shows_differences_and_verdict(gateway, suites, client):
    begin(suites, difference(-3.0, 1.0), difference(5.0, 9.0, network="temp"), cycles=2)
    trial = client.challengers().challenger
    assert (trial.verdict, trial.cycles, trial.newest_time) == (
        "better",
        {"published": 2},
        DAY + HOUR,
    )
    assert trial.suite == {"name": "wider", "errors": SUITE.errors}
    shown = run(gateway, "status")
    for words in (SUITE.id, "-3.00 %", "-4.00 to -2.00 %", "temp", "verdict: better"):
        assert words in shown


def test_metrics_follow_the_trial(gateway, suites, client):
    def samples() -> dict[str, float]:
        text = httpx.get(f"{gateway.url}/metrics", timeout=30).text
        return {
            ",".join([s.name.removeprefix("appa_challenger_"), *sorted(s.labels.values())]): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
            if s.name.startswith("appa_challenger_") and "suite" in s.labels
        }

    assert samples() == {}
    begin(suites, difference(-3.0, 1.0))
    assert samples() == {
        "compared,wider": 60.0,
        "valid_time_seconds,wider": DAY.timestamp(),
        "difference_percent,mean,wider": -3.0,
        "difference_percent,low,wider": -4.0,
        "difference_percent,high,wider": -2.0,
    }
    client.drop_challenger(SUITE.id)
    assert samples() == {}


def test_promote_history_and_revert(gateway, suites, client):
    begin(suites, difference(-3.0, 1.0))
    assert f"{SUITE.id} promoted" in run(gateway, "promote", "--note", "three weeks of autumn")
    found = client.challengers()
    assert (found.champion.suite_id, found.champion.note) == (SUITE.id, "three weeks of autumn")
    assert found.challenger is None
    assert [(t.outcome, t.note) for t in found.history] == [("promoted", "three weeks of autumn")]
    assert suites.champion() == SUITE
    assert "three weeks" in run(gateway, "status")
    assert "what the policy says of itself" in run(gateway, "revert")
    assert [r.suite_id for r in client.challengers().reigns] == [SUITE.id, ""]
    assert suites.champion() is None


def test_a_challenger_that_is_worse_or_has_made_nothing_must_be_forced(gateway, suites, client):
    begin(suites, difference(3.0, 1.0))
    with pytest.raises(GatewayError, match="is worse than the champion"):
        client.promote_challenger(SUITE.id)
    assert client.drop_challenger(SUITE.id, note="worse").outcome == "dropped"
    other = Suite(name="other", model="t31-next")
    begin(suites, cycles=0, suite=other)
    with pytest.raises(GatewayError, match="has no analysis yet"):
        client.promote_challenger(other.id)
    with pytest.raises(GatewayError, match="'other-.*' runs"):
        client.drop_challenger(SUITE.id)
    assert client.promote_challenger(other.id, force=True).outcome == "promoted"


def test_it_is_done_once_whoever_asks(gateway, suites):
    """Ten at once: one trial ends, one champion begins."""
    begin(suites, difference(-3.0, 1.0))

    async def ask() -> list[object]:
        async with AsyncAppaClient(gateway.url) as one:
            calls = [one.promote_challenger(SUITE.id) for _ in range(10)]
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(ask())
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    assert [r.suite_id for r in suites.champion_periods()] == [SUITE.id]


def test_only_an_administrator_decides(start_gateway):
    gateway = start_gateway(APPA_REQUIRE_KEYS="true")
    suites = SuiteStore(gateway.layout.suites_file)
    begin(suites, difference(-3.0, 1.0))
    keys = KeyFile(gateway.layout.keys_file)
    writer, _ = keys.create("forecaster", [Scope.JOBS_WRITE, Scope.ANALYSES_READ])
    admin, record = keys.create("desk", [Scope.ADMIN])
    with AppaClient(gateway.url, writer) as client:
        assert client.challengers().challenger.suite_id == SUITE.id
        for act in (client.promote_challenger, client.drop_challenger):
            with pytest.raises(GatewayError) as error:
                act(SUITE.id)
            assert error.value.code == "forbidden"
        with pytest.raises(GatewayError):
            client.revert_champion()
    with AppaClient(gateway.url, admin) as client:
        assert client.promote_challenger(SUITE.id).by == record.id
    assert suites.trials()[0].by == record.id
    with AppaClient(gateway.url, writer) as client:
        assert client.challengers().history[0].by == ""


def test_results_of_challengers_are_given_to_those_who_ask_for_them(gateway, client):
    period = {"valid_from": DAY, "valid_to": DAY}
    for name, flavour in (("an-champion", "final"), ("an-tried", "challenger")):
        acting_worker.publish(gateway.layout, name, {"a.txt": b"x"}, valid=DAY, flavour=flavour)
    assert [a.id for a in client.analyses(**period)] == ["an-champion"]
    assert [a.id for a in client.analyses(flavour="challenger", **period)] == ["an-tried"]
    assert client.analysis("an-tried").flavour == "challenger"
    latest = httpx.get(f"{gateway.url}/v1/analyses/latest.json", timeout=30).json()
    assert "filtering/challenger" not in latest
    assert "an-tried" not in [one["analysis_id"] for one in latest.values()]
    asked = {"datetime": DAY.isoformat().replace("+00:00", "Z")}
    found = httpx.get(f"{gateway.url}/v1/stac/search", params=asked, timeout=30).json()
    assert [item["id"] for item in found["features"]] == ["an-champion"]
