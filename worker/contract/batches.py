"""Store batches in Redis: uploads of observations, from the bytes received to rows in the store.

A batch is found again by its content and by the sender's idempotency key.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import Field

from model.domain.errors import InvalidInput
from worker.contract import clock, scripts
from worker.contract.record_store import MoveRefused, RecordStore, milliseconds
from worker.contract.records import Problem, Record, utc_now
from worker.contract.usage import Charge

__all__ = [
    "ALLOWED_BATCH_MOVES",
    "BatchRecord",
    "BatchState",
    "BatchStore",
    "CALL_LIFETIME",
    "IdempotencyConflict",
    "IngestSummary",
    "Lane",
    "SMALL_BYTES",
]


_CORRECTION = re.compile(
    r"[A-Z]{4}\d{2}[ _.+-]?[A-Z]{4}[ _.+-]?\d{6}[ _.+-]?(CC[A-Z]|AA[A-Z]|COR|AMD)(?![A-Z0-9])", re.I
)
"""Abbreviated heading of a correction in a file name, such as `A_ISMD01EDZW021200CCA_C_EDZW_…`."""
_OF_BULLETINS = frozenset({"bufr", "text", "crex", "archive"})
"""Containers whose decoders read the heading of a bulletin from the name of the file."""


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
"""`rejected`: nothing in the upload could be read; `failed`: an error of the service.

