"""Published results as WIS2 notifications on a real broker: each once, whatever goes down."""

import json
import signal
import sqlite3
from contextlib import closing

import pytest

from model.domain.errors import ConfigurationError
from tests.worker.feeds.wis2 import Listener, manifest
from tests.worker.processes import wait_for
from worker.contract.events import EventType
from worker.contract.measures import Measures
from worker.settings import WorkerSettings
from worker.tasks.products import tell_published

TOPIC = "origin/a/wis2/io-appa/data/core/weather/prediction/analysis"


def announcing(mosquitto, **more: str) -> dict[str, str]:
    return {
        "APPA_WIS2_BROKER": mosquitto.url,
        "APPA_WIS2_TOPIC": TOPIC,
        "APPA_WIS2_URL": "https://appa.example.org",
        "APPA_WIS2_METADATA_ID": "urn:wmo:md:io-appa:analyses",
        **more,
    }


@pytest.fixture
def publish(installation):
    """Publish a result: its folder, then its event."""

    def published(name: str) -> None:
        result = manifest(id=name)
        folder = installation.layout.analysis(name)
        folder.mkdir(parents=True)
        installation.layout.manifest(name).write_text(result.model_dump_json())
        assert tell_published(installation.stores.events, result)

    return published


@pytest.fixture
def listener(mosquitto):
    client = Listener(mosquitto, "origin/#")
    yield client
    client.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_each_result_is_announced_once(installation, mosquitto, listener, publish, protocol):
    settings = announcing(mosquitto, APPA_WIS2_PROTOCOL=protocol)
    publish("an-before")  # older than the first start: not announced
    process = installation.start(**settings)
    wait_for(lambda: _started(installation))
    publish("an-1")
    wait_for(lambda: len(listener.messages) == 1)
    mosquitto.stop()
    publish("an-2")
    mosquitto.start()
    wait_for(lambda: len(listener.messages) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    publish("an-3")  # while nobody announces
    installation.stores.events.emit(EventType.CYCLE_FAILED, "a cycle", {})
    process = installation.start(**settings)
    wait_for(lambda: len(listener.messages) == 3)
    installation.stores.redis.delete(installation.stores.events.stream)  # Redis forgets
    for key in installation.stores.redis.keys(f"{installation.stores.keys.prefix}:told:*"):
        installation.stores.redis.delete(key)
    tell_published(installation.stores.events, manifest(id="an-3"))  # so it is told again
    publish("an-4")
    wait_for(lambda: len(listener.messages) == 4)
    ids = [m["properties"]["data_id"].rpartition("/")[2] for m in listener.messages]
    assert ids == ["an-1", "an-2", "an-3", "an-4"]
    assert len({m["id"] for m in listener.messages}) == 4
    measured = Measures(None, installation.stores.keys).key

    def counted(name: str, **labels: str) -> float:
        field = json.dumps([name, labels], separators=(",", ":"))
        return float(installation.stores.redis.hget(measured, field) or 0)

    wait_for(lambda: counted("appa_wis2_delay_seconds_count") == 4)
    assert counted("appa_wis2_announcements_total", outcome="sent") == 4


def test_kills_repeat_nothing(installation, mosquitto, listener, publish):
    """Kills hit the moment between delivery and note about once in four times."""
    process = installation.start(**announcing(mosquitto))
    wait_for(lambda: _started(installation))
    for turn in range(2):
        for number in range(40):
            publish(f"an-{turn}-{number}")
        wait_for(lambda least=40 * turn + 10: len(listener.messages) > least)
        installation.processes.kill(process)
        process = installation.start(**announcing(mosquitto))
    wait_for(lambda: len({m["id"] for m in listener.messages}) == 80)
    wait_for(lambda: _unsent(installation) == 0)
    assert len(listener.messages) == 80


def _unsent(installation) -> int:
    with closing(sqlite3.connect(installation.layout.backlog_file)) as db:
        query = "SELECT count(*) FROM announcements WHERE sent IS NULL"
        return db.execute(query).fetchone()[0]


def _started(installation) -> bool:
    """Whether the feeds know from where on results are announced."""
    try:
        with closing(sqlite3.connect(installation.layout.backlog_file)) as db:
            return bool(db.execute("SELECT 1 FROM marks WHERE name = 'announced'").fetchall())
    except sqlite3.OperationalError:  # not made yet
        return False


def test_announcing_needs_more_than_a_broker():
    with pytest.raises(ConfigurationError, match="APPA_WIS2_TOPIC, APPA_WIS2_METADATA_ID beside"):
        WorkerSettings(wis2_broker="mqtt://h", wis2_url="https://appa.example.org")
