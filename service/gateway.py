"""Hold what the routes of one gateway process share: stores, files, keys, events, counters."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from anyio import to_thread
from celery import Celery
from fastapi import FastAPI

from service.event_feed import EventFeed
from service.keys import KeyFile
from service.metrics import GatewayMetrics
from service.settings import GatewaySettings
from service.uploads import UploadLimits
from worker.contract.acceptance import Intake, sweep
from worker.contract.layout import Layout
from worker.contract.queues import TaskSender, celery_settings
from worker.contract.redis_server import redis_health
from worker.contract.store import Stores, open_stores
from worker.results.catalogue import Catalogue

log = structlog.get_logger()


@dataclass
class Gateway:
    """One gateway process. Routes get it by the dependency `GatewayDep`."""

    settings: GatewaySettings
    layout: Layout
    stores: Stores
    feed: EventFeed
    sender: TaskSender
    keys: KeyFile
    analyses: Catalogue
    metrics: GatewayMetrics
    listeners: int = 0
    places: dict[str, tuple[float, int | None]] = field(default_factory=dict)
    """Places in the queue and when they were asked for, shared by all listeners of a job."""

    @property
    def intake(self) -> Intake:
        """Return where accepted uploads go."""
        return Intake(self.layout, self.stores, self.sender)

    @property
    def upload_limits(self) -> UploadLimits:
        """Return the limits of one upload: size, free space, idle time, rate."""
        s = self.settings
        return UploadLimits(
            s.max_upload_bytes, s.min_free_bytes, s.upload_idle_seconds, s.upload_min_rate
        )


def open_gateway(settings: GatewaySettings) -> Gateway:
    """Everything of a gateway; no connection is made and no file read yet."""
    layout = Layout(settings.data_dir.resolve())
    stores = open_stores(settings.redis_url, settings.redis_prefix)
    sender = Celery("appa-gateway", set_as_current=False)
    sender.conf.update(
        celery_settings(settings.redis_url, settings.redis_prefix, settings.job_limit_seconds + 600)
    )
    return Gateway(
        settings=settings,
        layout=layout,
        stores=stores,
        feed=EventFeed(settings.redis_url, stores.keys),
        sender=sender,
        keys=KeyFile(layout.keys_file),
        analyses=Catalogue(layout),
        metrics=GatewayMetrics(),
    )


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """Lifespan: leftovers of a killed gateway are removed, events are followed until the end."""
    gateway: Gateway = app.state.gateway
    gateway.layout.create()
    if removed := sweep(gateway.layout.tmp):
        log.warning("unfinished_uploads_removed", count=removed)
    health = await to_thread.run_sync(redis_health, gateway.stores.redis)
    for warning in health.warnings:
        log.warning("redis", advice=warning)
    if gateway.settings.keys_required and not gateway.keys.all():
        log.warning("no_api_keys", advice="create one with `appa keys create`")
    await gateway.feed.start()
    try:
        yield
    finally:
        await gateway.feed.stop()
        gateway.stores.redis.close()
        gateway.analyses.close()
