"""The standing exercise: its plan, content, traffic and cycles, and (slow) a minute of it."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deploy.commands.demo import chaos_app
from lab.chaos import content as contents
from lab.chaos import run
from lab.chaos.audit import ChaosReport
from lab.chaos.content import NO_VALUE, NOON, DamagedBatches, content_of, rows_of
from lab.chaos.cycles import (
    CycleFound,
    cycle_policy,
    cycled_result,
    due_keys,
    unended_cycles,
    wait_for_noon,
)
from lab.chaos.plan import (
    BROKER_CUTS,
    FORMS,
    KILLS,
    Fault,
    FaultKind,
    PlannedUpload,
    Rates,
    chaos_plan,
)
from lab.chaos.traffic import Ledger, Traffic, is_explained
from worker.contract.clock import Clock
from worker.observations.decoders.decode import decode_file

SEED = 4
KEYS = [
    "seed", "minutes", "accepted", "ended", "lost", "doubled", "wrongly_rejected", "kills",
    "full_disks", "broker_cuts", "mutated", "http_5xx", "uploads", "jobs", "cycles",
    "cycles_published", "cycles_excused", "redis_bytes", "disk_bytes", "findings",
]  # fmt: skip


# -- plan


def test_ten_minutes_hold_what_a_release_must_survive():
    plan = chaos_plan(10, SEED)
    kinds = Counter(fault.kind for fault in plan.faults)
    assert sum(kinds[one] for one in KILLS) == 110
    assert kinds[FaultKind.FULL_DISK] == 10
    assert sum(kinds[one] for one in BROKER_CUTS) == 20
    valid = [one for one in plan.uploads if not one.mutated]
    assert len({one.number for one in valid}) == 1_100
    assert len(valid) > 1_120  # some are sent again
    damaged = [one for one in (*plan.uploads, *plan.batched) if one.mutated]
    assert len({one.number for one in damaged}) == len(damaged) == 10_000
    assert not {one.number for one in valid} & {one.number for one in damaged}
    assert sum(one.mutated for one in plan.uploads) == 3_000
    assert (plan.hours, plan.speed) == (30, 180.0)  # the last cut-off is in the last second
    assert {one.form for one in valid} == set(FORMS)
    for series in (plan.uploads, plan.jobs, plan.faults):
        times = [one.at for one in series]
        assert times == sorted(times)
    assert all(0 <= fault.at < 600 for fault in plan.faults)


def test_the_same_seed_gives_the_same_plan_and_bytes_and_another_one_others():
    rates = Rates(uploads=30, mutated=30)
    plan, again, other = (chaos_plan(1, seed, rates) for seed in (SEED, SEED, SEED + 1))
    assert plan == again
    assert plan.faults != other.faults
    sent = [content_of(one, SEED) for one in plan.uploads]
    assert sent == [content_of(one, SEED) for one in again.uploads]
    valid = {one.number: content_of(one, SEED) for one in plan.uploads if not one.mutated}
    assert len({content.sha256 for content in valid.values()}) == len(valid) == 30
    rows = [content.rows for content in valid.values()]
    assert len(frozenset().union(*rows)) == sum(map(len, rows)) == 180  # no two share one


def test_content_says_what_our_decoder_reads_in_it(tmp_path):
    content = content_of(PlannedUpload(0.0, 3, "bufr"), SEED)
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


def test_content_is_observed_in_the_three_hours_before_it_is_sent():
    until = NOON + timedelta(hours=5)
    content = content_of(PlannedUpload(0.0, 3, "csv"), SEED, until)
    assert content.rows != content_of(PlannedUpload(0.0, 3, "csv"), SEED).rows
    seconds = [row[2] for row in content.rows]
    assert max(seconds) <= until.timestamp() < min(seconds) + 3 * 3600


# -- sandbox


def test_damaged_contents_are_decoded_in_batches_and_those_that_were_not_sent_as_well(monkeypatch):
    monkeypatch.setattr(contents, "_TOGETHER", 8)
    plan = chaos_plan(0.1, SEED, Rates(uploads=0, mutated=160, posted=0.25))
    posted = [one for one in plan.uploads if one.mutated]
    assert (len(posted), len(plan.batched)) == (4, 12)
    batches = DamagedBatches(plan)
    batches.start()
    batches.finish(posted)
    assert (batches.count, batches.findings) == (16, [])


def test_an_error_that_leaves_the_sandbox_is_a_finding(monkeypatch):
    def escapes(files):
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "surrogates")

    monkeypatch.setattr(contents, "decode_in_one_child", escapes)
    batches = DamagedBatches(chaos_plan(0.1, SEED, Rates(uploads=0, mutated=20, posted=0.0)))
    batches.start()
    batches.finish([])
    assert batches.count == 0
    (finding,) = batches.findings
    assert "UnicodeDecodeError" in finding


# -- traffic


class Accepting(BaseHTTPRequestHandler):
    """A gateway that accepts everything and answers nothing else."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"id": "batch-1"}).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_all_valid_contents_are_sent_and_damaged_ones_that_were_not_are_told():
    valid = [PlannedUpload(0.3, n, "csv") for n in range(12)]
    damaged = [PlannedUpload(60.0, n, "csv", mutated=True) for n in range(12, 24)]
    plan = replace(chaos_plan(0.1, SEED), uploads=(*valid, *damaged), jobs=(), seconds=0.2)
    ledger = Ledger()
    with ThreadingHTTPServer(("127.0.0.1", 0), Accepting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        traffic = Traffic(f"http://127.0.0.1:{server.server_port}", plan, ledger, NOON)
        traffic.start()
        assert traffic.finish(20.0)
        server.shutdown()
    assert set(ledger.uploads) == set(range(12))
    assert ledger.accepted == 12
    assert traffic.unsent() == damaged


# -- faults


def test_a_fault_that_finds_nothing_to_hit_is_tried_again(monkeypatch):
    class Down:
        """A stack whose parts are down at first."""

        done = 0
        asked = 0

        def tend(self):
            pass

        def inject(self, fault):
            self.asked += 1
            self.done += self.asked > 1
            return self.asked > 1

    monkeypatch.setattr(run, "_AGAIN_SECONDS", 0.1)
    plan = replace(
        chaos_plan(0.1, SEED), seconds=0.2, faults=(Fault(0.15, FaultKind.KILL, "ingest"),)
    )
    stack, told = Down(), []
    run._inject_faults(plan, stack, Ledger(), told.append)
    assert (stack.asked, stack.done) == (2, 1)
    assert "tried again" in told[0]


# -- cycles


def test_the_cycles_of_a_policy_are_two_an_hour_and_the_last_cut_off_ends_them():
    policy = cycle_policy(NOON, 3)
    assert due_keys(policy) == (
        "20250101T12Z_early", "20250101T12Z_final", "20250101T13Z_early", "20250101T13Z_final",
        "20250101T14Z_early", "20250101T14Z_final",
    )  # fmt: skip
    assert policy.cut_off(policy.end, "final") == NOON + timedelta(hours=3)


@pytest.mark.parametrize(
    ("shown", "first"), [(NOON - timedelta(minutes=10), 0), (NOON + timedelta(hours=2.99), 3)]
)
def test_an_exercise_begins_at_noon_or_at_the_next_full_hour(shown, first):
    clock = Clock(shown, time.time(), 3600.0)
    assert wait_for_noon(clock) == NOON + timedelta(hours=first)
    assert 0 <= (clock.at(time.time()) - NOON).total_seconds() - 3600 * first < 1800


def test_what_a_result_is_made_of_is_read_from_its_feedback():
    table = pa.table(
        {
            "batch_id": pa.array(["b-0", "b-1", "b-1", "b-2"]).dictionary_encode(),
            "rejected_by": pa.array([None, "late", "thinning", "late"]).dictionary_encode(),
        }
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    shown = {
        "id": "an-1",
        "cycle": {"key": "20250101T12Z_early", "remark": "uploads ... may be missing"},
        "cut_off": "2025-01-01T12:20:00Z",
        "window_start": "2025-01-01T09:00:00Z",
        "window_end": "2025-01-01T12:00:00Z",
    }
    made = cycled_result(shown, buffer.getvalue().to_pybytes())
    assert (made.seen, made.used) == ({"b-0", "b-1", "b-2"}, {"b-0", "b-1"})
    assert (made.start, made.end) == (NOON - timedelta(hours=3), NOON)
    assert (made.cut_off, made.says_so) == (NOON + timedelta(minutes=20), True)
    assert cycled_result(shown | {"cycle": {}}, b"") is None


def test_a_cycle_that_is_absent_or_at_work_has_not_ended():
    states = {"a": CycleFound("published"), "b": CycleFound("submitted"), "c": CycleFound("due")}
    assert unended_cycles("abcd", states) == {
        "cycles submitted": 1,
        "cycles due": 1,
        "cycles absent": 1,
    }
    assert unended_cycles("a", states) == {}


def test_only_a_503_or_507_with_a_reason_and_a_time_is_explained():
    def answer(status, headers, **document):
        return httpx.Response(status, headers=headers, json=document)

    later, why = {"Retry-After": "5"}, {"code": "disk_full", "detail": "No room."}
    assert is_explained(answer(503, later, **why))
    assert is_explained(answer(507, later, **why))
    assert not is_explained(answer(500, later, **why))
    assert not is_explained(answer(503, {}, **why))
    assert not is_explained(answer(507, later, code="disk_full"))
    assert not is_explained(httpx.Response(503, headers=later, text="busy"))
    assert is_explained(httpx.Response(503, headers=later), bodiless=True)
    assert not is_explained(httpx.Response(503), bodiless=True)
    assert not is_explained(httpx.Response(500, headers=later), bodiless=True)


def test_every_answer_of_the_5xx_class_is_written_down_but_the_explained_ones():
    ledger, later = Ledger(), {"Retry-After": "5"}
    for method, status, headers in (
        ("GET", 200, {}), ("GET", 404, {}), ("HEAD", 503, later), ("HEAD", 500, later),
        ("GET", 503, later),
    ):  # fmt: skip
        request = httpx.Request(method, "http://gateway/v1/jobs")
        ledger.fault(httpx.Response(status, headers=headers, request=request))
    assert ledger.faults == ["HEAD /v1/jobs: 500 ", "GET /v1/jobs: 503 "]


# -- command


@pytest.mark.parametrize(("lost", "code"), [(0, 0), (1, 1)])
def test_the_command_prints_the_report_and_ends_by_it(monkeypatch, tmp_path, lost, code):
    counted = (3, 3 - lost, lost, 0, 0, 1, 1, 1, 9, 0, 2, 1, 6, 6, 0, 9, 9)
    found = ChaosReport(SEED, 2.0, *counted, ("lost: x",) * lost)
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
    assert document["mutated"] == 100
    assert document["cycles"] == 6
    assert document["cycles_published"] > 0
    assert document["cycles_published"] + document["cycles_excused"] == 6
