"""Senders try again, in order, and know what was certainly refused and what was doubtful."""

import json
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from planted import HOUR, SCENARIO

from deploy.local import free_port
from lab.rehearsal.content import DeliveryContent
from lab.rehearsal.scenario import delivery_plan
from lab.rehearsal.sender import ReportSender
from worker.contract.clock import Clock
from worker.contract.records import utc_now

PLAN = delivery_plan(SCENARIO)[:6]


@dataclass
class Gateway:
    """Takes uploads; the first few are swallowed: the connection ends without an answer."""

    port: int
    swallow: int = 0
    received: list[bytes] = field(default_factory=list)

    def handler(self):
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gateway.received.append(body)
                if gateway.swallow > 0:
                    gateway.swallow -= 1
                    self.close_connection = True
                    return
                batch = {
                    "id": f"batch-{body.decode()}",
                    "sha256": "0" * 64,
                    "size": len(body),
                    "container": "bufr",
                    "state": "received",
                    "created": utc_now().isoformat(),
                }
                answer = json.dumps(batch).encode()
                self.send_response(202)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        return Handler

    def serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


def make_sender(port: int, contents) -> ReportSender:
    # long after all planned times: every file is due at once
    clock = Clock(SCENARIO.start + 30 * HOUR, time.time(), 1.0)
    return ReportSender(f"http://127.0.0.1:{port}", PLAN, contents, clock, None)


@pytest.fixture
def contents():
    return {d.name: DeliveryContent(d.name.encode(), np.zeros(1, np.int64)) for d in PLAN}


def test_files_wait_in_order_for_a_gateway_that_is_away(contents):
    gateway = Gateway(free_port())
    sender = make_sender(gateway.port, contents)
    sender.start()
    time.sleep(0.5)
    server = gateway.serve()
    sender.join(20)
    server.shutdown()
    server.server_close()
    assert sender.error is None
    names = [d.name for d in PLAN]
    assert [s.name for s in sender.sendings] == names
    assert [body.decode() for body in gateway.received] == names
    assert [s.batch_id for s in sender.sendings] == [f"batch-{n}" for n in names]
    assert sender.sendings[0].refused > 0 and sender.sendings[1].refused == 0
    # what was refused was not underway: only the last try counts
    first = sender.sendings[0]
    assert first.acknowledged - first.tried < timedelta(seconds=5)


def test_a_lost_answer_leaves_doubt_since_the_first_try(contents):
    gateway = Gateway(free_port(), swallow=2)
    server = gateway.serve()
    sender = make_sender(gateway.port, contents)
    sender.start()
    sender.join(20)
    server.shutdown()
    server.server_close()
    assert sender.error is None
    assert [body.decode() for body in gateway.received[:3]] == [PLAN[0].name] * 3
    assert sender.sendings[0].refused == 0
    # two pauses between the three tries lie in the doubtful time
    assert sender.sendings[0].acknowledged - sender.sendings[0].tried > timedelta(seconds=0.3)


def test_a_file_without_content_is_not_sent(contents):
    contents[PLAN[2].name] = DeliveryContent(b"", np.zeros(0, np.int64))
    gateway = Gateway(free_port())
    server = gateway.serve()
    sender = make_sender(gateway.port, contents)
    sender.start()
    sender.join(20)
    server.shutdown()
    server.server_close()
    assert [s.name for s in sender.sendings] == [d.name for i, d in enumerate(PLAN) if i != 2]
