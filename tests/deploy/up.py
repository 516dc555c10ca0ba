"""`appa up` as a user runs it, and what one does with it: upload, submit, wait."""

import io
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq

from tests.worker.processes import REPOSITORY, wait_for
from tests.worker.tables import make_table


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
        """Return the address that is printed once everything is ready, and wait for it."""
        wait_for(lambda: re.search(r"ready in [^:]*: (\S+)", self.output.read_text()), 90)
        return re.search(r"ready in [^:]*: (\S+)", self.output.read_text())[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, *words: str) -> psutil.Process:
        """The process of a part by words of its command, which its own children share."""
        found = {}
        for process in self.children():
            with suppress(psutil.Error):  # it has ended
                if set(words) <= set(process.cmdline()):
                    found[process.pid] = process
        return next(one for one in found.values() if one.ppid() not in found)

    def interrupt(self) -> int:
        """Send what Ctrl-C sends, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


def upload(url: str, **headers: str) -> dict:
    """Post a table and return its record once it is in the store."""
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


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False
