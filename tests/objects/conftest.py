"""An S3 server with a bucket, and data folders whose results and uploads lie in it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import up
from tests.objects.s3_server import S3Server
from tests.service.conftest import start_gateway, valkey_url_shared
from tests.worker.conftest import own_broker, prefix, processes, shared_broker, stores
from worker.contract.layout import Layout

__all__ = [
    "own_broker",
    "prefix",
    "processes",
    "shared_broker",
    "start_gateway",
    "stores",
    "up",
    "valkey_url_shared",
]

MakeLayout = Callable[..., Layout]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    running = S3Server()
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    running.close()


@pytest.fixture
def machine(server: S3Server, tmp_path: Path) -> MakeLayout:
    """Makes the data folder of one more machine that shares nothing but the bucket."""
    made = 0

    def make(**values: int) -> Layout:
        nonlocal made
        made += 1
        folder = tmp_path / f"machine-{made}"
        return Layout(folder, server.url, uploads_url=server.uploads_url, **values).create()

    return make
