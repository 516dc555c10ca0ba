"""The observation store: publish a batch, read a window, compact."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from model.domain.windows import AssimilationWindow
from worker.jobs.observation_files import StoreFiles
from worker.jobs.observation_manifests import BatchManifest
from worker.jobs.observation_query import ObservationQuery, read_rows
from worker.observation_store.compaction import CompactionReport, compact
from worker.observation_store.publish import publish

__all__ = ["ObservationStore"]


@dataclass(frozen=True)
class ObservationStore:
    """Hourly Parquet files below `url`, a folder or an fsspec URL."""

    url: str

    @property
    def files(self) -> StoreFiles:
        """Names and manifests."""
        return StoreFiles(str(self.url))

    def publish(
        self,
        table: pa.Table,
        batch_id: str,
        received_time: datetime,
        provenance: dict[str, Any] | None = None,
    ) -> BatchManifest:
        """See `worker.observation_store.publish.publish`."""
        return publish(self.files, table, batch_id, received_time, provenance)

    def read_window(
        self,
        window: AssimilationWindow,
        *,
        cut_off: datetime | None = None,
        columns: Sequence[str] = (),
        report_types: Sequence[str] = (),
        variables: Sequence[str] = (),
        batches: Sequence[str] = (),
        used_only: bool = False,
        max_rows: int | None = None,
    ) -> pa.Table:
        """The rows observed in (start, end], in order of hour and arrival.

        Arguments:
            window: The time.
            cut_off: Only rows that had arrived by then: any past state of the store.
            columns, report_types, variables, batches: Restrictions; empty means all.
            used_only: Leave out rows rejected at arrival.
            max_rows: Refuse larger answers.

        Raises:
            ResourceExhausted: If there are more than `max_rows`.
        """
        query = ObservationQuery(
            start=window.start,
            end=window.end,
            cut_off=cut_off,
            columns=tuple(columns),
            report_types=tuple(report_types),
            variables=tuple(variables),
            batches=tuple(batches),
            outcome="used" if used_only else "all",
        )
        return read_rows(str(self.url), query, max_rows)

    def compact(
        self,
        start: datetime,
        end: datetime,
        *,
        least_files: int = 4,
        grace: timedelta = timedelta(minutes=15),
    ) -> CompactionReport:
        """See `worker.observation_store.compaction.compact`."""
        return compact(self.files, start, end, least_files=least_files, grace=grace)
