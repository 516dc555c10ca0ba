"""The scheduler: asks every few seconds what is lost or due. It holds no state that matters."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence

import structlog
from redis.exceptions import RedisError

from model.domain.errors import AppaError
from worker.celery_app import message_sender
from worker.cycling.tick import cycling_tick
from worker.jobs.connection import redis_health
from worker.leftovers import sweep_leftovers
from worker.logs import configure_logs
from worker.notifications.courier import Courier
from worker.notifications.events import MissedResults
from worker.reaper import Reaper
from worker.retention.upkeep import Upkeep
from worker.runtime import open_runtime
from worker.settings import WorkerSettings

__all__ = ["SCHEDULER", "run_scheduler"]

log = structlog.get_logger()
SCHEDULER = "scheduler"


def run_scheduler(
    settings: WorkerSettings | None = None, ticks: Sequence[Callable[[], object]] = ()
) -> None:
    """Sweeps until the process is asked to stop.

    Arguments:
        settings: Read from the environment when absent.
        ticks: Further questions to ask at every turn; each must be safe to ask twice.
    """
    settings = settings or WorkerSettings()
    configure_logs(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    name = f"{SCHEDULER}.{os.getpid()}@{socket.gethostname()}"
    runtime = open_runtime(settings, [SCHEDULER], name, message_sender(settings))
    for warning in redis_health(runtime.stores.redis).warnings:
        log.warning("redis", advice=warning)
    reaper = Reaper(
        runtime.stores,
        runtime.sender,
        settings.attempts,
        settings.lease_seconds / 2,
        settings.resend_seconds,
    )
    runtime.report.ready = True
    runtime.start_reporting()
    log.info("ready", worker=name)

    def tidy() -> int:
        return sweep_leftovers(runtime.layout, max(86_400.0, 2.0 * settings.job_limit_seconds))

    courier = Courier(runtime.stores.webhooks, settings)
    missed = MissedResults(runtime.layout, runtime.stores.events)

    cycling = cycling_tick(runtime)

    upkeep = Upkeep(runtime.stores, runtime.layout, settings)

    while not stop.wait(settings.sweep_seconds):
        for tick in (reaper.sweep, tidy, cycling, missed.tick, courier.tick, upkeep.tick, *ticks):
            _ask(tick)
    runtime.leave()


def _ask(tick: Callable[[], object]) -> None:
    """One question; a failure is logged and asked again at the next turn."""
    try:
        tick()
    except (RedisError, OSError, AppaError) as error:
        log.warning("tick failed", tick=getattr(tick, "__name__", str(tick)), error=str(error))
    except Exception:
        log.exception("tick failed", tick=getattr(tick, "__name__", str(tick)))
