"""Signatures of webhooks, judged by the reference implementation of Standard Webhooks."""

from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook

from worker.contract.webhooks import (
    AddressRefused,
    check_url,
    is_public,
    new_secret,
    sign,
    signed_headers,
)

BODY = '{"type": "analysis.published", "data": {"name": "Zürich"}}'.encode()
NOW = 1_735_732_800


def test_the_reference_signs_alike():
    secret = new_secret()
    moment = datetime.fromtimestamp(NOW, UTC)
    assert sign(secret, "evt_1", NOW, BODY) == Webhook(secret).sign("evt_1", moment, BODY.decode())


def test_headers_name_the_message_its_time_and_signature():
    secret = new_secret()
    headers = signed_headers(secret, "evt_1", NOW, BODY)
    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(NOW),
        "webhook-signature": sign(secret, "evt_1", NOW, BODY),
    }


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # metadata of clouds
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b:1::8.8.8.8", False),  # translation within a network
        ("64:ff9b:1:ffff::7f00:1", False),
        ("fec0::1", False),  # site-local
        ("feff::1", False),
        ("::127.0.0.1", False),  # IPv4-compatible
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),  # IPv4-translated
        ("::ffff:192.0.0.8", False),
        ("192.0.0.8", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("100::1", False),
        ("100:0:0:1::1", False),
        ("2001:2::1", False),
        ("2001:20::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("4000::1", False),
        ("2001:4860:4860::8888", True),
        ("2606:4700::1111", True),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "ftp://8.8.8.8/x",
        "file:///etc/passwd",
        "http://",
        "http://8.8.8.8:99999/",
        "http://user:word@8.8.8.8/",
        "http://8.8.8.8/#part",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://[::1]/",
        "http://localhost/",
        "http://exa mple.org/",
        "http://example..org/",
        "http://.org/",
        f"http://{'a' * 64}.org/",
        f"http://{'a.' * 127}org/",
        "http://8.8.8.8%00.example.org/",
        "http://[fe80::1%25eth0]/",
        "http://example.org:0/",
    ],
)
def test_urls_that_no_webhook_may_have(url):
    with pytest.raises(AddressRefused):
        check_url(url)


def test_urls_that_a_webhook_may_have():
    check_url("https://8.8.8.8/hook?token=1")
    check_url("https://no-such-host.invalid/hook")  # may be known to the machine that sends
    check_url("https://b\u00fccher.no-such-host.invalid./hook")
    check_url("http://127.0.0.1:9/hook", allow_private=True)
