"""A Global Broker and a Global Cache of our own: mosquitto in a process, HTTP on this machine."""

import base64
import hashlib
import json
import secrets
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from contextlib import closing, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from deploy.local import free_port
from tests.worker.decoders.bufr_messages import synop
from worker.contract.kinds import FilteringSpec
from worker.results.manifest import AnalysisManifest, ManifestFile

TOPIC = "cache/a/wis2/io-appa/data/core/weather/surface-based-observations/synop"


NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
DATA = b"BUFR and so on 7777"


def manifest(**changes) -> AnalysisManifest:
    digest = hashlib.sha256(DATA).hexdigest()
    files = [
        ManifestFile(
            name="ql.png", size=1, sha256=digest, media_type="image/png", role="quicklook"
        ),
        ManifestFile(
            name="appa_an_20250101T12Z_v1.nc",
            size=len(DATA),
            sha256=digest,
            media_type="application/netcdf",
        ),
    ]
    values = {
        "id": "an-1",
        "job_id": "job-1",
        "kind": "filtering",
        "valid_time": NOON,
        "times": [NOON],
        "files": files,
        "members": 4,
        "spec": FilteringSpec(valid_time=NOON),
    }
    return AnalysisManifest(**(values | changes))


def bulletin(number: int) -> bytes:
    """A SYNOP of a station of its own: no two are the same."""
    return synop(blockNumber=1 + number // 1000, stationNumber=number % 1000, airTemperature=280.0)


def notification(data: bytes, href: str, data_id: str, **changes) -> dict:
    """A message as a Global Cache publishes it, written by hand after the standard's examples."""
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    message = {
        "id": str(uuid.uuid4()),
        "conformsTo": ["http://wis.wmo.int/spec/wnm/1/conf/core"],
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [10.0, 50.0]},
        "properties": {
            "pubtime": now,
            "datetime": "2026-03-01T06:00:00Z",
            "data_id": data_id,
            "metadata_id": "urn:wmo:md:io-appa:synop",
            "integrity": {"method": "sha512", "value": digest},
        },
        "links": [
            {"href": href, "rel": "canonical", "type": "application/bufr", "length": len(data)}
        ],
    }
    message["properties"] |= changes.pop("properties", {})
    return {**message, **changes}


class Mosquitto:
    """The broker of the package mosquitto, which tests may stop, kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self.settings = folder / "mosquitto.conf"
        self.settings.write_text(
            f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n"
            "max_queued_messages 100000\nmax_inflight_messages 50\n"
        )

    def start(self) -> "Mosquitto":
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        log = (self._folder / "log").open("a")
        self.process = subprocess.Popen([program, "-c", str(self.settings)], stderr=log)
        log.close()
        for _ in range(500):
            try:
                with closing(create_connection(("127.0.0.1", self.port), 1)):
                    return self
            except OSError:
                time.sleep(0.01)
        raise AssertionError("mosquitto does not start")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


class Publisher:
    """A client of the broker that publishes, as a Global Cache does."""

    def __init__(self, broker: Mosquitto) -> None:
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            f"cache-{secrets.token_hex(4)}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def publish(self, message: dict | bytes, topic: str = TOPIC, qos: int = 1) -> None:
        payload = message if isinstance(message, bytes) else json.dumps(message)
        self._client.publish(topic, payload, qos=qos).wait_for_publish(10)

    def retained(self, message: dict, topic: str = TOPIC) -> None:
        """Publish a message that every later subscriber gets at once."""
        payload = json.dumps(message)
        self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Listener:
    """A subscriber that keeps every message it gets."""

    def __init__(self, broker: Mosquitto, topic: str) -> None:
        self.messages: list[dict] = []
        self._ready = threading.Event()
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            "listener",
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=False,
        )
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda c, *_: c.subscribe(topic, qos=2)
        client.on_subscribe = lambda *_: self._ready.set()
        client.on_message = lambda c, u, m: self.messages.append(json.loads(m.payload))
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


Answer = tuple[int, bytes, float]
"""Status, body, and seconds before it is sent."""


class Cache:
    """An HTTP server whose answers are scripted per path: each in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.redirects: dict[str, str] = {}
        self.together = 0
        self.peak_together = 0
        self._turn = threading.Lock()
        cache = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                cache._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, name: str, data: bytes, *before: Answer) -> str:
        """Serve `data`, after other answers; return its URL."""
        self.answers[f"/{name}"] = [*before, (200, data, 0.0)]
        return f"{self.url}/{name}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        with self._turn:
            self.asked[request.path] += 1
            self.together += 1
            self.peak_together = max(self.peak_together, self.together)
            script = self.answers.get(request.path, [(404, b"", 0.0)])
            status, body, seconds = script.pop(0) if len(script) > 1 else script[0]
        time.sleep(seconds)
        with self._turn:
            self.together -= 1
        request.send_response(302 if request.path in self.redirects else status)
        if request.path in self.redirects:
            request.send_header("Location", self.redirects[request.path])
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        with suppress(OSError):  # the feed has had enough
            request.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
