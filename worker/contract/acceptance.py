"""Accept a file of observations: store its bytes, create its record, enqueue its ingest.

All receivers of observations (the gateway over HTTP, the feeds from other centres) call this, so that
all files are stored, deduplicated by content and ingested alike. The order of the steps keeps the
state consistent at all times: first the file, then the record, then the message. A process that dies
in between leaves a file without a record, which the scheduler finds. `worker.contract.uploads`
decides where files are stored.
"""

from contextlib import suppress
from dataclasses import dataclass

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from model.domain.errors import AppaError
from worker.contract import traces
from worker.contract.batches import CALL_LIFETIME, BatchRecord, BatchState, Lane
from worker.contract.buckets import BucketUnavailable
from worker.contract.layout import Layout
from worker.contract.part_file import PartFile
from worker.contract.queues import TaskSender, submit_batch
from worker.contract.store import Stores
from worker.contract.uploads import UploadStore, upload_store
from worker.contract.usage import Charge

__all__ = ["Intake"]

log = structlog.get_logger()


@dataclass(frozen=True)
class Intake:
    """Destination of accepted files: the data folder, stores and message sender.

    Attributes:
        layout: The data folder, and where uploads are kept.
        stores: The records of uploads.
        sender: Sends the message to the ingest workers.
    """

    layout: Layout
    stores: Stores
    sender: TaskSender

    @property
    def uploads(self) -> UploadStore:
        """Return the store of uploads that the layout names: a folder or a bucket."""
        return upload_store(self.layout)

    def accept(
        self,
        part: PartFile,
        record: BatchRecord,
        *,
        idempotency_key: str = "",
        charge: Charge | None = None,
    ) -> tuple[BatchRecord, bool]:
        """Store a completely received file, record it, and enqueue its ingest.

        Arguments:
            part: The bytes received.
            record: Its record; the id names the folder.
            idempotency_key: The sender's own key; see `BatchStore.create`.
            charge: Amount counted against the sender's quota if the content is new.

        Returns:
            The batch with this content, and whether it is new.

        Raises:
            IdempotencyConflict: If the key was used before with another content.
            QuotaExceeded: If `charge` does not fit into the sender's quota of the day.
            OSError: If the file cannot be stored; nothing was recorded.
            BucketUnavailable: If a bucket does not respond. The file may be stored all the same, and
                is then ingested once, whether it is sent again or not.
            RedisError: If Redis did not respond; the scheduler reconciles disk and records.
        """
        try:
            with traces.step("store bytes"):
                self.uploads.keep(part, record)
        except OSError:
            with suppress(OSError, BucketUnavailable):
                self.uploads.forget(record.id)
            raise
        try:
            with traces.step("store record"):
                batch, created = self.stores.batches.create(
                    record, idempotency_key=idempotency_key, charge=charge
                )
        except (AppaError, ResponseError):  # a definite refusal: nothing was recorded
            with suppress(OSError):  # no answer from a bucket: the file may remain
                self.uploads.forget(record.id)
            raise
        # After other errors of Redis the outcome is unknown: the reconciler compares disk and records.
        if not created and batch.id != record.id:  # equal: the reconciler recorded it first
            with suppress(OSError, BucketUnavailable):  # the reconciler removes it later
                self.uploads.forget(record.id)
        if batch.state is BatchState.RECEIVED:  # also for a duplicate, whose message may be lost
            self.send(batch, together=created)
        return batch, created

    def send(self, batch: BatchRecord, *, together: bool) -> None:
        """Send the message of an upload; if it cannot be sent now, the scheduler sends it.

        Arguments:
            batch: The upload.
            together: Whether the message of another small upload may cover this one.
        """
        batches, small = self.stores.batches, batch.lane is Lane.SMALL
        try:
            if together and small and not batches.needs_message(Lane.SMALL, CALL_LIFETIME):
                return
            with traces.step("send message"):
                submit_batch(self.sender, self.stores.workers, batch.id, large=not small)
        except (OperationalError, RedisError) as error:
            log.warning("message_not_sent", batch_id=batch.id, error=str(error))
