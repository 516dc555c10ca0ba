"""Export the gateway's metrics in the Prometheus format; each application has its own registry.

Besides counters of requests: the cycles (age of the newest analyses, open ones), disk and
retention, and the quality of the newest cycled analyses.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from model.domain.errors import StorageError
from service.keys import ApiKey, Scope
from service.work_metrics import WorkMetrics
from worker.contract import clock
from worker.contract.batches import BatchStore
from worker.contract.cycles import CycleState, CycleStore, Flavour
from worker.contract.disk import DiskSettings, disk_state
from worker.contract.feeds import SourceStatus
from worker.contract.layout import Layout
from worker.contract.store import Removed, RetentionFigures, Stores
from worker.contract.suites import SuiteStore
from worker.results.catalogue import Catalogue
from worker.results.entries import ResultFilter
from worker.results.verification.series import SCORES_VERSION


class RemovedMetrics(Collector):
    """Counters of retention, as they were read last."""

    def __init__(self) -> None:
        self.figures = Removed({}, {}, None)

    def collect(self) -> Iterator[Metric]:
        """Yield what was removed, and the bytes that were freed."""
        items = CounterMetricFamily("appa_retention_removed", "Things removed.", labels=("what",))
        size = CounterMetricFamily("appa_retention_freed_bytes", "Bytes freed.", labels=("what",))
        for what, count in self.figures.items.items():
            items.add_metric((what,), count)
            size.add_metric((what,), self.figures.size.get(what, 0))
        yield items
        yield size


class DiskMetrics:
    """Gauges of disk and retention, updated at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.free = Gauge(
            "appa_disk_free_bytes", "Free on the disk of the data folder.", registry=registry
        )
        self.needed = Gauge(
            "appa_disk_needed_bytes", "Free bytes from which on work is taken.", registry=registry
        )
        self.low = Gauge(
            "appa_disk_low",
            "1 while new work is refused for want of space.",
            registry=registry,
        )
        self.removed = RemovedMetrics()
        registry.register(self.removed)
        self.last_run = Gauge(
            "appa_retention_last_run_seconds",
            "When retention last ran, in seconds since 1970; 0 before its first run.",
            registry=registry,
        )

    def set(self, layout: Layout, settings: DiskSettings, figures: RetentionFigures) -> None:
        """Update the gauges from the disk and from Redis, as far as these can be reached."""
        try:
            state = disk_state(layout, settings)
            self.free.set(state.free)
            self.needed.set(state.needed)
            self.low.set(state.low)
        except OSError:
            self.low.set(1)
        try:
            removed = figures.read()
        except RedisError:
            return
        self.removed.figures = removed
        self.last_run.set(removed.last_run or 0.0)


class VerificationMetrics:
    """Gauges read from the manifests of the newest early and final analysis."""

    def __init__(self, registry: CollectorRegistry) -> None:
        about = ("flavour", "network", "variable")

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, f"{text}, newest cycle.", labels, registry=registry)

        self.time = gauge("appa_verification_valid_time_seconds", "Valid time", "flavour")
        self.outside = gauge(
            "appa_cycle_outside_limits", "Statistics outside their control limits", "flavour"
        )
        self.chi2 = gauge(
            "appa_verification_chi2", "Innovations over their expected variance", "flavour"
        )
        self.used = gauge("appa_verification_used", "Values used", "flavour", "network")
        self.rmse = gauge(
            "appa_verification_rmse", "Root mean square error at withheld stations", *about, "of"
        )
        self.desroziers = gauge(
            "appa_verification_desroziers_ratio",
            "Observation error estimated from departures over the one assumed",
            *about,
        )
        self.spread_skill = gauge(
            "appa_verification_spread_skill", "Predicted over actual departures", *about
        )

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """Return the gauges, to clear them before they are set."""
        return tuple(vars(self).values())

    def set(self, analyses: Catalogue) -> None:
        """Update the gauges; a flavour without analyses has none."""
        for gauge in self.gauges:
            gauge.clear()
        for flavour in Flavour:
            newest = analyses.latest(ResultFilter("filtering", flavour.value))
            if newest is None or newest.scores.get("version") != SCORES_VERSION:
                continue
            self.time.labels(flavour.value).set(newest.valid_time.timestamp())
            self._fill(flavour.value, newest.scores)

    def _fill(self, flavour: str, scores: Mapping[str, Any]) -> None:
        if (control := scores.get("control")) is not None:
            self.outside.labels(flavour).set(len(control["outside"]))
        if scores.get("chi2") is not None:
            self.chi2.labels(flavour).set(scores["chi2"])
        for network, count in scores.get("used", {}).items():
            self.used.labels(flavour, network).set(count)
        for line in scores.get("withheld", ()):
            for side in ("background", "analysis"):
                if (score := line[side]) is not None:
                    about = (flavour, line["network"], line["variable"])
                    self.rmse.labels(*about, side).set(score["rmse"])
        for line in scores.get("departures", ()):
            labels = (flavour, line["network"], line["variable"])
            if line["error_ratio"] is not None:
                self.desroziers.labels(*labels).set(line["error_ratio"])
            if line["spread_skill"] is not None:
                self.spread_skill.labels(*labels).set(line["spread_skill"])


