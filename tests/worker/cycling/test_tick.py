"""The scheduler's tick against a real server: one analysis for each cycle, whatever happens."""

import threading

import pytest

from tests.worker.cycling.conftest import Disk, at
from worker.contract.cycles import CycleState, CycleStore
from worker.contract.jobs import JobState
from worker.contract.record_store import MoveRefused

PUBLISHED = CycleState.PUBLISHED


def test_without_a_policy_nothing_happens(installation):
    assert installation.scheduler().tick(at(5)) == 0
    assert installation.states() == {}


def test_a_cycle_goes_from_waiting_to_published(installation):
    installation.policy(window_hours=6, warm_start=True, withhold=0.1, background_max_age_hours=5)
    scheduler = installation.scheduler()
    scheduler.tick(at(0, 5))
    assert installation.states() == {"00Z_early": "waiting", "00Z_final": "waiting"}
    scheduler.tick(at(0, 21))
    assert installation.states() == {"00Z_early": "submitted", "00Z_final": "waiting"}
    job = installation.work()
    assert (job.flavour, job.revision) == ("early", 1)
    assert job.spec.valid_time == at(0)
    assert job.spec.observations.cut_off == at(0, 20)
    assert job.spec.observations.withhold == 0.1
    assert (job.spec.window_hours, job.spec.warm_start, job.spec.members) == (6, True, 2)
    assert job.cycle["key"] == "20031001T00Z_early"
    assert job.cycle["behind_seconds"] == 60.0
    assert not job.cycle["caught_up"]
    assert installation.messages.sent == [("appa.run_assimilation", job.id)]
    scheduler.tick(at(0, 22))
    done = installation.cycle("00Z_early")
    assert (done.state, done.analysis_id) == (PUBLISHED, job.analysis_id)
    assert done.published is not None


def test_the_final_analysis_is_revision_two_and_differs_by_its_observations_alone(installation):
    installation.policy(end=at(0).isoformat())
    installation.run_until(at(3, 1))
    early, final = installation.jobs()
    assert (early.flavour, early.revision) == ("early", 1)
    assert (final.flavour, final.revision) == ("final", 2)
    assert final.spec.observations.cut_off == at(3)
    same = final.spec.model_copy(update={"observations": early.spec.observations})
    assert same == early.spec


def test_seeds_differ_from_hour_to_hour(installation):
    installation.policy()
    installation.run_until(at(3, 30))
    seeds = {job.spec.valid_time: job.spec.seed for job in installation.jobs()}
    assert len(set(seeds.values())) == len(seeds) == 4


def test_an_outage_is_caught_up_in_order_and_says_so(installation):
    installation.policy()
    scheduler = installation.scheduler()
    installation.run_until(at(1, 30), scheduler)
    before = len(installation.jobs())
    installation.run_until(at(4, 30), scheduler)  # nothing ran for three hours
    caught = installation.jobs()[before:]
    assert [job.cycle["key"][9:] for job in caught] == [
        "00Z_final", "01Z_final", "02Z_early", "03Z_early", "04Z_early",
    ]  # fmt: skip
    # 00 final: cut-off 03:00, the next one at 04:00 had passed, too; 04 early: 04:20, next 05:20
    assert [job.cycle["caught_up"] for job in caught] == [True, False, True, True, False]
    assert [job.cycle["behind_seconds"] for job in caught][:2] == [5400.0, 1800.0]
    assert [job.spec.observations.cut_off for job in caught][2] == at(2, 20)
    counted = scheduler.measures.registry.get_sample_value
    # Besides these five: 01 early, and 00 early, noticed after the cut-off of 01.
    for flavour, caught_up, count in (
        ("early", "true", 3), ("early", "false", 2), ("final", "true", 1), ("final", "false", 1),
    ):  # fmt: skip
        about = {"flavour": flavour, "caught_up": caught_up}
        assert counted("appa_cycles_ended_total", about | {"state": "published"}) == count
        assert counted("appa_cycle_delay_seconds_count", about) == count


