"""`appa up` as a user runs it: ready, upload, job, files, Ctrl-C; and what happens to its parts."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import free_port
from model.checkpoints.bundle import save_checkpoint
from model.domain.files import code_version
from tests.deploy.collector import Collector
from tests.deploy.observability import Prometheus, alerts, family, metrics_of, queries
from tests.faults.full_disk import can_mount, fill
from tests.model.checkpoint_parts import tiny_model
from tests.worker.processes import wait_for
from tests.worker.tables import make_table
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.feeds.sources import SourceFile

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(tiny_model(), folder)
    return folder


class Up:
    """`appa up` in a process of its own."""

    def __init__(
        self, data: Path, *arguments: str, within: tuple[str, ...] = (), **environment: str
    ) -> None:
        self.data = data
        self.output = data.parent / "up.log"
        command = [sys.executable, "-m", "deploy.cli", "up", "--data", str(data), "--port", "0"]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                [*within, *command, *arguments],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=stream,
                stderr=subprocess.STDOUT,
                umask=0o022,  # as most people have it
            )

    @property
    def url(self) -> str:
        """Printed once everything is ready."""
        wait_for(lambda: re.search(r"ready in [^:]*: (\S+)", self.output.read_text()), 90)
        return re.search(r"ready in [^:]*: (\S+)", self.output.read_text())[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, *words: str) -> psutil.Process:
        return next(
            p for p in psutil.Process(self.process.pid).children() if set(words) <= set(p.cmdline())
        )

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def up(tmp_path, checkpoint):
    made = []

    def start(within: tuple[str, ...] = (), **environment: str) -> Up:
        model = ("--model", str(checkpoint))
        made.append(Up(tmp_path / "data", *model, within=within, **environment))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def upload(url: str, **headers: str) -> dict:
    """An upload, taken in."""
    content = io.BytesIO()
    pq.write_table(make_table(10), content)
    answer = httpx.post(
        f"{url}/v1/observations", content=content.getvalue(), headers=headers, timeout=30
    )
    assert answer.status_code == 202, answer.text
    return ended(url + answer.headers["location"])


def ended(address: str) -> dict:
    ends = {"ingested", "rejected", "succeeded", "failed", "cancelled"}
    wait_for(lambda: httpx.get(address, timeout=30).json()["state"] in ends, 60)
    return httpx.get(address, timeout=30).json()


def submit(url: str, **values) -> str:
    body = {"kind": "filtering", "valid_time": "2024-01-01T12:00:00Z", "members": 2, "steps": 3}
    body |= {"outputs": ["netcdf"], **values}
    answer = httpx.post(f"{url}/v1/jobs", json=body, timeout=30)
    assert answer.status_code == 202, answer.text
    return url + answer.headers["location"]


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
    turned = total(found, "appa_process_last_turn_timestamp_seconds", part="scheduler")
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
    """A real server takes what is shown, answers every query, and no alert is raised."""
    text = httpx.get(f"{url}/metrics").text
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    with Prometheus(url, folder) as prometheus:
        answers = {where: prometheus.query(query) for where, query in queries().items()}
        assert not prometheus.raised()
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
    made = [sys.executable, "-m", "deploy.cli", "keys", "create", "a", "--scope", "admin"]
    subprocess.run(
        [*made, "--data", str(data)], cwd=REPOSITORY, umask=0o022, check=True, timeout=60
    )
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


@pytest.mark.skipif(not can_mount(), reason="file systems cannot be mounted here")
def test_a_full_disk_ends_no_part_and_uploads_go_on_when_there_is_room(tmp_path, up):
    folder = tmp_path / "data"
    folder.mkdir()
    stack = up(
        within=("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=32m none {folder}; exec "$@"', "-"),
        APPA_DISK_LOW_BYTES="0",
        APPA_MIN_FREE_BYTES="0",
        APPA_RETRY_BACKOFF_SECONDS="1",
        APPA_RETRY_BACKOFF_MAX_SECONDS="1",
        APPA_RESEND_SECONDS="2",
    )  # fmt: skip
    url = stack.url
    inside = Path(f"/proc/{stack.process.pid}/root{folder}")  # as the stack sees it
    fill(inside / "ballast")
    told = len(stack.output.read_text())
    while len(stack.output.read_text()) < told + 8_000:  # more than the log's last block holds
        answer = httpx.post(f"{url}/v1/observations", content=b"time,lat,lon\n", timeout=60)
        assert answer.status_code in (503, 507), answer.text
    stack.child("ingest").kill()
    wait_for(lambda: stack.output.read_text().count("restart in") == 1)
    assert stack.process.poll() is None
    (inside / "ballast").unlink()
    wait_for(lambda: _answers(f"{url}/health/ready"), 90)
    assert upload(url)["state"] == "ingested"
    assert "log lines were dropped: [Errno 28]" in (inside / "logs" / "appa.log").read_text()
    assert stack.interrupt() == 0


def test_killed_parts_come_back_and_jobs_survive_a_restart_of_all(up):
    stack = up(APPA_LEASE_SECONDS="2", APPA_SWEEP_SECONDS="0.3", APPA_RESEND_SECONDS="3")
    url = stack.url
    long = submit(url, steps=900)
    wait_for(lambda: httpx.get(long).json()["progress"]["step"] > 0)
    stack.child("gpu").kill()
    stack.child("gateway").kill()
    wait_for(lambda: "restart in" in stack.output.read_text())
    wait_for(lambda: _answers(f"{url}/health/ready"), 60)
    wait_for(lambda: httpx.get(long).json()["attempts"] == 2, 60)
    assert stack.interrupt() == 0  # in the middle of the second attempt
    before = stack.output.read_text()
    assert "model ended with -9" in before and "gateway ended with -9" in before

    again = up()
    job_id = long.rsplit("/", 1)[1]
    httpx.delete(f"{again.url}/v1/jobs/{job_id}")
    assert ended(f"{again.url}/v1/jobs/{job_id}")["state"] == "cancelled"
    following = ended(submit(again.url))
    assert following["state"] == "succeeded"
    assert again.interrupt() == 0


def test_one_data_folder_has_one_stack_and_other_servers_may_be_used(up, own_broker):
    stack = up(APPA_REDIS_URL=own_broker.url)
    url = stack.url
    assert not [p for p in stack.children() if "valkey-server" in p.name()]
    stores = open_stores(own_broker.url)
    wait_for(lambda: len(stores.workers.alive()) >= 3)
    assert len(httpx.get(f"{url}/v1/sources").json()) == 0
    file = SourceFile(Layout(stack.data).sources_file)
    file.add(name="away", broker=f"mqtt://127.0.0.1:{free_port()}", topics=["cache/#"])
    wait_for(lambda: httpx.get(f"{url}/v1/sources").json())  # the process of the feeds was started
    assert httpx.get(f"{url}/v1/sources").json()[0]["connected"] is False
    assert stack.child("worker", "sources").is_running()
    second = up(APPA_REDIS_URL=own_broker.url)
    assert second.process.wait(30) == 2
    assert "in use" in second.output.read_text()
    time.sleep(0.1)
    assert _answers(f"{url}/health/live")
    stores.redis.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False