These are the transitions of ingest. `BatchStore.retry`, requested by a user, starts over."""

_RETRIED = (BatchState.RECEIVED, BatchState.FAILED, BatchState.REJECTED)
_BY_LIMITS = frozenset({"timeout", "out_of_memory"})


class Lane(StrEnum):
    """Where an upload waits: small bulletins never wait behind a large file."""

    SMALL = "small"
    LARGE = "large"


SMALL_BYTES = 256 * 1024
"""Maximum size of a small upload in bytes."""

CALL_LIFETIME = timedelta(seconds=5)
"""Time after which a message for small uploads counts as lost, and another is sent."""

_EXPANDING = frozenset({"archive", "grib", "ioda", "odb", "parquet"})
"""Formats in which a small file may expand to millions of values."""


def lane_of(size: int, container: str) -> Lane:
    """Return the lane of an upload of this size and format."""
    return Lane.SMALL if size <= SMALL_BYTES and container not in _EXPANDING else Lane.LARGE


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
    rejected_by_report_type: dict[str, dict[str, int]] = Field(
        default={}, description="The same for each network that has any."
    )
    decode_report: dict[str, Any] = Field(default={}, description="The decoder's own report.")


class BatchRecord(Record):
    """One upload of observations: what was received, and what ingest made of it."""

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
    version: int = Field(
        default=0, ge=0, description="How often its data were announced as updated (WIS2)."
    )
    attempts: int = Field(default=0, ge=0, description="How often a worker has started it.")
    lost: int = Field(default=0, ge=0, description="How often the worker of an attempt died.")
    retry_at: datetime | None = Field(
        default=None,
        description="No new attempt before this (UTC), after the fault in `error`; null otherwise.",
    )
    token: int = Field(default=0, ge=0, description="Fencing token of the newest attempt.")
    worker: str | None = Field(default=None, description="Worker of the newest attempt.")
    summary: IngestSummary | None = Field(default=None, description="What came out, once ingested.")
    error: Problem | None = Field(default=None, description="Why it was rejected or failed.")
    api_key: str = Field(default="", description="Id of the API key that sent it; empty when none.")
    request_id: str = Field(default="", description="Request that sent it, for the logs.")
    trace: str = Field(default="", description="Span that received it, a W3C `traceparent`.")

    @property
    def priority(self) -> int:
        """Return the priority of the message about the batch: always the highest."""
        return 0

    @property
    def lane(self) -> Lane:
        """Return the lane in which it waits when it arrives."""
        return lane_of(self.size, self.container)

    @property
    def message(self) -> str:
        """Return why the upload waits for a retry; empty if it does not."""
        if self.state is BatchState.RECEIVED and self.error is not None:
            return f"waiting: {self.error.message}"
        return ""

    @property
    def may_be_sent_again(self) -> bool:
        """Return whether it ended by an error or limit of the service, not because of its content."""
        if self.state is BatchState.REJECTED and self.error is not None:
            return self.error.context.get("reason") in _BY_LIMITS
        return self.state is BatchState.FAILED

    @property
    def identity(self) -> str:
        """Return the key of the content: uploads of the same bytes and options share it.

        A bulletin marked as a correction by its file name or announcement is distinct from an earlier
        one with the same bytes: it says that they are valid again.
        """
        named = _CORRECTION.search(self.file_name) if self.container in _OF_BULLETINS else None
        content = f"sha256:{self.sha256}" + (f":{named.group(1).upper()}" if named else "")
        content += f":update{self.version}" if self.version else ""
        if not self.options:
            return content
        text = json.dumps(self.options, sort_keys=True)
        return f"{content}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class IdempotencyConflict(InvalidInput):
    """One idempotency key with two different contents."""

    code = "idempotency_conflict"


def _also_sent(api_key: str, content: str) -> str:
    """Return the unique key that records that another API key sent the same content as well."""
    return f"also:{api_key}:{content}"


class BatchStore(RecordStore[BatchRecord]):
    """Batches in Redis, found by id, by content and by the sender's idempotency key."""

    noun = "batch"
    model = BatchRecord
    waiting = BatchState.RECEIVED
    working = BatchState.INGESTING
    leased = (BatchState.INGESTING,)
    ends = frozenset({BatchState.INGESTED, BatchState.REJECTED, BatchState.FAILED})
    keeps_events = False

    def kind_of(self, record: BatchRecord) -> str:
        return record.container

    def own_names(self, record: BatchRecord) -> list[str]:
        return [record.identity]

    def _sources(self, to: str) -> list[str]:
        return [state for state, moves in ALLOWED_BATCH_MOVES.items() if to in moves]

    def create(
        self, record: BatchRecord, *, idempotency_key: str = "", charge: Charge | None = None
    ) -> tuple[BatchRecord, bool]:
        """Store a new upload, or return the one with the same content and options or key.

        A new idempotency key is bound to the batch, even if the content was known before. After a
        failure of the service, or a rejection by its limits of time and memory, the content may be
        sent again under the same key.

        Returns:
            The batch, and whether it was created now.

        Raises:
            IdempotencyConflict: If the key was used before with another content.
            QuotaExceeded: If it is new and `charge` does not fit into the sender's quota of the day.
        """
        content = record.identity
        key = f"key:{record.api_key}:{idempotency_key}"
        unique = [key, content] if idempotency_key else [content]
        batch, created = self._create(
            record, kind=record.container, unique=unique, lane=record.lane, charge=charge
        )
        self._require_same(batch, record, idempotency_key)
        if not created and batch.may_be_sent_again:
            self.delete_keys(unique)
            batch, created = self._create(
                record, kind=record.container, unique=unique, lane=record.lane, charge=charge
            )
            self._require_same(batch, record, idempotency_key)
        if not created and record.api_key not in ("", batch.api_key):
            self.bind_key(batch.id, _also_sent(record.api_key, content))
        return batch, created

    def sent_by(self, batch: BatchRecord, api_key: str) -> bool:
        """Return whether this API key has sent the content of a batch, first or after another key."""
        if batch.api_key == api_key:
            return True
        return self.key_value(_also_sent(api_key, batch.identity)) is not None

    @staticmethod
    def _require_same(batch: BatchRecord, record: BatchRecord, idempotency_key: str) -> None:
        if batch.identity != record.identity:
            raise IdempotencyConflict(
                f"Expected the same content under Idempotency-Key '{idempotency_key}' as before "
                f"(batch '{batch.id}', sha256 {batch.sha256}); got sha256 {record.sha256}.",
                field="Idempotency-Key",
                batch_id=batch.id,
            )

    def restore(self, record: BatchRecord) -> tuple[BatchRecord, bool]:
        """Store the record of an upload that is on disk but unknown here; see `create`.

        If an upload with the same content is known already, it is returned unchanged in any state.
        The record may be of an upload that has ended.
        """
        batch, created = self._create(record, kind=record.container, unique=[record.identity])
        if created and record.state in self.ends:
            if record.api_key:
                self._call(self.redis.zrem(self._index("active", record.api_key), record.id))
            self.mark_ended([record.id])
        return batch, created

    def needs_message(self, lane: Lane, lifetime: timedelta) -> bool:
        """Return whether a message must be sent so that a worker takes the uploads of a lane.

        None is needed while another message is in flight; `take` acknowledges it. A message counts as
        lost after `lifetime`.
        """
        name = self._index("called", lane)
        return bool(self._call(self.redis.set(name, "1", nx=True, px=milliseconds(lifetime))))

    def take(
        self, lane: Lane, worker: str, lease: timedelta, *, max_records: int = 1, max_bytes: int = 0
    ) -> tuple[list[BatchRecord], bool]:
        """Claim waiting uploads of a lane, round-robin over API keys, the oldest of each first.

        Uploads that were attempted before are in no lane: each has a message of its own.

        Arguments:
            lane: The lane.
            worker: Name of the worker that claims them.
            lease: Lease of each claim, renewed by heartbeats.
            max_records: Maximum number of uploads.
            max_bytes: Maximum total size, if there are several.

        Returns:
            The uploads, as `claim` returns each, and whether others wait in the lane.
        """
        fields = {"worker": worker, "started": utc_now().isoformat(), "retry_at": None}
        run = self.redis.register_script(scripts.TAKE)
        nobody = [f(self.noun, "") for f in (self.keys.record, self.keys.lease, self.keys.events)]
        _, taken, left = self._call(
            run(
                keys=nobody,
                args=[
                    self.keys.index(self.noun),
                    "",
                    self.keys.channel,
                    self.noun,
                    lane,
                    max_records,
                    max_bytes,
                    self.waiting,
                    self.working,
                    milliseconds(lease),
                    self._fields(fields),
                    self._event(self.working, worker=worker),
                    self.keys.record(self.noun, ""),
                ],
            )
        )
        records = [self._decode(dict(zip(row[::2], row[1::2], strict=True))) for row in taken]
        return [record for record in records if record is not None], bool(left)

    def lane_of_record(self, record_id: str) -> tuple[Lane | None, bool]:
        """Return the lane of an upload, and whether it waits alone; (None, False) if there is none.

        An upload waits alone if it was attempted before, or created by a release without lanes.
        """
        key = self.keys.record(self.noun, record_id)
        names = ["state", "lane", "size", "container"]
        state, waits_in, size, container = self._call(self.redis.hmget(key, names))
        if state is None:
            return None, False
        alone = state == self.waiting and waits_in is None
        return lane_of(int(size), json.loads(container)), alone

    def retry(self, record_id: str) -> BatchRecord:
        """Restart the ingest of an upload that failed, was rejected, or waits for a retry.

        The caller sends its message.

        Raises:
            MoveRefused: If it is being ingested or was ingested, or if its content was sent again
                meanwhile as another upload.
            NoSuchRecord: If there is none.
        """
        batch = self.get(record_id)
        key = self.keys.unique(self.noun, batch.identity)
        holder = self.key_value(batch.identity)
        if holder not in (None, record_id):
            raise MoveRefused(
                f"Expected batch '{record_id}' to be the newest of its content; it was sent again "
                f"as batch '{holder}'. Retry that one.",
                id=record_id,
                batch_id=str(holder),
            )
        fields = {"attempts": 0, "lost": 0}
        nothing = dict.fromkeys(("finished", "started", "retry_at", "summary", "error"))
        self._run(
            scripts.MOVE,
            record_id,
            BatchState.RECEIVED,
            "," + ",".join(_RETRIED) + ",",
            "",
            self._fields(fields | nothing),
            self._event(BatchState.RECEIVED),
            0,
            record_id,
            keys=[key],
        )
        if self.archive is not None:  # its earlier end is void
            self.archive.drop(self.noun, [record_id], names=False)
        return self.get(record_id)

    def find_content(self, sha256: str) -> str | None:
        """Return the id of the batch with this content, or None."""
        return self.key_value(f"sha256:{sha256}")

    def finish(self, record_id: str, token: int, summary: IngestSummary) -> None:
        """End the ingest successfully: the rows are in the observation store."""
        to = BatchState.INGESTED
        self.move(record_id, to, token=token, terminal=True, summary=summary, error=None)

    def finish_all(
        self, batches: Sequence[BatchRecord], summaries: Mapping[str, IngestSummary]
    ) -> dict[str, Exception]:
        """End the ingest of several batches successfully; return the errors of those refused."""
        values = {batch.id: {"summary": summaries[batch.id], "error": None} for batch in batches}
        tokens = {batch.id: batch.token for batch in batches}
        return self.move_all(BatchState.INGESTED, tokens, terminal=True, values=values)

    def reject(
        self, record_id: str, token: int, problem: Problem, summary: IngestSummary | None = None
    ) -> None:
        """End the ingest: nothing in the upload could be read."""
        to = BatchState.REJECTED
        self.move(record_id, to, token=token, terminal=True, error=problem, summary=summary)

    def fail(self, record_id: str, token: int | None, problem: Problem) -> None:
        """End the ingest after an error that is not the sender's and will not be retried."""
        self.move(record_id, BatchState.FAILED, token=token, terminal=True, error=problem)

    def requeue(
        self, record_id: str, token: int, problem: Problem, retry_at: datetime | None = None
    ) -> None:
        """Put the upload back to waiting after a transient error.

        Arguments:
            record_id: The batch.
            token: Token of the attempt that failed.
            problem: The reason, kept in the record.
            retry_at: No new attempt before this (UTC); at once when absent.
        """
        values = {"error": problem, "retry_at": retry_at}
        self.move(record_id, BatchState.RECEIVED, token=token, terminal=False, **values)