class ChallengerMetrics:
    """Gauges of the challenger that runs; there are none without one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"appa_challenger_{name}", text, ("suite", *labels), registry=registry)

        self.compared = gauge("compared", "Cycles of the challenger that were compared.")
        self.time = gauge("valid_time_seconds", "Valid time of the challenger's newest cycle.")
        self.difference = gauge(
            "difference_percent",
            "Mean square error at withheld stations, challenger against champion: mean, and ends "
            "of the 95 % interval.",
            "of",
        )

    def set(self, suites: SuiteStore) -> None:
        """Set the gauges to the trial that runs, and clear those of earlier ones."""
        for gauge in (self.compared, self.time, self.difference):
            gauge.clear()
        try:
            trial = suites.trial()
            newest = suites.newest(trial) if trial else None
        except StorageError:
            return
        if trial is None:
            return
        name = trial.suite.name
        whole = trial.differences[0] if trial.differences else None
        self.compared.labels(name).set(whole.cycles if whole else 0)
        if newest is not None:
            self.time.labels(name).set(newest.valid_time.timestamp())
        if whole is not None:
            ends = {"mean": whole.percent, "low": whole.low, "high": whole.high}
            for of, value in ends.items():
                if value is not None:
                    self.difference.labels(name, of).set(value)


class CycleMetrics:
    """Gauges of the cycles: how many are in each state, and how old the newest analyses are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.count = Gauge("appa_cycles", "Cycles, by state.", ("state",), registry=registry)
        self.age = Gauge(
            "appa_cycle_newest_age_seconds",
            "Age of the newest cycled analysis: now minus its valid time, by flavour.",
            ("flavour",),
            registry=registry,
        )
        self.freshness = Gauge(
            "appa_cycle_freshness_seconds",
            "From the cut-off to the published analysis, of the newest one, by flavour.",
            ("flavour",),
            registry=registry,
        )

    def set(self, cycles: CycleStore) -> None:
        """Set the gauges from the store; ages are absent where nothing is cycled."""
        self.age.clear()
        self.freshness.clear()
        for state in CycleState:
            self.count.labels(state.value).set(cycles.count(state))
        now = clock.now()
        for flavour in Flavour:
            page = cycles.select(state=CycleState.PUBLISHED, flavour=flavour, limit=1)
            for newest in page.items:
                age = (now - newest.valid_time).total_seconds()
                self.age.labels(flavour.value).set(age)
                if newest.freshness_seconds is not None:
                    self.freshness.labels(flavour.value).set(newest.freshness_seconds)


