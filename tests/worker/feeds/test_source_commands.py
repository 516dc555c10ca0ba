"""`appa sources add|list|test|remove` with brokers as they are in the world: TLS, websockets, passwords."""

import json
import subprocess
import time
from contextlib import closing
from socket import create_connection

import pytest
from typer.testing import CliRunner

from deploy.cli import _message
from deploy.commands.sources import app
from deploy.local import free_port
from tests.worker.feeds.wis2 import TOPIC, Publisher, bulletin, notification
from tests.worker.processes import wait_for
from worker.contract.layout import Layout
from worker.feeds.sources import SourceFile

RUNNER = CliRunner()


def run(data, *arguments: str, status: int = 0) -> str:
    result = RUNNER.invoke(app, [*arguments, "--data", str(data)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        assert status == 2, result.exception
        return _message(result.exception) or repr(result.exception)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def secured(mosquitto):
    """The same broker with TLS, websockets and a password, each on its own port."""
    folder = mosquitto.settings.parent
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject,
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", str(folder / "users"), "everyone", "every@one"],
        check=True,
        capture_output=True,
    )
    ports = {"mqtts": free_port(), "ws": free_port(), "mqtt": free_port()}
    mosquitto.stop()
    mosquitto.settings.write_text(
        f"user root\nper_listener_settings true\nlistener {mosquitto.port} 127.0.0.1\n"
        f"allow_anonymous true\n"
        f"listener {ports['mqtts']}\nallow_anonymous true\ncertfile {folder}/cert.pem\n"
        f"keyfile {folder}/key.pem\nlistener {ports['ws']}\nprotocol websockets\n"
        f"allow_anonymous true\nlistener {ports['mqtt']}\nallow_anonymous false\n"
        f"password_file {folder}/users\n"
    )
    mosquitto.start()
    for port in ports.values():
        for _ in range(200):
            try:
                with closing(create_connection(("127.0.0.1", port), 1)):
                    break
            except OSError:
                time.sleep(0.01)
    return ports, folder / "cert.pem"


@pytest.fixture
def plain(secured, mosquitto):
    """A publisher on the port without password."""
    client = Publisher(mosquitto)
    yield client
    client.close()


def test_the_life_of_a_source(installation, cache, publisher):
    data = installation.layout.root
    broker = installation.broker.url.replace("//", "//me:secret@")
    given = ["--broker", broker, "--topic", "cache/a/wis2/#", "--host", "127.0.0.1", "--private"]
    assert "no sources" in run(data, "list")
    added = json.loads(run(data, "add", "gb", *given, "--set", "retry_seconds=0.1", "--json"))
    assert added["broker"] == installation.broker.url
    assert added["retry_seconds"] == 0.1
    assert Layout(data).sources_file.stat().st_mode & 0o077 == 0
    assert "there is a source 'gb' already" in run(data, "add", "gb", *given, status=2)
    assert "not running" in run(data, "list")
    installation.start()
    wait_for(lambda: installation.status("gb").connected)
    one = bulletin(400)
    publisher.publish(notification(one, cache.put("one", one), "io-appa/one"))
    publisher.publish(notification(one, f"{cache.url}/none", "io-appa/none"))
    publisher.publish(notification(one, "http://192.0.2.1/x", "io-appa/elsewhere"))
    wait_for(lambda: installation.status("gb").failures >= 1)
    wait_for(lambda: installation.status("gb").accepted == 1)
    (listed,) = json.loads(run(data, "list", "--refusals", "--json"))
    assert (listed["received"], listed["accepted"], listed["backlog"]) == (3, 1, 1)
    assert listed["connected"] and listed["lag_seconds"] > 0
    assert listed["refused"] == {"host_refused": 1}
    assert listed["newest_refusals"][0]["data_id"] == "io-appa/elsewhere"
    table = run(data, "list")
    assert "host_refused 1" in table and "connected" in table and "secret" not in table
    run(data, "remove", "gb")
    assert "Expected the name of a source; got 'gb'" in run(data, "remove", "gb", status=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--broker", "http://x"], "Expected mqtt://"),
        (["--topic", "a/#/b"], "expected a topic filter"),
        (["--host", "http://x/"], "expected a host name"),
        (["--protocol", "4"], "protocol"),
        (["--report-type", "nonsense"], "expected one of"),
        (["--set", "nonsense=1"], "nonsense"),
        (["--max-bytes", "0"], "max_bytes"),
    ],
)
def test_what_is_no_source(tmp_path, change, message):
    given = ["add", "x", "--broker", "mqtt://h", "--topic", "a/#"]
    for name in {"--broker", "--topic"} & set(change):
        place = given.index(name)
        del given[place : place + 2]
    assert message in run(tmp_path, *given, *change, status=2)
    assert SourceFile(Layout(tmp_path).sources_file).all() == {}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("scheme", ["mqtts", "ws", "mqtt"])
def test_brokers_as_they_are(installation, cache, secured, plain, scheme, protocol):
    ports, certificate = secured
    user = "everyone:every%40one@" if scheme == "mqtt" else ""
    given = {"mqtts": ["--ca-file", str(certificate)]}.get(scheme, [])
    data = installation.layout.root
    url = f"{scheme}://{user}localhost:{ports[scheme]}"
    run(
        data, "add", "gb", "--broker", url, "--topic", "cache/#", "--protocol", protocol,
        "--host", "127.0.0.1", "--private", *given,
    )  # fmt: skip
    one = bulletin(401)
    plain.retained(notification(one, cache.put("one", one), "io-appa/one"), TOPIC)
    out = run(data, "test", "gb", "--seconds", "10")
    assert "connected" in out and "cache/#: Granted QoS 1" in out
    assert f"{len(one)} bytes of bufr" in out and "checksum right" in out
    assert installation.uploads() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_brokers_that_refuse(installation, secured):
    ports, _ = secured
    data = installation.layout.root
    urls = {
        "wrong": f"mqtt://everyone:wrong@localhost:{ports['mqtt']}",
        "untrusted": f"mqtts://localhost:{ports['mqtts']}",
        "away": f"mqtt://localhost:{free_port()}",
    }
    for name, url in urls.items():
        run(data, "add", name, "--broker", url, "--topic", "cache/#")
    assert "Not authorized" in run(data, "test", "wrong", "--seconds", "2", status=1)
    untrusted = run(data, "test", "untrusted", "--seconds", "1", status=1)
    assert "no connection: " in untrusted and "self-signed certificate" in untrusted
    assert "Connection refused" in run(data, "test", "away", "--seconds", "1", status=1)