def test_cycles_too_old_are_skipped_with_the_reason(installation):
    installation.policy(catch_up={"max_age_hours": 2})
    installation.run_until(at(0, 30))
    installation.run_until(at(5, 30))
    skipped = installation.of(CycleState.SKIPPED)
    assert skipped == ["00Z_final", "01Z_early", "02Z_early", "03Z_early"]
    assert "too old" in installation.cycle("01Z_early").message
    assert installation.of(PUBLISHED) == [
        "00Z_early", "01Z_final", "02Z_final", "04Z_early", "05Z_early",
    ]  # fmt: skip


def test_a_failed_job_is_tried_again_and_then_the_cycle_fails_and_the_next_goes_on(installation):
    installation.policy(retries=1)
    scheduler = installation.scheduler()
    scheduler.tick(at(0, 21))
    first = installation.work(fail="no luck")
    scheduler.tick(at(0, 22))
    again = installation.cycle("00Z_early")
    assert (again.state, again.attempts) == (CycleState.SUBMITTED, 2)
    assert again.job_id != first.id
    assert "no luck" in again.message
    second = installation.work(fail="no luck again")
    assert second.id == again.job_id
    assert second.cycle["attempt"] == 2
    scheduler.tick(at(0, 23))
    failed = installation.cycle("00Z_early")
    assert (failed.state, failed.attempts) == (CycleState.FAILED, 2)
    assert "no luck again" in failed.message
    events = [event.data["key"] for _, event in installation.stores.events.after("0-0")]
    assert events == ["20031001T00Z_early"]
    about = {"flavour": "early", "caught_up": "false", "state": "failed"}
    assert scheduler.measures.registry.get_sample_value("appa_cycles_ended_total", about) == 1
    installation.run_until(at(1, 21), scheduler)
    assert installation.states()["01Z_early"] == "published"


def test_a_cancelled_job_ends_its_cycle(installation):
    installation.policy()
    scheduler = installation.scheduler()
    scheduler.tick(at(0, 21))
    cycle = installation.cycle("00Z_early")
    job = installation.stores.jobs.get(cycle.job_id)
    assert job.request_id == f"cycle:{cycle.key}:0"  # nobody's request, found by it in the logs
    installation.stores.jobs.cancel(cycle.job_id)
    scheduler.tick(at(0, 22))
    assert installation.cycle("00Z_early").state is CycleState.CANCELLED


def test_a_cycle_waits_for_the_uploads_that_arrived_by_its_cut_off(installation):
    installation.policy(ingest_grace_seconds=1000)
    scheduler = installation.scheduler()
    late = installation.upload(at(0, 30))
    scheduler.tick(at(0, 40))
    assert installation.states()["00Z_early"] == "submitted"  # the late upload is no reason to wait
    installation.run_until(at(1, 10), scheduler)
    in_time = installation.upload(at(1, 15))
    scheduler.tick(at(1, 25))
    assert installation.states()["01Z_early"] == "waiting"
    installation.take_in(late)
    scheduler.tick(at(1, 26))
    assert installation.states()["01Z_early"] == "waiting"
    installation.take_in(in_time)
    scheduler.tick(at(1, 27))
    assert installation.states()["01Z_early"] == "submitted"


def test_it_waits_no_longer_than_allowed_and_says_what_may_be_missing(installation):
    installation.policy(ingest_grace_seconds=0)
    installation.upload(at(0, 10))
    installation.scheduler().tick(at(0, 30))
    cycle = installation.cycle("00Z_early")
    assert cycle.state is CycleState.SUBMITTED
    assert "00:10:00" in cycle.message
    assert "may be missing" in installation.jobs()[0].cycle["remark"]


