"""Names of the keys in Redis, all under one prefix."""

from dataclasses import dataclass

__all__ = ["Keyspace"]


@dataclass(frozen=True)
class Keyspace:
    """Keys of one installation; `noun` is `job` or `batch`."""

    prefix: str = "appa"

    def record(self, noun: str, record_id: str) -> str:
        """Hash with the fields of a record."""
        return f"{self.prefix}:{noun}:{record_id}"

    def lease(self, noun: str, record_id: str) -> str:
        """Token of the worker that holds the record; expires without heartbeats."""
        return f"{self.record(noun, record_id)}:lease"

    def events(self, noun: str, record_id: str) -> str:
        """Capped stream of what happened to a record."""
        return f"{self.record(noun, record_id)}:events"

    def index(self, noun: str) -> str:
        """Stem of the sorted sets of ids: `<stem>:all`, `:state:<state>`, `:kind:<kind>`, …"""
        return f"{self.prefix}:index:{noun}"

    def unique(self, noun: str, key: str) -> str:
        """Id of the record that was created first under a caller's own key."""
        return f"{self.prefix}:unique:{noun}:{key}"

    @property
    def channel(self) -> str:
        """Pub/sub channel on which every event is announced."""
        return f"{self.prefix}:events"

    @property
    def workers(self) -> str:
        """Sorted set of worker names by the time their registration ends."""
        return f"{self.prefix}:workers"

    @property
    def worker_reports(self) -> str:
        """Hash of what each worker reports."""
        return f"{self.prefix}:workers:reports"

    def quota(self, key_id: str, window: int) -> str:
        """Requests of an API key in one window of time."""
        return f"{self.prefix}:quota:{key_id}:{window}"

    def told(self, event_id: str) -> str:
        """Mark of an event that was told."""
        return f"{self.prefix}:told:{event_id}"

    @property
    def retention(self) -> str:
        """Hash of what retention removed."""
        return f"{self.prefix}:retention"

    def once(self, task: str) -> str:
        """Key that lets one scheduler at a time do a task of upkeep, and not too often."""
        return f"{self.prefix}:once:{task}"

    @property
    def webhooks(self) -> str:
        """Hash of subscriptions by id."""
        return f"{self.prefix}:webhooks"

    @property
    def webhooks_due(self) -> str:
        """Sorted set of `<webhook>|<event>` by the time of the next attempt."""
        return f"{self.prefix}:webhooks:due"

    @property
    def webhook_cursor(self) -> str:
        """Place in the stream of events up to which messages were queued."""
        return f"{self.prefix}:webhooks:cursor"

    def deliveries(self, webhook_id: str) -> str:
        """Hash of the messages of a webhook by event."""
        return f"{self.prefix}:webhook:{webhook_id}:deliveries"

    def delivery_order(self, webhook_id: str) -> str:
        """Sorted set of the same events by the time they were queued."""
        return f"{self.prefix}:webhook:{webhook_id}:order"
