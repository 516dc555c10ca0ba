"""Real worker processes for tests, with times short enough to wait for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
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


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Returns as soon as `condition` holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.02)


@dataclass
class Processes:
    """Starts processes of one installation and ends them all."""

    redis_url: str
    prefix: str
    data: Path
    environment: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        own = {
            "APPA_REDIS_URL": self.redis_url,
            "APPA_REDIS_PREFIX": self.prefix,
            "APPA_DATA_DIR": str(self.data),
        }
        log = (self.data / f"log-{len(self.running)}.txt").open("w")
        process = subprocess.Popen(
            command,
            env={**os.environ, **QUICK, **self.environment, **own, **environment},
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self.running.append(process)
        return process

    def stub_worker(self, **environment: str) -> subprocess.Popen:
        return self.start(sys.executable, str(STUB), **environment)

    def appa(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return self.start(sys.executable, "-m", "deploy.cli", *arguments, **environment)

    def kill(self, process: subprocess.Popen) -> None:
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
