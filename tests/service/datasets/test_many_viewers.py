"""Many who look at once: pictures are drawn once, and what else is asked for does not wait for them."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import published
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.data import drawing
from service.settings import GatewaySettings

TILES = "/ogc/collections/mv-an/styles/t2m/map/tiles/WebMercatorQuad"


@pytest.fixture
def client(tmp_path, valkey_url_shared: str) -> Iterator[TestClient]:
    settings = GatewaySettings(data_dir=tmp_path / "data", redis_url=valkey_url_shared)
    settings.layout.create()
    published.publish_result(settings.layout, "mv-an", tmp_path / "x", published.Wanted(seed=1))
    with TestClient(create_app(settings)) as opened:
        assert opened.get(f"{TILES}/0/0/0").status_code == 200
        yield opened


def test_a_tile_that_many_ask_for_is_drawn_once(client: TestClient, monkeypatch) -> None:
    drawn, draw = [], drawing._png

    def slowly(*arguments):
        drawn.append(arguments)
        time.sleep(0.2)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "_png", slowly)
    with ThreadPoolExecutor(12) as pool:
        paths = [f"{TILES}/1/0/{number % 2}" for number in range(12)]
        bodies = [answer.content for answer in pool.map(client.get, paths)]
    assert len(drawn) == 2
    assert len(set(bodies)) == 2
    assert client.get(f"{TILES}/1/0/1").content == bodies[1]
    assert len(drawn) == 2


def test_fields_do_not_wait_behind_tiles(client: TestClient, monkeypatch) -> None:
    draw, may_go_on, begun = drawing._png, Event(), Event()

    def held(*arguments):
        begun.set()
        assert may_go_on.wait(60)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "_png", held)
    with ThreadPoolExecutor(40) as pool:
        tiles = [pool.submit(client.get, f"{TILES}/3/2/{n % 8}?x={n}") for n in range(24)]
        try:
            assert begun.wait(60)
            others = [
                pool.submit(client.get, path)
                for path in (
                    "/v1/fields/timeline",
                    "/v1/fields/catalogue?result=mv-an",
                    "/v1/fields?result=mv-an&field=t2m",
                )
            ]
            assert not wait(others, 30).not_done
            assert not any(tile.done() for tile in tiles)
        finally:
            may_go_on.set()
    assert {one.result().status_code for one in (*tiles, *others)} == {200}
