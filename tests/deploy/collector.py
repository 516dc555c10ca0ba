"""A collector of traces in the test's own process: OTLP over HTTP, its protobuf decoded."""

import gzip
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.worker.processes import wait_for


@dataclass(frozen=True)
class Received:
    """A span as it came over the wire."""

    trace: str
    id: str
    parent: str
    part: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict


class Collector:
    """Keep the spans that come in; `environment` has processes send theirs here."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        taken = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                taken._take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            about = {a.key: a.value.string_value for a in group.resource.attributes}
            assert about["service.namespace"] == "appa"
            part = about["service.name"].removeprefix("appa-")
            for scope in group.scope_spans:
                self.spans += [_received(span, part) for span in scope.spans]

    def named(self, name: str) -> Received:
        """The one span of this name, once it is here."""
        wait_for(lambda: any(span.name == name for span in list(self.spans)))
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def trace_of(self, name: str) -> str:
        """The trace that has the one span of this name."""
        return self.named(name).trace

    def children(self, parent: Received) -> list[Received]:
        return [span for span in list(self.spans) if span.parent == parent.id]

    def tree(self, trace: str, parent: str = "") -> dict:
        """Spans of a trace below `parent`, by process and name; none of them is there twice."""
        inside = [s for s in list(self.spans) if (s.trace, s.parent) == (trace, parent)]
        names = Counter((span.part, span.name) for span in inside)
        assert not [name for name, count in names.items() if count > 1], names
        return {(span.part, span.name): self.tree(trace, span.id) for span in inside}


def _received(span, part: str) -> Received:
    values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
    return Received(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        part=part,
        name=span.name,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=span.status.code == 2,
        attributes=values,
    )
