"""The auditor of the standing exercise: each fault it must find, and none where there is none."""

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from redis import Redis

from lab.chaos import run
from lab.chaos.audit import BatchFound, ChaosEvidence, ChaosReport, JobFound, judge
from lab.chaos.content import NOON, UploadContent, content_of, undisturbed
from lab.chaos.cycles import (
    CycledResult,
    CycleFound,
)
from lab.chaos.plan import (
    FORMS,
    PlannedJob,
    PlannedUpload,
)
from lab.chaos.traffic import JobSent, Ledger, UploadSent
from worker.contract.layout import Layout

SEED = 4


# -- uploads and jobs


def day() -> tuple[Ledger, ChaosEvidence]:
    """Two valid uploads, a damaged one and a job: all as it should be."""
    ledger, batches, rows = Ledger(), {}, {}
    for number, mutated in enumerate((False, False, True)):
        content = content_of(PlannedUpload(0.0, number, "csv", mutated), SEED)
        batch = f"batch-{number}"
        ledger.uploads[number] = UploadSent(content, {batch})
        state = "rejected" if mutated else "ingested"
        batches[batch] = BatchFound(state, content.sha256, len(content.rows) or None)
        rows[batch] = Counter(content.rows)
    ledger.jobs[0] = JobSent(PlannedJob(0.0, 0, 2, 3), {"job-0"})
    jobs = {"job-0": JobFound("succeeded", "an-0")}
    return ledger, ChaosEvidence(batches, jobs, rows, {"an-0": "job-0"})


def counts(ledger, evidence) -> tuple[int, ...]:
    verdict = judge(ledger, evidence)
    found = (verdict.accepted, verdict.ended)
    return *found, verdict.lost, verdict.doubled, verdict.wrongly_rejected, len(verdict.findings)


def with_batch(evidence, name, rows=None, **changes):
    """The evidence with another record of a batch, and other rows of it."""
    batches = {**evidence.batches, name: replace(evidence.batches["batch-0"], **changes)}
    stored = evidence.rows if rows is None else {**evidence.rows, name: rows}
    return replace(evidence, batches=batches, rows=stored)


def test_what_is_right_is_found_right():
    assert counts(*day()) == (4, 4, 0, 0, 0, 0)


def test_an_upload_without_a_record_is_lost():
    ledger, evidence = day()
    batches = {k: v for k, v in evidence.batches.items() if k != "batch-2"}
    assert counts(ledger, replace(evidence, batches=batches)) == (4, 3, 1, 0, 0, 1)


def test_an_upload_without_some_of_its_rows_or_with_other_values_is_lost():
    ledger, evidence = day()
    rows = Counter(dict(list(evidence.rows["batch-0"].items())[1:]))
    assert counts(ledger, with_batch(evidence, "batch-0", rows, observations=5))[:5] == (
        4, 3, 1, 0, 0,
    )  # fmt: skip
    (station, variable, second, value), *others = evidence.rows["batch-0"]
    rows = Counter([(station, variable, second, value + 2), *others])
    assert counts(ledger, with_batch(evidence, "batch-0", rows))[:5] == (4, 3, 1, 0, 0)


def test_an_upload_that_did_not_end_is_lost():
    ledger, evidence = day()
    stuck = with_batch(evidence, "batch-0", Counter(), state="received", observations=None)
    assert counts(ledger, stuck) == (4, 3, 1, 0, 0, 1)


def test_rows_in_two_batches_or_twice_in_one_are_doubled():
    ledger, evidence = day()
    twin = with_batch(evidence, "batch-9", evidence.rows["batch-0"])
    assert counts(ledger, twin) == (4, 3, 0, 1, 0, 1)
    twice = evidence.rows["batch-0"] + evidence.rows["batch-0"]
    assert counts(ledger, with_batch(evidence, "batch-0", twice, observations=12)) == (
        4, 3, 0, 1, 0, 1,
    )  # fmt: skip


# -- cycles


