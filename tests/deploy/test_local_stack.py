"""`appa up` as a user runs it: ready, upload, job, files, metrics, traces, Ctrl-C."""

import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.domain.files import code_version
from tests.deploy.collector import Collector
from tests.deploy.observability import Prometheus, alerts, family, metrics_of, queries
from tests.deploy.up import Up, ended, submit, upload
from tests.warm_start import run_warm
from tests.worker.processes import wait_for


def samples(url: str) -> dict[tuple, float]:
    """Samples of `/metrics`, by name and sorted labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
        for sample in family.samples
    }


def total(found: dict[tuple, float], name: str, **labels: str) -> float:
    return sum(v for (n, *own), v in found.items() if n == name and set(labels.items()) <= set(own))


def check_metrics(url: str, rows: int, outcomes: dict[str, int]) -> None:
    """What `/metrics` shows after one upload and one analysis of its values, and nothing else.

    `rows` are the values sent, `outcomes` what the manifest of the analysis says became of them.
    """
    done = ("appa_job_turnaround_seconds_count", "appa_announcement_delay_seconds_count")
    wait_for(lambda: all(total(samples(url), name) == 1 for name in done))
    turn = "appa_process_last_turn_timestamp_seconds"  # a scheduler reports every few seconds
    wait_for(lambda: total(samples(url), turn, part="scheduler") > 0)
    found = samples(url)
    assert total(found, "appa_uploads_total", outcome="created") == 1
    assert total(found, "appa_ingest_uploads_total") == 1
    assert total(found, "appa_ingest_uploads_total", format="parquet", outcome="ingested") == 1
    assert total(found, "appa_ingest_delay_seconds_count", lane="large") == 1
    assert total(found, "appa_decode_rejects_total") == 0
    assert total(found, "appa_qc_values_total", stage="arrival", network="synop") == rows
    assert total(found, "appa_qc_values_total") == 2 * rows
    for outcome, count in outcomes.items():
        about = {"stage": "analysis", "network": "synop", "outcome": outcome}
        assert total(found, "appa_qc_values_total", **about) == count
    assert total(found, "appa_jobs_submitted_total", kind="filtering") == 1
    assert total(found, "appa_attempts_total") == 2  # the upload and the job
    assert total(found, "appa_attempt_outcomes_total", outcome="succeeded") == 2
    assert total(found, "appa_attempt_outcomes_total") == 2
    phases = {dict(own)["phase"] for (n, *own) in found if n == "appa_job_seconds_count"}
    assert phases == {"waiting", "gathering", "background", "sampling", "writing", "publishing"}
    assert total(found, "appa_job_seconds_count") == len(phases)
    # Of the first guess; no value passed the checks, so that it is the analysis as well.
    assert outcomes["used"] == 0
    assert total(found, "appa_diffusion_steps_total", kind="filtering") == 3
    assert total(found, "appa_queue_length") == 0
    for part in ("ingest", "ingest-large", "gpu", "products", "scheduler"):
        assert total(found, "appa_workers", queue=part) == 1
    for part in ("ingest-products", "ingest-large", "gpu", "scheduler"):
        assert total(found, "appa_process_resident_memory_bytes", part=part) > 2**24
        assert total(found, "appa_process_cpu_seconds_total", part=part) > 0
    turned = total(found, turn, part="scheduler")
    assert time.time() - 30 < turned <= time.time()
    assert total(found, "appa_build_info", version=code_version()) == 1
    assert total(found, "appa_broker_up") == 1


def check_queries(url: str) -> None:
    """Every metric that a dashboard or an alert names is one that a gateway shows."""
    families = {f.name for f in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)}
    expressions = queries() | {rule["alert"]: rule["expr"] for rule in alerts()}
    assert len(expressions) > 90
    unknown = {
        where: [name for name in metrics_of(query) if family(name, families) is None]
        for where, query in expressions.items()
    }
    assert not {where: names for where, names in unknown.items() if names}


def check_prometheus(url: str, folder: Path) -> None:
    """A real server takes what is shown, answers every query, and raises the watchdog alone."""
    text = httpx.get(f"{url}/metrics").text
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    with Prometheus(url, folder) as prometheus:
        answers = {where: prometheus.query(query) for where, query in queries().items()}
        assert prometheus.raised() == {"AppaWatchdog"}
    shown = {name for name, *_ in samples(url)}
    asked = {where for where, query in queries().items() if metrics_of(query) <= shown}
    assert len(asked) > 40
    empty = {where for where in asked if not answers[where]}
    assert empty == {"feeds: Rejected by checks at arrival: A"}  # all values were accepted


TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""Trace and span of the example in W3C's Trace Context."""


