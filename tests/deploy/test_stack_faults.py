"""What happens to the parts of `appa up`: killed, out of disk, or in the way of another stack."""

import time
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from deploy.local import LocalStack, StackOptions, free_port
from tests.deploy.up import answers, ended, submit, upload
from tests.faults.full_disk import can_mount, fill
from tests.worker.processes import wait_for
from worker.contract.layout import Layout
from worker.contract.queues import QUEUES, SCHEDULER, WorkerReport
from worker.contract.store import open_stores
from worker.feeds.sources import SourceFile


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
    wait_for(lambda: answers(f"{url}/health/ready"), 90)
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
    wait_for(lambda: answers(f"{url}/health/ready"), 60)
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
    assert answers(f"{url}/health/live")
    stores.redis.close()


def test_what_is_not_ready_is_named(tmp_path):
    options = StackOptions(data=tmp_path / "data", port=0, quiet=True)
    stack = LocalStack(options)  # not entered, so no part is started
    assert not stack.wait_ready(1)
    stack.log.close()
    log = (tmp_path / "data" / "logs" / "appa.log").read_text()
    assert "not ready after 1 s: the gateway does not answer" in log


def test_registrations_of_killed_workers_make_no_stack_ready(tmp_path, own_broker, monkeypatch):
    stores = open_stores(own_broker.url)
    queues = [*QUEUES, SCHEDULER]

    def register(name: str) -> None:
        report = WorkerReport(name=name, queues=queues, ready=True)
        stores.workers.register(report, timedelta(hours=1))

    register("killed a moment ago")
    options = StackOptions(tmp_path / "data", port=0, quiet=True, redis_url=own_broker.url)
    stack = LocalStack(options)  # not entered, so no part is started
    stack.stores = stores
    monkeypatch.setattr("deploy.local._lives", lambda http: True)
    assert not stack.wait_ready(0.3)
    register("of this stack")
    assert stack.wait_ready(5)
    stack.log.close()
    assert "no ready worker of 'gpu'" in (tmp_path / "data" / "logs" / "appa.log").read_text()
    stores.redis.close()
