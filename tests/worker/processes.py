"""Real worker processes for tests, with times short enough to wait for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.warm_start import KINDS, REPOSITORY, Fork, start_warm

STUB = REPOSITORY / "tests" / "worker" / "stubs" / "gpu_worker.py"
QUICK = {
    "APPA_LEASE_SECONDS": "2.0",
    "APPA_SWEEP_SECONDS": "0.2",
    "APPA_RESEND_SECONDS": "1.0",
    "APPA_RETRY_BACKOFF_SECONDS": "0",
    "APPA_REPORT_SECONDS": "0.3",
    "APPA_PROGRESS_SECONDS": "0.05",
    "APPA_LOG_LEVEL": "INFO",
    "OMP_NUM_THREADS": "1",
}

FORKED_AS = {"ingest-large": "ingest", "products": "ingest", "gpu": "model"}
"""The kind of a worker's fork, where it is not called as its queue."""

Process = subprocess.Popen | Fork


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Returns soon after `condition` holds; fails after `seconds`.

    It looks often at first and ten times a second in the end: each look takes processor time from
    the processes that are waited for.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        assert waited < seconds, f"nothing after {seconds} s"
        time.sleep(min(max(0.02, waited / 50), 0.1))


@dataclass
class Processes:
    """Starts processes of one installation and ends them all."""

    redis_url: str
    prefix: str
    data: Path
    environment: dict[str, str] = field(default_factory=dict)
    running: list[Process] = field(default_factory=list)

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        """Start a program that is no process of ours."""
        whole = self._environment(environment)
        with self._log() as log:
            process = subprocess.Popen(
                command,
                env=whole,
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def _fork(self, kind: str, arguments: list[str], environment: dict[str, str]) -> Fork:
        with self._log() as log:
            process = start_warm(kind, arguments, self._environment(environment), log, session=True)
        self.running.append(process)
        return process

    def _environment(self, wanted: dict[str, str]) -> dict[str, str]:
        own = {
            "APPA_REDIS_URL": self.redis_url,
            "APPA_REDIS_PREFIX": self.prefix,
            "APPA_DATA_DIR": str(self.data),
        }
        return {**os.environ, **QUICK, **self.environment, **own, **wanted}

    def _log(self) -> IO[str]:
        return (self.data / f"log-{len(self.running)}.txt").open("w")

    def stub_worker(self, **environment: str) -> Fork:
        return self._fork("stub", [str(STUB)], environment)

    def appa(self, *arguments: str, **environment: str) -> Process:
        command, *rest = arguments
        kind = FORKED_AS.get(rest[0], rest[0]) if command == "worker" else command
        if kind in KINDS:
            return self._fork(kind, ["deploy.cli", *arguments], environment)
        return self.start(sys.executable, "-m", "deploy.cli", *arguments, **environment)

    def kill(self, process: Process) -> None:
        """As `kill -9` does: process and children are gone at once."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self) -> str:
        """What all of them said."""
        return "\n".join(p.read_text() for p in sorted(self.data.glob("log-*.txt")))

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                self.kill(process)
