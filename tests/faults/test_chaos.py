"""The standing exercise: its plan, its content, its auditor, and (slow) a minute of it."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from deploy.commands.demo import chaos_app
from lab.chaos import run
from lab.chaos.audit import BatchFound, ChaosReport, Evidence, JobFound, judge
from lab.chaos.content import NO_VALUE, Content, content_of, rows_of
from lab.chaos.plan import BROKER_CUTS, FORMS, KILLS, Harm, JobOrder, Rates, Sending, chaos_plan
from lab.chaos.run import undisturbed
from lab.chaos.traffic import JobSent, Ledger, UploadSent, is_explained
from worker.observations.decoders.decode import decode_file

SEED = 4
KEYS = [
    "seed", "minutes", "accepted", "ended", "lost", "doubled", "wrongly_rejected", "kills",
    "full_disks", "broker_cuts", "mutated", "http_5xx", "findings",
]  # fmt: skip


# -- plan


def test_ten_minutes_hold_what_a_release_must_survive():
    plan = chaos_plan(10, SEED)
    harm = Counter(fault.harm for fault in plan.faults)
    assert sum(harm[one] for one in KILLS) == 100
    assert harm[Harm.FULL_DISK] == 10
    assert sum(harm[one] for one in BROKER_CUTS) == 20
    valid = [one for one in plan.sendings if not one.mutated]
    assert len({one.number for one in valid}) == 1_000
    assert len(valid) > 1_020  # some are sent again
    assert sum(one.mutated for one in plan.sendings) == 10_000
    assert {one.form for one in valid} == set(FORMS)
    for series in (plan.sendings, plan.orders, plan.faults):
        times = [one.at for one in series]
        assert times == sorted(times)
    assert all(0 <= fault.at < 600 for fault in plan.faults)


def test_the_same_seed_gives_the_same_plan_and_bytes_and_another_one_others():
    rates = Rates(uploads=30, mutated=30)
    plan, again, other = (chaos_plan(1, seed, rates) for seed in (SEED, SEED, SEED + 1))
    assert plan == again
    assert plan.faults != other.faults
    sent = [content_of(one, SEED) for one in plan.sendings]
    assert sent == [content_of(one, SEED) for one in again.sendings]
    valid = {one.number: content_of(one, SEED) for one in plan.sendings if not one.mutated}
    assert len({content.sha256 for content in valid.values()}) == len(valid) == 30
    rows = [content.rows for content in valid.values()]
    assert len(frozenset().union(*rows)) == sum(map(len, rows)) == 180  # no two share one


def test_content_says_what_our_decoder_reads_in_it(tmp_path):
    content = content_of(Sending(0.0, 3, "bufr"), SEED)
    path = tmp_path / "content"
    path.write_bytes(content.data)
    table = decode_file(path).table
    found = {
        (station, variable, value)
        for station, variable, value in zip(
            *(table[c].to_pylist() for c in ("station_id", "variable", "obs_value")), strict=True
        )
    }
    assert len(content.rows) == len(found) == 6
    for station, variable, _, value in content.rows:
        unit = {"2m_temperature": 0.01, "surface_pressure": 10.0}[variable]
        (stored,) = (v for s, n, v in found if (s, n) == (station, variable))
        assert stored == pytest.approx(value * unit, abs=0.51 * unit)


def test_rows_without_a_value_are_rows():
    values = pa.array([None, np.nan, np.inf, 280.0])
    table = pa.table(
        {
            "station_id": ["a", "b", "c", "d"],
            "variable": ["2m_temperature"] * 4,
            "obs_value": values,
            "time": pa.array([0] * 4, pa.timestamp("ns", "UTC")),
        }
    )
    assert [row[3] for row in rows_of(table)] == [NO_VALUE] * 3 + [28_000]


# -- auditor


def day() -> tuple[Ledger, Evidence]:
    """Two valid uploads, a damaged one and a job: all as it should be."""
    ledger, batches, rows = Ledger(), {}, {}
    for number, mutated in enumerate((False, False, True)):
        content = content_of(Sending(0.0, number, "csv", mutated), SEED)
        batch = f"batch-{number}"
        ledger.uploads[number] = UploadSent(content, {batch})
        state = "rejected" if mutated else "ingested"
        batches[batch] = BatchFound(state, content.sha256, len(content.rows) or None)
        rows[batch] = Counter(content.rows)
    ledger.jobs[0] = JobSent(JobOrder(0.0, 0, 2, 3), {"job-0"})
    jobs = {"job-0": JobFound("succeeded", "an-0")}
    return ledger, Evidence(batches, jobs, rows, {"an-0": "job-0"})


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


@pytest.mark.parametrize("state", ["rejected", "failed"])
def test_a_valid_upload_that_did_not_get_in_was_wrongly_rejected(state):
    ledger, evidence = day()
    changed = with_batch(evidence, "batch-0", Counter(), state=state, observations=None)
    assert counts(ledger, changed) == (4, 3, 0, 0, 1, 1)


def test_a_valid_upload_that_was_refused_was_wrongly_rejected():
    ledger, evidence = day()
    content = content_of(Sending(0.0, 7, "csv"), SEED)
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
    sent = [content_of(Sending(0.0, n, form), SEED) for n, form in enumerate(FORMS)]
    junk = Content("junk.csv", b"time,lat,lon\n1,2,3\n", frozenset(), mutated=True)
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
    sound = ChaosReport(1, 1.0, 4, 4, 0, 0, 0, 1, 1, 1, 1, 0, ())
    assert sound.sound
    assert not replace(sound, findings=tuple(verdict.findings)).sound
    assert not replace(sound, http_5xx=1).sound
    assert not replace(sound, ended=3).sound


def test_only_a_503_or_507_with_a_reason_and_a_time_is_explained():
    import httpx

    def answer(status, headers, **document):
        return httpx.Response(status, headers=headers, json=document)

    later, why = {"Retry-After": "5"}, {"code": "disk_full", "detail": "No room."}
    assert is_explained(answer(503, later, **why))
    assert is_explained(answer(507, later, **why))
    assert not is_explained(answer(500, later, **why))
    assert not is_explained(answer(503, {}, **why))
    assert not is_explained(answer(507, later, code="disk_full"))
    assert not is_explained(httpx.Response(503, headers=later, text="busy"))


# -- command


@pytest.mark.parametrize(("lost", "code"), [(0, 0), (1, 1)])
def test_the_command_prints_the_report_and_ends_by_it(monkeypatch, tmp_path, lost, code):
    found = ChaosReport(SEED, 2.0, 3, 3 - lost, lost, 0, 0, 1, 1, 1, 9, 0, ("lost: x",) * lost)
    monkeypatch.setattr(run, "run_chaos", lambda *_, **__: found)
    arguments = ["--minutes", "2", "--seed", str(SEED), "--json", "--output", str(tmp_path)]
    ended = CliRunner().invoke(chaos_app, arguments)
    assert ended.exit_code == code
    document = json.loads(ended.stdout)
    assert list(document) == KEYS
    assert (document["lost"], document["findings"]) == (lost, ["lost: x"] * lost)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_minute_of_it(tmp_path):
    command = [sys.executable, "-m", "deploy.cli", "chaos", "--minutes", "1", "--seed", str(SEED)]
    options = ["--mutated", "100", "--json", "--output", str(tmp_path)]
    ended = subprocess.run(
        [*command, *options], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["accepted"] == document["ended"] > 50
    assert document["kills"] > 5
    assert document["broker_cuts"] > 0
