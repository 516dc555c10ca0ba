"""Concurrency limits: no more at once than allowed; errors and slow clients keep no slot."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.answer_limits import ConcurrencyLimit, PictureLimit

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"x"}


async def receive() -> dict:
    return {"type": "http.request"}


async def ignore(message: dict) -> None:
    del message


def test_no_more_run_at_once_than_the_limit() -> None:
    async def scenario() -> int:
        limit, working, peak = ConcurrencyLimit(2), 0, 0

        async def app(scope, receive, send) -> None:
            nonlocal working, peak
            working += 1
            peak = max(peak, working)
            await asyncio.sleep(0.001)
            working -= 1
            await send(START)

        async with asyncio.timeout(30):
            await asyncio.gather(*(limit.run(app, {}, receive, ignore) for _ in range(9)))
        assert limit.waiting == 0
        return peak

    assert asyncio.run(scenario()) == 2


def test_a_client_that_takes_nothing_of_its_answer_keeps_no_slot() -> None:
    async def scenario() -> None:
        limit, stalled = ConcurrencyLimit(1), asyncio.Event()

        async def app(scope, receive, send) -> None:
            await send(START)
            await send(BODY)

        async def stall(message: dict) -> None:
            if message is BODY:
                await stalled.wait()

        slow = asyncio.create_task(limit.run(app, {}, receive, stall))
        async with asyncio.timeout(30):
            await limit.run(app, {}, receive, ignore)
        assert not slow.done()
        stalled.set()
        await slow

    asyncio.run(scenario())


def test_an_error_and_a_request_that_is_given_up_free_their_slots() -> None:
    async def scenario() -> None:
        limit, begun = ConcurrencyLimit(1), asyncio.Event()

        async def fail(scope, receive, send) -> None:
            raise OSError("gone")

        async def hang(scope, receive, send) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def app(scope, receive, send) -> None:
            await send(START)

        with pytest.raises(OSError, match="gone"):
            await limit.run(fail, {}, receive, ignore)
        working = asyncio.create_task(limit.run(hang, {}, receive, ignore))
        await begun.wait()
        waiting = asyncio.create_task(limit.run(app, {}, receive, ignore))
        await asyncio.sleep(0)
        assert limit.waiting == 1
        for task in (waiting, working):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert limit.waiting == 0
        async with asyncio.timeout(30):
            await limit.run(app, {}, receive, ignore)

    asyncio.run(scenario())


def test_a_request_that_is_given_up_as_it_is_admitted_frees_its_slot() -> None:
    async def scenario() -> None:
        limit, may_end = ConcurrencyLimit(1), asyncio.Event()

        async def app(scope, receive, send) -> None:
            await may_end.wait()
            await send(START)

        first = asyncio.create_task(limit.run(app, {}, receive, ignore))
        second = asyncio.create_task(limit.run(app, {}, receive, ignore))
        await asyncio.sleep(0)
        may_end.set()
        limit.set_limit(2)  # the second is admitted, and has not gone on yet
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await first
        limit.set_limit(1)
        async with asyncio.timeout(30):
            await limit.run(app, {}, receive, ignore)

    asyncio.run(scenario())


def test_pictures_go_one_by_one_while_a_field_is_asked_for() -> None:
    async def scenario() -> list[int]:
        may_answer, counts, working = asyncio.Event(), [], 0

        async def app(scope, receive, send) -> None:
            nonlocal working
            if scope["path"].startswith("/v1/fields"):
                await may_answer.wait()
            else:
                working += 1
                counts.append(working)
                await asyncio.sleep(0.001)
                working -= 1
            await send(START)

        async def ask(path: str) -> None:
            await limit({"type": "http", "path": path, "query_string": b""}, receive, ignore)

        async def look() -> int:
            tiles = (ask(f"/ogc/collections/x/map/tiles/M/3/0/{n}") for n in range(8))
            async with asyncio.timeout(30):
                await asyncio.gather(*tiles)
            peak = max(counts)
            counts.clear()
            return peak

        limit = PictureLimit(app, 3, Gauge("waiting", "x", registry=CollectorRegistry()))
        found = [await look()]
        call = asyncio.create_task(ask("/v1/fields/timeline"))
        await asyncio.sleep(0)
        found.append(await look())
        may_answer.set()
        await call
        return [*found, await look()]

    assert asyncio.run(scenario()) == [3, 1, 3]
