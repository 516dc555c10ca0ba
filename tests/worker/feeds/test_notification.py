"""Notification messages against the standard and the reference tools of WIS2 (pywis-pubsub)."""

import base64
import gzip
import hashlib
import json
import sqlite3
import uuid
import warnings
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from model.domain.errors import DecodeError, InvalidInput
from tests.worker.feeds.wis2 import DATA, NOON, manifest, notification
from worker.feeds.announcements import notification_of
from worker.feeds.backlog import Backlog, Received
from worker.feeds.notification import InlineContent, Integrity, MismatchedData, parse
from worker.feeds.sources import Source, parse_broker, valid_filter
from worker.settings import WorkerSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it leaves a temporary folder to the garbage collector
    from pywis_pubsub.ets import WNMTestSuite
    from pywis_pubsub.publish import create_message, generate_checksum
    from pywis_pubsub.verification import data_verified

METHODS = ["sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"]


SOURCE = Source(name="gb", broker="mqtt://h", topics=["cache/#"])


@pytest.fixture(scope="module")
def backlog(tmp_path_factory):
    opened = Backlog(tmp_path_factory.mktemp("backlog") / "backlog.sqlite")
    yield opened
    opened.close()


def settings() -> WorkerSettings:
    return WorkerSettings(
        wis2_broker="mqtt://127.0.0.1",
        wis2_topic="origin/a/wis2/io-appa/data/core/weather/prediction/analysis",
        wis2_url="https://appa.example.org/",
        wis2_metadata_id="urn:wmo:md:io-appa:analyses",
    )


def test_a_backlog_of_before_versions_counts_them_from_now_on(tmp_path):
    path = tmp_path / "backlog.sqlite"
    Backlog(path).close()
    with closing(sqlite3.connect(path)) as old:
        old.execute("ALTER TABLE items DROP COLUMN version")
    backlog = Backlog(path)
    for number, rel in enumerate(("canonical", "update", "update")):
        told = notification(
            b"x", "https://h/1", "id/1", properties={"pubtime": f"2025-01-01T0{number}:00:00Z"}
        )
        told["links"][0]["rel"] = rel
        backlog.take(SOURCE, [Received(parse(json.dumps(told).encode()), 1.0)])
        [item] = backlog.due(SOURCE.name, 9, (), 2e9)
        assert item.version == number
    backlog.close()


def test_our_announcements_pass_the_test_suite_of_wis2():
    document = json.loads(notification_of(manifest(), settings()).to_json())
    suite = WNMTestSuite(document)
    results = [
        getattr(suite, name)()
        for name in dir(suite)
        if name.startswith("test_requirement") and name != "test_requirement_validation"
    ]  # its schema is not part of the package
    assert len(results) >= 7
    assert {result["code"] for result in results} == {"PASSED"}
    properties, link = document["properties"], document["links"][0]
    assert link["href"] == ("https://appa.example.org/v1/analyses/an-1/appa_an_20250101T12Z_v1.nc")
    integrity = properties["integrity"]
    assert data_verified(DATA, link["length"], integrity["method"], integrity["value"])
    assert properties["data_id"] == ("io-appa/data/core/weather/prediction/analysis/an-1")
    assert properties["datetime"] == "2025-01-01T12:00:00Z"
    assert document["geometry"]["coordinates"][0][0] == [-180, -90]
    assert len(json.dumps(document)) < 8192


def test_an_announcement_is_the_same_message_whenever_it_is_made():
    fixed = manifest(created=NOON)
    assert (
        notification_of(fixed, settings()).to_json() == notification_of(fixed, settings()).to_json()
    )
    other = notification_of(manifest(id="an-2"), settings())
    assert other.id != notification_of(fixed, settings()).id
    span = manifest(times=[NOON, NOON.replace(hour=18)])
    properties = json.loads(notification_of(span, settings()).to_json())["properties"]
    assert properties["start_datetime"] == "2025-01-01T12:00:00Z"
    assert properties["end_datetime"] == "2025-01-01T18:00:00Z"
    assert "datetime" not in properties


