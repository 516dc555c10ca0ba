"""Announce published results to other centres, as WIS2 notification messages on a broker.

Each published result is announced exactly once. Its notification is created from the event of the
publication, and stays in the backlog under the id of the result until the broker has confirmed it.
Reconnecting does not duplicate it (QoS 2). The announcer also subscribes to its own topic: if it was
killed before it recorded a confirmation, the messages that the broker has stored for its session show
which were delivered. If the broker refuses this subscription, an unconfirmed message is sent again with
the same id, by which WIS2 subscribers discard duplicates.
"""

import asyncio
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

import structlog
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.properties import Properties as MqttProperties
from paho.mqtt.reasoncodes import ReasonCode

from model.domain.errors import StorageError
from worker.contract.events import EventLog, EventType, LoggedEvent
from worker.contract.layout import Layout
from worker.contract.measures import Measures
from worker.contract.records import utc_now
from worker.feeds.backlog import Announcement, Backlog
from worker.feeds.notification import CORE, Integrity, Link, Notification, Properties
from worker.feeds.subscription import connect, mqtt_client
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.manifest import AnalysisManifest, read_manifest
from worker.settings import WorkerSettings

__all__ = ["Announcer", "notification_of"]

log = structlog.get_logger()

_CURSOR = "announced"
_CHANNEL = "origin/a/wis2/"
_SECONDS = 0.5
_REFUSED_SECONDS = 60.0
_LEAVE_SECONDS = 3.0
_ECHO_SECONDS = 5.0
"""Time allowed for the broker to deliver the stored messages of the announcer's session."""

_QOS = 2
_IN_FLIGHT = 20
_WORLD = [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]
_PAGE = 100


def notification_of(manifest: AnalysisManifest, settings: WorkerSettings) -> Notification:
    """Return the message about a published result; the same result gives the same message id.

    Its canonical link leads to the data set (NetCDF where there is one), with its checksum and
    size; an `item` link leads to the description of all files.
    """
    base = settings.wis2_url.rstrip("/")
    about = f"{base}/v1/analyses/{quote(manifest.id)}"
    file = manifest.dataset_file or manifest.files[0]
    times = [time.astimezone(UTC) for time in manifest.times or [manifest.valid_time]]
    span: dict[str, Any] = (
        {"datetime": times[0]}
        if len(set(times)) == 1
        else {"start_datetime": min(times), "end_datetime": max(times)}
    )
    return Notification(
        id=uuid5(NAMESPACE_URL, about),
        type="Feature",
        conformsTo=[CORE],
        geometry={"type": "Polygon", "coordinates": _WORLD},
        properties=Properties(
            pubtime=manifest.created.astimezone(UTC),
            data_id=f"{settings.wis2_topic.removeprefix(_CHANNEL)}/{manifest.id}",
            metadata_id=settings.wis2_metadata_id,
            integrity=Integrity.of(bytes.fromhex(file.sha256), "sha256"),
            **span,
        ),
        links=[
            Link(
                href=f"{about}/{quote(file.name)}",
                rel="canonical",
                type=file.media_type,
                length=file.size,
            ),
            Link(href=about, rel="item", type="application/json"),
        ],
    )