class SourceMetrics(Collector):
    """Figures of the sources of observations, from what their process reports."""

    def __init__(self) -> None:
        self._statuses: Sequence[SourceStatus] = ()

    def set(self, statuses: Sequence[SourceStatus]) -> None:
        """Replace the figures; a source that was removed leaves none behind."""
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """Yield every family, with a sample for each source."""
        for name, text, value in _SOURCE_GAUGES:
            gauge = GaugeMetricFamily(f"appa_source_{name}", text, labels=("source",))
            for status in self._statuses:
                if (number := value(status)) is not None:
                    gauge.add_metric((status.name,), number)
            yield gauge
        for name, text, count in _SOURCE_COUNTERS:
            counter = CounterMetricFamily(f"appa_source_{name}", text, labels=("source",))
            for status in self._statuses:
                counter.add_metric((status.name,), count(status))
            yield counter
        text, labels = "Data given up so far, by reason.", ("source", "reason")
        refused = CounterMetricFamily("appa_source_refused", text, labels=labels)
        for status in self._statuses:
            for reason, number in status.refused.items():
                refused.add_metric((status.name, reason), number)
        yield refused


_SOURCE_GAUGES: tuple[tuple[str, str, Callable[[SourceStatus], float | None]], ...] = (
    ("connected", "1 while the broker delivers.", lambda s: s.connected),
    ("backlog", "Announced data that wait to be fetched.", lambda s: s.backlog),
    ("lag_seconds", "How long the oldest of these has waited.", lambda s: s.lag_seconds),
    (
        "latency_seconds",
        "From publication to acceptance, of the newest data.",
        lambda s: s.latency_seconds,
    ),
    (
        "last_received_seconds",
        "When the newest notification came, in seconds since 1970.",
        lambda s: s.last_received.timestamp() if s.last_received else None,
    ),
)
_SOURCE_COUNTERS: tuple[tuple[str, str, Callable[[SourceStatus], float]], ...] = (
    ("received", "Notifications received so far.", lambda s: s.received),
    ("duplicates", "Of these, announcements of known data.", lambda s: s.duplicates),
    ("accepted", "Data handed over to ingest so far.", lambda s: s.accepted),
    ("known", "Data whose bytes had been received before.", lambda s: s.known),
    ("fetch_failures", "Fetches that were tried again.", lambda s: s.failures),
    ("accepted_bytes", "Bytes handed over so far.", lambda s: s.size),
)


class SenderMetrics(Collector):
    """When each API key that may upload last sent something new, from the records of uploads."""

    def __init__(self) -> None:
        self._last: Mapping[str, float] = {}

    def set(self, batches: BatchStore, keys: Iterable[ApiKey]) -> None:
        """Read the newest upload of each key; one that was revoked leaves nothing behind.

        Raises:
            RedisError: If the server cannot be reached.
        """
        last: dict[str, float] = {}
        for key in keys:
            if key.allows(Scope.OBSERVATIONS_WRITE):
                for newest in batches.page(owners={key.id}, limit=1).items:
                    arrived = newest.created.timestamp()
                    last[key.name] = max(arrived, last.get(key.name, arrived))
        self._last = last

    def clear(self) -> None:
        """Forget what was read last, so that stale times are not reported."""
        self._last = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the family, with a sample for each name of a key."""
        gauge = GaugeMetricFamily(
            "appa_sender_last_upload_timestamp_seconds",
            "When a key last sent new content, in seconds since 1970.",
            labels=("key",),
        )
        for name, when in self._last.items():
            gauge.add_metric((name,), when)
        yield gauge


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class GatewayMetrics:
    """Counters and gauges of one gateway process, in a registry of its own."""

    def __init__(self, stores: Stores, layout: Layout) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.work = WorkMetrics(stores, layout)
        self.registry.register(self.work)
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
        self.pictures_waiting = Gauge(
            "appa_pictures_waiting",
            "Maps, tiles and legends that wait for their turn.",
            registry=self.registry,
        )
        self.records = Gauge(
            "appa_records", "Jobs and batches, by state.", ("noun", "state"), registry=self.registry
        )

        self.cycles = CycleMetrics(self.registry)
        self.webhook_messages = Gauge(
            "appa_webhook_messages_waiting",
            "Messages of webhooks that are not delivered yet, those to be tried again included.",
            registry=self.registry,
        )
        self.sources = SourceMetrics()
        self.registry.register(self.sources)
        self.senders = SenderMetrics()
        self.registry.register(self.senders)
        self.disk = DiskMetrics(self.registry)
        self.verification = VerificationMetrics(self.registry)
        self.challenger = ChallengerMetrics(self.registry)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
