"""Count the work of every process, and aggregate it in Redis, where the gateway reads it for `/metrics`.

A process counts in its own registry and every few seconds pushes the increments since its last push:
`HINCRBYFLOAT` on one hash. Any number of processes on any number of machines may count; counters
survive the end of a process, except for increments that a killed process had not pushed. With them it
pushes when it last stored values of each network, into a hash of its own. Names,
labels and buckets of all metrics are part of the name of the hash: a release that changes them starts
a new hash, which Prometheus sees as a counter reset.

Values of labels are bounded: kinds, networks, outcomes and codes of problems are named in the
code or by extensions, sources in the settings of the installation; no label holds an id, a name of
a file or an address.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from redis import Redis
from redis.exceptions import RedisError

from worker.contract import clock
from worker.contract.batches import BatchRecord, IngestSummary
from worker.contract.cycles import CYCLE_DONE, Flavour
from worker.contract.jobs import Phase
from worker.contract.kinds import KINDS
from worker.contract.redis_server import Keyspace

__all__ = ["DELAYS", "JobMeter", "Measures", "SharedMeasures"]

log = structlog.get_logger()

DELAYS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""Bucket bounds of durations of work: 0.1 s to an hour."""

_LATE = (*DELAYS, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)
"""Bucket bounds of waiting times, which may include an outage, in seconds."""

_REMEMBERED_SECONDS = 90 * 86_400


