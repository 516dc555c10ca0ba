"""The map in a real browser: what it draws and says against the NetCDF file."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import published
import pytest
import xarray as xr
from browser import calls_of, needs_browser, open_window
from gateway_process import GatewayProcess
from map_window import point_at, show
from playwright.sync_api import Page

pytestmark = needs_browser
MEMBERS = 3


def smooth(kind, valid, seed):
    """A product of smooth states: a wave that travels east, each member a little warmer."""
    made = PLAIN(kind, valid, seed)
    lat, lon = np.deg2rad(published.GRID.latitude), np.deg2rad(published.GRID.longitude)
    states = made.states.copy()
    for t in range(states.shape[1]):
        wave = 280 + 20 * np.cos(lat)[:, None] * np.cos(lon - 0.5 * t)[None]
        for m in range(MEMBERS):
            states[m, t] = wave + m
    return replace(made, states=states)


PLAIN = published.product


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory) -> dict[str, xr.Dataset]:
    folder = tmp_path_factory.mktemp("map")
    later = published.NOON + timedelta(days=40)
    wanted = {
        "mp-an": published.Wanted(valid=later, flags=["simulated"], checkpoint="appa-test"),
        "mp-fc": published.Wanted(valid=later, kind="forecast"),
        "mp-mean": published.Wanted(valid=later + timedelta(hours=1), fields="mean"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "product", smooth)
        return published.publish_all(gateway.layout, folder, wanted)


@pytest.fixture(scope="module")
def page(gateway: GatewayProcess, files) -> Iterator[Page]:
    """One page for all tests."""
    with open_window(f"{gateway.url}/web/map.html") as page:
        yield page


def held(dataset: xr.Dataset, name: str, lon: float, lat: float, time: int = 0) -> xr.DataArray:
    return dataset[name].isel(time=time).sel(longitude=lon % 360, latitude=lat, method="nearest")


@pytest.mark.parametrize("view", ["global", "north", "south"])
@pytest.mark.parametrize("stat", ["mean", "member:2", "spread"])
def test_value_and_colour_under_the_pointer_are_those_of_the_file(page, files, view, stat):
    time = str(files["mp-an"]["time"].values[0])[:19] + "Z"
    show(page, result="mp-an", time=time, field="t2m", stat=stat, view=view, contours="0")
    lon, lat = -135.0, -45.0 if view == "south" else 45.0  # open sea, between the lines
    x, y = point_at(page, lon, lat)
    value = {
        "mean": lambda: held(files["mp-an"], "t2m_mean", lon, lat),
        "spread": lambda: held(files["mp-an"], "t2m_spread", lon, lat),
        "member:2": lambda: held(files["mp-an"], "t2m", lon, lat).sel(realization=2),
    }[stat]()
    text = page.inner_text("#readout").split()
    shown = float(text[2]) + (273.15 if text[3] == "°C" else 0.0)
    assert shown == pytest.approx(float(value), abs=0.06)
    expected, drawn = page.evaluate(
        """async ([x, y]) => {
            const { chart } = window.appaMap, { field } = chart, box = chart.canvas.getBoundingClientRect();
            const colours = await (await fetch("../v1/fields/colours")).json();
            const [low, high] = field.info.range, value = field.at(...chart.toMap(x, y));
            const place = Math.min(255, Math.max(0, Math.floor((value - low) / (high - low) * 256)));
            const pixel = chart.context.getImageData(x - box.left, y - box.top, 1, 1).data;
            return [colours[field.info.colours][place], [...pixel.slice(0, 3)]];
        }""",
        [x, y],
    )
    wanted = [int(expected[i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(np.subtract(drawn, wanted)).max() < 16  # smoothed


def test_a_click_shows_all_members_of_the_place(page, files):
    time = str(files["mp-fc"]["time"].values[1])[:19] + "Z"
    show(page, result="mp-fc", time=time, field="t2m")
    point_at(page, 45.0, 30.0)
    x, y = point_at(page, 45.0, 30.0)
    page.mouse.click(x, y)
    page.wait_for_selector("#point svg polyline")
    chart = page.locator("#point svg").first
    assert chart.locator("polyline").count() == MEMBERS + 1
    members = held(files["mp-fc"], "t2m", 45.0, 30.0, time=1)
    shown = float(chart.locator("text.value").text_content())
    assert shown == pytest.approx(float(members.mean()) - 273.15, abs=0.02)
    assert page.locator("#point svg").last.get_attribute("aria-label") == "vertical profile"
    page.click("#close")
    assert not page.is_visible("#point")


def test_a_click_shows_the_mean_where_members_are_not_kept(page, files):
    time = str(files["mp-mean"]["time"].values[0])[:19] + "Z"
    show(page, result="mp-mean", time=time, field="t2m")
    point_at(page, 45.0, 30.0)
    page.mouse.click(*point_at(page, 45.0, 30.0))
    page.wait_for_selector("#point svg text.value")
    shown = float(page.locator("#point svg").first.locator("text.value").text_content())
    mean = held(files["mp-mean"], "t2m_mean", 45.0, 30.0)
    assert shown == pytest.approx(float(mean) - 273.15, abs=0.02)
    assert page.locator("#point svg").last.get_attribute("aria-label") == "vertical profile"
    page.click("#close")


def test_keys_step_through_a_forecast_and_the_address_follows(page, files):
    times = [str(t)[:19] + "Z" for t in files["mp-fc"]["time"].values]
    show(page, result="mp-fc", time=times[0], field="t2m")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "time => window.appaMap.chart.field.info.valid_time.startsWith(time)", arg=times[1][:16]
    )
    assert f"time={times[1][:13]}" in page.evaluate("decodeURIComponent(location.hash)")
    assert "result=mp-fc" in page.evaluate("location.hash")
    assert times[1][:16].replace("T", " ") in page.inner_text("#when")


def test_space_presses_a_button_that_has_the_focus(page, files, tmp_path: Path):
    time = str(files["mp-an"]["time"].values[0])[:19] + "Z"
    show(page, result="mp-an", time=time, field="t2m")
    page.focus("#save")
    with page.expect_download():
        page.keyboard.press("Space")
    assert page.get_attribute("#play", "aria-label") == "play"  # and does not play


def test_a_picture_can_be_saved(page, files, tmp_path: Path):
    time = str(files["mp-an"]["time"].values[0])[:19] + "Z"
    show(page, result="mp-an", time=time, field="msl")
    with page.expect_download() as download:
        page.click("#save")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == f"appa_msl_{time[:13].replace('-', '')}Z.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_same_call_is_named_and_answers(page, files):
    time = str(files["mp-an"]["time"].values[0])[:19] + "Z"
    show(page, result="mp-an", time=time, field="t", level="850")
    calls = calls_of(page, "map")
    body = calls.run()
    length = int.from_bytes(body[:4], "little")
    info = json.loads(body[4 : 4 + length])
    assert (info["field"], info["level"], info["result"]) == ("t", 850.0, "mp-an")
    drawn = page.evaluate("[...window.appaMap.chart.field.values]")
    assert np.array_equal(np.frombuffer(body[4 + length :], "<f4"), drawn, equal_nan=True)
    assert calls.run_python() == body
    show(page, result="mp-an", time=time, field="t", level="850", barbs="1")
    page.wait_for_function("() => document.body.textContent.includes('field=v&')")
    assert len(calls_of(page, "map").curl) == 3  # the components of the wind, too
    timeline = json.loads(calls_of(page, "times and results").run())["items"]
    assert len(timeline) == 1 + int(page.get_attribute("#time", "max"))
    assert "simulated" in page.inner_text("#about")
    assert "appa-test" in page.inner_text("#about")


def test_pages_may_load_from_here_only(http):
    for name in ("map.html", "map.js", "verification.html"):
        policy = http.get(f"/web/{name}").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
