"""Parse the events of a gateway: server-sent events of a job or of the installation, and webhooks.

Event streams follow the HTML standard, section 9.2.6; webhook messages are signed after
Standard Webhooks 1.0.0 and verified against the bytes as they came.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appa_client import _requests as calls
from appa_client._requests import EVENT_TIMEOUT
from appa_client.errors import GatewayError
from worker.contract.events import LoggedEvent
from worker.contract.jobs import JobRecord, Progress
from worker.contract.webhooks import BadSignature, verify

__all__ = ["BadSignature", "EventParser", "FeedEvent", "JobEvent", "LoggedEvent", "read_webhook"]


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        type: `snapshot`, `state`, `progress`, `queue` or `done`.
        data: As sent.
        id: Names it for resuming; None for `queue`.
    """

    type: str
    data: dict[str, Any]
    id: str | None = None

    @property
    def job(self) -> JobRecord | None:
        """The whole job, with `snapshot` and `done`."""
        whole = self.type in ("snapshot", "done")
        return JobRecord.model_validate(self.data) if whole else None

    @property
    def progress(self) -> Progress | None:
        """The progress told, if any."""
        if self.type == "progress":
            return Progress.model_validate(self.data)
        if self.type == "queue":
            return Progress(queue_position=self.data["queue_position"])
        return Progress.model_validate(self.data["progress"]) if self.job else None


class EventParser:
    """Collects the lines of one stream."""

    def __init__(self) -> None:
        self._type = ""
        self._id: str | None = None
        self._data: list[str] = []

    def feed(self, line: str) -> JobEvent | None:
        """The event that `line` completes, if it does."""
        if not line:
            event = None
            if self._data:
                event = JobEvent(self._type, json.loads("\n".join(self._data)), self._id)
            self._type, self._id, self._data = "", None, []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
        return None


@dataclass(frozen=True)
class FeedEvent:
    """Something that was told.

    Attributes:
        type: `analysis.published`, `cycle.failed`, `cycle.outside_limits`; or `gap` when events
            were lost because one was away too long.
        id: Place in the stream: give it as `after` to go on from there; empty for a gap.
        event: What webhooks get, too; None for a gap.
    """

    type: str
    id: str
    event: LoggedEvent | None

    @classmethod
    def of(cls, heard: JobEvent) -> "FeedEvent":
        """From the wire."""
        if heard.type == "gap":
            return cls("gap", "", None)
        return cls(heard.type, heard.id or "", LoggedEvent.model_validate(heard.data))


class Subscription:
    """Where a listener stands, and how often it has failed since it last heard something."""

    def __init__(self, after: str | None, types: Sequence[str], attempts: int) -> None:
        self.after = after
        self.types = list(types)
        self.attempts = attempts
        self.failures = 0

    def request(self) -> dict[str, Any]:
        headers = {"Last-Event-ID": self.after} if self.after else {}
        return {"headers": headers, "params": {"type": self.types}, "timeout": EVENT_TIMEOUT}

    def heard(self, event: JobEvent) -> FeedEvent:
        self.failures, self.after = 0, event.id or self.after
        return FeedEvent.of(event)

    def pause(self, error: GatewayError) -> float:
        """Seconds before the next try; raises the error when there were enough."""
        self.failures += 1
        if self.failures >= self.attempts:
            raise error
        return calls.retry_pause(self.failures, None, None) or 0.0


def read_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = 300.0
) -> LoggedEvent:
    """The event that a genuine message tells.

    Arguments:
        secret: `whsec_…` from the creation of the webhook.
        headers: Of the request.
        body: Its bytes as they came: JSON that was parsed and written again has other bytes.
        tolerance: Seconds the message's time may differ from this machine's clock.

    Raises:
        BadSignature: If it did not come from the holder of the secret, or is too old.
    """
    verify(secret, headers, body, tolerance=tolerance)
    return LoggedEvent.model_validate_json(body)
