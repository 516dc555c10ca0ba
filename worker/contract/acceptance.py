"""Accept a file of observations: bytes under a temporary name, then kept, recorded and queued.

Whoever receives observations (the gateway over HTTP, the feeds from other centres) hands them over
here, so that all are kept, found again by their content, and ingested alike. The order of the steps
keeps every moment consistent: the file, then the record, then the message. A process that dies in
between leaves a file without record, which the scheduler finds. Where the file is kept is the affair
of `worker.contract.uploads`.
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
        """Store a file that was received whole, record it, and queue its ingest.

        Arguments:
            part: The bytes received.
            record: What is known of them; its id names the folder.
            idempotency_key: The sender's own key; see `BatchStore.create`.
            charge: Counted for the sender if the content is new.

        Returns:
            The batch with this content, and whether it is new.

        Raises:
            IdempotencyConflict: If the key was used before with another content.
            QuotaExceeded: If the sender's day has no room for `charge`.
            OSError: If the file cannot be kept; nothing was recorded.
            BucketUnavailable: If a bucket does not answer. It may be kept, and is then ingested
                once, whether it is sent again or not.
            RedisError: If Redis did not answer; the scheduler compares disk and records.
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
            with suppress(OSError):  # a bucket that does not answer makes it an open one
                self.uploads.forget(record.id)
            raise
        # Any other error of Redis leaves open what it did: the reconciler compares disk and records.
        if not created and batch.id != record.id:  # else the reconciler was faster
            with suppress(OSError, BucketUnavailable):  # then the reconciler removes it
                self.uploads.forget(record.id)
        if batch.state is BatchState.RECEIVED:  # again for a duplicate: its message may be lost
            self.send(batch, together=created)
        return batch, created

    def send(self, batch: BatchRecord, *, together: bool) -> None:
        """Send the message of an upload; if it cannot be sent now, the scheduler sends it.

        Arguments:
            batch: The upload.
            together: Whether a message about another small upload brings this one as well.
        """
        batches, small = self.stores.batches, batch.lane is Lane.SMALL
        try:
            if together and small and not batches.call(Lane.SMALL, CALL_LIFETIME):
                return
            with traces.step("send message"):
                submit_batch(self.sender, self.stores.workers, batch.id, large=not small)
        except (OperationalError, RedisError) as error:
            log.warning("message_not_sent", batch_id=batch.id, error=str(error))
