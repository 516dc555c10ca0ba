"""Move ended records from Redis to disk, and restore Redis from disk after it lost its data.

`Archivist.tick` is called by the scheduler every few seconds. Any number of schedulers may do so,
because every step is idempotent. A record that ended is copied to the archive at once. It leaves
Redis some minutes later: its row is marked as the only copy, then it is deleted from Redis unless it
was changed meanwhile.

A marker key in Redis says that its data is complete. Where the marker is absent, the server is new
or has lost its data: cycles are restored as they were, unfinished jobs are queued again with a token
higher than any issued before, and jobs whose result is published are marked as succeeded. Uploads
are restored from their own folders (`worker.scheduler.Reconciler`).
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import structlog

from worker.contract import traces
from worker.contract.archive import ArchivedRecord, RecordArchive
from worker.contract.batches import BatchStore
from worker.contract.cycles import CycleStore
from worker.contract.jobs import JobRecord, JobState, JobStore, Progress
from worker.contract.layout import Layout
from worker.contract.queues import RUN_ASSIMILATION, TaskSender, submit
from worker.contract.records import utc_now
from worker.contract.store import Stores
from worker.results.retention.plan import read_policy
from worker.results.store import result_store

__all__ = ["AnyStore", "Archivist"]

log = structlog.get_logger()

_CHUNK = 500
_WEBHOOKS = "webhooks"
_EXPIRE_SECONDS = 600.0

AnyStore = JobStore | BatchStore | CycleStore


@dataclass
class Archivist:
    """Keep Redis small and the archive complete.

    Attributes:
        stores: All records; without an archive there is nothing to do.
        layout: The data folder.
        sender: Sends task messages.
        ended_seconds: How long a record stays in Redis after its end.
        every: Seconds between two searches for jobs that never reached Redis.
        turn_seconds: Maximum duration of one call; the next call continues.
        just_written_seconds: Age below which jobs are left for a later call after a loss: a job is
            on disk a moment before it is in Redis, so its creation may still be in progress.
    """

    stores: Stores
    layout: Layout
    sender: TaskSender
    ended_seconds: float = 600.0
    every: float = 60.0
    turn_seconds: float = 5.0
    just_written_seconds: float = 10.0
    _searched: float = field(default=float("-inf"), init=False)
    _expired: float = field(default=float("-inf"), init=False)
    _webhooks: str = field(default="", init=False)

    def tick(self) -> int:
        """Restore what Redis lost, copy newly ended records, remove older ended ones from Redis."""
        archive = self.stores.archive
        if archive is None:
            return 0
        acted = self._restore(archive)
        end = time.monotonic() + self.turn_seconds
        for store in (self.stores.jobs, self.stores.batches, self.stores.cycles):
            acted += self._copy(archive, store, end) + self._move(archive, store, end)
        self._keep_webhooks(archive)
        self.stores.workers.alive()  # removes expired registrations
        self._expire(archive)
        return acted

    def recover(self) -> int:
        """Restore what Redis lacks, whatever its marker says; return the number of jobs left for later."""
        archive = self.stores.archive
        if archive is None:
            return 0
        self.stores.redis.delete(self.stores.keys.once("archive-mark"))
        self._restore(archive)
        return len(self._settle(archive, self.stores.jobs))

    # -- from Redis to disk

    def _copy(self, archive: RecordArchive, store: AnyStore, end: float) -> int:
        copied = 0
        while time.monotonic() < end and (ids := store.pending_archive(_CHUNK)):
            kept = store.snapshot(ids)
            archive.put(kept)
            store.mark_archived(ids)
            copied += len(kept)
            if len(ids) < _CHUNK:
                break
        return copied

    def _move(self, archive: RecordArchive, store: AnyStore, end: float) -> int:
        moved, before = 0, time.time() - self.ended_seconds
        while time.monotonic() < end and (due := store.ended_before(before, _CHUNK)):
            scores = dict(due)
            kept = store.snapshot(list(scores))
            archive.put(kept)
            archive.set_present(store.noun, [k.id for k in kept], False)
            stayed = [k.id for k in kept if not store.evict(k, scores[k.id])]
            archive.set_present(store.noun, stayed, True)
            store.drop_ended(set(scores) - {k.id for k in kept})
            moved += len(kept) - len(stayed)
            if len(due) < _CHUNK or stayed:
                break
        return moved

    def _keep_webhooks(self, archive: RecordArchive) -> None:
        """Copy the webhook subscriptions, which exist only in Redis."""
        redis, keys = self.stores.redis, self.stores.keys
        found: Any = redis.hgetall(keys.webhooks)
        text = json.dumps(found, sort_keys=True)
        if text != self._webhooks:
            archive.set_note(_WEBHOOKS, text)
            self._webhooks = text

    def _expire(self, archive: RecordArchive) -> None:
        """Remove records older than the retention policy allows."""
        if time.monotonic() - self._expired < _EXPIRE_SECONDS:
            return
        days = read_policy(self.layout.retention_file).records.days
        if days is None:
            return
        before, removed = time.time() - 86_400.0 * days, 0
        for store in (self.stores.jobs, self.stores.batches, self.stores.cycles):
            removed += archive.expire(store.noun, before)
        if removed:
            log.info("records removed", count=removed, older_than_days=days)
            return  # the rest with the next call
        self._expired = time.monotonic()

    # -- from disk to Redis

    def _restore(self, archive: RecordArchive) -> int:
        """Restore all records that Redis lacks; return their number."""
        redis, mark = self.stores.redis, self.stores.keys.once("archive-mark")
        lost = not redis.exists(mark)
        if not lost and time.monotonic() - self._searched < self.every:
            return 0
        if lost:
            self._mark_unarchived()
        restored = self._restore_cycles(archive) if lost else 0
        grace = self.just_written_seconds if lost else 2 * self.every
        restored += self._restore_jobs(archive, grace)
        self._settle(archive, self.stores.batches)
        if lost:
            restored += self._restore_webhooks(archive)
            redis.set(mark, utc_now().isoformat())
        if restored:
            log.warning("restored from disk", count=restored, redis_lost_its_data=lost)
        self._searched = time.monotonic()
        return restored

    def _mark_unarchived(self) -> None:
        """Queue records of an older version, which have no time of their end, for archiving."""
        for store in (self.stores.jobs, self.stores.batches, self.stores.cycles):
            for state in store.ends:
                ids = store.ids(state)
                for first in range(0, len(ids), _CHUNK):
                    store.mark_ended(ids[first : first + _CHUNK])

    def _missing(self, archive: RecordArchive, store: AnyStore) -> list[ArchivedRecord]:
        present = archive.in_redis(store.noun)
        here: set[str] = set()
        for first in range(0, len(present), _CHUNK):
            here |= store.in_redis([kept.id for kept in present[first : first + _CHUNK]])
        return [kept for kept in present if kept.id not in here]

    def _settle(self, archive: RecordArchive, store: AnyStore) -> list[ArchivedRecord]:
        """Mark ended records that are only on disk; return the other records that Redis lacks."""
        missing = self._missing(archive, store)
        ended = [kept.id for kept in missing if kept.state in store.ends]
        archive.set_present(store.noun, ended, False)
        return [kept for kept in missing if kept.state not in store.ends]

    def _restore_cycles(self, archive: RecordArchive) -> int:
        lost = self._settle(archive, self.stores.cycles)
        for kept in lost:
            self.stores.cycles.restore_archived(kept)
        return len(lost)

    def _restore_jobs(self, archive: RecordArchive, grace: float) -> int:
        jobs, restored = self.stores.jobs, 0
        lost = self._settle(archive, jobs)
        for kept in lost:
            if time.time() - kept.written < grace:
                continue
            job = self._again(JobRecord.model_validate(dict(kept.fields)))
            row = jobs.kept(job, {}, kept.events)
            archive.put([row])
            jobs.restore_archived(row)
            restored += 1
            with traces.log_ids(job):
                log.warning("job restored", id=job.id, state=job.state.value)
                if job.state is JobState.QUEUED:
                    submit(self.sender, RUN_ASSIMILATION, job.id, job.priority)
        return restored

    def _again(self, job: JobRecord) -> JobRecord:
        """Return an unfinished job as it is to be restored: queued, succeeded or cancelled."""
        update: dict[str, Any] = {
            "state": JobState.QUEUED,
            "token": max(job.token + 1, int(time.time())),  # above any token issued before
            "worker": None,
            "retry_at": None,
            "publishing": False,
            "progress": Progress(message="restored after the job store lost its data"),
        }
        if result_store(self.layout).fetch_manifest(job.analysis_id):
            update |= {"state": JobState.SUCCEEDED, "finished": utc_now(), "error": None}
        elif job.state is JobState.CANCELLING:
            update |= {"state": JobState.CANCELLED, "finished": utc_now()}
        return job.model_copy(update=update)

    def _restore_webhooks(self, archive: RecordArchive) -> int:
        redis, keys = self.stores.redis, self.stores.keys
        kept: dict[str, str] = json.loads(archive.get_note(_WEBHOOKS) or "{}")
        return sum(int(redis.hsetnx(keys.webhooks, name, text)) for name, text in kept.items())
