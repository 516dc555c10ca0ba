"""Log the events of the whole installation in one capped stream.

Emitting is idempotent: the id of an event consists of its type and subject, and each id is emitted
once. Listeners of the gateway follow the stream; webhooks are served from it.
"""

import hashlib
import json
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from pydantic import Field
from redis import Redis

from worker.contract.records import Record, utc_now
from worker.contract.redis_server import Keyspace

__all__ = ["EventLog", "EventType", "FEED", "LENGTH", "LoggedEvent", "STREAM_START", "StreamId"]

FEED: Final = ("feed", "all")
"""Noun and id of the stream, for `EventFeed.follow`."""

LENGTH: Final = 10_000
"""Approximate length of the stream."""

_REMEMBERED_SECONDS = 90 * 86_400

_EMIT = """
-- KEYS: known mark, stream. ARGV: 1 seconds, 2 length, 3 type, 4 data, 5 channel, 6 noun, 7 id
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', ARGV[1]) then return '' end
local event = redis.call(
  'XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'type', ARGV[3], 'data', ARGV[4])
redis.call('PUBLISH', ARGV[5], cjson.encode(
  {noun = ARGV[6], id = ARGV[7], event = event, type = ARGV[3], data = ARGV[4]}))
return event
"""


class StreamId(NamedTuple):
    """Id of an entry in a Redis stream, `<milliseconds>-<sequence>`; sorts by age."""

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id that Redis writes as `text`; an absent sequence number is zero.

        Raises:
            ValueError: If a part is not a whole number.
        """
        milliseconds, _, sequence = text.partition("-")
        return cls(int(milliseconds), int(sequence or 0))


STREAM_START: Final = "0-0"
"""Comes before the id of every entry of a stream."""


class EventType(StrEnum):
    """Types of events that listeners and webhooks can subscribe to."""

    ANALYSIS_PUBLISHED = "analysis.published"
    CYCLE_FAILED = "cycle.failed"
    CYCLE_OUTSIDE_LIMITS = "cycle.outside_limits"
    CYCLE_WORSE_THAN_COLD = "cycle.worse_than_cold"
    CHALLENGER_DECIDED = "challenger.decided"
    CHALLENGER_ENDED = "challenger.ended"


class LoggedEvent(Record):
    """One event, as listeners and webhooks get it."""

    id: str = Field(
        description="The same each time the event is sent, so that receivers recognise repeats."
    )
    type: EventType = Field(description="What happened.")
    time: str = Field(description="When it was first emitted (UTC, ISO 8601).")
    data: dict[str, Any] = Field(description="Facts about what it happened to.")


def event_id(type: EventType, subject: str) -> str:
    """Return the id of an event, made of its type and subject."""
    return "evt_" + hashlib.sha256(f"{type}/{subject}".encode()).hexdigest()[:32]


class EventLog:
    """The capped stream of events in Redis, in which each event is stored once."""

    def __init__(self, redis: Redis, keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    @property
    def stream(self) -> str:
        """Return the key of the stream in Redis."""
        return self.keys.events(*FEED)

    def emit(self, type: EventType | str, subject: str, data: dict[str, Any]) -> bool:
        """Emit an event unless it was emitted before; return whether it was emitted now.

        Arguments:
            type: What happened.
            subject: Id of what it happened to, such as an analysis; with the type it is the id of
                the event.
            data: JSON-able.
        """
        kind = EventType(type)
        event = LoggedEvent(
            id=event_id(kind, subject), type=kind, time=utc_now().isoformat(), data=data
        )
        run = self.redis.register_script(_EMIT)
        emitted: Any = run(
            keys=[self.keys.emitted(event.id), self.stream],
            args=[
                _REMEMBERED_SECONDS,
                LENGTH,
                kind,
                event.model_dump_json(),
                self.keys.channel,
                *FEED,
            ],
        )
        return bool(emitted)

    def emitted(self, type: EventType | str, subject: str) -> bool:
        """Return whether the event was emitted before, by any process."""
        known: Any = self.redis.exists(self.keys.emitted(event_id(EventType(type), subject)))
        return bool(known)

    def newest(self) -> str:
        """Return the id of the last entry in the stream; `STREAM_START` when there is none."""
        last: Any = self.redis.xrevrange(self.stream, count=1)
        return str(last[0][0]) if last else STREAM_START

    def resume(self, stream_id: str | None) -> tuple[str, bool]:
        """Return where a listener goes on that has seen `stream_id`, and whether it missed no event.

        An id later than all events is of a stream that was lost with Redis and rebuilt, by a clock
        that is behind the former one: no event would come after it for as long.

        Arguments:
            stream_id: Last event seen; None for a new listener.
        """
        newest = self.newest()
        if stream_id is None:
            return newest, True
        if StreamId.parse(stream_id) > StreamId.parse(newest):
            return newest, False
        return stream_id, self.reaches_back_to(stream_id)

    def reaches_back_to(self, stream_id: str) -> bool:
        """Return whether all events after `stream_id` are still in the stream."""
        if not self.redis.exists(self.stream):
            return True
        about: Any = self.redis.xinfo_stream(self.stream)
        if about.get("entries-added", 0) <= about["length"] or not about["first-entry"]:
            return True
        return StreamId.parse(stream_id) >= StreamId.parse(str(about["first-entry"][0]))

    def last(self, limit: int = 20) -> list[LoggedEvent]:
        """Return the newest events, newest first."""
        entries: Any = self.redis.xrevrange(self.stream, count=limit)
        return [LoggedEvent.model_validate(json.loads(fields["data"])) for _, fields in entries]

    def after(self, stream_id: str, limit: int = 100) -> list[tuple[str, LoggedEvent]]:
        """Return events after `stream_id` with their ids in the stream, oldest first."""
        entries: Any = self.redis.xrange(self.stream, min=f"({stream_id}", count=limit)
        return [
            (str(entry), LoggedEvent.model_validate(json.loads(fields["data"])))
            for entry, fields in entries
        ]
