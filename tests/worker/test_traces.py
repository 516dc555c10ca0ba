"""Traces follow records: spans, ids in log lines, and what the environment asks for."""

import io
import json
import socket
import sys
import time
from dataclasses import dataclass

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from worker.contract import trace_export, traces
from worker.contract.logs import configure_logs
from worker.contract.settings import InstallationSettings

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The examples of W3C's Trace Context."""


@dataclass
class Asked:
    id: str
    request_id: str
    trace: str


ONE = Asked("batch-1", "one", HEADER)
TWO = Asked("batch-2", "two", OTHER)


@pytest.fixture
def spans(monkeypatch):
    """What is made, by trace: (name, parent's id, status, attributes)."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))

    def found(header: str) -> dict:
        trace_id = int(header.split("-")[1], 16)
        mine = [s for s in kept.get_finished_spans() if s.context.trace_id == trace_id]
        return {s.name: s for s in mine}

    return found


@pytest.fixture
def said():
    """Log lines as machines read them; the logs of the tests are as before afterwards."""
    stream = io.StringIO()
    configure_logs(InstallationSettings(log_format="json"), stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()


def ids(line: dict) -> tuple:
    return line.get("request_id"), line.get("trace_id")


def test_work_for_several_is_in_the_trace_of_each(spans):
    with traces.task_spans("ingest", ONE, TWO):
        traces.phase("decoding")
        traces.phase("storing")
        with traces.step("commit"):
            pass
        traces.failed("batch-2", "disk_full", "no room")
        traces.ended("batch-1", "succeeded")
    for record, failed in ((ONE, False), (TWO, True)):
        made = spans(record.trace)
        assert set(made) == {"ingest", "decoding", "storing", "commit"}
        top = made["ingest"]
        assert f"{top.parent.span_id:016x}" == record.trace.split("-")[2]
        assert made["storing"].parent.span_id == top.context.span_id
        assert made["commit"].parent.span_id == made["storing"].context.span_id
        assert made["decoding"].end_time <= made["storing"].start_time
        assert made["commit"].end_time <= made["storing"].end_time <= top.end_time
        assert top.attributes["appa.id"] == record.id
        assert top.attributes["appa.together"] == 2
        assert top.status.is_ok is not failed
        assert top.attributes.get("appa.outcome") == (None if failed else "succeeded")
        assert top.attributes.get("error.type") == ("disk_full" if failed else None)


def test_log_lines_name_whom_work_is_for(said):
    log = structlog.get_logger()
    log.warning("before")
    with traces.task_spans("ingest", ONE, TWO):
        log.warning("both")
        with traces.log_ids(TWO):
            log.warning("one of them")
        with traces.log_ids(Asked("batch-3", "", "")):
            log.warning("of a release before")
    with traces.log_ids(ONE, ONE):
        log.warning("the same")
    log.warning("after")
    first, second = (record.trace.split("-")[1] for record in (ONE, TWO))
    assert [ids(line) for line in said()] == [
        (None, None),
        (["one", "two"], [first, second]),
        ("two", second),
        (None, None),
        ("one", first),
        (None, None),
    ]


def test_a_part_that_fails_says_so_and_nothing_is_left_open(spans):
    with pytest.raises(OSError, match="gone"), traces.task_spans("ingest", ONE):
        traces.phase("storing")
        with traces.step("commit"):
            raise OSError("gone")
    assert spans(HEADER)["commit"].attributes["error.type"] == "OSError"
    assert not spans(HEADER)["commit"].status.is_ok
    assert set(spans(HEADER)) == {"ingest", "storing", "commit"}
    assert traces.traceparent() == ""
    with traces.step("alone"):  # no trace is begun by a part
        traces.phase("alone")
    assert "alone" not in spans(HEADER)
    with traces.start_trace("submit"):
        own = traces.traceparent()
    assert set(spans(own)) == {"submit"}
    assert spans(own)["submit"].parent is None


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (HEADER, HEADER),
        (HEADER.replace("-01", "-00"), HEADER.replace("-01", "-00")),
        ("", ""),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", ""),
        (HEADER.replace("00-", "ff-", 1), ""),
        (HEADER + '", "evil": "', ""),
        ("x" * 10_000, ""),
    ],
)
def test_a_callers_trace_is_handed_on_without_a_collector(header, kept, said):
    with traces.continue_trace(header):
        assert traces.traceparent() == kept
        structlog.get_logger().warning("request")
        record = Asked("job-1", "mine", traces.traceparent())
    with traces.task_spans("task", record):  # somewhere else, later
        assert traces.traceparent() == kept
        structlog.get_logger().warning("started")
    trace_id = kept.split("-")[1] if kept else None
    lines = [line for line in said() if line["event"] in ("request", "started")]
    assert [line.get("trace_id") for line in lines] == [trace_id, trace_id]


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "got 'zipkin'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "Expected OTEL_EXPORTER_OTLP_PROTOCOL of 'http/protobuf'",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            "Expected OTEL_EXPORTER_OTLP_TRACES_PROTOCOL of 'http/protobuf'",
        ),
    ],
)
def test_nothing_is_sent_unless_asked_for(environment, reason):
    with capture_logs() as lines:
        assert trace_export.export_traces("gpu", environment) is False
    assert len(lines) == (reason is not None)
    assert all(reason in line["reason"] for line in lines)


def test_without_the_extra_a_line_says_how_to_get_it(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    with capture_logs() as lines:
        assert trace_export.export_traces("gpu", asked) is False
    assert "opentelemetry.exporter" in lines[0]["reason"]
    assert lines[0]["advice"] == "pip install 'appa-service[traces]'"


def test_a_collector_that_does_not_answer_holds_no_process_up(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setattr(trace_export, "_FINISH_SECONDS", 0.2)
        processor, provider = trace_export._open("gpu", {})
        monkeypatch.setattr(trace_export, "_opened", [processor])
        provider.get_tracer("test").start_span("last").end()
        begun = time.monotonic()
        trace_export.finish_traces()
        trace_export.finish_traces()
        assert time.monotonic() - begun < 2
    assert provider.resource.attributes["service.name"] == "appa-gpu"
    assert trace_export._opened == []
