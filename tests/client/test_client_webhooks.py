"""Webhook messages: verified as the reference library does, and both clients' webhook methods."""

import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Reference

from appa_client import (
    AppaClient,
    AppaClientError,
    AsyncAppaClient,
    BadSignature,
    InvalidRequestError,
    NotFoundError,
    read_webhook,
)
from tests.service.gateway_process import GatewayProcess

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENT = {"id": "evt_1", "type": "cycle.failed", "time": "2025-01-01T00:00:00Z", "data": {"k": "ü"}}
BODY = json.dumps(EVENT, ensure_ascii=False)
URL = "https://8.8.8.8/hook"


def signed(body: str = BODY, age: float = 0.0, secret: str = SECRET) -> dict[str, str]:
    time = datetime.now(UTC) - timedelta(seconds=age)
    return {
        "Webhook-Id": "evt_1",
        "Webhook-Timestamp": str(int(time.timestamp())),
        "Webhook-Signature": Reference(secret).sign("evt_1", time, body),
    }


def test_messages_signed_by_the_reference_are_read() -> None:
    event = read_webhook(SECRET, signed(), BODY.encode())
    assert event.model_dump() == EVENT
    assert read_webhook(SECRET, httpx.Headers(signed()), BODY.encode()) == event
    rotated = signed()
    rotated["Webhook-Signature"] = "v1,AAAA v2,other " + rotated["Webhook-Signature"]
    assert read_webhook(SECRET, rotated, BODY.encode()) == event
    assert read_webhook(SECRET, signed(age=290), BODY.encode()) == event
    assert read_webhook(SECRET, signed(age=3000), BODY.encode(), tolerance=3600) == event


@pytest.mark.parametrize(
    ("signing", "changes", "body"),
    [
        ({"secret": "whsec_AAAAr8GKYqrTwjUPD8ILPZIo2LaLaSw"}, {}, BODY),
        ({}, {}, BODY + " "),
        ({"age": 310}, {}, BODY),
        ({"age": -310}, {}, BODY),
        ({}, {"Webhook-Id": None}, BODY),
        ({}, {"Webhook-Id": "evt_2"}, BODY),
        ({}, {"Webhook-Timestamp": "now"}, BODY),
        ({}, {"Webhook-Signature": ""}, BODY),
        ({}, {"Webhook-Signature": "v1,ü"}, BODY),
    ],
)
def test_other_messages_are_refused(signing: dict, changes: dict, body: str) -> None:
    headers = {k: v for k, v in (signed(**signing) | changes).items() if v is not None}
    with pytest.raises(BadSignature) as caught:
        read_webhook(SECRET, headers, body.encode())
    assert isinstance(caught.value, AppaClientError)
    assert caught.value.code == "bad_signature"


def test_a_malformed_secret_is_no_bad_signature() -> None:
    with pytest.raises(ValueError, match="whsec_") as caught:
        read_webhook("whsec_!", signed(), BODY.encode())
    assert not isinstance(caught.value, BadSignature)


def test_the_same_key_gives_the_same_webhook(gateway: GatewayProcess, stores) -> None:
    """A repeat after a lost answer: one subscription, and its secret is not lost."""
    with AppaClient(gateway.url) as appa:
        first = appa.create_webhook(URL, idempotency_key="hook-1")
        again = appa.create_webhook(URL, idempotency_key="hook-1")
        assert again == first
        assert [w.id for w in stores.webhooks.all()].count(first.id) == 1
        with pytest.raises(InvalidRequestError) as refused:
            appa.create_webhook(f"{URL}/2", idempotency_key="hook-1")
        assert refused.value.code == "idempotency_conflict"
        other = appa.create_webhook(URL)  # without a key each call is a new one
        assert other.id != first.id
        appa.delete_webhook(other.id)
        appa.delete_webhook(first.id)
        anew = appa.create_webhook(URL, idempotency_key="hook-1")
        assert anew.id != first.id
        assert appa.delete_webhook(anew.id).id == anew.id


async def test_the_asyncio_client_has_the_same(gateway: GatewayProcess) -> None:
    async with AsyncAppaClient(gateway.url) as appa:
        made = await appa.create_webhook(URL, ["cycle.failed"], description="a")
        shown = await appa.webhook(made.id)
        assert shown.model_dump() == made.model_dump(exclude={"secret"})
        assert shown in await appa.webhooks()
        assert await appa.deliveries(made.id) == []
        with pytest.raises(NotFoundError):
            await appa.retry_delivery(made.id, "evt_0")
        assert await appa.delete_webhook(made.id) == shown
        with pytest.raises(NotFoundError):
            await appa.webhook(made.id)
