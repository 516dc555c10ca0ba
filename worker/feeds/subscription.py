"""Hold a persistent MQTT session with a broker: receive messages, acknowledge them, reconnect.

The broker keeps the session's subscriptions and the messages published while it is disconnected, and
resends unacknowledged messages. A message is acknowledged (QoS 1) only when the feed calls `confirm`;
the limit on unacknowledged messages in flight provides back-pressure when the feed is slow.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from worker.contract.records import utc_now
from worker.feeds.sources import Source, parse_broker

__all__ = ["Delivered", "OnMessage", "Subscription", "mqtt_client"]

log = structlog.get_logger()

_KEEPALIVE = 30
_FIRST_PAUSE, _MAX_PAUSE = 1, 60
_QOS = 1


@dataclass(frozen=True)
class Delivered:
    """A message from the broker.

    Attributes:
        topic: Where it was published.
        payload: Its bytes.
        mid: Packet id, valid within one connection.
        connection: Number of the connection it came over.
        qos: 0 if it needs no confirmation.
    """

    topic: str
    payload: bytes
    mid: int
    connection: int
    qos: int


OnMessage = Callable[[Delivered], None]
"""Called in the network thread for every message; must not block."""


def mqtt_client(
    broker_url: str,
    client_id: str,
    *,
    protocol: str = "5",
    ca_file: str = "",
    manual: bool = False,
    keep: bool = True,
) -> Client:
    """Return a client configured for a broker but not connected.

    Arguments:
        broker_url: See `parse_broker`.
        client_id: Name of the session.
        protocol: `5` or `3.1.1`.
        ca_file: Certificates to trust in addition to the system's.
        manual: Whether messages are acknowledged only by calling `ack`.
        keep: Whether the broker keeps the session while disconnected (MQTT 3.1.1; see `connect` for
            MQTT 5).
    """
    broker = parse_broker(broker_url)
    modern = protocol == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        clean_session=None if modern else not keep,
        protocol=MQTTProtocolVersion.MQTTv5 if modern else MQTTProtocolVersion.MQTTv311,
        transport="websockets" if broker.websocket else "tcp",
        manual_ack=manual,
    )
    if broker.websocket:
        client.ws_set_options(path=broker.path)
    if broker.tls:
        client.tls_set(ca_certs=ca_file or None)
    if broker.username:
        client.username_pw_set(broker.username, broker.password)
    client.reconnect_delay_set(_FIRST_PAUSE, _MAX_PAUSE)
    return client


def connect(
    client: Client, broker_url: str, protocol: str, *, hours: float, in_flight: int = 100
) -> None:
    """Connect in the network thread, now and whenever the connection is lost.

    Arguments:
        client: From `mqtt_client`.
        broker_url: As for `mqtt_client`.
        protocol: As for `mqtt_client`.
        hours: Session expiry to request (MQTT 5; with 3.1.1 the broker decides).
        in_flight: Maximum number of unacknowledged messages (MQTT 5; with 3.1.1 the broker decides).
    """
    broker = parse_broker(broker_url)
    options: dict[str, Any] = {}
    if protocol == "5":
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = int(hours * 3600)
        properties.ReceiveMaximum = in_flight
        options = {"clean_start": False, "properties": properties}
    client.connect_async(broker.host, broker.port, _KEEPALIVE, **options)
    client.loop_start()


class Subscription:
    """The session of one source.

    Arguments:
        source: Broker, topics and bounds.
        on_message: See `OnMessage`.
        keep: Whether the broker keeps the session while disconnected.
    """

    def __init__(self, source: Source, on_message: OnMessage, *, keep: bool = True) -> None:
        self.source = source
        self.keep = keep
        self.connected = False
        self.detail = "not connected yet"
        self.since: datetime = utc_now()
        self.granted: list[str] = []
        """Replies of the broker by topic filter, once received."""
        self._on_message = on_message
        self._connection = 0
        self._turn = threading.Lock()
        self._client: Client | None = None

    def start(self) -> None:
        """Start connecting; lost connections are retried without limit.

        Raises:
            OSError: If the file of certificates cannot be used.
        """
        source = self.source
        client = mqtt_client(
            source.broker,
            source.client_id,
            protocol=source.protocol,
            ca_file=source.ca_file,
            manual=True,
            keep=self.keep,
        )
        client.on_connect = self._connected
        client.on_connect_fail = self._unreachable
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        self._client = client
        hours = source.session_hours if self.keep else 0.0
        connect(client, source.broker, source.protocol, hours=hours, in_flight=source.in_flight)

    def stop(self) -> None:
        """Disconnect; the broker keeps the session."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def end(self) -> None:
        """End the session: the broker discards its subscriptions and stored messages."""
        client = self._client
        if client is not None and self.connected:
            client.unsubscribe(self.source.topics)
            if self.source.protocol == "5":
                properties = Properties(PacketTypes.DISCONNECT)
                properties.SessionExpiryInterval = 0
                client.disconnect(properties=properties)
        self.stop()

    def confirm(self, message: Delivered) -> None:
        """Acknowledge a stored message, unless its connection is gone."""
        client = self._client
        with self._turn:
            current = self.connected and message.connection == self._connection
            if client is not None and message.qos and current:
                client.ack(message.mid, message.qos)

    # -- in the network thread

    def _connected(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._turn_to(False, f"refused by the broker: {reason}")
            return
        with self._turn:
            self._connection += 1
        self._turn_to(True, "")
        log.info("source connected", source=self.source.name, session_kept=flags.session_present)
        client.subscribe([(topic, _QOS) for topic in self.source.topics])

    def _subscribed(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        self.granted = [str(reason) for reason in reasons]
        refused = [
            f"{topic}: {reason}"
            for topic, reason in zip(self.source.topics, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self.detail = "not subscribed to " + "; ".join(refused)
            log.warning("topics refused", source=self.source.name, topics=refused)

    def _unreachable(self, client: Client, userdata: object) -> None:
        self._turn_to(False, f"no connection to {self.source.address}")

    def _disconnected(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._turn:
            self._connection += 1  # its messages will be resent
        if self.connected or not self.detail.startswith("refused"):
            self._turn_to(False, f"connection lost: {reason}")

    def _message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        self._on_message(
            Delivered(
                message.topic, bytes(message.payload), message.mid, self._connection, message.qos
            )
        )

    def _turn_to(self, connected: bool, detail: str) -> None:
        if connected != self.connected:
            self.since = utc_now()
        if detail and detail != self.detail:
            log.warning("source offline", source=self.source.name, reason=detail)
        self.connected, self.detail = connected, detail