def test_final_analyses_of_the_named_hours_are_compared_with_cold_windows(installation):
    installation.policy(compare={"hours": [0]}, withhold=0.1, end=at(1).isoformat())
    installation.run_until(at(4, 30))
    final = installation.cycle("00Z_final")
    [cold] = [job for job in installation.jobs() if not job.flavour]
    assert (cold.id, cold.analysis_id) == (final.cold_job_id, final.cold_id)
    assert cold.cycle == {"compared_with": final.analysis_id}
    same = ("valid_time", "members", "seed", "observations")
    cycle = installation.stores.jobs.get(final.job_id)
    assert [getattr(cold.spec, n) for n in same] == [getattr(cycle.spec, n) for n in same]
    assert (cold.spec.background, cold.spec.warm_start) == ("climatology", False)
    assert not installation.cycle("01Z_final").cold_job_id
    assert not installation.cycle("00Z_early").cold_job_id


def test_final_analyses_of_the_named_hours_start_forecasts(installation):
    installation.policy(
        forecast={"hours": [0], "lead_hours": 6, "members": 3}, end=at(1).isoformat()
    )
    installation.run_until(at(4, 30))
    [forecast] = [job for job in installation.jobs() if job.kind == "forecast"]
    final = installation.cycle("00Z_final")
    assert forecast.id == final.forecast_job_id
    assert forecast.spec.analysis_id == final.analysis_id
    assert (forecast.spec.lead_hours, forecast.spec.members) == (6, 3)
    assert (forecast.flavour, forecast.revision) == ("final", 2)
    assert not installation.cycle("01Z_final").forecast_job_id


def test_two_schedulers_make_each_job_once(installation, shared_broker, prefix):
    installation.policy(forecast={"hours": [0, 6], "lead_hours": 3}, catch_up={"at_once": 3})
    now, errors, stop = [at(0)], [], threading.Event()

    def ticks() -> None:
        scheduler = installation.scheduler()
        try:
            while not stop.is_set():
                scheduler.tick(now[0])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ticks) for _ in range(3)]
    for thread in threads:
        thread.start()
    for hour in range(9):
        now[0] = at(hour, 30)
        _work_until(installation, lambda hour=hour: _all_done(installation, hour))
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    jobs = installation.jobs()
    keys = [(job.cycle["key"], job.kind) for job in jobs]
    assert len(keys) == len(set(keys))
    hours = range(9)
    early = {f"20031001T{h:02d}Z_early" for h in hours}
    final = {f"20031001T{h:02d}Z_final" for h in hours if h + 3 <= 8}
    assert {key for key, kind in keys if kind == "filtering"} == early | final
    assert [key for key, kind in keys if kind == "forecast"] == ["20031001T00Z_final"]


def _work_until(installation, condition) -> None:
    for _ in range(100_000):
        installation.work()
        if condition():
            return
    raise AssertionError("no end")


def _all_done(installation, hour: int) -> bool:
    states = installation.states()
    early, final = f"{hour:02d}Z_early", f"{hour - 3:02d}Z_final"
    return states.get(early) == "published" and (hour < 3 or states.get(final) == "published")


def test_a_scheduler_that_dies_between_job_and_record_leaves_no_second_job(
    installation, monkeypatch
):
    installation.policy()
    with monkeypatch.context() as patch:
        patch.setattr(CycleStore, "change", _dies_at_submission(CycleStore.change))
        with pytest.raises(KeyboardInterrupt):
            installation.scheduler().tick(at(0, 21))
    assert installation.cycle("00Z_early").state is CycleState.DUE
    [orphan] = installation.jobs()
    installation.scheduler().tick(at(0, 22))
    assert installation.cycle("00Z_early").job_id == orphan.id
    assert len(installation.jobs()) == 1


def _dies_at_submission(change):
    def dying(self, record, to, **values):
        if to is CycleState.SUBMITTED:
            raise KeyboardInterrupt
        return change(self, record, to, **values)

    return dying