def cycled_day(**changes) -> tuple[Ledger, ChaosEvidence]:
    """The day, and a cycle of it that was published; with changes of what it was made of."""
    ledger, evidence = day()
    arrived = NOON + timedelta(minutes=5)
    batches = {k: replace(one, created=arrived) for k, one in evidence.batches.items()}
    both = frozenset({"batch-0", "batch-1"})
    start, cut_off = NOON - timedelta(hours=3), NOON + timedelta(minutes=20)
    made = CycledResult("an-c", KEY, cut_off, start, NOON, seen=both, used=both)
    return ledger, replace(
        evidence,
        batches=batches,
        jobs={**evidence.jobs, "job-c": JobFound("succeeded", "an-c")},
        analyses={**evidence.analyses, "an-c": "job-c"},
        due=(KEY,),
        cycles={KEY: CycleFound("published", "job-c", "an-c")},
        cycled=[replace(made, **changes)],
        arrival_margin=timedelta(minutes=10),
    )


KEY = "20250101T12Z_early"
GONE = {"analyses": {"an-0": "job-0"}, "cycled": []}
"""No result of the cycle."""


def cycle_counts(ledger, evidence) -> tuple[int, ...]:
    """Return cycles due, published, excused; then lost, doubled, wrongly rejected."""
    verdict = judge(ledger, evidence)
    assert verdict.accepted == verdict.ended == 4
    found = (verdict.cycles, verdict.cycles_published, verdict.cycles_excused)
    assert len(verdict.findings) == verdict.lost + verdict.doubled + verdict.wrongly_rejected
    return *found, verdict.lost, verdict.doubled, verdict.wrongly_rejected


def test_a_cycle_that_was_published_once_from_what_had_come_is_right():
    assert cycle_counts(*cycled_day()) == (1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("cycle", "expected"),
    [
        (None, (1, 0, 0, 1, 0, 0)),
        (CycleFound("submitted", "job-c"), (1, 0, 0, 1, 0, 0)),
        (CycleFound("skipped", message="too old: ..."), (1, 0, 1, 0, 0, 0)),
        (CycleFound("skipped"), (1, 0, 0, 1, 0, 0)),
        (CycleFound("cancelled", message="its job was cancelled"), (1, 0, 0, 1, 0, 0)),
        (CycleFound("failed", "job-c", message="worker_lost: ..."), (1, 0, 0, 0, 0, 1)),
        (CycleFound("published", "job-c", "an-c"), (1, 0, 0, 1, 0, 0)),
    ],
)
def test_a_cycle_without_a_result_has_a_reason_or_is_a_fault(cycle, expected):
    ledger, evidence = cycled_day()
    jobs = {"job-0": evidence.jobs["job-0"], "job-c": JobFound("failed", "an-c")}
    cycles = {KEY: cycle} if cycle else {}
    assert cycle_counts(ledger, replace(evidence, **GONE, jobs=jobs, cycles=cycles)) == expected


def test_a_cycle_with_two_results_is_doubled():
    ledger, evidence = cycled_day()
    twice = [*evidence.cycled, replace(evidence.cycled[0], id="an-d")]
    assert cycle_counts(ledger, replace(evidence, cycled=twice)) == (1, 0, 0, 0, 1, 0)


def test_a_cycle_of_an_unfinished_job_or_with_a_result_of_a_skipped_one_is_lost():
    ledger, evidence = cycled_day()
    jobs = {**evidence.jobs, "job-c": JobFound("running", "an-c")}
    assert cycle_counts(ledger, replace(evidence, jobs=jobs)) == (1, 0, 0, 1, 0, 0)
    skipped = {KEY: CycleFound("skipped", "job-c", message="too old")}
    assert cycle_counts(ledger, replace(evidence, cycles=skipped)) == (1, 0, 0, 1, 0, 0)


def test_a_cycle_holds_what_came_in_time_unless_it_says_so_and_nothing_later():
    one = frozenset({"batch-0"})
    assert cycle_counts(*cycled_day(seen=one, used=one)) == (1, 0, 0, 1, 0, 0)
    assert cycle_counts(*cycled_day(seen=one, used=one, remark="may be missing"))[1] == 1
    assert cycle_counts(*cycled_day(seen=one, used=one, remark="disk_low: it waited"))[3] == 1
    assert cycle_counts(*cycled_day(seen=one, used=one, end=NOON - timedelta(hours=3)))[3] == 0
    early = NOON + timedelta(minutes=14)  # it may have come too shortly before the cut-off
    assert cycle_counts(*cycled_day(seen=one, used=one, cut_off=early))[3] == 0
    before = NOON + timedelta(minutes=4)
    assert cycle_counts(*cycled_day(cut_off=before))[3] == 1
    assert cycle_counts(*cycled_day(cut_off=before, used=frozenset()))[3] == 0  # marked as late


