"""`appa reanalyse` against a real gateway: windows by hand, resumption, failures."""

import json
import threading
from datetime import UTC, datetime, timedelta

import acting_worker
import pytest
from gateway_process import GatewayProcess
from typer.testing import CliRunner

from deploy.commands import reanalyse
from deploy.commands.reanalyse import cut, window_key
from worker.contract.kinds import ReanalysisSpec
from worker.contract.records import Problem

RUNNER = CliRunner()
HOUR = timedelta(hours=1)


def at(hour: int) -> datetime:
    return datetime(2003, 10, 1, tzinfo=UTC) + hour * HOUR


def test_a_period_is_cut_without_gap_or_overlap():
    windows = cut(ReanalysisSpec(start=at(0), end=at(25), margin_hours=3), 12)
    assert [(w.start, w.end) for w in windows] == [
        (at(0), at(11)), (at(12), at(23)), (at(24), at(25)),
    ]  # fmt: skip
    assert {w.margin_hours for w in windows} == {3}
    assert len({w.seed for w in windows}) == 3
    # computed: 12 hours and 3 on both sides; written: the 12
    plan = windows[1].plan(blanket=6)
    assert (plan.times[0], plan.times[-1]) == (at(9), at(26))
    assert plan.written_times == tuple(at(h) for h in range(12, 24))


def test_one_window_for_a_short_period():
    [window] = cut(ReanalysisSpec(start=at(3), end=at(3)), 24)
    assert (window.start, window.end) == (at(3), at(3))


def test_keys_name_what_is_asked():
    spec = ReanalysisSpec(start=at(0), end=at(5))
    assert window_key(spec, 1) == window_key(spec.model_copy(), 1)
    assert window_key(spec, 1) != window_key(spec, 2)
    assert window_key(spec, 1) != window_key(spec.model_copy(update={"members": 3}), 1)


@pytest.fixture(autouse=True)
def address(gateway: GatewayProcess, monkeypatch, stores) -> None:
    monkeypatch.setenv("APPA_URL", gateway.url)
    monkeypatch.delenv("APPA_API_KEY", raising=False)
    acting_worker.report(stores)
    for job_id in stores.jobs.ids("queued"):
        stores.jobs.cancel(job_id)


class Worker:
    """Does reanalysis jobs until told to stop; fails those that start at `bad`."""

    def __init__(self, stores, bad: datetime | None = None) -> None:
        self.stores, self.bad, self.done = stores, bad, []
        self.others = set(stores.jobs.ids("queued"))  # left by other tests of this gateway
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def __enter__(self) -> "Worker":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()

    def work(self) -> None:
        while not self.stop.wait(0.02):
            for job_id in self.stores.jobs.ids("queued"):
                if job_id in self.others or self.stores.jobs.get(job_id).kind != "reanalysis":
                    continue
                job = acting_worker.start(self.stores, job_id)
                self.done.append(job.spec.start)
                if job.spec.start == self.bad:
                    self.stores.jobs.fail(job.id, job.token, Problem(code="x", message="No luck."))
                else:
                    acting_worker.finish(self.stores, job)


def run(*arguments: object, status: int) -> list[dict]:
    texts = [str(a) for a in (*arguments, "--window-hours", 6, "--margin-hours", 2, "--at-once", 2)]
    result = RUNNER.invoke(reanalyse.app, [*texts, "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_a_run_is_taken_up_again_and_nothing_is_computed_twice(stores):
    period = ("2003-10-01T00", "2003-10-01T17")
    with Worker(stores, bad=at(6)) as worker:
        rows = run(*period, status=1)
        assert [row["state"] for row in rows] == ["succeeded", "failed", "succeeded"]
        assert rows[1]["error"] == "x: No luck."
        assert sorted(worker.done) == [at(0), at(6), at(12)]
    with Worker(stores) as worker:
        again = run(*period, status=0)
        assert worker.done == [at(6)]  # only what had failed
    assert [row["job_id"] for row in again][::2] == [row["job_id"] for row in rows][::2]
    with Worker(stores) as worker:
        assert run(*period, status=0) == again
        assert worker.done == []


def test_mistakes_are_named():
    result = RUNNER.invoke(reanalyse.app, ["2003-10-02T00", "2003-10-01T00"])
    assert result.exit_code == 2
    assert "at or after" in result.output
