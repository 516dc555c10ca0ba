"""Figures of the disk and of retention for Prometheus."""

from prometheus_client import CollectorRegistry, Gauge
from redis.exceptions import RedisError

from worker.jobs.disk import DiskSettings, disk_state
from worker.jobs.layout import Layout
from worker.jobs.retention_figures import RetentionFigures


class DiskMetrics:
    """Gauges that are set when they are asked for."""

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
        self.removed = Gauge(
            "appa_retention_removed", "Things removed so far.", ("what",), registry=registry
        )
        self.freed = Gauge(
            "appa_retention_freed_bytes", "Bytes freed so far.", ("what",), registry=registry
        )
        self.last_run = Gauge(
            "appa_retention_last_run_seconds",
            "When retention last ran, in seconds since 1970; 0 before its first run.",
            registry=registry,
        )

    def set(self, layout: Layout, settings: DiskSettings, figures: RetentionFigures) -> None:
        """Looks at the disk and at what Redis knows, as far as these can be reached."""
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
        for what, count in removed.items.items():
            self.removed.labels(what).set(count)
            self.freed.labels(what).set(removed.size.get(what, 0))
        self.last_run.set(removed.last_run or 0.0)
