"""Announce published results to other centres, as WIS2 notification messages on a broker.

Each result that is published is announced once: its notification is made from the event of the
publication, kept in the backlog under the event's id until the broker has confirmed it, and never
made again. Lost connections and restarts of the broker do not repeat it (QoS 2). Only where this
process is killed in the moment between the confirmation and its note, the same message, with the
same id, is sent again; subscribers of WIS2 drop what they know by its id.
"""

import asyncio
import threading
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

import structlog
from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.properties import Properties as MqttProperties
from paho.mqtt.reasoncodes import ReasonCode

from model.domain.errors import StorageError
from worker.contract.events import EventLog, EventType, LoggedEvent
from worker.contract.layout import Layout
from worker.contract.records import utc_now
from worker.feeds.backlog import Backlog
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
    """Announces results from now on: those published before it first ran are left alone.

    Arguments:
        layout: The data folder.
        events: The log of what was published.
        backlog: Remembers what was announced; used by no other thread.
        settings: Broker, topic and the address of the data.
    """

    def __init__(
        self, layout: Layout, events: EventLog, backlog: Backlog, settings: WorkerSettings
    ) -> None:
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
        self._client.on_publish = self._answered
        self._qos = _QOS
        self._pending: dict[int, str] = {}
        self._not_before = float("-inf")
        self._one_at_a_time = threading.Lock()

    async def run(self) -> None:
        """Announce until cancelled."""
        connect(self._client, self.settings.wis2_broker, self.settings.wis2_protocol, hours=24)
        try:
            while True:
                await asyncio.to_thread(self._turn)
                await asyncio.sleep(_SECONDS)
        finally:
            await asyncio.to_thread(self._leave)

    def _turn(self) -> None:
        with self._one_at_a_time:
            self.collect()
            self.send()

    def _leave(self) -> None:
        """Wait a moment for the confirmations of what is under way, then leave the broker."""
        end = time.monotonic() + _LEAVE_SECONDS
        while self._pending and self._client.is_connected() and time.monotonic() < end:
            time.sleep(0.02)
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
        """Send what waits, in order; return how many were sent.

        What is under way is never sent a second time by this process: the client sends it again
        over a new connection itself, under its first number, by which the broker knows it (QoS 2).
        """
        under_way = set(self._pending.values())
        sent = 0
        for name, topic, message in self.backlog.unsent(_IN_FLIGHT):
            if name in under_way or len(self._pending) >= _IN_FLIGHT:
                continue
            if not self._client.is_connected() or time.monotonic() < self._not_before:
                break
            info = self._client.publish(topic, message, qos=self._qos)
            self._pending[info.mid] = name
            sent += 1
        return sent

    def _connected(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: MqttProperties | None,
    ) -> None:
        """Keep to what the broker takes (in the thread of the network)."""
        if reason.is_failure:
            log.warning("announcements refused by the broker", reason=str(reason))
            return
        self._qos = min(_QOS, getattr(properties, "MaximumQoS", _QOS))

    def _answered(
        self,
        client: Client,
        userdata: object,
        mid: int,
        reason: ReasonCode,
        properties: MqttProperties | None,
    ) -> None:
        """Note at once what the broker has confirmed (in the thread of the network)."""
        with self._one_at_a_time:
            name = self._pending.pop(mid, None)
            if name is None:
                return
            if reason.is_failure:
                log.warning("announcement refused", analysis_id=name, reason=str(reason))
                self._not_before = time.monotonic() + _REFUSED_SECONDS
                return
            self.backlog.sent(name)
            log.info("announced", analysis_id=name)
