"""The batch store: uploads, found again by their content and by the sender's key."""

from model.domain.errors import InvalidInput
from worker.jobs.batch import ALLOWED_BATCH_MOVES, BatchRecord, BatchState, IngestSummary
from worker.jobs.job import Problem
from worker.jobs.record_store import RecordStore

__all__ = ["BatchStore", "IdempotencyConflict"]


class IdempotencyConflict(InvalidInput):
    """One idempotency key with two different contents."""

    code = "idempotency_conflict"


class BatchStore(RecordStore[BatchRecord]):
    """Batches in Redis."""

    noun = "batch"
    model = BatchRecord
    waiting = BatchState.RECEIVED
    working = BatchState.INGESTING
    leased = (BatchState.INGESTING,)

    def _sources(self, to: str) -> list[str]:
        return [state for state, moves in ALLOWED_BATCH_MOVES.items() if to in moves]

    def create(self, record: BatchRecord, *, idempotency_key: str = "") -> tuple[BatchRecord, bool]:
        """Stores a new upload, or finds the one with the same content and options, or
        the same key.

        A failed batch (our side broke) does not stand in the way of sending its content again.

        Returns:
            The batch, and whether it was created now.

        Raises:
            IdempotencyConflict: If the key was used before with another content.
        """
        content = record.identity
        key = f"key:{record.api_key}:{idempotency_key}"
        unique = [key, content] if idempotency_key else [content]
        batch, created = self._create(record, kind=record.container, unique=unique)
        if not created and batch.state is BatchState.FAILED:
            self.redis.delete(*(self.keys.unique(self.noun, name) for name in unique))
            batch, created = self._create(record, kind=record.container, unique=unique)
        if batch.identity != record.identity:
            raise IdempotencyConflict(
                f"Expected the same content under Idempotency-Key '{idempotency_key}' as before "
                f"(batch '{batch.id}', sha256 {batch.sha256}); got sha256 {record.sha256}.",
                field="Idempotency-Key",
                batch_id=batch.id,
            )
        return batch, created

    def find_content(self, sha256: str) -> str | None:
        """Id of the batch with this content, or None."""
        found = self._call(self.redis.get(self.keys.unique(self.noun, f"sha256:{sha256}")))
        return None if found is None else str(found)

    def finish(self, record_id: str, token: int, summary: IngestSummary) -> None:
        """The rows are in the store."""
        to = BatchState.INGESTED
        self.move(record_id, to, token=token, terminal=True, summary=summary, error=None)

    def reject(
        self, record_id: str, token: int, problem: Problem, summary: IngestSummary | None = None
    ) -> None:
        """Nothing in the upload could be read."""
        to = BatchState.REJECTED
        self.move(record_id, to, token=token, terminal=True, error=problem, summary=summary)

    def fail(self, record_id: str, token: int | None, problem: Problem) -> None:
        """Ingest broke for good."""
        self.move(record_id, BatchState.FAILED, token=token, terminal=True, error=problem)

    def requeue(self, record_id: str, token: int, problem: Problem) -> None:
        """Back to waiting after a retryable error."""
        self.move(record_id, BatchState.RECEIVED, token=token, terminal=False, error=problem)