@pytest.mark.parametrize("method", METHODS)
def test_every_checksum_of_the_standard(method):
    value = base64.b64encode(hashlib.new(method.replace("sha3-", "sha3_"), DATA).digest()).decode()
    Integrity(method=method, value=value).check(DATA)
    for wrong in (DATA[:-1], b"", DATA + b" "):
        with pytest.raises(MismatchedData, match=f"with the {method} checksum"):
            Integrity(method=method, value=value).check(wrong)
    with pytest.raises(MismatchedData):
        Integrity(method=method, value="not base64").check(DATA)


def test_messages_of_the_reference_tool_are_read():
    about = {
        "url": "https://cache.example.org/data/A_ISMD01.bufr4",
        "filename": "A_ISMD01.bufr4",
        "checksum_value": generate_checksum(DATA, "sha512"),
        "checksum_type": "sha512",
        "size": len(DATA),
        "data": base64.b64encode(DATA).decode(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # utcnow
        message = create_message(
            "io-appa/synop", "application/bufr", about, str(uuid.uuid4()), inline=True,
            geometry=[10.0, 50.0], datetime_="2026-03-01T06:00:00Z", operation="update",
        )  # fmt: skip
    found = parse(json.dumps(message).encode())
    assert found.updates and found.properties.data_id == "io-appa/synop/A_ISMD01.bufr4"
    assert [link.href for link in found.data_links] == [about["url"]]
    data = found.properties.content.decode(1000)
    assert data == DATA
    found.properties.integrity.check(data)


def changed(path: str, value: object = None, *, drop: bool = False) -> dict:
    message = notification(DATA, "https://cache.example.org/a.bufr4", "io-appa/1")
    *way, last = path.split(".")
    place = message
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    if drop:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return message


def test_what_a_message_says():
    found = parse(json.dumps(changed("properties.producer", "io-other")).encode())
    assert found.properties.data_id == "io-appa/1"
    assert [link.length for link in found.data_links] == [len(DATA)]
    assert found.file_name == "a.bufr4"
    assert not found.deletes and not found.updates
    old = changed("conformsTo", drop=True) | {"version": "v04"}
    assert parse(json.dumps(old).encode()).properties.data_id == "io-appa/1"


PLAIN, CORRECTED = "A_ISMD01EDZW021200_C_EDZW.bufr4", "A_ISMD01EDZW021200CCA_C_EDZW.bufr4"


@pytest.mark.parametrize(
    ("link", "data_id", "expected"),
    [
        ("d41d8cd9.bufr4", CORRECTED, CORRECTED),
        (PLAIN, CORRECTED, CORRECTED),
        (CORRECTED, PLAIN, CORRECTED),
        (CORRECTED, "1", CORRECTED),
        ("d41d8cd9.bufr4", "1", "d41d8cd9.bufr4"),
        ("A_ISMD02EDZW021200_C_EDZW.bufr4", CORRECTED, "A_ISMD02EDZW021200_C_EDZW.bufr4"),
    ],
)
def test_the_name_that_tells_a_correction_counts(link, data_id, expected):
    """Caches may call a file by its checksum: the heading then stands in the identifier alone."""
    message = notification(DATA, f"https://cache.example.org/{link}", f"de-dwd/synop/{data_id}")
    assert parse(json.dumps(message).encode()).file_name == expected


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (changed("id", "17"), "id"),
        (changed("type", "Point"), "type"),
        (changed("geometry", drop=True), "geometry"),
        (changed("conformsTo", ["x"]), "message"),
        (changed("properties.data_id", drop=True), "properties.data_id"),
        (changed("properties.pubtime", "yesterday"), "properties.pubtime"),
        (changed("properties.pubtime", "2026-03-01T06:00:00"), "properties.pubtime"),
        (changed("properties.pubtime", 1772344800), "properties.pubtime"),
        (changed("properties.integrity.method", "md5"), "properties.integrity.method"),
        (changed("properties.content", {"encoding": "base64", "size": 5000, "value": ""}),
         "properties.content.size"),
        (changed("links", []), "links"),
        (changed("links.0.rel", "license"), "message"),
        (changed("links.0.href", "ftp://cache.example.org/a"), "message"),
        (changed("links.0.href", "http://[::1/a"), "message"),
        (changed("links.0.href", "http:///a"), "message"),
        (changed("links.0.href", "http://h:99999/a"), "message"),
        (changed("links.0.length", -1), "links.0.length"),
    ],
)  # fmt: skip
def test_what_is_no_message(message, field):
    with pytest.raises(InvalidInput) as caught:
        parse(json.dumps(message).encode())
    assert caught.value.context["field"] == field


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_payloads_that_are_no_json(payload):
    with pytest.raises(InvalidInput, match="Expected a"):
        parse(payload)


