"""Run retention and compaction periodically, by one scheduler at a time.

A result or an upload is first hidden by one rename, then its bytes are deleted; in a bucket the
manifest or record is deleted first, then the files. The catalogue follows the manifests, so that the
result disappears from it at the same time. Readers with open files can go on reading. Leftovers of a
killed run under `tmp/deleted-…` are deleted by the next run.

Deletion and merging take time, so they run in a separate thread. An expiring lock in Redis ensures that
only one of any number of schedulers runs, and not too often. A run that dies is repeated later.
"""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from redis import Redis
from redis.exceptions import LockError, RedisError

from model.domain.errors import AppaError
from worker.contract import clock
from worker.contract.disk import DiskSettings, disk_state
from worker.contract.layout import HIDDEN, Layout
from worker.contract.store import RetentionFigures, Stores
from worker.contract.uploads import upload_store
from worker.observations.store.compaction import SmallFileMerger, compact
from worker.observations.store.files import StoreFiles
from worker.observations.store.store import ObservationStore
from worker.results.manifest import RESTART_ROLE, is_pinned, read_manifest
from worker.results.publication import update_latest
from worker.results.retention.plan import (
    CompactionRule,
    RetentionItem,
    RetentionPlan,
    find_in_use,
    make_plan,
    read_policy,
)
from worker.results.store import result_store

__all__ = ["RetentionRunner", "remove", "remove_all", "run_retention", "sweep_removed"]

log = structlog.get_logger()


def remove_all(
    layout: Layout,
    plan: RetentionPlan,
    on_removed: Callable[[RetentionItem], None] = lambda item: None,
) -> list[RetentionItem]:
    """Remove the planned items; failures are logged and retried at the next run.

    Arguments:
        layout: The data folder.
        plan: Items to remove.
        on_removed: Called with each item after it was removed.

    Returns:
        What was removed.
    """
    sweep_removed(layout)
    gone = []
    for item in plan.items:
        try:
            if remove(layout, item):
                gone.append(item)
                on_removed(item)
                log.info("removed", what=item.what, name=item.name, bytes=item.size)
        except (OSError, AppaError) as error:
            log.warning("not removed", what=item.what, name=item.name, error=str(error))
    if any(item.what == "analysis" for item in gone):
        update_latest(layout)
    return gone


def remove(layout: Layout, item: RetentionItem) -> bool:
    """Remove one item; return whether it was there and not pinned."""
    if item.what == "analysis":
        return _remove_analysis(layout, item.name)
    if item.what == "restart":
        return _remove_restart(layout, item.name)
    if item.what == "log":
        (layout.logs / item.name).unlink(missing_ok=True)
        return True
    if item.what == "upload":
        return upload_store(layout).forget(item.name)
    day = datetime.fromisoformat(item.name).replace(tzinfo=UTC)
    return StoreFiles.of(layout).remove_day(day)


