"""What the map makes of two results or of a threshold, in a real browser, against the NetCDF files."""

import io
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import published
import pytest
import xarray as xr
from browser import calls_of, check_accessible, needs_browser, open_window
from gateway_process import GatewayProcess
from map_window import point_at
from PIL import Image
from playwright.sync_api import Page

pytestmark = needs_browser
VALID = published.NOON + timedelta(days=80)
LON, LAT = 45.0, 30.0


@pytest.fixture(scope="module")
def files(gateway: GatewayProcess, tmp_path_factory) -> dict[str, xr.Dataset]:
    """An analysis, a forecast for its hour and the two before, and analyses of a day and weeks ago."""
    early = VALID - timedelta(hours=3)
    wanted = {
        "cp-now": published.Wanted(1, valid=VALID, flags=["simulated"], checkpoint="appa-test"),
        "cp-fc": published.Wanted(2, "forecast", valid=early),
        "cp-old": published.Wanted(3, valid=VALID - timedelta(days=1)),
        "cp-long-ago": published.Wanted(4, valid=VALID - timedelta(days=20)),
    }
    return published.publish_all(gateway.layout, tmp_path_factory.mktemp("compared"), wanted)


@pytest.fixture(scope="module")
def page(gateway: GatewayProcess, files) -> Iterator[Page]:
    with open_window(f"{gateway.url}/web/map.html#result=cp-now&time={iso(VALID)}") as page:
        yield page


def iso(time) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S}Z"


def look(page: Page, stat: str, field: str = "t2m", drawn: str = "", **state: str) -> None:
    """Show a state of the analysis and wait until all of it is there; `drawn` is its statistic."""
    page.evaluate("() => { location.hash = '#field=msl' }")
    page.wait_for_function("() => window.appaMap?.chart.field?.info.field === 'msl'")
    page.evaluate("() => { window.appaMap.chart.field.info.statistic = 'none' }")
    given = {"result": "cp-now", "time": iso(VALID), "field": field, "stat": stat, **state}
    link = "&".join(f"{name}={value}" for name, value in given.items())
    page.evaluate("link => { location.hash = link }", f"#{link}")
    page.wait_for_function(
        "([field, stat]) => window.appaMap.chart.field.info.field === field"
        " && window.appaMap.chart.field.info.statistic === stat"
        " && window.appaMap.settled === location.hash",
        arg=[field, drawn or stat],
    )


def under(page: Page) -> float:
    point_at(page, 100.0, -60.0)  # so that the pointer moves
    point_at(page, LON, LAT)
    return float(page.inner_text("#readout").split()[2])


def held(dataset: xr.Dataset, name: str, time: int = 0) -> xr.DataArray:
    return dataset[name].isel(time=time).sel(longitude=LON, latitude=LAT, method="nearest")


def test_a_difference_is_that_of_the_two_files(page, files) -> None:
    """Of the forecast for the same hour, which is its third."""
    look(page, "difference", drawn="difference:cp-fc", other="cp-fc")
    wanted = float(held(files["cp-now"], "t2m_mean") - held(files["cp-fc"], "t2m_mean", 2))
    assert abs(wanted) > 0.05
    assert under(page) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert page.inner_text("#readout").split()[-1] == "K"  # no degrees Celsius of a difference
    assert "minus forecast +3 h v1 cp-fc (K)" in page.inner_text("#title")
    assert "difference%3Acp-fc" in calls_of(page, "map").curl[0]


def test_what_is_subtracted_can_be_of_another_time(page, files) -> None:
    look(page, "mean")
    page.select_option("#stat", "difference")
    page.wait_for_selector("#other", state="visible")
    texts = page.locator("#other option").all_inner_texts()
    assert texts[0] == "forecast +3 h v1 cp-fc"  # of the same hour first
    before = VALID - timedelta(days=1)
    assert f"{before:%Y-%m-%d %H:%M}Z filtering v1 cp-old" in texts
    page.select_option("#other", f"cp-old@{iso(before)}")
    page.wait_for_function(
        "() => window.appaMap.chart.field.info.statistic === 'difference:cp-old'"
    )
    wanted = float(held(files["cp-now"], "t2m_mean") - held(files["cp-old"], "t2m_mean"))
    assert under(page) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert f"other=cp-old@{iso(before)}" in page.evaluate("decodeURIComponent(location.hash)")


