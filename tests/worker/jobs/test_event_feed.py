"""Events for many listeners over one subscription, resumed where a listener left off."""

import asyncio
from datetime import UTC, datetime, timedelta

from service.event_feed import EventFeed
from worker.contract.events import FEED
from worker.contract.jobs import JobRecord, Progress
from worker.contract.kinds import FilteringSpec
from worker.contract.records import new_id


def new_job(stores) -> str:
    spec = FilteringSpec(valid_time=datetime(2025, 1, 1, tzinfo=UTC))
    record = JobRecord(id=new_id("job"), analysis_id="an-1", spec=spec)
    return stores.jobs.create(record)[0].id


async def take(feed, job_id: str, count: int, **values) -> list:
    events = []
    async for event in feed.follow(job_id, **values):
        events.append(event)
        if len(events) == count:
            break
    return events


async def test_past_and_future_events_come_once_and_in_order(stores, shared_broker):
    feed = EventFeed(shared_broker.url, stores.keys)
    await feed.start()
    job_id, other = new_job(stores), new_job(stores)
    listeners = [asyncio.create_task(take(feed, job_id, 5)) for _ in range(20)]
    await asyncio.sleep(0.1)
    token = stores.jobs.claim(job_id, "w", timedelta(seconds=9)).token
    stores.jobs.claim(other, "w", timedelta(seconds=9))
    for step in (1, 2):
        stores.jobs.report(job_id, token, Progress(step=step, steps=2))
    stores.jobs.succeed(job_id, token, Progress())
    heard = await asyncio.wait_for(asyncio.gather(*listeners), 20)
    assert all(events == heard[0] for events in heard)
    told = [event.data.get("state", event.data.get("step")) for event in heard[0]]
    assert told == ["queued", "running", 1, 2, "succeeded"]
    resumed = await asyncio.wait_for(take(feed, job_id, 2, after=heard[0][2].id), 20)
    assert resumed == heard[0][3:]
    await feed.stop()


async def test_a_slow_listener_misses_nothing_if_it_wants_all(stores, shared_broker):
    feed = EventFeed(shared_broker.url, stores.keys, queue_size=4)
    await feed.start()
    noun, name = FEED
    following = feed.follow(name, noun=noun, complete=True)
    stores.events.emit("analysis.published", "an-0", {"number": 0})
    heard = [await asyncio.wait_for(anext(following), 20)]
    for number in range(1, 41):  # while it is busy with the first one
        stores.events.emit("analysis.published", f"an-{number}", {"number": number})
    await asyncio.sleep(0.3)
    for _ in range(20):
        heard.append(await asyncio.wait_for(anext(following), 20))
    for number in range(41, 61):  # again, in the middle of catching up
        stores.events.emit("analysis.published", f"an-{number}", {"number": number})
    await asyncio.sleep(0.3)
    for _ in range(40):
        heard.append(await asyncio.wait_for(anext(following), 20))
    assert [event.data["data"]["number"] for event in heard] == list(range(61))
    await following.aclose()
    await feed.stop()
