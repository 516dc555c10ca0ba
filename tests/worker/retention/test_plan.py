"""What the policy lets go, told from ages and counts worked out by hand."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from model.domain.errors import ConfigurationError
from tests.worker.retention import results
from worker.contract.clock import CLOCK_VARIABLE, clock_text
from worker.contract.kinds import FilteringSpec, ForecastSpec, ObservationSelection
from worker.contract.layout import Layout
from worker.contract.records import utc_now
from worker.results.manifest import NoSuchAnalysis, Pin, pin, pins, unpin
from worker.results.retention.plan import (
    InUse,
    RetentionPlan,
    RetentionPolicy,
    make_plan,
    read_policy,
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path).create()


def policy(**analyses: dict) -> RetentionPolicy:
    """Only the rules given; all else is kept for ever."""
    never = dict.fromkeys(("early", "final", "forecast", "reanalysis", "manual"), {})
    rules = {"analyses": {**never, **analyses}, "restarts": {}, "uploads": {}, "logs": {}}
    return RetentionPolicy.model_validate(rules)


def names(plan: RetentionPlan, what: str = "analysis") -> set[str]:
    return {item.name for item in plan.items if item.what == what}


def test_each_category_has_its_own_age(layout: Layout) -> None:
    for flavour in ("early", "final", ""):
        for age in (1, 5, 20):
            results.publish(layout, f"an-{flavour}-{age}", age_days=age, flavour=flavour)
    results.publish(layout, "fc-20", age_days=20, kind="forecast")
    plan = make_plan(layout, policy(early={"days": 4}, final={"days": 10}), InUse())
    assert names(plan) == {"an-early-5", "an-early-20", "an-final-20"}
    oldest_first = [item.age_days for item in plan.items]
    assert oldest_first == sorted(oldest_first, reverse=True)
    manifest = (layout.analysis("an-early-5") / "manifest.json").stat().st_size
    size = next(item.size for item in plan.items if item.name == "an-early-5")
    assert size == len(results.DATA) + len(results.RESTART) + manifest


def test_the_newest_stay_whatever_their_age(layout: Layout) -> None:
    for age in range(100, 110):  # the system stood still for 100 days
        results.publish(layout, f"an-{age}", age_days=age, flavour="final")
    plan = make_plan(layout, policy(final={"days": 30, "keep": 3}), InUse())
    assert names(plan) == {f"an-{age}" for age in range(103, 110)}
    assert plan.kept == {"newest": 3}


def test_pinned_results_stay(layout: Layout) -> None:
    for name in ("an-a", "an-b"):
        results.publish(layout, name, age_days=50)
    pin(layout, Pin(analysis_id="an-a", note="the storm"))
    rules = policy(manual={"days": 1})
    assert names(make_plan(layout, rules, InUse())) == {"an-b"}
    assert [p.note for p in pins(layout)] == ["the storm"]
    assert unpin(layout, "an-a")
    assert not unpin(layout, "an-a")
    assert names(make_plan(layout, rules, InUse())) == {"an-a", "an-b"}
    with pytest.raises(NoSuchAnalysis):
        pin(layout, Pin(analysis_id="an-none"))
    assert pins(layout) == []


def test_what_a_job_may_continue_stays(layout: Layout) -> None:
    for hour in range(12):
        results.publish(layout, f"an-{hour}", age_days=50, hour=hour)
    spec = FilteringSpec(valid_time=results.BASE + timedelta(hours=10), background_max_age_hours=3)
    plan = make_plan(layout, policy(manual={"days": 1}), InUse((results.waiting(spec),)))
    # Up to one hour before the analysis, and three hours before that.
    assert {f"an-{h}" for h in range(12)} - names(plan) == {"an-6", "an-7", "an-8", "an-9"}
    assert plan.kept == {"needed by a job": 4}
    named = ForecastSpec(valid_time=results.BASE, analysis_id="an-0")
    plan = make_plan(layout, policy(manual={"days": 1}), InUse((results.waiting(named),)))
    assert "an-0" not in names(plan) and "an-1" in names(plan)


def test_restart_files_go_before_their_results(layout: Layout) -> None:
    for age in (1, 9, 50):
        results.publish(layout, f"an-{age}", age_days=age)
    rules = policy(manual={"days": 30}).model_copy(
        update={"restarts": RetentionPolicy.model_validate({"restarts": {"days": 5}}).restarts}
    )
    plan = make_plan(layout, rules, InUse())
    assert names(plan) == {"an-50"}
    assert names(plan, "restart") == {"an-9"}
    assert next(i.size for i in plan.items if i.what == "restart") == len(results.RESTART)


def test_uploads_logs_and_days_of_observations(layout: Layout) -> None:
    for age in (3, 40):
        results.upload(layout, f"batch-{age}", age)
    results.upload(layout, "batch-needed", 40)
    log = layout.logs / "old.log"
    log.write_text("x")
    os.utime(log, (0, 0))
    (layout.logs / "new.log").write_text("x")
    today = utc_now()
    for days in (0, 50, 70):
        folder = layout.observations / f"date={today - timedelta(days=days):%Y-%m-%d}" / "hour=00"
        folder.mkdir(parents=True)
        (folder / "x.parquet").write_bytes(results.DATA)
    rules = RetentionPolicy.model_validate({"observations": {"days": 60}})
    plan = make_plan(layout, rules, InUse(batches=frozenset({"batch-needed"})))
    assert names(plan, "upload") == {"batch-40"}
    assert names(plan, "log") == {"old.log"}
    assert names(plan, "observations") == {f"{today - timedelta(days=70):%Y-%m-%d}"}
    job = results.waiting(
        FilteringSpec(
            valid_time=(today - timedelta(days=65)).replace(minute=0, second=0, microsecond=0),
            observations=ObservationSelection(),
        )
    )
    assert names(make_plan(layout, rules, InUse((job,))), "observations") == set()


def test_ages_go_by_the_operational_clock(layout: Layout, monkeypatch) -> None:
    results.publish(layout, "an-hour", age_days=1 / 24)
    rules = policy(manual={"days": 10})
    assert names(make_plan(layout, rules, InUse())) == set()
    # An accelerated day: 600 operational hours, 25 days, for each real hour.
    monkeypatch.setenv(CLOCK_VARIABLE, clock_text(results.BASE, utc_now().timestamp(), 600))
    [item] = make_plan(layout, rules, InUse()).items
    assert item.age_days == pytest.approx(25, rel=1e-2)


def test_ages_are_shorter_while_the_disk_is_low(layout: Layout) -> None:
    results.publish(layout, "an-6", age_days=6)
    rules = policy(manual={"days": 10}).model_copy(update={"shorten_when_low": 0.5})
    assert names(make_plan(layout, rules, InUse())) == set()
    assert names(make_plan(layout, rules, InUse(), low=True)) == {"an-6"}


def test_a_policy_that_cannot_be_read_deletes_nothing(layout: Layout) -> None:
    assert read_policy(layout.retention_file) == RetentionPolicy()
    layout.retention_file.write_text("analyses:\n  early: {days: 3, keep: 5}\n")
    assert read_policy(layout.retention_file).analyses.early.days == 3
    assert read_policy(layout.retention_file).analyses.final == RetentionPolicy().analyses.final
    for text in ("analyses: {erly: {days: 3}}", "analyses: [", "uploads: {days: -1}"):
        layout.retention_file.write_text(text)
        with pytest.raises(ConfigurationError):
            read_policy(layout.retention_file)
