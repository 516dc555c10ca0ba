"""A broker, a cache, and the process of the feeds as it runs in operation."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.feeds.wis2 import TOPIC, Cache, Mosquitto, Publisher
from worker.contract.batches import BatchRecord
from worker.contract.feeds import SourceStatus
from worker.contract.layout import Layout
from worker.contract.store import Stores
from worker.feeds.sources import Source, SourceFile


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    if not shutil.which("mosquitto") and not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("mosquitto is not installed")
    broker = Mosquitto(tmp_path / "mosquitto").start()
    yield broker
    broker.stop()


@pytest.fixture
def cache() -> Iterator[Cache]:
    server = Cache()
    yield server
    server.close()


@pytest.fixture
def publisher(mosquitto: Mosquitto) -> Iterator[Publisher]:
    client = Publisher(mosquitto)
    yield client
    client.close()


class Installation:
    """What the tests ask of an installation with feeds."""

    def __init__(self, stores: Stores, processes, mosquitto: Mosquitto) -> None:
        self.stores = stores
        self.processes = processes
        self.broker = mosquitto
        self.layout = Layout(processes.data).create()

    def add(self, name: str = "wis2", **values) -> Source:
        given = {
            "broker": self.broker.url,
            "topics": ["cache/a/wis2/#"],
            "hosts": ["127.0.0.1"],
            "private": True,
            "retry_seconds": 0.1,
            "retry_max_seconds": 0.5,
        }
        return SourceFile(self.layout.sources_file).add(name=name, **(given | values))

    def start(self, **environment: str):
        return self.processes.appa("worker", "sources", **environment)

    def status(self, name: str = "wis2") -> SourceStatus:
        found = {status.name: status for status in self.stores.sources.read()}
        return found.get(name, SourceStatus(name=name))

    def uploads(self) -> list[BatchRecord]:
        ids = self.stores.batches.ids("received")
        return [self.stores.batches.get(one) for one in ids]

    def contents(self) -> list[bytes]:
        return [self.layout.raw_file(batch.id).read_bytes() for batch in self.uploads()]


@pytest.fixture
def installation(stores, processes, mosquitto) -> Installation:
    return Installation(stores, processes, mosquitto)


__all__ = ["TOPIC", "Installation"]