def test_cycles_and_jobs_that_nobody_asked_for_are_findings():
    ledger, evidence = cycled_day()
    assert judge(ledger, replace(evidence, due=())).findings == [
        f"cycle {KEY} is none of those that fell due"
    ]
    jobs = {**evidence.jobs, "job-x": JobFound("succeeded", "an-x")}
    verdict = judge(ledger, replace(evidence, jobs=jobs))
    assert (verdict.doubled, len(verdict.findings)) == (1, 1)
    jobs["job-x"] = JobFound("failed", "an-x")  # an earlier try of a cycle
    assert not judge(ledger, replace(evidence, jobs=jobs)).findings


@pytest.mark.parametrize("state", ["rejected", "failed"])
def test_a_valid_upload_that_did_not_get_in_was_wrongly_rejected(state):
    ledger, evidence = day()
    changed = with_batch(evidence, "batch-0", Counter(), state=state, observations=None)
    assert counts(ledger, changed) == (4, 3, 0, 0, 1, 1)


def test_a_valid_upload_that_was_refused_was_wrongly_rejected():
    ledger, evidence = day()
    content = content_of(PlannedUpload(0.0, 7, "csv"), SEED)
    ledger.uploads[7] = UploadSent(content, refusal="415 unsupported_content")
    assert counts(ledger, evidence) == (4, 4, 0, 0, 1, 1)
    ledger.uploads[7] = UploadSent(replace(content, mutated=True), refusal="415")
    assert counts(ledger, evidence) == (4, 4, 0, 0, 0, 0)


def test_an_upload_that_was_sent_again_after_a_failure_of_ours_is_right():
    ledger, evidence = day()
    earlier = with_batch(evidence, "batch-8", Counter(), state="failed", observations=None)
    ledger.uploads[0].ids.add("batch-8")
    assert counts(ledger, earlier) == (4, 4, 0, 0, 0, 0)


def test_a_damaged_upload_that_failed_by_a_fault_of_ours_is_a_finding():
    ledger, evidence = day()
    failed = replace(evidence.batches["batch-2"], state="failed", problem="internal_error: x")
    changed = replace(evidence, batches={**evidence.batches, "batch-2": failed})
    assert counts(ledger, changed) == (4, 3, 0, 0, 1, 1)


def test_uploads_damaged_to_the_same_bytes_are_one_batch():
    ledger, evidence = day()
    ledger.uploads[99] = ledger.uploads[2]
    assert counts(ledger, evidence) == (5, 5, 0, 0, 0, 0)


def test_a_damaged_upload_gives_the_rows_that_it_gives_undisturbed():
    ledger, evidence = day()
    content = ledger.uploads[2].content
    assert counts(ledger, replace(evidence, undisturbed={content.sha256: 0})) == (4, 4, 0, 0, 0, 0)
    blamed = replace(evidence, undisturbed={content.sha256: 6})
    assert counts(ledger, blamed) == (4, 3, 0, 0, 1, 1)
    partly = replace(evidence.batches["batch-2"], state="ingested", observations=5)
    batches = {**evidence.batches, "batch-2": partly}
    rows = {
        **evidence.rows,
        "batch-2": Counter({("x", "2m_temperature", n, 1): 1 for n in range(5)}),
    }
    assert counts(ledger, replace(blamed, batches=batches, rows=rows)) == (4, 3, 1, 0, 0, 1)


def test_rows_of_contents_are_counted_where_nothing_goes_wrong():
    sent = [content_of(PlannedUpload(0.0, n, form), SEED) for n, form in enumerate(FORMS)]
    junk = UploadContent("junk.csv", b"time,lat,lon\n1,2,3\n", frozenset(), mutated=True)
    assert undisturbed([*sent, junk]) == {**{one.sha256: 6 for one in sent}, junk.sha256: 0}


def test_rows_and_summaries_that_differ_are_findings():
    ledger, evidence = day()
    orphan = {**evidence.rows, "batch-7": evidence.rows["batch-0"]}
    assert counts(ledger, replace(evidence, rows=orphan))[-1] == 1
    assert counts(ledger, with_batch(evidence, "batch-0", observations=5))[-1] == 1


