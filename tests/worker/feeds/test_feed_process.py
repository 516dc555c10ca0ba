"""The process of the feeds between a real broker, a cache that fails, and the store of uploads."""

import base64
import gzip
import random
import signal
import time
from datetime import UTC, datetime, timedelta

from tests.worker.decoders.bufr_messages import synop
from tests.worker.feeds.wis2 import Publisher, bulletin, notification
from tests.worker.processes import wait_for
from worker.feeds.backlog import Backlog
from worker.feeds.sources import Source, SourceFile
from worker.observations.store.files import StoreFiles
from worker.observations.store.query import ObservationQuery, read_rows


def connected(installation, name: str = "wis2"):
    wait_for(lambda: installation.status(name).connected)


def test_announced_bulletins_are_uploads_of_the_source(installation, cache, publisher):
    source = installation.add()
    installation.start()
    connected(installation)
    data = [bulletin(i) for i in range(5)]
    for i, one in enumerate(data):
        name = f"A_ISMD01EDZW010600CCA_C_EDZW_{i}.bufr4"
        publisher.publish(notification(one, cache.put(name, one), f"io-appa/{i}"))
    wait_for(lambda: installation.status().accepted == 5)
    uploads = installation.uploads()
    assert sorted(installation.contents()) == sorted(data)
    assert {u.api_key for u in uploads} == {source.sender} == {"source:wis2"}
    assert {u.container for u in uploads} == {"bufr"}
    assert all("EDZW010600CCA" in u.file_name for u in uploads)
    lines = installation.processes.log().splitlines()
    for one in uploads:
        (line,) = [line for line in lines if one.id in line]
        assert one.request_id and f"request_id={one.request_id}" in line
    status = installation.status()
    assert (status.received, status.backlog, status.refused) == (5, 0, {})
    assert status.size == sum(map(len, data))
    assert 0 <= status.latency_seconds < 60


def test_announced_bulletins_become_rows_with_their_arrival(installation, cache, publisher):
    installation.add()
    installation.start()
    installation.processes.appa("worker", "ingest")
    connected(installation)
    begun = datetime.now(UTC)
    for number in (1, 2, 3):
        one = synop(stationNumber=number, airTemperature=280.0 + number)
        publisher.publish(notification(one, cache.put(f"t{number}", one), f"io-appa/t{number}"))
    wait_for(lambda: installation.stores.batches.count("ingested") == 3)
    hour = datetime(2026, 3, 1, 5, tzinfo=UTC)
    query = ObservationQuery(
        start=hour, end=hour + timedelta(hours=1), variables=("2m_temperature",), limit=100
    )
    rows = read_rows(StoreFiles.of(installation.layout), query).to_pylist()
    assert sorted(row["obs_value"] for row in rows) == [281.0, 282.0, 283.0]
    arrivals = {row["received_time"].replace(tzinfo=UTC) for row in rows}
    assert all(begun - timedelta(seconds=1) < t <= datetime.now(UTC) for t in arrivals)


