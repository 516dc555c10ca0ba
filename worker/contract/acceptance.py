"""Accept a file of observations: bytes under a temporary name, then visible, recorded and queued.

Whoever receives observations (the gateway over HTTP, the feeds from other centres) hands them over
here, so that all are kept, found again by their content, and ingested alike. The order of the steps
keeps every moment consistent: the file, then the record, then the message. A process that dies in
between leaves a file without record, which the scheduler finds.
"""

import fcntl
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from model.domain.errors import AppaError
from model.domain.files import move_into_place, sync_folder, write_atomic
from worker.contract import traces
from worker.contract.batches import CALL_LIFETIME, BatchRecord, BatchState, Lane
from worker.contract.layout import Layout
from worker.contract.queues import TaskSender, submit_batch
from worker.contract.store import Stores

__all__ = ["Intake", "PartFile", "sweep"]

log = structlog.get_logger()


class PartFile:
    """An upload being received, under a temporary name.

    The file is locked while its process lives, so that another start of the gateway can tell
    uploads that are under way from those a killed process left behind (`sweep`).

    Arguments:
        path: Where the bytes are received; on the file system they will stay on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "xb", buffering=0)  # lives as long as the upload
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes | bytearray) -> None:
        """Append `data` and include it in the hash."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Return the hash of the bytes written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def publish(self, target: Path) -> None:
        """Make the bytes durable, then visible as `target` in one step."""
        target.parent.mkdir(parents=True, exist_ok=True)
        move_into_place(self.path, target)
        sync_folder(target.parent.parent)
        self._file.close()

    def discard(self) -> None:
        """Remove the part file and close it."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._file.closed:
            self.discard()


def sweep(folder: Path, pattern: str = "upload-*") -> int:
    """Remove the parts that no living process is writing; return how many."""
    removed = 0
    for path in folder.glob(pattern):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                removed += 1
        except OSError:  # being written, or gone
            continue
    return removed


@dataclass(frozen=True)
class Intake:
    """Where accepted files go.

    Attributes:
        layout: The data folder.
        stores: The records of uploads.
        sender: Sends the message to the ingest workers.
    """

    layout: Layout
    stores: Stores
    sender: TaskSender

    def accept(
        self, part: PartFile, record: BatchRecord, *, idempotency_key: str = ""
    ) -> tuple[BatchRecord, bool]:
        """Store a file that was received whole, record it, and queue its ingest.

        Arguments:
            part: The bytes received.
            record: What is known of them; its id names the folder.
            idempotency_key: The sender's own key; see `BatchStore.create`.

        Returns:
            The batch with this content, and whether it is new.

        Raises:
            IdempotencyConflict: If the key was used before with another content.
            OSError: If the file cannot be kept; nothing was recorded.
            RedisError: If Redis did not answer; the scheduler compares disk and records.
        """
        try:
            with traces.step("store bytes"):
                self._publish(part, record)
        except OSError:
            self._forget(record.id)
            raise
        try:
            with traces.step("store record"):
                batch, created = self.stores.batches.create(record, idempotency_key=idempotency_key)
        except (AppaError, ResponseError):  # a definite refusal: nothing was recorded
            self._forget(record.id)
            raise
        # Any other error of Redis leaves open what it did: the reconciler compares disk and records.
        if not created and batch.id != record.id:  # else the reconciler was faster
            self._forget(record.id)
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

    def _publish(self, part: PartFile, record: BatchRecord) -> None:
        """Put the record of an upload beside its place, then its bytes in that place."""
        beside = self.layout.raw_record(record.id)
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(beside, record.model_dump_json())
        part.publish(self.layout.raw_file(record.id))

    def _forget(self, batch_id: str) -> None:
        shutil.rmtree(self.layout.raw_batch(batch_id), ignore_errors=True)