def test_a_rerun_is_the_next_revision_with_what_has_arrived_since(installation):
    installation.policy(forecast={"hours": [0], "lead_hours": 6}, end=at(0).isoformat())
    installation.run_until(at(3, 10))
    final = installation.cycle("00Z_final")
    first_forecast = final.forecast_job_id
    rerun = installation.stores.cycles.rerun(final, cut_off=at(9), decided=at(9), asked_by="k1")
    assert (rerun.state, rerun.revision) == (CycleState.DUE, 3)
    installation.run_until(at(9, 1))
    done = installation.cycle("00Z_final")
    job = installation.stores.jobs.get(done.job_id)
    assert (done.state, job.flavour, job.revision) == (PUBLISHED, "final", 3)
    assert job.spec.observations.cut_off == at(9)
    assert job.cycle["rerun"] == 1
    assert done.forecast_job_id != first_forecast
    again = installation.stores.cycles.rerun(done, cut_off=at(10), decided=at(10))
    assert again.revision == 4


def test_a_rerun_is_made_however_old_its_hour_is(installation):
    installation.policy(end=at(0).isoformat(), catch_up={"max_age_hours": 6})
    installation.run_until(at(3, 10))
    final = installation.cycle("00Z_final")
    installation.stores.cycles.rerun(final, cut_off=at(4), decided=at(90))
    installation.run_until(at(90))
    assert installation.cycle("00Z_final").revision == 3
    assert installation.cycle("00Z_final").state is PUBLISHED


def test_what_is_not_ended_cannot_run_again(installation):
    installation.policy()
    installation.scheduler().tick(at(0, 21))
    with pytest.raises(MoveRefused, match="submitted"):
        installation.stores.cycles.rerun(
            installation.cycle("00Z_early"), cut_off=at(1), decided=at(1)
        )


def test_nothing_is_submitted_to_a_full_disk(installation):
    installation.policy()
    full = installation.scheduler(Disk(disk_low_bytes=2**62))
    full.tick(at(0, 21))
    held = installation.cycle("00Z_early")
    assert held.state is CycleState.DUE
    assert held.message.startswith("disk_low")
    assert full.tick(at(0, 21)) == 0  # said once
    installation.scheduler().tick(at(0, 22))
    submitted = installation.cycle("00Z_early")
    assert submitted.state is CycleState.SUBMITTED
    job = installation.stores.jobs.get(submitted.job_id)
    assert "disk_low" in job.cycle["remark"]


def test_after_a_mistake_in_the_policy_the_last_good_one_counts(installation):
    installation.policy()
    scheduler = installation.scheduler()
    scheduler.tick(at(0, 5))
    installation.layout.cycles_file.write_text("start: never\n")
    scheduler.tick(at(0, 21))
    assert installation.cycle("00Z_early").state is CycleState.SUBMITTED


def test_a_lost_message_is_sent_again_by_the_next_scheduler(installation):
    installation.policy()
    installation.scheduler().tick(at(0, 21))
    job = installation.cycle("00Z_early").job_id
    assert installation.stores.jobs.get(job).state is JobState.QUEUED
    assert installation.messages.sent == [("appa.run_assimilation", job)]


def test_after_the_loss_of_redis_nothing_published_is_made_again(installation):
    installation.policy(forecast={"hours": [0], "lead_hours": 6})
    installation.run_until(at(4, 10))
    final = installation.cycle("00Z_final")
    installation.stores.cycles.rerun(final, cut_off=at(4), decided=at(4))
    installation.run_until(at(4, 11))
    before = {c.id: c for c in installation.stores.cycles.select().items}
    installation.stores.redis.delete(*installation.stores.redis.keys(f"{_prefix(installation)}:*"))
    installation.run_until(at(4, 12))
    assert installation.jobs() == []
    after = {c.id: c for c in installation.stores.cycles.select().items}
    assert after.keys() == before.keys()
    for key, record in before.items():
        for field in ("state", "revision", "analysis_id", "cut_off", "caught_up"):
            assert getattr(after[key], field) == getattr(record, field), (key, field)
    installation.run_until(at(4, 21))  # and it goes on
    assert installation.cycle("04Z_early").state is PUBLISHED


def _prefix(installation) -> str:
    return installation.stores.keys.prefix