class Announcer:
    """Announce results from now on; those published before its first run are not announced.

    Arguments:
        layout: The data folder.
        events: The event log, with all publications.
        backlog: Stores announcements; used by no other thread.
        settings: Broker, topic and the base URL of the data.
        measures: Counters of the broker's replies.
    """

    def __init__(
        self,
        layout: Layout,
        events: EventLog,
        backlog: Backlog,
        settings: WorkerSettings,
        measures: Measures | None = None,
    ) -> None:
        self.measures = measures or Measures()
        self.layout = layout
        self.events = events
        self.backlog = backlog
        self.settings = settings
        self._client = mqtt_client(
            settings.wis2_broker,
            f"{settings.wis2_client_id}-announcer",
            protocol=settings.wis2_protocol,
        )
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._echoed
        self._client.on_publish = self._answered
        self._qos = _QOS
        self._pending: dict[int, str] = {}
        self._answers: deque[tuple[int, str]] = deque()
        self._not_before = float("-inf")
        self._subscribed_at: float | None = None
        self._turning = threading.Lock()

    async def run(self) -> None:
        """Connect to the broker and announce new results until the task is cancelled."""
        connect(self._client, self.settings.wis2_broker, self.settings.wis2_protocol, hours=24)
        try:
            while True:
                await asyncio.to_thread(self._turn)
                await asyncio.sleep(_SECONDS)
        finally:
            await asyncio.to_thread(self._leave)

    def _turn(self) -> None:
        with self._turning:
            self.collect()
            self._settle()
            self.send()

    def _leave(self) -> None:
        """Wait a moment for confirmations of messages in flight, then disconnect."""
        end = time.monotonic() + _LEAVE_SECONDS
        with self._turning:  # the last turn may not have ended
            self._settle()
            while self._pending and self._client.is_connected() and time.monotonic() < end:
                time.sleep(0.02)
                self._settle()
        self._client.disconnect()
        self._client.loop_stop()

    def collect(self) -> int:
        """Queue the messages of results published since the last call; return how many."""
        cursor = self.backlog.mark(_CURSOR)
        if cursor is None:
            self.backlog.queue(_CURSOR, self.events.newest(), [])
            return 0
        added = 0
        if not self.events.reaches_back_to(cursor):
            added += self._catch_up(cursor)
        while entries := self.events.after(cursor, _PAGE):
            cursor = entries[-1][0]
            made = [self._message(event) for _, event in entries]
            added += self.backlog.queue(_CURSOR, cursor, [one for one in made if one is not None])
        return added

    def _catch_up(self, cursor: str) -> int:
        """Queue results whose events are no longer kept, from the catalogue."""
        since = datetime.fromtimestamp(int(cursor.partition("-")[0]) / 1000, UTC)
        log.warning("events lost", announced="from the catalogue", since=since.isoformat())
        found = Catalogue(self.layout).entries(
            ResultFilter(created_from=since, created_to=utc_now())
        )
        made = [self._of_result(entry.id) for entry in found]
        return self.backlog.queue(_CURSOR, cursor, [one for one in made if one is not None])

    def _message(self, event: LoggedEvent) -> tuple[str, str, str] | None:
        if event.type is not EventType.ANALYSIS_PUBLISHED:
            return None
        return self._of_result(str(event.data["analysis_id"]))

    def _of_result(self, name: str) -> tuple[str, str, str] | None:
        try:
            message = notification_of(read_manifest(self.layout, name), self.settings)
        except StorageError:  # deleted since
            return None
        return name, self.settings.wis2_topic, message.to_json()

    def send(self) -> int:
        """Send queued messages, in order; return their number.

        This process never sends a message in flight again: the MQTT client itself resends it over a
        new connection with the same packet id, by which the broker deduplicates (QoS 2).
        """
        under_way = set(self._pending.values())
        sent = 0
        for one in self.backlog.unsent(_IN_FLIGHT):
            if one.event in under_way or len(self._pending) >= _IN_FLIGHT:
                continue
            if not self._may_send(one):
                break
            self.backlog.begin(one.event)
            info = self._client.publish(one.topic, one.message, qos=self._qos)
            self._pending[info.mid] = one.event
            sent += 1
        return sent

    def _may_send(self, one: Announcement) -> bool:
        now = time.monotonic()
        if not self._client.is_connected() or self._subscribed_at is None or now < self._not_before:
            return False
        return not one.begun or now > self._subscribed_at + _ECHO_SECONDS

    def _connected(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: MqttProperties | None,
    ) -> None:
        """Limit the QoS to the broker's maximum, and subscribe (in the network thread)."""
        if reason.is_failure:
            log.warning("announcements refused by the broker", reason=str(reason))
            return
        self._qos = min(_QOS, getattr(properties, "MaximumQoS", _QOS))
        client.subscribe(self.settings.wis2_topic, qos=1)

    def _subscribed(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: MqttProperties | None,
    ) -> None:
        """Allow sending; messages that may have been sent before wait for their echo first."""
        if self._subscribed_at is None:
            refused = any(reason.is_failure for reason in reasons)
            self._subscribed_at = time.monotonic() - (_ECHO_SECONDS if refused else 0.0)

    def _echoed(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        """Record that a message was delivered (in the network thread)."""
        text = bytes(message.payload).decode(errors="replace")
        if name := self.backlog.echoed(text):
            self._count_sent(name)
            log.info("announced", analysis_id=name, known_by="delivery")

    def _answered(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: MqttProperties | None,
    ) -> None:
        """Store a reply for the next turn, because the client holds its lock during the callback."""
        self._answers.append((mid, str(reason) if reason.is_failure else ""))

    def _settle(self) -> None:
        """Record the broker's confirmations."""
        while self._answers:
            mid, failure = self._answers.popleft()
            name = self._pending.pop(mid, None)
            if name is None:
                continue
            if failure:
                self.measures.announcements.labels("refused").inc()
                log.warning("announcement refused", analysis_id=name, reason=failure)
                self._not_before = time.monotonic() + _REFUSED_SECONDS
                continue
            if self.backlog.sent(name):  # not echoed before
                self._count_sent(name)
            log.info("announced", analysis_id=name)

    def _count_sent(self, name: str) -> None:
        self.measures.announcements.labels("sent").inc()
        self.measures.announcement_delay.observe(self.backlog.delay(name))
