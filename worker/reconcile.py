"""Compare the uploads on disk with the records in Redis, and ingest those that no record knows.

The bytes of an upload are on disk before its record is in Redis. A gateway that dies in between, or
a server that lost its data, leaves uploads that were accepted and that nobody would ingest. What
was said about an upload lies beside its bytes (`raw/<batch>/batch.json`), its rows are in the
observation store under its id: so its record can be made again, without reading a row twice. An
upload whose content is known under another id is a duplicate and is removed.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from pydantic import ValidationError

from model.domain.errors import AppaError
from model.domain.files import file_digest
from worker.contract.batches import BatchRecord, BatchState
from worker.contract.layout import Layout
from worker.contract.queues import INGEST_BATCH, TaskSender, submit
from worker.contract.store import Stores
from worker.observations.formats import detect_format
from worker.observations.store.store import ObservationStore
from worker.pipeline.ingest import summary_of

__all__ = ["Reconciler"]

log = structlog.get_logger()

_CHUNK = 1_000


@dataclass
class Reconciler:
    """Make records of the uploads that Redis does not know: call `tick` every few seconds.

    Two of them at once do no harm: a record is created once.

    Attributes:
        layout: The data folder.
        stores: All records.
        sender: Sends task messages.
        every: Seconds between two comparisons.
        grace_seconds: Younger uploads may still be on their way from disk to Redis.
        turn_seconds: Longest time of one call; the next one goes on.
    """

    layout: Layout
    stores: Stores
    sender: TaskSender
    every: float = 60.0
    grace_seconds: float = 120.0
    turn_seconds: float = 10.0
    _due: float = float("-inf")
    _unusable: set[str] = field(default_factory=set)

    def tick(self) -> int:
        """Compare if the last comparison is old enough; return how many records were made."""
        if time.monotonic() < self._due:
            return 0
        started, made = time.monotonic(), 0
        for batch_id in self._unknown():
            made += self._restore(batch_id)
            if time.monotonic() - started > self.turn_seconds:
                return made
        self._due = time.monotonic() + self.every
        return made

    def _unknown(self) -> Iterator[str]:
        """Yield the uploads on disk without a record, newest first."""
        folders = (path.name for path in self.layout.raw.iterdir() if path.is_dir())
        names = sorted((name for name in folders if name not in self._unusable), reverse=True)
        for first in range(0, len(names), _CHUNK):
            some = names[first : first + _CHUNK]
            known = self.stores.batches.known(some)
            yield from (name for name in some if name not in known)

    def _restore(self, batch_id: str) -> int:
        content = self.layout.raw_file(batch_id)
        try:
            if time.time() - content.stat().st_mtime < self.grace_seconds:
                return 0
            record = self._record(batch_id)
        except FileNotFoundError:  # being removed, or never complete
            return 0
        except (AppaError, ValidationError) as error:
            log.warning("upload not restored", id=batch_id, reason=str(error))
            self._unusable.add(batch_id)
            return 0
        batch, created = self.stores.batches.restore(record)
        if not created:
            if batch.id != batch_id:
                self._remove_duplicate(record, batch)
            return 0
        log.warning("upload restored", id=batch_id, state=record.state)
        if record.state is BatchState.RECEIVED:
            submit(self.sender, INGEST_BATCH, batch_id)
        return 1

    def _record(self, batch_id: str) -> BatchRecord:
        """Return the record of an upload as its files tell it.

        Raises:
            DecodeError: If nothing was kept about it and its format is not known.
        """
        kept = self.layout.raw_record(batch_id)
        record = (
            BatchRecord.model_validate_json(kept.read_bytes())
            if kept.exists()
            else self._recognised(batch_id)
        )
        manifest = ObservationStore(str(self.layout.observations)).files.manifest(batch_id)
        if manifest is None:
            return record
        update = {
            "state": BatchState.INGESTED,
            "finished": manifest.created,
            "summary": summary_of(manifest),
        }
        return record.model_copy(update=update)

    def _recognised(self, batch_id: str) -> BatchRecord:
        """Describe an upload of an older version from its bytes alone."""
        content = self.layout.raw_file(batch_id)
        return BatchRecord(
            id=batch_id,
            created=datetime.fromtimestamp(content.stat().st_mtime, UTC),
            sha256=file_digest(content),
            size=content.stat().st_size,
            container=detect_format(content),
        )

    def _remove_duplicate(self, record: BatchRecord, batch: BatchRecord) -> None:
        """Remove an upload that was sent again and accepted under another id."""
        if record.state is BatchState.INGESTED:  # its rows name it
            self._unusable.add(record.id)
            return
        log.info("duplicate upload removed", id=record.id, same_as=batch.id)
        shutil.rmtree(self.layout.raw_batch(record.id), ignore_errors=True)
