"""Export metrics of all processes of an installation: queues, workers, devices, lateness of cycles.

What the processes have counted comes from Redis (`worker.contract.measures`), what there is now
from records and from the workers' own reports, so that nothing remains of a process that is gone.
Every gateway shows the same values; queries take their maximum over the gateways, not their sum.
"""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from model.domain.files import code_version
from worker.contract import clock
from worker.contract.cycles import CycleRecord, CycleState, Flavour
from worker.contract.feeds import FEEDS
from worker.contract.layout import Layout
from worker.contract.measures import SharedMeasures
from worker.contract.queues import QUEUES, SCHEDULER, WorkerReport
from worker.contract.store import Stores, waiting

__all__ = ["PARTS", "WorkMetrics"]

PARTS: Final = (*QUEUES, SCHEDULER, FEEDS)
"""What workers register for."""

_GAUGES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "appa_build_info": ("1; the version of this gateway.", ("version", "python")),
    "appa_broker_up": ("1 while Redis answers.", ()),
    "appa_workers": ("Workers that report and take work.", ("queue",)),
    "appa_worker_versions": ("Workers that report, by their version.", ("version",)),
    "appa_queue_length": ("Jobs, uploads or messages that wait.", ("queue",)),
    "appa_queue_oldest_seconds": ("For how long the oldest of these has waited.", ("queue",)),
    "appa_process_resident_memory_bytes": (
        "Memory of workers and their children.",
        ("part", "host"),
    ),
    "appa_process_last_turn_timestamp_seconds": (
        "When the loop of scheduler or feeds last went round, in seconds since 1970.",
        ("part",),
    ),
    "appa_device_memory_used_bytes": ("Memory of devices in use.", ("host", "device")),
    "appa_device_memory_total_bytes": ("Memory of devices.", ("host", "device")),
    "appa_device_utilisation_ratio": (
        "Share of time in which devices compute.",
        ("host", "device"),
    ),
    "appa_wis2_waiting": ("Results whose announcement is not confirmed.", ()),
    "appa_wis2_oldest_seconds": ("For how long the oldest of these has waited.", ()),
    "appa_network_last_stored_timestamp_seconds": (
        "When values of the network were last stored, in seconds since 1970.",
        ("network",),
    ),
    "appa_cycle_lateness_seconds": (
        "Since the cut-off of the unfinished cycle that waits longest; those caught up are not late.",
        ("flavour",),
    ),
    "appa_cycles_catching_up": ("Unfinished cycles that are caught up.", ()),
}


class WorkMetrics(Collector):
    """Gauges that are read from Redis at each scrape, and what all processes have counted.

    Arguments:
        stores: All records.
        layout: The data folder, which says whether cycles are configured.
    """

    def __init__(self, stores: Stores, layout: Layout) -> None:
        self._stores = stores
        self._layout = layout
        self._counted = SharedMeasures(stores.redis, stores.keys)
        self._values: list[tuple[str, tuple[str, ...], float]] = []

    def read(self) -> None:
        """Get the present values.

        Raises:
            RedisError: If the server cannot be reached; then only that is shown.
        """
        build = ("appa_build_info", (code_version(), platform.python_version()), 1.0)
        self._values = [build, ("appa_broker_up", (), 0.0)]
        try:
            self._counted.read()
            values = [*self._queues(), *self._workers(), *self._networks(), *self._cycles()]
        except RedisError:
            self._counted.clear()
            raise
        self._values = [build, ("appa_broker_up", (), 1.0), *values]

    def collect(self) -> Iterator[Metric]:
        """Yield every family, with the samples that were read last."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels)
            for name, (text, labels) in _GAUGES.items()
        }
        for name, labels, value in self._values:
            families[name].add_metric(labels, value)
        yield from families.values()
        yield from self._counted.collect()

    def _queues(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for queue, found in waiting(self._stores).items():
            yield "appa_queue_length", (queue,), float(found.length)
            yield "appa_queue_oldest_seconds", (queue,), found.oldest_seconds

    def _workers(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        reports = self._stores.workers.alive()
        for part in PARTS:
            able = sum(part in r.queues and r.ready for r in reports)
            yield "appa_workers", (part,), float(able)
        for version, count in Counter(r.version for r in reports).items():
            yield "appa_worker_versions", (version,), float(count)
        memory: dict[tuple[str, str], int] = defaultdict(int)
        for report in reports:
            memory["-".join(report.queues), report.host] += report.figures.resident_bytes
        for labels, size in memory.items():
            yield "appa_process_resident_memory_bytes", labels, float(size)
        for report in reports:
            yield from _figures(report)

    def _networks(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        stored: Any = self._stores.redis.hgetall(self._stores.keys.arrivals)
        for network, when in stored.items():
            yield "appa_network_last_stored_timestamp_seconds", (network,), float(when)

    def _cycles(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        states = [CycleState.DUE, CycleState.SUBMITTED]
        if self._layout.cycles_file.exists():  # else no scheduler handles waiting cycles
            states.append(CycleState.WAITING)
        open_ = [r for r in self._stores.cycles.in_state(*states) if not r.rerun]
        for flavour in Flavour:
            late = [_lateness(r) for r in open_ if r.flavour is flavour and not r.caught_up]
            yield "appa_cycle_lateness_seconds", (flavour.value,), max(late, default=0.0)
        yield "appa_cycles_catching_up", (), float(sum(r.caught_up for r in open_))


def _figures(report: WorkerReport) -> Iterator[tuple[str, tuple[str, ...], float]]:
    figures, device = report.figures, (report.host, report.device)
    if figures.device_used_bytes is not None and figures.device_total_bytes is not None:
        yield "appa_device_memory_used_bytes", device, float(figures.device_used_bytes)
        yield "appa_device_memory_total_bytes", device, float(figures.device_total_bytes)
    if figures.device_utilisation is not None:
        yield "appa_device_utilisation_ratio", device, figures.device_utilisation
    if figures.turned is not None:
        part = ("-".join(report.queues),)
        yield "appa_process_last_turn_timestamp_seconds", part, figures.turned.timestamp()
    if figures.announcements is not None:
        yield "appa_wis2_waiting", (), float(figures.announcements)
        yield "appa_wis2_oldest_seconds", (), figures.announcement_age or 0.0


def _lateness(record: CycleRecord) -> float:
    return max(0.0, (clock.now() - record.cut_off).total_seconds())
