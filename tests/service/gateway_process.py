"""A gateway in a process of its own."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.warm_start import Fork, start_warm
from worker.contract.layout import Layout

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class GatewayProcess:
    """`python -m service` with its own prefix in Redis and its own data folder."""

    redis_url: str
    data_dir: Path
    prefix: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | Fork | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def layout(self) -> Layout:
        return Layout(self.data_dir)

    @property
    def log(self) -> str:
        return (self.data_dir / "gateway.log").read_text()

    def start(self, command: list[str] | None = None) -> "GatewayProcess":
        self.layout.create()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("APPA_")},
            "APPA_PORT": str(self.port),
            "APPA_REDIS_URL": self.redis_url,
            "APPA_REDIS_PREFIX": self.prefix,
            "APPA_DATA_DIR": str(self.data_dir),
            "APPA_LOG_FORMAT": "json",
            "APPA_LOG_LEVEL": "DEBUG",
            "APPA_MIN_FREE_BYTES": "0",
            **self.environment,
        }
        with (self.data_dir / "gateway.log").open("ab") as log:
            if command is None:
                self.process = start_warm("gateway", ["service"], environment, log)
            else:
                self.process = subprocess.Popen(
                    command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log
                )
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"gateway ended at start:\n{self.log}")
            try:
                httpx.get(f"{self.url}/health/live", timeout=5)
                return self
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError(f"gateway did not start:\n{self.log}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


StartGateway = Callable[..., GatewayProcess]
