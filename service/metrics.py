"""What the gateway counts, in the Prometheus format; each application has its own registry."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from service.disk_metrics import DiskMetrics
from service.verification_metrics import VerificationMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class GatewayMetrics:
    """Counters of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "appa_http_requests_total",
            "Requests by method, route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "appa_http_request_seconds",
            "Seconds to the end of the response, by route (event streams left out).",
            ("method", "route"),
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
            registry=self.registry,
        )
        self.upload_bytes = Counter(
            "appa_upload_bytes_total", "Bytes of observations received.", registry=self.registry
        )
        self.uploads = Counter(
            "appa_uploads_total", "Uploads by outcome.", ("outcome",), registry=self.registry
        )
        self.jobs = Counter(
            "appa_jobs_submitted_total",
            "Jobs accepted, by kind.",
            ("kind",),
            registry=self.registry,
        )
        self.listeners = Gauge(
            "appa_event_listeners", "Open event streams.", registry=self.registry
        )
        self.records = Gauge(
            "appa_records", "Jobs and batches, by state.", ("noun", "state"), registry=self.registry
        )
        self.workers = Gauge(
            "appa_workers", "Workers that report, by queue.", ("queue",), registry=self.registry
        )

        self.cycles = Gauge("appa_cycles", "Cycles, by state.", ("state",), registry=self.registry)
        self.cycle_age = Gauge(
            "appa_cycle_newest_age_seconds",
            "Age of the newest cycled analysis: now minus its valid time, by flavour.",
            ("flavour",),
            registry=self.registry,
        )
        self.cycle_freshness = Gauge(
            "appa_cycle_freshness_seconds",
            "From the cut-off to the published analysis, of the newest one, by flavour.",
            ("flavour",),
            registry=self.registry,
        )

        self.webhook_messages = Gauge(
            "appa_webhook_messages_waiting",
            "Messages of webhooks that are not delivered yet, those to be tried again included.",
            registry=self.registry,
        )
        self.disk = DiskMetrics(self.registry)
        self.verification = VerificationMetrics(self.registry)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