def test_a_chance_is_that_of_a_threshold_in_the_units_people_read(page, files) -> None:
    look(page, "probability", threshold="280", direction="above")
    members = held(files["cp-now"], "t2m")
    assert under(page) == pytest.approx(100 * float((members > 280).mean()), abs=0.1)
    assert float(page.input_value("#threshold")) == pytest.approx(280 - 273.15)
    assert page.inner_text("#threshold-units") == "°C"
    title = page.inner_text("#title")
    assert title == "2 metre temperature, chance of more than 6.85 °C (%)"
    page.select_option("#direction", "below")
    page.fill("#threshold", "8.85")
    page.press("#threshold", "Enter")
    page.wait_for_function(
        "() => document.getElementById('title').textContent.includes('less than 8.85')"
    )
    assert under(page) == pytest.approx(100 * float((members < 282).mean()), abs=0.1)
    assert "threshold=282" in page.evaluate("location.hash")  # SI, as the API takes it
    assert "threshold=282" in calls_of(page, "map").curl[0]


def test_a_threshold_nobody_gave_splits_the_values_and_is_in_the_link(page, files) -> None:
    look(page, "probability", "gh", level="500")
    heights = files["cp-now"]["z_mean"].sel(air_pressure=50_000.0) / 9.80665
    threshold = page.evaluate(
        "Number(new URLSearchParams(location.hash.slice(1)).get('threshold'))"
    )
    assert float(heights.min()) < threshold < float(heights.max())
    page.select_option("#field", "t2m")  # another field takes no threshold of heights along
    page.wait_for_function("() => window.appaMap.chart.field.info.field === 't2m'")
    page.wait_for_function("() => window.appaMap.settled === location.hash")
    threshold = page.evaluate(
        "Number(new URLSearchParams(location.hash.slice(1)).get('threshold'))"
    )
    assert 260 < threshold < 300


def test_a_layer_names_both_its_levels(page, files) -> None:
    look(page, "mean", "thickness", level="500")
    assert page.inner_text("#title").startswith("thickness of the layer 850–500 hPa")


def test_a_place_is_written_with_keys(page, files) -> None:
    look(page, "mean")
    page.focus("#place")
    page.keyboard.type(f"{LAT} {LON}")
    page.keyboard.press("Enter")
    page.wait_for_selector("#point svg text.value")
    assert page.inner_text("#point h2") == "30.00°N 45.00°E"
    first = page.locator("#point svg").first.locator("text.start").text_content()
    assert first == f"{VALID - timedelta(days=1):%m-%d %H}Z"  # the days about it
    assert "point=45.000,30.000" in page.evaluate("decodeURIComponent(location.hash)")
    mean = float(held(files["cp-now"], "t2m").mean()) - 273.15
    shown = float(page.locator("#point svg").first.locator("text.value").text_content())
    assert shown == pytest.approx(mean, abs=0.02)
    page.fill("#place", "north")
    page.press("#place", "Enter")
    assert "latitude and longitude" in page.inner_text("#message")
    check_accessible(page)
    page.click("#close")


def test_keys_zoom_and_pan_and_fingers_pinch(page, files) -> None:
    look(page, "mean")
    view = "(({ scale, x, y }) => [scale, x, y])(window.appaMap.chart.view)"
    page.focus("#map")
    page.keyboard.press("+")
    scale, x, y = page.evaluate(view)
    assert scale == 1.5
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(view)[1] < x
    page.keyboard.press("0")
    assert page.evaluate(view) == [1, 0, 0]
    page.click("#closer")
    page.click("#closer")
    assert page.evaluate(view)[0] == 2.25
    page.click("#farther")
    page.keyboard.press("0")
    box = page.locator("#map").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    before = page.evaluate("([x, y]) => window.appaMap.chart.toMap(x, y)", middle)
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, apart: float) -> None:
        places = [{"x": middle[0] + side * apart, "y": middle[1], "id": side} for side in (-1, 1)]
        sent = {"type": kind, "touchPoints": [] if kind == "touchEnd" else places}
        fingers.send("Input.dispatchTouchEvent", sent)

    touch("touchStart", 50)
    for apart in (70, 90, 100):
        touch("touchMove", apart)
    touch("touchEnd", 100)
    assert page.evaluate(view)[0] == pytest.approx(2.0, rel=0.02)
    # What lies between the fingers stays there.
    after = page.evaluate("([x, y]) => window.appaMap.chart.toMap(x, y)", middle)
    assert after == pytest.approx(before, abs=6e-3)
    page.keyboard.press("0")


