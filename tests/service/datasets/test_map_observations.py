"""Observations on the map, in a real browser: what is drawn and said against the feedback table."""

import json
from collections.abc import Iterator
from datetime import timedelta

import departures
import numpy as np
import published
import pyarrow as pa
import pytest
from browser import calls_of, check_accessible, needs_browser, open_window
from gateway_process import GatewayProcess
from map_window import point_at, show
from PIL import Image
from playwright.sync_api import Page

from model.domain.observations import QC_FLAGS

pytestmark = needs_browser
VALID = published.NOON + timedelta(days=60)
TIME = f"{VALID:%Y-%m-%dT%H:%M:%S}Z"
MANY = 200_000


@pytest.fixture(scope="module")
def table(gateway: GatewayProcess, tmp_path_factory) -> pa.Table:
    folder = tmp_path_factory.mktemp("observed")
    table = departures.few()
    wanted = {
        "ob-an": published.Wanted(valid=VALID, feedback=table),
        "ob-many": published.Wanted(valid=VALID, feedback=departures.many(MANY)),
        "ob-none": published.Wanted(valid=VALID, kind="forecast"),
    }
    published.publish_all(gateway.layout, folder, wanted)
    return table


@pytest.fixture(scope="module")
def page(gateway: GatewayProcess, table) -> Iterator[Page]:
    # Without a link it shows the newest result, of whichever tests shared the gateway before.
    link = f"#result=ob-an&time={TIME}&field=t2m"
    with open_window(f"{gateway.url}/web/map.html{link}") as page:
        yield page


def look(page: Page, **state: str) -> None:
    """Show observations over the 2 m temperature and wait until they are drawn."""
    result = state.pop("result", "ob-an")
    show(page, result=result, time=TIME, field="t2m", contours="0", **state)
    page.wait_for_function("() => window.appaMap.settled === location.hash")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")


def colour_at(page: Page, lon: float, lat: float) -> list[int]:
    x, y = point_at(page, lon, lat)
    return page.evaluate(
        """([x, y]) => {
            const { canvas, context } = window.appaMap.chart, box = canvas.getBoundingClientRect();
            return [...context.getImageData(x - box.left, y - box.top, 1, 1).data.slice(0, 3)];
        }""",
        [x, y],
    )


def channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("view", ["global", "north"])
@pytest.mark.parametrize("by", ["background", "analysis"])
def test_colour_is_that_of_the_departure(page, http, table, by, view) -> None:
    """Of 2 m temperature alone: two values, so that the scale ends at the larger one."""
    look(page, obs=by, variable="2m_temperature", view=view, network="synop")
    colours = http.get("/v1/fields/colours").json()["RdBu_r"]
    limit = {"background": 2.0, "analysis": 0.5}[by]  # what 95 % of the magnitudes stay below
    for row in (0, 1):
        lon, lat = table["lon"][row].as_py(), table["lat"][row].as_py()
        departure = table[f"{by}_departure"][row].as_py()
        place = min(255, max(0, int((departure / limit + 1) * 128)))
        assert colour_at(page, lon, lat) == channels(colours[place])
    assert page.evaluate("window.appaMap.chart.points.scale.units") == "K"


def test_several_variables_compare_by_their_errors(page, table) -> None:
    look(page, obs="background", network="synop")
    scale = page.evaluate(
        "(({ units, values }) => ({ units, values: [...values] }))(window.appaMap.panel.layer.scale)"
    )
    assert scale["units"].startswith("σ")
    assert scale["values"] == pytest.approx([2.0 / 1.0, -2.0 / 1.5, 150.0 / 100.0])


def test_colour_is_that_of_the_outcome(page, table) -> None:
    look(page, obs="outcome", variable="2m_temperature")
    assert colour_at(page, -135.0, 45.0) == channels("#0072b2")  # used
    assert colour_at(page, -100.0, 45.0) == channels("#d55e00")  # background_check
    assert colour_at(page, 135.0, -45.0) == channels("#cc79a7")  # bounds


def counts(page: Page) -> dict[str, int]:
    rows = page.locator("#obs-counts tr").all()
    return {r.locator("th").inner_text(): int(r.locator("td").first.inner_text()) for r in rows}


def test_counts_beside_and_filters(page, table) -> None:
    look(page, obs="outcome")
    assert counts(page) == {"used": 4, "background check": 1, "withheld": 1, "bounds": 1}
    assert QC_FLAGS["bounds"].meaning in page.inner_text("#obs-counts")
    assert "7 of 7" in page.inner_text("#obs-note")
    page.select_option("#obs-network", "temp")
    page.wait_for_function(
        "() => document.getElementById('obs-note').textContent.startsWith('3 of 7')"
    )
    assert counts(page) == {"used": 2, "withheld": 1}
    page.select_option("#obs-layer", "250-400 hPa")
    page.wait_for_function(
        "() => document.getElementById('obs-note').textContent.startsWith('1 of 7')"
    )
    page.select_option("#obs-outcome", "rejected")
    page.wait_for_function(
        "() => document.getElementById('obs-note').textContent.startsWith('0 of 7')"
    )
    link = page.evaluate("location.hash")
    assert "network=temp" in link
    assert "outcome=rejected" in link
    assert "layer=250-400+hPa" in link
    assert "rejected (0)" in page.locator("#obs-outcome option:checked").inner_text()