def test_duplicates_from_several_caches_are_taken_once_over_restarts(
    installation, cache, publisher
):
    installation.add()
    process = installation.start()
    connected(installation)
    data = bulletin(1)
    first = notification(data, cache.put("a", data), "io-appa/1")
    again = notification(data, cache.put("b", data), "io-appa/1")
    publisher.publish(first)
    publisher.publish(first)
    publisher.publish(again)
    wait_for(lambda: installation.status().duplicates == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    publisher.publish(again)
    publisher.publish(notification(bulletin(2), cache.put("c", bulletin(2)), "io-appa/2"))
    installation.start()
    wait_for(lambda: installation.status().accepted == 2)
    assert installation.status().duplicates == 3
    assert sorted(installation.contents()) == sorted([data, bulletin(2)])
    assert cache.asked["/b"] == 0


def test_a_cache_that_fails_at_first_loses_nothing(installation, cache, publisher):
    installation.add(timeout_seconds=0.5)
    installation.start()
    connected(installation)
    late = [(404, b"", 0.0), (500, b"", 0.0), (503, b"", 0.0), (429, b"", 0.0)]
    wrong = (200, bulletin(999), 0.0)
    scripts = {
        "late": late,
        "slow": [(200, bulletin(11), 2.0)],
        "corrupt": [wrong, wrong],
        "short": [(200, bulletin(13)[:20], 0.0)],
    }
    data = {name: bulletin(10 + i) for i, name in enumerate(scripts)}
    for name, script in scripts.items():
        href = cache.put(name, data[name], *script)
        publisher.publish(notification(data[name], href, f"io-appa/{name}"))
    wait_for(lambda: installation.status().accepted == 4)
    assert sorted(installation.contents()) == sorted(data.values())
    assert {name: cache.asked[f"/{name}"] for name in scripts} == {
        "late": 5,
        "slow": 2,
        "corrupt": 3,
        "short": 2,
    }
    assert installation.status().failures == 4 + 1 + 2 + 1
    lines = installation.processes.log().splitlines()
    failed = [line for line in lines if "fetch failed" in line]
    asked = {upload.request_id for upload in installation.uploads()}
    assert len(failed) == 4 + 1 + 2 + 1
    assert all(any(f"request_id={one}" in line for one in asked) for line in failed)


def test_what_can_never_be_used_is_refused_by_reason(installation, cache, publisher):
    installation.add(max_bytes=20_000, give_up_hours=0.0001)
    installation.start()
    connected(installation)
    data = bulletin(20)
    big, plain = b"BUFR" + bytes(30_000), b"<html>not observations</html>"
    cache.redirects["/away"] = "http://192.0.2.1/away"
    hidden = cache.url.replace("127.0.0.1", "localhost") + "/x"
    messages = {
        "too_large": notification(big, cache.put("big", big), "io-appa/big"),
        "integrity": notification(data, cache.put("other", bulletin(21)), "io-appa/corrupt"),
        "wrong_format": notification(plain, cache.put("page", plain), "io-appa/page"),
        "not_found": notification(data, f"{cache.url}/gone", "io-appa/gone"),
        "http_403": notification(data, cache.put("no", b""), "io-appa/no"),
        "host_refused": notification(data, hidden, "io-appa/hidden"),
    }
    cache.answers["/no"] = [(403, b"", 0.0)]
    for message in messages.values():
        publisher.publish(message)
    unannounced = notification(big, cache.put("surprise", big), "io-appa/surprise")
    del unannounced["links"][0]["length"]
    publisher.publish(unannounced)
    publisher.publish(notification(data, f"{cache.url}/away", "io-appa/away"))
    publisher.publish(b"no message")
    publisher.publish(notification(data, cache.url, "x", conformsTo=["https://example.org"]))
    refused = {
        **dict.fromkeys(messages, 1),
        "too_large": 2,
        "host_refused": 2,
        "invalid_message": 2,
    }
    wait_for(lambda: installation.status().refused == refused)
    assert installation.uploads() == []
    assert installation.status().backlog == 0
    assert cache.asked["/x"] == 0


def test_small_data_come_inside_the_notification(installation, cache, publisher):
    installation.add()
    installation.start()
    connected(installation)
    data = [bulletin(i) for i in range(30, 33)]
    packed = gzip.compress(data[1])

    def inline(encoding: str, value: bytes) -> dict:
        return {
            "content": {
                "encoding": encoding,
                "size": len(value),
                "value": base64.b64encode(value).decode(),
            }
        }

    contents = [inline("base64", data[0]), inline("gzip", packed), inline("base64", b"damaged")]
    for i, (one, content) in enumerate(zip(data, contents, strict=True)):
        href = cache.put(f"inline-{i}", one)
        publisher.publish(notification(one, href, f"io-appa/inline-{i}", properties=content))
    wait_for(lambda: installation.status().accepted == 3)
    assert sorted(installation.contents()) == sorted(data)
    assert [cache.asked[f"/inline-{i}"] for i in range(3)] == [0, 0, 1]


def test_updates_replace_and_deletions_are_counted(installation, cache, publisher):
    installation.add()
    installation.start()
    connected(installation)
    old, new = bulletin(40), bulletin(41)
    publisher.publish(notification(old, cache.put("old", old), "io-appa/40"))
    wait_for(lambda: installation.status().accepted == 1)
    update = notification(
        new, cache.put("new", new), "io-appa/40", properties={"pubtime": "2999-01-01T00:00:00Z"}
    )
    update["links"][0]["rel"] = "update"
    publisher.publish(update)
    publisher.publish(update)
    deletion = notification(old, cache.url, "io-appa/40")
    deletion["links"][0]["rel"] = "deletion"
    publisher.publish(deletion)
    wait_for(lambda: installation.status().refused == {"deletion": 1})
    wait_for(lambda: installation.status().accepted == 2)
    assert sorted(installation.contents()) == sorted([old, new])
    assert installation.status().duplicates == 1
    uploads = installation.stores.batches.page().items
    assert [batch.version for batch in uploads] == [1, 0]  # newest first


def test_nothing_is_lost_or_taken_twice_through_kills_and_broker_restarts(
    installation, cache, mosquitto
):
    """Sixty bulletins, out of order, each told twice, while everything else goes down in turn."""
    installation.add(protocol="3.1.1")
    process = installation.start()
    connected(installation)
    data = {f"io-appa/{i}": bulletin(100 + i) for i in range(60)}
    order = [name for name in data for _ in range(2)]
    random.Random(5).shuffle(order)
    client = Publisher(mosquitto)
    for turn, name in enumerate(order):
        path = name.partition("/")[2]
        failing = [(500, b"", 0.0)] if turn % 7 == 0 else []
        if f"/{path}" not in cache.answers:
            cache.put(path, data[name], *failing)
        client.publish(notification(data[name], f"{cache.url}/{path}", name))
        if turn == 30:
            installation.processes.kill(process)  # offline: the session is kept
        if turn == 60:
            client.close()
            mosquitto.stop()
            mosquitto.start()  # sessions are on its disk
            client = Publisher(mosquitto)
        if turn == 75:
            process = installation.start()
        if turn == 90:
            installation.processes.kill(process)
            process = installation.start()
    client.close()
    wait_for(lambda: len(installation.uploads()) == 60 and installation.status().backlog == 0)
    assert sorted(installation.contents()) == sorted(data.values())
    status = installation.status()
    assert status.received - status.duplicates == 60
    assert status.refused == {}


def test_ten_minutes_without_broker_or_feed_lose_nothing(installation, cache, mosquitto):
    """MQTT 5, where a session ends after the time asked for; three minutes stand for a day.

    First the broker is away and the feed waits for it; what is published before the feed is back is
    kept. Then the feed is away for two seconds, which stand for a quarter of an hour, the broker
    restarts meanwhile, and some is told twice.
    """
    installation.add(session_hours=0.05)
    process = installation.start()
    connected(installation)
    data = {f"io-appa/{i}": bulletin(400 + i) for i in range(30)}
    told = [
        notification(one, cache.put(name.partition("/")[2], one), name)
        for name, one in data.items()
    ]

    def publish(messages: list[dict]) -> None:
        client = Publisher(mosquitto)
        for message in messages:
            client.publish(message)
        client.close()

    publish(told[:5])
    wait_for(lambda: installation.status().accepted == 5)
    mosquitto.stop()
    wait_for(lambda: not installation.status().connected)
    mosquitto.start()
    publish(told[:15])
    wait_for(lambda: installation.status().accepted == 15)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    publish(told[15:])
    mosquitto.stop()
    mosquitto.start()
    publish(told[10:])
    time.sleep(2)
    installation.start()
    wait_for(lambda: installation.status().accepted == 30 and installation.status().backlog == 0)
    assert sorted(installation.contents()) == sorted(data.values())
    status = installation.status()
    assert status.received - status.duplicates == 30
    assert status.duplicates >= 25


def test_a_full_backlog_holds_the_broker_back(installation, cache, publisher):
    """Ten may wait here and five be unconfirmed: the broker keeps the others until there is room."""
    installation.add(max_backlog=10, in_flight=5, fetches=1)
    installation.start(APPA_SOURCES_MAX_WAITING="1")
    connected(installation)
    data = [bulletin(200 + i) for i in range(40)]
    for i, one in enumerate(data):
        publisher.publish(notification(one, cache.put(f"f{i}", one), f"io-appa/f{i}"))
    wait_for(lambda: installation.status().backlog == 10 and installation.status().received == 11)
    status = installation.status()
    assert status.received == 11 and status.detail.startswith("paused: 1 uploads wait")
    installation.processes.end()
    installation.start()
    wait_for(lambda: installation.status().accepted == 40)
    assert sorted(installation.contents()) == sorted(data)
    assert cache.peak_together == 1


def test_what_is_published_without_guarantee_is_dropped_by_count(installation, cache, publisher):
    installation.add(max_backlog=5, fetches=1)
    installation.start(APPA_SOURCES_MAX_WAITING="1")
    connected(installation)
    data = [bulletin(250 + i) for i in range(31)]
    messages = [
        notification(one, cache.put(f"q{i}", one), f"io-appa/q{i}") for i, one in enumerate(data)
    ]
    publisher.publish(messages[0])
    wait_for(lambda: installation.status().detail.startswith("paused"))
    for message in messages[1:]:
        publisher.publish(message, qos=0)
    wait_for(lambda: installation.status().refused.get("overflow", 0) >= 20)
    assert installation.status().refused["overflow"] <= 25
    assert installation.status().backlog == 5


def test_sources_come_and_go_while_the_process_runs(installation, cache, publisher, mosquitto):
    installation.start()
    installation.add("one", topics=["cache/a/wis2/one/#"])
    connected(installation, "one")
    data = bulletin(300)
    publisher.publish(notification(data, cache.put("r", data), "io-appa/r"), "cache/a/wis2/one/x")
    wait_for(lambda: installation.status("one").accepted == 1)
    installation.processes.appa("sources", "remove", "one").wait(60)
    wait_for(lambda: installation.stores.sources.read() == [])
    publisher.publish(notification(data, cache.put("s", data), "io-appa/s"), "cache/a/wis2/one/x")
    second = installation.processes.appa("worker", "sources")
    assert second.wait(60) == 2
    assert "one is running" in installation.processes.log()


def test_a_source_that_cannot_start_harms_no_other(installation, cache, publisher):
    installation.add("broken", ca_file="/no/such/file", broker="mqtts://127.0.0.1:1")
    installation.add("good")
    process = installation.start()
    connected(installation, "good")
    assert "No such file" in installation.status("broken").detail
    data = bulletin(310)
    publisher.publish(notification(data, cache.put("x", data), "io-appa/x"))
    wait_for(lambda: installation.status("good").accepted == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert installation.status("good").detail == "stopped"
    SourceFile(installation.layout.sources_file).remove("good")
    installation.start()
    wait_for(lambda: "No such file" in installation.status("broken").detail)
    backlog = Backlog(installation.layout.backlog_file)
    assert backlog.status(Source(name="good", broker="mqtt://h", topics=["#"])).received == 0
    backlog.close()