def sweep_removed(layout: Layout) -> int:
    """Delete what a killed run had hidden; return the number of folders."""
    left = list(layout.tmp.glob(f"{HIDDEN}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def _remove_analysis(layout: Layout, analysis_id: str) -> bool:
    results = result_store(layout)
    if is_pinned(layout, analysis_id) or not results.unpublish(analysis_id):
        return False
    if is_pinned(layout, analysis_id):  # pinned just before it was hidden
        results.republish(analysis_id)
        return False
    results.delete_hidden(analysis_id)
    return True


def _remove_restart(layout: Layout, analysis_id: str) -> bool:
    """Remove the file from the manifest, then delete it."""
    if is_pinned(layout, analysis_id):
        return False
    manifest = read_manifest(layout, analysis_id)
    files = [file for file in manifest.files if file.role == RESTART_ROLE]
    rest = [file for file in manifest.files if file.role != RESTART_ROLE]
    changed = manifest.model_copy(
        update={"files": rest, "flags": [*manifest.flags, "restart_removed"]}
    )
    results = result_store(layout)
    results.replace_manifest(changed)
    results.remove_files(analysis_id, files)
    return bool(files)


_LOCK_SECONDS = 900.0
"""Expiry of the lock, which bounds the delay after a scheduler dies while it holds it."""

_MERGE_SECONDS = 5.0
_LOW_SECONDS = 30.0
"""Pause between runs while the disk is low."""


def run_retention(layout: Layout, stores: Stores, disk: DiskSettings) -> list[RetentionItem]:
    """Apply the policy now; return the removed items.

    Raises:
        ConfigurationError: If `retention.yaml` is invalid.
        RedisError: If the needs of unfinished jobs cannot be determined.
    """
    policy = read_policy(layout.retention_file)
    low = disk_state(layout, disk).low
    figures = RetentionFigures(stores.redis, stores.keys)
    plan = make_plan(layout, policy, find_in_use(stores), low=low)
    gone = remove_all(layout, plan, lambda item: figures.add(item.what, item.size))
    figures.ran(time.time())
    if gone:
        freed = sum(item.size for item in gone)
        log.info("retention", removed=len(gone), freed_bytes=freed, disk_low=low)
    state = disk_state(layout, disk)
    if low and state.low:
        log.error("disk_low", free=state.free, needed=state.needed, advice="nothing more may go")
    return gone


@dataclass
class RetentionRunner:
    """Start retention and compaction when they are due; `tick` never blocks.

    Attributes:
        stores: All records.
        layout: The data folder.
        disk: The watermark.
    """

    stores: Stores
    layout: Layout
    disk: DiskSettings
    _threads: dict[str, threading.Thread] = field(default_factory=dict, init=False)
    _merger: SmallFileMerger | None = field(default=None, init=False)

    def tick(self) -> int:
        """Start what is due; return the number of tasks started."""
        policy = read_policy(self.layout.retention_file)
        low = disk_state(self.layout, self.disk).low
        if low:  # at once, without the usual pause
            started = int(self._start("retention", "retention-low", _LOW_SECONDS, self._retain))
        else:
            seconds = 60.0 * policy.every_minutes
            started = int(self._start("retention", "retention", seconds, self._retain))
        rule = policy.compaction
        if rule is not None and not low:  # merging needs free space
            seconds = 60.0 * rule.every_minutes
            merge = partial(self._compact, rule)
            started += self._start("compaction", "compaction", seconds, merge)
            soon = partial(self._merge_small, rule)
            started += self._start("compaction", "merging", _MERGE_SECONDS, soon)
        return started

    def join(self, timeout: float) -> None:
        """Wait until running tasks have ended."""
        for thread in self._threads.values():
            thread.join(timeout)

    def _start(self, task: str, turn: str, pause: float, work: Callable[[], None]) -> bool:
        """Start a task unless it is running, here or elsewhere, or not yet due."""
        running = self._threads.get(task)
        if running is not None and running.is_alive():
            return False
        keys, redis = self.stores.keys, self.stores.redis
        # The pause is in real time: an accelerated clock must not cause a busy loop.
        if not redis.set(keys.once(turn), "1", nx=True, ex=max(1, round(pause))):
            return False
        thread = threading.Thread(
            target=_alone, args=(redis, f"{keys.once(task)}:lock", work), name=task, daemon=True
        )
        self._threads[task] = thread
        thread.start()
        return True

    def _retain(self) -> None:
        run_retention(self.layout, self.stores, self.disk)

    def _compact(self, rule: CompactionRule) -> None:
        end = clock.now() - timedelta(hours=rule.after_hours)
        start = end - timedelta(hours=rule.look_back_hours)
        store = ObservationStore.of(self.layout)
        report = compact(store.files, start, end, min_files=rule.least_files)
        if report.hours:
            log.info("compacted", **vars(report))

    def _merge_small(self, rule: CompactionRule) -> None:
        merger = self._merger
        if merger is None or merger.max_files != rule.new_files:
            files = ObservationStore.of(self.layout).files
            merger = self._merger = SmallFileMerger(files, max_files=rule.new_files)
        report = merger.turn()
        if report.hours:
            log.debug("merged", **vars(report))


def _alone(redis: Redis, name: str, work: Callable[[], None]) -> None:
    """Do the work unless another scheduler is still doing it."""
    try:
        with redis.lock(name, timeout=_LOCK_SECONDS, blocking=False):
            work()
    except LockError:
        log.debug("another scheduler is at it", task=name)
    except (RedisError, OSError, AppaError) as error:
        log.warning("upkeep failed", task=name, error=str(error))
    except Exception:
        log.exception("upkeep failed", task=name)