@pytest.mark.parametrize(
    ("found", "results", "expected"),
    [
        (JobFound("running", "an-0"), {}, (1, 0, 0)),
        (JobFound("succeeded", "an-0"), {}, (1, 0, 0)),
        (JobFound("failed", "an-0", "worker_lost"), {}, (0, 0, 1)),
        (JobFound("succeeded", "an-0"), {"an-0": "job-0", "an-1": "job-0"}, (0, 1, 0)),
    ],
)
def test_a_job_must_end_once_with_one_result(found, results, expected):
    ledger, evidence = day()
    changed = replace(evidence, jobs={"job-0": found}, analyses=results)
    assert counts(ledger, changed)[:5] == (4, 3, *expected)


def test_what_is_stuck_or_half_written_is_a_finding_and_ends_with_an_error():
    ledger, evidence = day()
    changed = replace(evidence, damaged=["an-0/x.nc: 404"], leftovers=["3 messages are left"])
    verdict = judge(ledger, changed)
    assert verdict.ended == verdict.accepted == 4
    assert verdict.findings == ["3 messages are left", "not whole: an-0/x.nc: 404"]
    passing = ChaosReport(1, 1.0, 4, 4, 0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 6, 5, 1, 9, 9, ())
    assert passing.passed
    assert not replace(passing, cycles_published=4).passed
    assert not replace(passing, findings=tuple(verdict.findings)).passed
    assert not replace(passing, http_5xx=1).passed
    assert not replace(passing, ended=3).passed


# -- what is left in Redis and on disk


def test_what_redis_keeps_although_all_has_ended_is_a_finding(own_broker):
    with Redis.from_url(own_broker.url, decode_responses=True) as redis:
        redis.mset({f"appa:batch:{n}": "x" for n in range(98)})
        redis.set("appa:unique:batch:k", "x" * 2**20, ex=60)
        redis.hset("appa:broker:unacked", "tag", "[]")
        assert run._kept(redis, held=1) == []
        redis.mset({f"appa:batch:{n}": "x" for n in (98, 99)})
        (finding,) = run._kept(redis, held=1)
        assert "keeps 101 keys" in finding
        redis.delete("appa:batch:98", "appa:batch:99")
        redis.lpush("appa:broker:ingest", json.dumps({"headers": {"task": "t", "argsrepr": "a"}}))
        (finding,) = run._kept(redis, held=1)
        assert finding == "1 messages are left in 'appa:broker:ingest': t a"
        redis.delete("appa:broker:ingest")
        assert len(run._kept(redis, held=0)) == 1
        redis.set("appa:stream", "x" * 33 * 2**20, ex=60)
        (finding,) = run._kept(redis, held=1)
        assert finding.startswith("Redis uses ")


def test_what_lies_on_disk_although_all_has_ended_is_a_finding(tmp_path):
    layout = Layout(tmp_path).create()
    stack = SimpleNamespace(layout=layout)
    (layout.raw / "batch-0").mkdir()
    (layout.raw / "batch-0" / "content").write_bytes(bytes(5_000))
    used = run._bytes(layout.root)
    assert used >= 5_000
    assert run._disk(stack, {"batch-0"}, used) == []
    assert run._disk(stack, set(), used) == ["raw/batch-0 is of no known upload"]
    (layout.tmp / "upload-1").write_bytes(b"x")
    assert run._disk(stack, {"batch-0"}, used) == ["tmp/upload-1 is left"]
    (layout.tmp / "upload-1").unlink()
    (layout.analyses / "an-0").mkdir()
    (layout.analyses / "an-0" / "manifest.json").write_bytes(bytes(2 * 2**20))
    (layout.analyses / "an-1").mkdir()  # is not published
    (layout.analyses / "an-1" / "state.nc").write_bytes(bytes(2 * 2**20))
    rest = run._BESIDES_MEGABYTES * 2**20 + 5_000
    assert run._disk(stack, {"batch-0"}, 2 * 2**20 + rest) == []
    (finding,) = run._disk(stack, {"batch-0"}, 3 * 2**20 + rest)
    assert "161 MiB besides uploads and results" in finding
