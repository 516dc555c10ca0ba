"""Trace a request through all processes: spans for OpenTelemetry, ids for log lines.

The trace context is propagated in the record: a job or an upload stores the `traceparent` of the span
that created it. Messages are not suitable: they may be lost and sent again, also by the scheduler, and
one message covers up to 64 small uploads. Every attempt at a record, on any machine, is therefore a
child of the request, and work done for several records at once appears in the trace of each.

Spans are created with OpenTelemetry's API and are not exported until `export_traces` finds a collector
in the environment (`OTEL_*`); the request itself is traced by FastAPI. Without a collector, a
`traceparent` sent by a caller is still propagated and appears in log lines.

Reference: W3C Trace Context, https://www.w3.org/TR/trace-context/
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = [
    "Traced",
    "add_ids",
    "continue_trace",
    "ended",
    "failed",
    "log_ids",
    "phase",
    "start_trace",
    "step",
    "task_spans",
    "trace_id",
    "traceparent",
    "waited",
]

_W3C = TraceContextTextMapPropagator()
_FRONT = context.create_key("appa-front")
_REQUESTS = context.create_key("appa-requests")
_WORK = context.create_key("appa-work")
_tracer = trace.get_tracer("appa")


class Traced(Protocol):
    """What is known of the request that made a record."""

    id: str
    request_id: str
    trace: str


def traceparent() -> str:
    """Return the current span as a `traceparent` header; empty if there is none."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """Return the id of the current trace; empty if there is none."""
    present = trace.get_current_span().get_span_context()
    return trace.format_trace_id(present.trace_id) if present.is_valid else ""


def add_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids of request and trace to a log line, as lists if the work serves several requests.

    A processor of structlog.
    """
    requests: Any = context.get_value(_REQUESTS)
    if requests is not None:
        event.pop("request_id", None)  # that of the process itself
    if requests:
        event["request_id"] = _one_or_all(requests)
    contexts = [span.get_span_context() for span in _front()]
    if ids := [trace.format_trace_id(one.trace_id) for one in contexts if one.is_valid]:
        event["trace_id"] = _one_or_all(ids)
    return event


def _one_or_all(values: Sequence[str]) -> str | list[str]:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else distinct


def _front() -> Sequence[Span]:
    """Return the innermost spans, one for each trace that the current work belongs to."""
    front: Any = context.get_value(_FRONT)
    return front or (trace.get_current_span(),)


def _entered(spans: Sequence[Span]) -> context.Context:
    """Return the current context with `spans` as the innermost ones."""
    return context.set_value(_FRONT, tuple(spans), trace.set_span_in_context(spans[0]))


def _parent(text: str) -> context.Context:
    """Return a context with the span of the `traceparent` `text`; without a span if it is invalid."""
    return _W3C.extract({"traceparent": text} if text else {}, context.Context())


@contextmanager
def continue_trace(header: str) -> Iterator[None]:
    """Continue the trace of a caller's `traceparent`, unless a span of our own is open."""
    if not header or trace.get_current_span().get_span_context().is_valid:
        yield
        return
    token = context.attach(_parent(header))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def log_ids(*records: Traced) -> Iterator[None]:
    """Add the request and trace ids of records to every log line, without creating a span."""
    if not records:
        yield
        return
    requests = tuple(record.request_id for record in records if record.request_id)
    spans = [trace.get_current_span(_parent(record.trace)) for record in records]
    token = context.attach(context.set_value(_REQUESTS, requests, _entered(spans)))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def start_trace(name: str, **attributes: str | int) -> Iterator[None]:
    """Start a trace without a request, such as for a cycle that is due or a notification."""
    with _inside([_tracer.start_span(name, context.Context(), attributes=attributes)]):
        yield


@contextmanager
def _inside(spans: Sequence[Span]) -> Iterator[None]:
    """Make spans the innermost ones during a block, and end them; record an exception in them."""
    token = context.attach(_entered(spans))
    try:
        yield
    except BaseException as error:
        for span in spans:
            _mark(span, type(error).__name__, str(error))
        raise
    finally:
        context.detach(token)
        for span in spans:
            span.end()


@dataclass
class _Work:
    """Open spans of one attempt: one for each record, and those of its current phase."""

    spans: Mapping[str, Span]
    phase: list[Span] = field(default_factory=list)
    token: Any = None

    def enter(self, name: str) -> None:
        self.leave()
        self.phase = _children(list(self.spans.values()), name, {})
        self.token = context.attach(_entered(self.phase))

    def leave(self) -> None:
        if self.token is not None:
            context.detach(self.token)
            self.token = None
        for span in self.phase:
            span.end()
        self.phase = []


def _children(parents: Sequence[Span], name: str, attributes: Mapping[str, Any]) -> list[Span]:
    return [
        _tracer.start_span(name, trace.set_span_in_context(parent), attributes=attributes)
        for parent in parents
    ]


@contextmanager
def task_spans(name: str, *records: Traced, **attributes: str | int) -> Iterator[None]:
    """Run a task for queued records: with a span in the trace of each, and their ids in log lines.

    Arguments:
        name: Name of the task.
        records: One or more records that the task serves.
        attributes: Attributes of the spans.
    """
    spans = {
        record.id: _tracer.start_span(
            name,
            _parent(record.trace),
            SpanKind.CONSUMER,
            attributes={
                "appa.id": record.id,
                "appa.request_id": record.request_id,
                "appa.together": len(records),
                **attributes,
            },
        )
        for record in records
    }
    opened = _Work(spans)
    with log_ids(*records):
        entered = context.set_value(_WORK, opened, _entered(list(spans.values())))
        token = context.attach(entered)
        try:
            yield
        finally:
            opened.leave()
            context.detach(token)
            for span in spans.values():
                span.end()


def _present_work() -> _Work | None:
    found: Any = context.get_value(_WORK)
    return found if isinstance(found, _Work) else None


def phase(name: str) -> None:
    """Start the span of a phase of the current work; it ends with the next one, or with the work."""
    opened = _present_work()
    if opened is not None and _recorded(tuple(opened.spans.values())):
        opened.enter(name)


def _recorded(spans: Sequence[Span]) -> bool:
    return any(span.is_recording() for span in spans)


@contextmanager
def step(name: str, **attributes: str | int) -> Iterator[None]:
    """Create a child span of the current request, phase or step; none without a parent."""
    front = _front()
    if not _recorded(front):
        yield
        return
    with _inside(_children(front, name, attributes)):
        yield


def _mark(span: Span, code: str, message: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR, message[:300])


def waited(since: datetime) -> None:
    """Add a span for the time that the record has waited for this attempt."""
    front = _front()
    if _recorded(front):
        for parent in front:
            begun = round(since.timestamp() * 1e9)
            inside = trace.set_span_in_context(parent)
            _tracer.start_span("waiting", inside, start_time=begun).end()


def ended(record_id: str, outcome: str) -> None:
    """Set the outcome of the current attempt in the span of a record."""
    opened = _present_work()
    if opened is not None and record_id in opened.spans:
        opened.spans[record_id].set_attribute("appa.outcome", outcome)


def failed(record_id: str, code: str, message: str) -> None:
    """Set the error of the current attempt in the span of a record."""
    opened = _present_work()
    if opened is not None and record_id in opened.spans:
        _mark(opened.spans[record_id], code, message)
