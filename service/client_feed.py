"""The client's method for the events of the installation, and its asyncio twin."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from service import client_calls as calls
from service.client_base import EVENT_TIMEOUT, lost
from service.client_connection import GatewayConnection
from service.client_connection_async import AsyncGatewayConnection
from service.client_errors import GatewayError, UnavailableError, raise_for_problem
from service.client_events import EventParser, JobEvent
from worker.jobs.event_log import LoggedEvent

__all__ = ["AsyncFeedMethods", "FeedEvent", "FeedMethods"]

PATH = "/v1/events"


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


class _Following:
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


class FeedMethods(GatewayConnection):
    """Events of the installation, for `AppaClient`."""

    def events(self, after: str | None = None, *, types: Sequence[str] = ()) -> Iterator[FeedEvent]:
        """New analyses and failed cycles, as they come; taken up again after lost connections.

        Arguments:
            after: The last event seen; without it the events begin now.
            types: Only these; all when empty.
        """
        following = _Following(after, types, self._attempts)
        while True:
            try:
                for event in self._listen(following):
                    yield following.heard(event)
                error: GatewayError = lost(None)
            except httpx.TransportError as problem:
                error = lost(problem)
            except UnavailableError as problem:
                error = problem
            time.sleep(following.pause(error))

    def _listen(self, following: _Following) -> Iterator[JobEvent]:
        with self._http.stream("GET", PATH, **following.request()) as answer:
            if answer.status_code >= 400:
                answer.read()
            raise_for_problem(answer)
            parser = EventParser()
            for line in answer.iter_lines():
                if event := parser.feed(line):
                    yield event


class AsyncFeedMethods(AsyncGatewayConnection):
    """Events of the installation, for `AsyncAppaClient`; see `FeedMethods`."""

    async def events(
        self, after: str | None = None, *, types: Sequence[str] = ()
    ) -> AsyncIterator[FeedEvent]:
        """New analyses and failed cycles, as they come."""
        following = _Following(after, types, self._attempts)
        while True:
            try:
                async for event in self._listen(following):
                    yield following.heard(event)
                error: GatewayError = lost(None)
            except httpx.TransportError as problem:
                error = lost(problem)
            except UnavailableError as problem:
                error = problem
            await asyncio.sleep(following.pause(error))

    async def _listen(self, following: _Following) -> AsyncIterator[JobEvent]:
        async with self._http.stream("GET", PATH, **following.request()) as answer:
            if answer.status_code >= 400:
                await answer.aread()
            raise_for_problem(answer)
            parser = EventParser()
            async for line in answer.aiter_lines():
                if event := parser.feed(line):
                    yield event