def test_inline_content_that_grows_without_bound_is_stopped():
    bomb = base64.b64encode(gzip.compress(bytes(2_000_000))).decode()
    content = InlineContent(encoding="gzip", size=100, value=bomb[:4096])
    assert len(bomb) < 4096
    with pytest.raises(DecodeError, match="at most 10000 bytes"):
        content.decode(10_000)
    with pytest.raises(DecodeError, match="ends too early"):
        InlineContent(encoding="gzip", size=9, value=bomb[:40]).decode(10_000)
    assert InlineContent(encoding="utf-8", size=5, value="Grüße").decode(100) == "Grüße".encode()


@pytest.mark.parametrize(
    ("topic", "valid"),
    [
        ("cache/a/wis2/#", True),
        ("#", True),
        ("+/a/+", True),
        ("", False),
        ("cache/#/a", False),
        ("cache/a#", False),
        ("cache/a+/b", False),
        ("a\0b", False),
    ],
)
def test_topic_filters(topic, valid):
    assert valid_filter(topic) is valid


def test_brokers():
    broker = parse_broker("mqtts://everyone:every%40one@gb.example.org")
    assert (broker.host, broker.port) == ("gb.example.org", 8883)
    assert (broker.tls, broker.websocket) == (True, False)
    assert (broker.username, broker.password) == ("everyone", "every@one")
    socket = parse_broker("wss://gb.example.org/mqtt5")
    assert (socket.port, socket.path, socket.tls, socket.websocket) == (443, "/mqtt5", True, True)
    for wrong in ("http://gb.example.org", "mqtt://", "gb.example.org", "mqtt://h:99999"):
        with pytest.raises(InvalidInput, match="Expected mqtt://"):
            parse_broker(wrong)


def test_hosts_and_secrets_of_a_source():
    source = Source(
        name="gb",
        broker="mqtts://me:secret@gb.example.org",
        topics=["cache/#"],
        hosts=["cache.example.org", "*.Example.COM"],
    )
    assert source.address == "mqtts://gb.example.org"
    assert "secret" not in repr(source)
    allowed = {"cache.example.org", "Cache.Example.org.", "a.b.example.com"}
    refused = {"example.com", "cache.example.org.evil.net", "evilexample.com", "127.0.0.1"}
    assert {host for host in allowed | refused if source.allows(host)} == allowed


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
    | st.sampled_from(["http://[", "https://h/%ff", "9999-12-31T23:59:59-14:00", "gzip", "update"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
PLACES = [
    "id", "type", "conformsTo", "geometry", "properties", "links", "links.0", "links.0.href",
    "links.0.rel", "links.0.length", "properties.pubtime", "properties.data_id",
    "properties.datetime", "properties.integrity", "properties.integrity.value",
    "properties.content",
]  # fmt: skip


@given(st.sampled_from(PLACES), ODD)
@settings_(max_examples=300, deadline=None)
def test_whatever_is_sent_is_stored_or_refused(backlog, path, value):
    """One message that ends the feed would come again for ever."""
    payload = json.dumps(changed(path, value)).encode()
    try:
        received = Received(parse(payload), 1e9)
    except InvalidInput:
        return
    backlog.take(SOURCE, [received])
    assert backlog.due(SOURCE.name, 10, [], 2e9)