def check_traces(collector: Collector, batch: dict, job: dict) -> None:
    """One upload and one job give one trace each: request, task, its phases, and storage."""
    upload, work = (
        collector.trace_of("appa.ingest_batch"),
        collector.trace_of("appa.announce_result"),
    )
    assert upload == TRACE != work
    assert collector.tree(upload, CALLER) == {
        ("gateway", "POST /v1/observations"): {
            **in_part("gateway", "receive", "store bytes", "store record", "send message"),
            ("ingest-large", "appa.ingest_batch"): {
                **in_part("ingest-large", "decoding", "checking"),
                **in_part("ingest-large", storing=("commit rows",)),
            },
        }
    }
    assert collector.tree(work) == {
        ("gateway", "POST /v1/jobs"): {
            **in_part("gateway", "store job", "send message"),
            ("gpu", "appa.run_assimilation"): {
                **in_part("gpu", "waiting", "background", "sampling"),
                **in_part("gpu", gathering=("read earlier states", "read observations")),
                **in_part("gpu", writing=("write netcdf", "write manifest")),
                **in_part("gpu", publishing=("open gate", "sync folder", "send message")),
            },
            ("ingest-products", "appa.announce_result"): in_part(
                "ingest-products", "update latest.json", "extend series", "emit events"
            ),
        }
    }
    for record, name in ((batch, "appa.ingest_batch"), (job, "appa.run_assimilation")):
        span = collector.named(name)
        assert (span.attributes["appa.id"], span.attributes["appa.attempt"]) == (record["id"], 1)
        assert span.attributes["appa.request_id"] == record["request_id"]
        assert span.attributes["appa.outcome"] == "succeeded"
        phases = [s for s in collector.children(span) if s.name != "waiting"]
        assert all(span.start <= s.start <= s.end <= span.end for s in phases)
        turns = sorted(phases, key=lambda s: s.start)
        assert all(a.end <= b.start for a, b in itertools.pairwise(turns))


def in_part(part: str, *names: str, **nested: tuple[str, ...]) -> dict:
    """Spans of one process, without children or with one generation of them."""
    return {
        **{(part, name): {} for name in names},
        **{(part, name): in_part(part, *inside) for name, inside in nested.items()},
    }


def check_log_lines(collector: Collector, stack: Up, batch: dict, job: dict) -> None:
    """Each line about the upload or the job, of whichever process, names its request and trace."""
    seen: dict[str, set[str]] = {"batch": set(), "job": set()}
    about = {"batch": (batch, batch["id"], "appa.ingest_batch")}
    about["job"] = (job, f"{job['id']}|{job['analysis_id']}", "appa.announce_result")
    for line in (stack.data / "logs" / "appa.log").read_text().splitlines():
        part, text = re.fullmatch(r"\S+ (\S+) +(.*)|.*", line).groups("")
        said = json.loads(text) if text.startswith("{") else {"method": "GET"}
        for noun, (record, names, task) in about.items():
            if re.search(names, text) and said.get("method") != "GET":
                ids = (record["request_id"], collector.trace_of(task))
                assert (said["request_id"], said["trace_id"]) == ids, line
                seen[noun].add(part)
    assert batch["request_id"] == "the-upload"
    assert seen["batch"] == {"gateway", "ingest-large"}
    assert seen["job"] == {"gateway", "model", "ingest"}  # which also takes products


@pytest.fixture
def collector():
    with Collector() as running:
        yield running


def test_from_upload_to_file_and_ctrl_c(up, tmp_path, collector):
    stack = up(APPA_REPORT_SECONDS="0.5", APPA_LOG_FORMAT="json", **collector.environment)
    url = stack.url
    assert httpx.get(f"{url}/health/ready").status_code == 200
    sent = {"X-Request-ID": "the-upload", "traceparent": f"00-{TRACE}-{CALLER}-01"}
    batch = upload(url, **sent)
    assert batch["state"] == "ingested"
    job = ended(submit(url))
    assert job["state"] == "succeeded", stack.output.read_text()
    result = httpx.get(f"{url}/v1/analyses/{job['analysis_id']}").json()
    data = next(file for file in result["files"] if file["role"] == "data")
    fetched = httpx.get(f"{url}/v1/analyses/{job['analysis_id']}/{data['name']}").content
    assert len(fetched) == data["size"]
    assert fetched[:4] == b"\x89HDF"
    latest = stack.data / "latest.json"
    wait_for(latest.exists)
    assert json.loads(latest.read_text())["filtering"]["id"] == job["analysis_id"]
    assert_private(stack.data)
    check_metrics(url, 10, result["observations"])
    check_queries(url)
    if shutil.which("prometheus"):
        check_prometheus(url, tmp_path / "prometheus")
    check_traces(collector, batch, job)
    check_log_lines(collector, stack, batch, job)
    children = stack.children()
    assert len(children) >= 6  # broker, gateway, ingest and its child, model, scheduler
    assert stack.interrupt() == 0
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert "stopped" in stack.output.read_text()


def assert_private(data: Path) -> None:
    """Hold every folder and file against being for its user alone, whichever process made it."""
    made = ["keys", "create", "a", "--scope", "admin", "--data", str(data)]
    run_warm("command", "deploy.cli", made, os.environ, umask=0o022).check_returncode()
    found = {data, *data.rglob("*")}
    names = {path.name for path in found}
    assert {"keys.json", "keys.lock", ".lock", "appa.log", "records.sqlite", "broker.sock"} <= names
    assert {"raw", "observations", "analyses", "latest.json", "catalogue.sqlite"} <= names
    open_to_others = {
        str(path.relative_to(data)): oct(mode)
        for path in found
        if path.exists() and (mode := stat.S_IMODE(path.lstat().st_mode)) & 0o077
    }
    assert open_to_others == {}
