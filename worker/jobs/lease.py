"""A lease on a record: kept by heartbeats from a thread, guarded by a fencing token.

The token in the record is the authority: an attempt whose token is no longer the newest may
change nothing. The lease key only says that the holder is alive; it may run out while the Redis
server is down, and the next heartbeat restores it.
"""

import threading
from datetime import timedelta
from types import TracebackType
from typing import Any

from redis.exceptions import RedisError

from model.domain.errors import JobCancelled
from worker.jobs.job import JobState
from worker.jobs.record_store import LeaseLost, NoSuchRecord, RecordStore

__all__ = ["Lease"]


class Lease:
    """Held as a context while a worker works on a record.

    Arguments:
        store: Jobs or batches.
        record_id: The record, already claimed.
        token: The token that came with the claim.
        lifetime: Without heartbeats the lease ends after this.
    """

    def __init__(
        self, store: RecordStore[Any], record_id: str, token: int, lifetime: timedelta
    ) -> None:
        self.store = store
        self.record_id = record_id
        self.token = token
        self.lifetime = lifetime
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._beat_on, name=f"lease-{record_id}", daemon=True
        )

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def check(self) -> None:
        """Asked between any two steps of the work.

        Raises:
            JobCancelled: If the end of the job was asked for.
            LeaseLost: If a newer attempt holds the record.
        """
        state, token = self.store.state_and_token(self.record_id)
        if state == JobState.CANCELLING and token == self.token:
            raise JobCancelled(f"Job '{self.record_id}' was cancelled.", id=self.record_id)
        if self.lost.is_set() or token != self.token or state not in self.store.leased:
            raise LeaseLost(
                f"Another attempt holds {self.store.noun} '{self.record_id}'.", id=self.record_id
            )

    def _beat_on(self) -> None:
        pause = self.lifetime.total_seconds() / 4
        while not self._stop.wait(pause):
            try:
                self.store.beat(self.record_id, self.token, self.lifetime)
            except (LeaseLost, NoSuchRecord):
                self.lost.set()
                return
            except RedisError:  # the server restarts: the token still counts, try again
                continue