def test_a_click_says_everything_of_an_observation_and_why_it_was_rejected(page, table) -> None:
    look(page, obs="background", variable="2m_temperature")
    page.mouse.click(*point_at(page, -100.0, 45.0))
    page.wait_for_selector("#picked dl")
    said = page.inner_text("#picked")
    assert "S2 · synop" in said
    assert "279 K" in said  # the value
    assert "1.5 K" in said  # its error
    assert "-2 K (1.33 σ)" in said  # O-B, and by its error
    assert "-0.75 K" in said
    assert f"rejected by background check: {QC_FLAGS['background_check'].meaning}" in said
    assert "row=1" in page.evaluate("location.hash")
    assert not page.is_visible("#point")  # no meteogram on top
    assert page.evaluate("window.appaMap.chart.picked") == [-100.0, 45.0]


def test_all_levels_of_a_sonde_are_listed(page, table) -> None:
    look(page, obs="background", row="3")
    page.wait_for_selector("#picked table")
    lines = [" ".join(t.split()) for t in page.locator("#picked table tr").all_inner_texts()[1:]]
    assert lines == [
        "temperature 850 hPa +0.5 +0.25 used",
        "temperature 400 hPa -0.25 0 used",
        "temperature 250 hPa +1 +0.5 withheld",
    ]
    page.click("#picked table tr:last-child button")
    page.wait_for_function("() => location.hash.includes('row=4')")
    page.wait_for_function(
        "() => document.querySelector('#picked dl').textContent.includes('withheld: kept')"
    )


def test_a_name_of_a_sender_is_no_markup(page, table) -> None:
    look(page, obs="outcome", row="5")
    page.wait_for_selector("#picked h2")
    assert page.inner_text("#picked h2").startswith("<b>SHIP</b>")
    assert page.locator("#picked b").count() == 0


def test_keys_step_from_the_largest_departure_on(page, table) -> None:
    """By their errors: 2 of S1, 1.5 of its pressure, 1.33 of S2; then the levels of the sonde."""
    look(page, obs="background")
    page.focus("#map")
    for row in (0, 6, 1):
        page.keyboard.press("n")
        page.wait_for_function(f"() => location.hash.includes('row={row}')")
    page.keyboard.press("p")
    page.wait_for_function("() => location.hash.includes('row=6')")
    page.wait_for_function(
        "() => document.querySelector('#picked dl').textContent.includes('150 Pa')"
    )


def test_a_result_without_feedback_says_so(page, table) -> None:
    time = f"{VALID + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}Z"
    show(page, result="ob-none", time=time, field="t2m", obs="background")
    page.wait_for_function(
        "() => document.getElementById('obs-note').textContent.includes('feedback')"
    )
    assert page.evaluate("window.appaMap.chart.points") is None


def test_the_calls_of_the_layer_answer_what_is_shown(page, table) -> None:
    look(page, obs="background", variable="2m_temperature", outcome="used", row="0")
    page.wait_for_selector("#picked dl")
    body = calls_of(page, "observations").run()
    assert b'"matching":1,' in body[: 4 + int.from_bytes(body[:4], "little")]
    [row] = json.loads(calls_of(page, "this place").run())["rows"]
    assert row["row"] == 0 and row["outcome"] == "used"
    assert page.inner_text("#picked h2").startswith(row["station_id"])


def test_a_saved_map_says_what_its_colours_are(page, table) -> None:
    """The bar of departures, or the outcomes one by one, below the map."""
    for by, entries in (("background", 0), ("outcome", 2)):
        look(page, obs=by)
        with page.expect_download() as download:
            page.click("#save")
        with Image.open(download.value.path()) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        high = page.evaluate("document.getElementById('map').clientHeight")
        below = pixels[12 + 2 * 20 + high :]
        used = [0x00, 0x72, 0xB2]
        discs = (np.abs(below[40:] - used).max(-1) < 8).sum()
        assert (discs > 40) == (entries > 0), by
        right = below[10:20, 420 + 36 : 420 + 36 + 300]  # where the bar of departures lies
        assert (np.ptp(right, axis=1).max() > 100) == (by == "background"), by


def test_two_hundred_thousand_points_are_drawn(page, table) -> None:
    look(page, result="ob-many", obs="background")
    assert page.evaluate("window.appaMap.chart.points.drawn") == MANY
    assert f"{MANY} of {MANY}" in page.inner_text("#obs-note")
    # Nearly every pixel of the globe is covered: they lie everywhere.
    covered = page.evaluate(
        """() => {
            const { image } = window.appaMap.chart.points, pixels = new Uint32Array(image.data.buffer);
            const { w, h } = window.appaMap.chart.frame;
            return pixels.reduce((sum, pixel) => sum + (pixel !== 0), 0) / (w * h);
        }"""
    )
    assert covered > 0.5


def test_the_page_is_accessible(page, table) -> None:
    look(page, obs="outcome", row="3", point="60,30")
    page.wait_for_selector("#picked table")
    page.wait_for_selector("#point svg")
    for summary in page.locator(".calls summary").all():
        summary.click()
    check_accessible(page)
    page.emulate_media(color_scheme="dark")
    check_accessible(page)
    page.emulate_media(color_scheme="light")
    for summary in page.locator(".calls summary").all():
        summary.click()


def test_calls_can_be_copied(page, table) -> None:
    look(page, obs="background", point="60,30")
    page.wait_for_selector("#point svg")
    names = page.locator(".calls:visible summary").all_inner_texts()
    panels = ["map", "observations", "stations", "meteogram", "profile", "times and results"]
    assert names == [f"API: {name}" for name in panels]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel = page.locator("figure .calls")
    panel.locator("summary").click()
    panel.locator("button").first.click()
    panel.get_by_text("copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert [copied] == calls_of(page, "map").curl
    assert copied.startswith("curl 'http")
    look(page, obs="background", point="60,30", view="north")
    assert panel.get_attribute("open") is not None  # what was opened stays open
    panel.locator("summary").click()
