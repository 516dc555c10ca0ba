"""`make audit`: secrets in a checkout of git, advisories of a service that speaks OSV over HTTP."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"
ADVISORY = {
    "id": "PYSEC-2099-1",
    "summary": "It opens the door.",
    "affected": [{"package": {"name": "door", "ecosystem": "PyPI"}}],
}


class Advisories(ThreadingHTTPServer):
    """Knows one advisory, against `door` 1.0; `lost_after` answers it is gone."""

    def __init__(self) -> None:
        self.lost_after = 1000
        self.asked: list[str] = []
        advisories = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name = query["package"]["name"]
                advisories.asked.append(name)
                known = (name, query["version"]) == ("door", "1.0")
                body = json.dumps({"vulns": [ADVISORY]} if known else {}).encode()
                self.send_response(503 if len(advisories.asked) > advisories.lost_after else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/query"


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    with Advisories() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "constraints.txt").write_text("window==2.0\n")
    (tmp_path / "settings.py").write_text("PASSWORD = 'user:password@host'\n")
    (tmp_path / "array.bin").write_bytes(b"\0" * 100)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    return tmp_path


def audit(folder: Path, url: str) -> tuple[int, str]:
    environment = {**os.environ, "PIP_AUDIT_OSV_URL": url}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def test_nothing_is_found(checkout: Path, advisories: Advisories) -> None:
    code, said = audit(checkout, advisories.url)
    assert code == 0, said
    assert "none in 2 files" in said and "No known vulnerabilities" in said
    assert "window" in advisories.asked


def test_an_advisory_is_a_failure(checkout: Path, advisories: Advisories) -> None:
    (checkout / "constraints.txt").write_text("window==2.0\ndoor==1.0\n")
    code, said = audit(checkout, advisories.url)
    assert (code, "PYSEC-2099-1" in said) == (1, True), said


def test_without_the_service_it_says_so(checkout: Path, advisories: Advisories) -> None:
    code, said = audit(checkout, "http://127.0.0.1:9/v1/query")
    assert code == 0 and "advisories: skipped, http://127.0.0.1:9" in said
    advisories.lost_after = 1  # while it is being asked
    code, said = audit(checkout, advisories.url)
    assert code == 0 and "answered with 503" in said, said


def test_pins_that_cannot_be_read_are_a_failure(checkout: Path, advisories: Advisories) -> None:
    (checkout / "constraints.txt").write_text("window>=2\n")
    assert audit(checkout, advisories.url)[0] == 1


def test_a_secret_is_a_failure(checkout: Path) -> None:
    header = "-----BEGIN RSA " + "PRIVATE KEY-----"
    (checkout / "settings.py").write_text(f'KEY = """{header}\\nMIIE"""\n')
    code, said = audit(checkout, "http://127.0.0.1:9/v1/query")
    assert (code, "settings.py:1" in said) == (1, True), said
