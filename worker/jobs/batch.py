"""A batch: one upload of observations, from the bytes received to rows in the store."""

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from worker.jobs import clock
from worker.jobs.job import Problem, Record

__all__ = ["ALLOWED_BATCH_MOVES", "BatchRecord", "BatchState", "IngestSummary"]


class BatchState(StrEnum):
    """Where an upload is in its life."""

    RECEIVED = "received"
    INGESTING = "ingesting"
    INGESTED = "ingested"
    REJECTED = "rejected"
    FAILED = "failed"


ALLOWED_BATCH_MOVES: dict[BatchState, frozenset[BatchState]] = {
    BatchState.RECEIVED: frozenset({BatchState.INGESTING, BatchState.FAILED}),
    BatchState.INGESTING: frozenset(
        {BatchState.INGESTED, BatchState.REJECTED, BatchState.FAILED, BatchState.RECEIVED}
    ),
    BatchState.INGESTED: frozenset(),
    BatchState.REJECTED: frozenset(),
    BatchState.FAILED: frozenset(),
}
"""`rejected`: nothing in the upload could be read; `failed`: our side broke."""


class IngestSummary(Record):
    """What came out of an upload."""

    messages: int = Field(default=0, description="Messages or rows found.")
    undecoded: int = Field(default=0, description="Messages that could not be decoded.")
    observations: int = Field(default=0, description="Observed values stored.")
    used: int = Field(default=0, description="Of these, values that passed the checks at arrival.")
    by_variable: dict[str, int] = Field(default={}, description="Stored values by variable.")
    by_report_type: dict[str, int] = Field(default={}, description="Stored values by network.")
    by_rejection: dict[str, int] = Field(
        default={}, description="Stored values by rejecting check."
    )
    decode_report: dict[str, Any] = Field(default={}, description="The decoder's own report.")


class BatchRecord(Record):
    """One upload."""

    id: str = Field(description="Unique, sorts by arrival.")
    state: BatchState = Field(default=BatchState.RECEIVED, description="Where it is in its life.")
    created: datetime = Field(
        default_factory=clock.now, description="When it arrived (UTC, by the operational clock)."
    )
    started: datetime | None = Field(default=None, description="When ingest last started (UTC).")
    finished: datetime | None = Field(default=None, description="When ingest ended (UTC).")
    sha256: str = Field(description="Of the bytes received.")
    size: int = Field(ge=0, description="Bytes.")
    container: str = Field(description="`bufr`, `grib`, `csv`, `parquet`, … by its first bytes.")
    file_name: str = Field(default="", description="As the sender called it.")
    options: dict[str, Any] = Field(
        default={},
        description="How to read it: `report_type`, `errors`, and options of its decoder.",
    )
    attempts: int = Field(default=0, ge=0, description="How often a worker has started it.")
    token: int = Field(default=0, ge=0, description="Fencing token of the newest attempt.")
    worker: str | None = Field(default=None, description="Worker of the newest attempt.")
    summary: IngestSummary | None = Field(default=None, description="What came out, once ingested.")
    error: Problem | None = Field(default=None, description="Why it was rejected or failed.")
    api_key: str = Field(default="", description="Id of the API key that sent it; empty when none.")
    request_id: str = Field(default="", description="Request that sent it, for the logs.")

    @property
    def identity(self) -> str:
        """What makes two uploads the same: their bytes, and how they are to be read."""
        if not self.options:
            return f"sha256:{self.sha256}"
        text = json.dumps(self.options, sort_keys=True)
        return f"sha256:{self.sha256}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