def picture(page: Page, button: str) -> tuple[str, np.ndarray]:
    """The name and the pixels of what a button saves."""
    with page.expect_download() as download:
        page.click(button)
    with open(download.value.path(), "rb") as file:
        pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")).astype(int)
    return download.value.suggested_filename, pixels


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_saved_map_has_its_title_and_its_colours(page, files, scheme) -> None:
    page.emulate_media(color_scheme=scheme)
    look(page, "probability", threshold="280", contours="0")
    x, y = point_at(page, LON, LAT)
    drawn = page.evaluate(
        """([x, y]) => {
            const { canvas, context } = window.appaMap.chart, box = canvas.getBoundingClientRect();
            return [...context.getImageData(x - box.left, y - box.top, 1, 1).data.slice(0, 3)];
        }""",
        [x, y],
    )
    name, pixels = picture(page, "#save")
    assert name == f"appa_t2m_{VALID:%Y%m%dT%H}Z.png"
    box = page.locator("#map").bounding_box()
    top = 52  # a margin, the title and the line about it
    ground = pixels[0, 0]
    assert (ground.mean() > 200) == (scheme == "light")
    assert list(pixels[top + int(y - box["y"]), int(x - box["x"])]) == pytest.approx(drawn, abs=8)
    for rows in (slice(8, 30), slice(32, 50), slice(top + int(box["height"]) + 24, None)):
        ink = np.abs(pixels[rows] - ground).sum(-1)  # title, about, and numbers of the colour bar
        assert (ink > 300).sum() > 50, (scheme, rows)
    page.emulate_media(color_scheme="light")


def test_the_charts_of_a_place_are_saved_with_their_lines(page, files) -> None:
    look(page, "mean", point=f"{LON},{LAT}")
    page.wait_for_selector("#point svg polyline")
    name, pixels = picture(page, "#save-point")
    assert name == f"appa_place_{VALID:%Y%m%dT%H}Z.png"
    colour = page.evaluate(
        "getComputedStyle([...document.querySelectorAll('#point svg polyline.temperature')][0]).stroke"
    )
    mean = [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    # The mean's line is there in its colour, though a style sheet of the page gives it.
    assert (np.abs(pixels - mean).max(-1) < 8).sum() > 200
    shown = page.locator("#point-data svg").count()
    assert shown >= 4
    assert pixels.shape[0] > 2 * 120 * (shown - 1)


def test_contours_lie_at_round_values_of_the_units_people_read(page, files) -> None:
    look(page, "mean")
    shown = page.evaluate(
        "(({ field }) => field.labels.map(({ level }) => field.shown(level)))(window.appaMap.chart)"
    )
    assert len(shown) > 20
    assert (
        np.abs(np.divide(shown, 4) - np.round(np.divide(shown, 4))).max() < 1e-6
    )  # degrees Celsius


def test_a_contour_is_whole_where_values_are_just_its_level(page) -> None:
    """Zeros with -1 in the first column: the line of 0 runs through every row of cells."""
    rows = 31
    labels = page.evaluate(
        """async (rows) => {
            const { Field } = await import("./field.js");
            const grid = { rows, columns: 4, extent: [0, -90, 360, 90], projection: "", latitude: [] };
            const info = { grid, contour: 1, statistic: "mean", display: { scale: 1, offset: 0 } };
            const values = Float32Array.from({ length: 4 * rows }, (_, i) => (i % 4 ? 0 : -1));
            const field = new Field(info, values, "");
            field.contours();
            return field.labels.map(({ u, v, level }) => [u, v, level]);
        }""",
        rows,
    )
    # A value may be written in every third row of cells; the line is at the second column's centre.
    assert [round(v * rows - 0.5) for _, v, _ in labels] == list(range(0, rows - 1, 3))
    assert {(u, level) for u, _, level in labels} == {(1.5 / 4, 0)}
