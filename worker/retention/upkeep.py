"""Retention and compaction as work of the scheduler: now and then, by one scheduler at a time.

Deleting and merging take time, so they run in a thread of their own; the scheduler's other
questions go on. A key in Redis, which expires, says whose turn it is and when the next one comes,
so that any number of schedulers is harmless. A run that dies is done again later.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import structlog
from redis import Redis
from redis.exceptions import LockError, RedisError

from model.domain.errors import AppaError
from worker.jobs import clock
from worker.jobs.disk import DiskSettings, disk_state
from worker.jobs.layout import Layout
from worker.jobs.retention_figures import RetentionFigures
from worker.jobs.store import Stores
from worker.observation_store.store import ObservationStore
from worker.retention.needed import needed
from worker.retention.plan import Item, make_plan
from worker.retention.policy import CompactionRule, read_policy
from worker.retention.remove import remove_all

__all__ = ["Upkeep", "run_retention"]

log = structlog.get_logger()
_LOCK_SECONDS = 900.0
"""A scheduler that dies in the middle holds others up for so long at most."""

_LOW_SECONDS = 30.0
"""Pause between runs while the disk is low."""


def run_retention(layout: Layout, stores: Stores, disk: DiskSettings) -> list[Item]:
    """Removes what the policy lets go now; returns what was removed.

    Raises:
        ConfigurationError: If `retention.yaml` is no policy.
        RedisError: If nobody can say what unfinished jobs need.
    """
    policy = read_policy(layout.retention_file)
    low = disk_state(layout, disk).low
    figures = RetentionFigures(stores.redis, stores.keys)
    plan = make_plan(layout, policy, needed(stores), low=low)
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
class Upkeep:
    """Asked at every turn of the scheduler; `tick` never waits.

    Attributes:
        stores: All records.
        layout: The data folder.
        disk: The watermark.
    """

    stores: Stores
    layout: Layout
    disk: DiskSettings
    _threads: dict[str, threading.Thread] = field(default_factory=dict, init=False)

    def tick(self) -> int:
        """Starts what is due; returns how many tasks."""
        policy = read_policy(self.layout.retention_file)
        low = disk_state(self.layout, self.disk).low
        if low:  # at once, whenever it ran last
            started = self._start("retention", "retention-low", _LOW_SECONDS, self._retain)
        else:
            seconds = 60.0 * policy.every_minutes
            started = self._start("retention", "retention", seconds, self._retain)
        rule = policy.compaction
        if rule is not None and not low:  # merging needs room first
            seconds = 60.0 * rule.every_minutes
            merge = partial(self._compact, rule)
            started += self._start("compaction", "compaction", seconds, merge)
        return started

    def join(self, timeout: float) -> None:
        """Waits for what runs."""
        for thread in self._threads.values():
            thread.join(timeout)

    def _start(self, task: str, turn: str, pause: float, work: Callable[[], None]) -> bool:
        """Starts a task unless it runs, here or elsewhere, or its turn comes later."""
        running = self._threads.get(task)
        if running is not None and running.is_alive():
            return False
        keys, redis = self.stores.keys, self.stores.redis
        # The pause is real time: an accelerated clock must not make it a busy loop.
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
        store = ObservationStore(str(self.layout.observations))
        report = store.compact(start, end, least_files=rule.least_files)
        if report.hours:
            log.info("compacted", **vars(report))


def _alone(redis: Redis, name: str, work: Callable[[], None]) -> None:
    """Does the work unless another scheduler is still at it."""
    try:
        with redis.lock(name, timeout=_LOCK_SECONDS, blocking=False):
            work()
    except LockError:
        log.debug("another scheduler is at it", task=name)
    except (RedisError, OSError, AppaError) as error:
        log.warning("upkeep failed", task=name, error=str(error))
    except Exception:
        log.exception("upkeep failed", task=name)
