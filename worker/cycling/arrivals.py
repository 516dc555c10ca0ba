"""Whether all that arrived by a cut-off is in the observation store.

A cycle uses the observations received by its cut-off, no more and no fewer, so it waits for the
uploads that came in time and are still being taken in. It does not wait for ever.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from worker.cycling.due import Cycle
from worker.jobs import clock
from worker.jobs.batch import BatchState
from worker.jobs.batch_store import BatchStore

__all__ = ["Arrivals", "oldest_unfinished"]

SETTLE_SECONDS = 0.5
"""Real seconds after a cut-off in which an upload may have its arrival time but no record yet."""


def oldest_unfinished(batches: BatchStore) -> datetime | None:
    """Arrival of the oldest upload that is not taken in yet; None when there is none."""
    arrivals = []
    for state in (BatchState.RECEIVED, BatchState.INGESTING):
        ids = batches.ids(state)
        first = batches.find(ids[0]) if ids else None  # ids sort by arrival
        if first is not None:
            arrivals.append(first.created)
    return min(arrivals, default=None)


@dataclass
class Arrivals:
    """Remembers since when a cycle waits; a new scheduler begins to count anew, which is safe.

    Attributes:
        batches: Uploads.
    """

    batches: BatchStore
    _since: dict[str, float] = field(default_factory=dict)

    def complete(
        self, cycles: Sequence[Cycle], now: datetime, grace_seconds: float
    ) -> Mapping[Cycle, str]:
        """The cycles that need not wait any longer; with a remark where some uploads are missing.

        Arguments:
            cycles: Their cut-offs have passed.
            now: Operational present.
            grace_seconds: Longest real time to wait, from when this process first saw the cycle.
        """
        oldest = oldest_unfinished(self.batches) if cycles else None
        present = {cycle.key for cycle in cycles}
        self._since = {key: t for key, t in self._since.items() if key in present}
        done: dict[Cycle, str] = {}
        for cycle in cycles:
            since = self._since.setdefault(cycle.key, time.monotonic())
            waited = time.monotonic() - since
            if (now - cycle.cut_off).total_seconds() < SETTLE_SECONDS * clock.speed():
                continue
            if oldest is None or oldest > cycle.cut_off:
                done[cycle] = ""
            elif waited >= grace_seconds:
                done[cycle] = (
                    f"uploads that arrived from {oldest.isoformat(timespec='seconds')} on were "
                    f"still being taken in after {grace_seconds:g} s and may be missing"
                )
        return done
