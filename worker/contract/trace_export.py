"""Send spans to a collector by OTLP, where the environment of the process names one.

The variables are those of OpenTelemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` (or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_TRACES_EXPORTER=otlp` for a collector on this
machine) turn it on, `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none` off; sampler, headers,
certificates, time limits and sizes of batches are read by the SDK. It comes with the extra
`traces`; where that is not installed, or cannot do what is asked, a line of the log says so and the
process runs on.

Reference: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

import structlog
from opentelemetry import trace

from model.domain.files import code_version

__all__ = ["export_traces", "finish_traces"]

log = structlog.get_logger()

_FINISH_SECONDS = 3.0
"""Timeout of sending the last spans at exit: an unreachable collector must not delay it."""

_opened: list[Any] = []


def export_traces(part: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send the spans of this process to the collector that its environment names, if it names one.

    Call it once in each process, after a fork. An existing tracer provider is kept.

    Arguments:
        part: Which process of the service it is; the service name of its spans is `appa-<part>`
            unless the environment sets another one.
        environment: Environment variables; other ones for tests.

    Returns:
        Whether spans are sent.
    """
    if not _asked(environment):
        return False
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    if problem := _unsupported(environment):
        log.warning("traces not exported", reason=problem)
        return False
    try:
        processor, provider = _open(part, environment)
    except ImportError as error:
        log.warning(
            "traces not exported",
            reason=f"the module '{error.name}' is missing",
            advice="pip install 'appa-service[traces]'",
        )
        return False
    except ValueError as error:  # a variable that the SDK cannot read
        log.warning("traces not exported", reason=str(error))
        return False
    trace.set_tracer_provider(provider)
    _opened.append(processor)
    return True


def finish_traces() -> None:
    """Send the last spans before the process ends; idempotent."""
    while _opened:
        ending = threading.Thread(target=_opened.pop().shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(_FINISH_SECONDS)


def _asked(environment: Mapping[str, str]) -> bool:
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(exporter) or any(environment.get(name) for name in names)


def _unsupported(environment: Mapping[str, str]) -> str:
    """Return what is configured and not supported; empty if everything is."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if exporter != "otlp":
        return f"Expected OTEL_TRACES_EXPORTER of 'otlp' or 'none'; got '{exporter}'."
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if not environment.get(name):
        name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = environment.get(name, "").strip() or "http/protobuf"
    if protocol != "http/protobuf":
        return (
            f"Expected {name} of 'http/protobuf', which collectors take on port 4318; "
            f"got '{protocol}'."
        )
    return ""


def _open(part: str, environment: Mapping[str, str]) -> tuple[Any, Any]:
    """Return a processor of spans, which sends them, and the provider that feeds it."""
    # Imported only if configured: it takes a tenth of a second, and they may not be installed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    attributes: dict[str, str | int] = {
        "service.namespace": "appa",
        "service.version": code_version(),
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    named = "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named and not environment.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = f"appa-{part}"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter())
    provider.add_span_processor(processor)
    return processor, provider
