"""Many who look at once: pictures are drawn once, and what else is asked for does not wait for them."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import published
import pytest
from fastapi.testclient import TestClient

from model.domain.errors import StorageError
from service import gateway
from service.app import create_app
from service.data import drawing, library
from service.gateway import MAX_DRAWING
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
    drawn, draw = [], drawing._image

    def slowly(*arguments):
        drawn.append(arguments)
        time.sleep(0.2)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "_image", slowly)
    with ThreadPoolExecutor(12) as pool:
        paths = [f"{TILES}/1/0/{number % 2}" for number in range(12)]
        bodies = [answer.content for answer in pool.map(client.get, paths)]
    assert len(drawn) == 2
    assert len(set(bodies)) == 2
    assert client.get(f"{TILES}/1/0/1").content == bodies[1]
    assert len(drawn) == 2


@pytest.fixture
def held_drawing(monkeypatch: pytest.MonkeyPatch) -> tuple[Event, Event]:
    """Pictures are drawn once the second is set; the first says that one has begun."""
    draw, begun, may_go_on = drawing._image, Event(), Event()

    def held(*arguments):
        begun.set()
        assert may_go_on.wait(60)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "_image", held)
    return begun, may_go_on


def test_fields_do_not_wait_behind_tiles(client: TestClient, held_drawing) -> None:
    begun, may_go_on = held_drawing
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
            in_turn = f"appa_pictures_waiting {24.0 - MAX_DRAWING - 2}"
            until = time.monotonic() + 30
            while in_turn not in (told := client.get("/metrics").text):
                assert time.monotonic() < until, told
        finally:
            may_go_on.set()
    assert {one.result().status_code for one in (*tiles, *others)} == {200}
    assert "appa_pictures_waiting 0.0" in client.get("/metrics").text


def test_what_describes_a_map_service_does_not_wait_behind_tiles(
    client: TestClient, held_drawing
) -> None:
    begun, may_go_on = held_drawing
    wms = "/ogc/wms?service=WMS&version=1.3.0&request"
    drawn = "&layers=mv-an/t2m&styles=&crs=CRS:84&bbox=0,0,9,9&width=9&height=9&format=image/png"
    with ThreadPoolExecutor(16) as pool:
        maps = [pool.submit(client.get, f"{wms}=GetMap{drawn}&x={n}") for n in range(8)]
        try:
            assert begun.wait(60)
            about = pool.submit(client.get, f"{wms}=GetCapabilities")
            assert about.result(30).status_code == 200
            assert not any(one.done() for one in maps)
        finally:
            may_go_on.set()
    assert {one.result().status_code for one in maps} == {200}


def test_a_data_set_that_is_being_opened_keeps_nobody_from_another(
    client: TestClient, tmp_path, monkeypatch
) -> None:
    layout = client.app.state.gateway.layout
    published.publish_result(layout, "mv-b", tmp_path / "y", published.Wanted(seed=2))
    open_file, may_go_on, begun, opened = library.open_file, Event(), Event(), []

    def slowly(path, analysis_id):
        begun.set()
        assert may_go_on.wait(60)
        opened.append(analysis_id)
        return open_file(path, analysis_id)

    monkeypatch.setattr(library, "open_file", slowly)
    with ThreadPoolExecutor(8) as pool:
        cold = [pool.submit(client.get, "/v1/fields?result=mv-b&field=t2m") for _ in range(4)]
        try:
            assert begun.wait(60)
            other = pool.submit(client.get, "/v1/fields?result=mv-an&field=msl")
            assert other.result(30).status_code == 200
            assert not any(one.done() for one in cold)
        finally:
            may_go_on.set()
    assert {one.result().status_code for one in cold} == {200}
    assert opened == ["mv-b"]


def test_a_new_result_is_open_before_anybody_asks(
    client: TestClient, tmp_path, monkeypatch
) -> None:
    layout, open_file, opened = client.app.state.gateway.layout, library.open_file, []

    def told(path, analysis_id):
        opened.append(analysis_id)
        return open_file(path, analysis_id)

    monkeypatch.setattr(library, "open_file", told)
    published.publish_result(layout, "mv-b", tmp_path / "y", published.Wanted(seed=2))
    until = time.monotonic() + 60
    while not opened and time.monotonic() < until:
        time.sleep(0.05)
    assert client.get("/v1/fields?result=mv-b&field=t2m").status_code == 200
    assert opened == ["mv-b"]


def test_a_result_that_cannot_be_read_is_tried_once(
    client: TestClient, tmp_path, monkeypatch
) -> None:
    data_sets, tried = client.app.state.gateway.data_sets, []
    data_sets.close()

    def refuse(path, analysis_id):
        tried.append(analysis_id)
        raise StorageError("Expected a readable data set.")

    monkeypatch.setattr(library, "open_file", refuse)
    layout = client.app.state.gateway.layout
    published.publish_result(layout, "mv-b", tmp_path / "y", published.Wanted(seed=2))
    for _ in range(3):
        data_sets.open_newest()
    assert tried == ["mv-b"]


def test_nothing_is_opened_while_nobody_looks(client: TestClient, tmp_path, monkeypatch) -> None:
    data_sets, opened = client.app.state.gateway.data_sets, []
    data_sets.close()
    monkeypatch.setattr(gateway, "_LOOKING_SECONDS", 0.0)
    monkeypatch.setattr(library, "open_file", lambda *about: opened.append(about))
    layout = client.app.state.gateway.layout
    published.publish_result(layout, "mv-b", tmp_path / "y", published.Wanted(seed=2))
    data_sets.open_newest()
    assert not opened
