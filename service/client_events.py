"""Server-sent events on the client's side: lines in, events out (HTML standard, 9.2.6)."""

import json
from dataclasses import dataclass
from typing import Any

from worker.jobs.job import JobRecord, Progress

__all__ = ["EventParser", "JobEvent"]


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