class Measures:
    """Counters of one process.

    Arguments:
        redis: Server on which counts are aggregated; None to count in this process only.
        keys: Key names, with that of the hash.

    Attributes:
        registry: Registry of all metrics.
        key: The hash in Redis.
    """

    def __init__(self, redis: "Redis | None" = None, keys: Keyspace | None = None) -> None:
        self.registry = CollectorRegistry()
        self._redis = redis
        self._pushed: dict[str, float] = {}
        self._arrived: dict[str, float] = {}
        self._pushing = threading.Lock()
        self._declared: list[tuple[Any, ...]] = []
        self._declare_work()
        self._declare_observations()
        self._declare_surroundings()
        self._begin_at_zero()
        digest = hashlib.sha256(json.dumps(self._declared).encode()).hexdigest()[:12]
        self._keys = keys or Keyspace()
        self.key = self._keys.measures(digest)

    def _declare_work(self) -> None:
        of = ("noun", "kind")
        self.attempts = self._counter("appa_attempts", "Attempts begun at jobs and uploads.", *of)
        self.outcomes = self._counter("appa_attempt_outcomes", "Attempts ended.", *of, "outcome")
        self.failures = self._counter(
            "appa_attempt_failures", "Attempts that met an error, by its code.", "noun", "code"
        )
        self.lost_workers = self._counter(
            "appa_workers_lost", "Attempts whose worker stopped answering.", "noun"
        )
        self.resent = self._counter(
            "appa_messages_resent", "Messages sent again, for they may have been lost.", "noun"
        )
        self.phases = self._histogram(
            "appa_job_seconds", "Time that jobs spent in each phase.", DELAYS, "kind", "phase"
        )
        self.turnaround = self._histogram(
            "appa_job_turnaround_seconds", "From submission to success.", _LATE, "kind"
        )
        self.steps = self._counter("appa_diffusion_steps", "Diffusion steps done.", "kind")
        self.step_seconds = self._counter(
            "appa_diffusion_seconds", "Time that diffusion steps took.", "kind"
        )
        self.out_of_memory = self._counter(
            "appa_out_of_memory",
            "Evaluations repeated with less at once (smaller), attempts given up (failed).",
            "kind",
            "result",
        )
        self.announced = self._histogram(
            "appa_announcement_delay_seconds", "From a finished result to its event.", _LATE
        )

    def _declare_observations(self) -> None:
        self.uploads = self._counter(
            "appa_ingest_uploads", "Uploads whose ingest ended.", "format", "outcome"
        )
        self.upload_bytes = self._counter("appa_ingest_bytes", "Bytes ingested.", "format")
        self.messages = self._counter(
            "appa_decode_messages", "Messages or rows found in uploads.", "format"
        )
        self.rejects = self._counter(
            "appa_decode_rejects", "Messages and reports that gave no row.", "format", "reason"
        )
        self.values = self._counter(
            "appa_qc_values",
            "Values after the checks at arrival, and after those of an analysis.",
            *("stage", "network", "outcome"),
        )
        self.ingest = self._histogram(
            "appa_ingest_delay_seconds", "From arrival of an upload to its rows.", _LATE, "lane"
        )
        self.source_delay = self._histogram(
            "appa_source_delay_seconds", "From publication to acceptance of data.", _LATE, "source"
        )

    def _declare_surroundings(self) -> None:
        self.webhooks = self._counter(
            "appa_webhook_attempts", "Attempts to deliver messages of webhooks.", "outcome"
        )
        self.webhook_delay = self._histogram(
            "appa_webhook_delay_seconds", "From an event to its delivery.", _LATE
        )
        self.announcements = self._counter(
            "appa_wis2_announcements", "Answers of the broker to announcements.", "outcome"
        )
        self.announcement_delay = self._histogram(
            "appa_wis2_delay_seconds", "From queueing to confirmation of an announcement.", _LATE
        )
        about = ("flavour", "caught_up")
        self.cycles = self._counter("appa_cycles_ended", "Cycles ended.", *about, "state")
        self.cycle_delay = self._histogram(
            "appa_cycle_delay_seconds", "From the cut-off to the published analysis.", _LATE, *about
        )
        self.comparisons = self._counter(
            "appa_cycle_comparisons", "Cycles compared with a cold window.", "worse"
        )
        self.challenger_cycles = self._counter(
            "appa_challenger_cycles", "Cycles of challengers ended.", "state"
        )
        self.ticks = self._histogram(
            "appa_scheduler_tick_seconds", "Time of the scheduler's tasks.", DELAYS, "tick"
        )
        self.tick_failures = self._counter(
            "appa_scheduler_tick_failures", "Tasks of the scheduler that failed.", "tick"
        )
        self.cpu = self._counter(
            "appa_process_cpu_seconds", "Processor time of workers, by what they do.", "part"
        )

    def _begin_at_zero(self) -> None:
        """Initialise counters used by alerts at zero: `increase()` needs a first sample."""
        for noun in ("job", "batch"):
            self.lost_workers.labels(noun)
        for kind in KINDS:
            self.out_of_memory.labels(kind, "failed")
            for outcome in ("succeeded", "failed", "retried"):
                self.outcomes.labels("job", kind, outcome)
        for outcome in ("delivered", "retried", "failed"):
            self.webhooks.labels(outcome)
        for outcome in ("sent", "refused"):
            self.announcements.labels(outcome)
        for worse in ("false", "true"):
            self.comparisons.labels(worse)
        for state in CYCLE_DONE:
            self.challenger_cycles.labels(state.value)
        for flavour in Flavour:
            for caught_up in ("false", "true"):
                for state in CYCLE_DONE:
                    self.cycles.labels(flavour.value, caught_up, state.value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._declared.append((name, labels))
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        self._declared.append((name, labels, buckets))
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    # -- what happens in several places

    def ingested(self, batch: BatchRecord, summary: IngestSummary) -> None:
        """Count an upload whose rows are in the store."""
        took = (clock.now() - batch.created).total_seconds() / clock.speed()
        self.ingest.labels(batch.lane.value).observe(max(0.0, took))
        self.upload_bytes.labels(batch.container).inc(batch.size)
        self.decoded(batch, summary, "ingested")
        for network, stored in summary.by_report_type.items():
            outcomes = summary.rejected_by_report_type.get(network, {})
            left = stored - sum(outcomes.values())
            self._arrived[network] = time.time()
            self.checked("arrival", {network: {"accepted": left, **outcomes}})

    def decoded(self, batch: BatchRecord, summary: IngestSummary, outcome: str) -> None:
        """Count an upload that has ended, and what its decoder found."""
        self.uploads.labels(batch.container, outcome).inc()
        self.messages.labels(batch.container).inc(int(summary.decode_report.get("messages", 0)))
        for reason, count in summary.decode_report.get("rejected", {}).items():
            self.rejects.labels(batch.container, reason).inc(count)

    def checked(self, stage: str, outcomes: Mapping[str, Mapping[str, int]]) -> None:
        """Count values by network and outcome after the checks of a stage."""
        for network, counts in outcomes.items():
            for outcome, count in counts.items():
                self.values.labels(stage, network, outcome).inc(count)

    # -- adding up

    def push(self, part: str = "") -> bool:
        """Add increments and arrivals since the last push; return whether the server accepted them.

        Arguments:
            part: Label under which to count the processor time of this process; empty not to count it.
        """
        if self._redis is None:
            return False
        with self._pushing:
            if part:
                self._count_processor(part)
            now = {_field(s.name, s.labels): s.value for s in self._samples()}
            fresh = {
                name: value - self._pushed.get(name, 0.0)
                for name, value in now.items()
                if value != self._pushed.get(name)  # a new counter is sent even if zero
            }
            arrived = self._arrived.copy()
            try:
                pipe = self._redis.pipeline()
                for name, added in fresh.items():
                    pipe.hincrbyfloat(self.key, name, added)
                pipe.expire(self.key, _REMEMBERED_SECONDS)
                for network, when in arrived.items():
                    pipe.hset(self._keys.arrivals, network, str(when))
                if arrived:
                    pipe.expire(self._keys.arrivals, _REMEMBERED_SECONDS)
                if fresh or arrived:
                    pipe.execute()
            except RedisError as error:
                log.debug("measures not pushed", error=str(error))
                return False
            self._pushed = now
            for network, when in arrived.items():
                if self._arrived.get(network) == when:  # sent once: another process may be later
                    del self._arrived[network]
            return True

    def _count_processor(self, part: str) -> None:
        times = os.times()
        seen = self._pushed.get(_field("appa_process_cpu_seconds_total", {"part": part}), 0.0)
        used = times.user + times.system
        self.cpu.labels(part).inc(max(0.0, used - seen))

    def _samples(self) -> Iterator[Sample]:
        for family in self.registry.collect():
            yield from (s for s in family.samples if not s.name.endswith("_created"))


def _field(name: str, labels: Mapping[str, str]) -> str:
    return json.dumps([name, dict(labels)], sort_keys=True, separators=(",", ":"))


class SharedMeasures(Collector):
    """Counters of all processes of an installation, for the registry of a gateway.

    Arguments:
        redis: The server.
        keys: Key names of the installation.
    """

    def __init__(self, redis: "Redis", keys: Keyspace) -> None:
        self._redis = redis
        own = Measures(None, keys)
        self.key = own.key
        self._families = [(f.name, f.documentation, f.type) for f in own.registry.collect()]
        self._stored: dict[str, str] = {}

    def read(self) -> None:
        """Read the present values.

        Raises:
            RedisError: If the server cannot be reached.
        """
        stored: Any = self._redis.hgetall(self.key)
        self._stored = stored

    def clear(self) -> None:
        """Forget the values that were read last, so that stale ones are not reported."""
        self._stored = {}

    def collect(self) -> Iterator[Metric]:
        """Yield every family with the samples that were read last."""
        found: dict[str, list[Sample]] = {}
        for field, value in self._stored.items():
            name, labels = json.loads(field)
            found.setdefault(name, []).append(Sample(name, labels, float(value)))
        for name, text, kind in self._families:
            family = Metric(name, text, kind)
            endings = ("_bucket", "_count", "_sum") if kind == "histogram" else ("_total",)
            samples = [s for ending in endings for s in found.get(name + ending, ())]
            family.samples.extend(sorted(samples, key=_place))
            yield family


def _place(sample: Sample) -> tuple[Any, ...]:
    """Return the sort key of a sample: equal labels together, buckets by their bounds."""
    labels = {k: v for k, v in sample.labels.items() if k != "le"}
    return (*sorted(labels.items()), sample.name, float(sample.labels.get("le", 0)))


class JobMeter:
    """Measures one attempt at a job: the time of its phases and diffusion steps.

    Arguments:
        measures: Metrics of this process.
        kind: Kind of job.
    """

    def __init__(self, measures: Measures, kind: str) -> None:
        self.measures = measures
        self.kind = kind
        self._phase = ""
        self._entered = time.monotonic()
        self._step: float | None = None

    def phase(self, phase: Phase) -> None:
        """Note that a phase begins, and the one before it ends."""
        self.end()
        self._phase = phase.value

    def step(self) -> None:
        """Note that a diffusion step begins, and the one before it ends."""
        self._end_step()
        self._step = time.monotonic()

    def assimilated(self, outcomes: Mapping[str, Mapping[str, int]], retries: int) -> None:
        """Count the outcomes of the values of a window, and retries after running out of memory.

        Arguments:
            outcomes: Values by network and outcome of the checks.
            retries: Number of retries with less memory.
        """
        self.measures.checked("analysis", outcomes)
        if retries:
            self.measures.out_of_memory.labels(self.kind, "smaller").inc(retries)

    def compared(self, comparison: Mapping[str, Any] | None) -> None:
        """Count the comparison of a cycle with a cold window, if there was one."""
        if comparison is not None:
            self.measures.comparisons.labels(str(comparison["worse"]).lower()).inc()

    def end(self) -> None:
        """Note that the last phase has ended."""
        self._end_step()
        now = time.monotonic()
        if self._phase:
            self.measures.phases.labels(self.kind, self._phase).observe(now - self._entered)
        self._phase, self._entered = "", now

    def _end_step(self) -> None:
        if self._step is not None:
            self.measures.steps.labels(self.kind).inc()
            self.measures.step_seconds.labels(self.kind).inc(time.monotonic() - self._step)
            self._step = None
