"""The page of verification: its parts come from the gateway itself, and so does what it asks for."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import urljoin

import acting_worker
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import (
    calls_of,
    check_accessible,
    needs_browser,
    open_browser,
    open_page,
    open_window,
)
from gateway_process import GatewayProcess
from PIL import Image
from playwright.sync_api import Browser, Locator
from playwright.sync_api import Page as BrowserPage
from test_gateway_verification import START, put
from typer.testing import CliRunner

from deploy.commands import verify
from worker.contract.layout import Layout
from worker.contract.store import open_stores
from worker.results.verification.series import SERIES_SCHEMA, SeriesEntry

PAGE = "/web/verification.html"


def test_page_and_its_parts(http: httpx.Client) -> None:
    assert f'href="{PAGE[1:]}"' in http.get("/").text
    page = http.get(PAGE)
    assert page.headers["content-type"].startswith("text/html")
    parts = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert {"verification.js", "verification.css", "style.css"} <= set(parts)
    for part in parts:
        if not part.startswith("data:"):
            assert "://" not in part
            assert http.get(urljoin(PAGE, part)).status_code == 200, part


@needs_browser
def test_the_page_draws_the_series_of_every_network(start_gateway, tmp_path: Path) -> None:
    gateway = start_gateway()
    for hour in range(6):
        put(gateway.layout, hour, "final", 2, 1.0 + hour / 10)
    acting_worker.publish(
        gateway.layout, "an-last", {"a.nc": b"1"}, valid=START + timedelta(hours=5), flavour="final"
    )
    page = open_page(f"{gateway.url}{PAGE}", tmp_path / "profile")
    panels = " ".join(page.texts["panels"].split())
    # One panel for the chi-square of all networks, one for the temperature of radiosondes.
    assert page.counts["panels", "svg"] == 2
    assert page.counts["panels", "polyline"] + page.counts.get(("panels", "path"), 0) >= 2
    assert "temp" in panels and "temperature" in panels


NAMES = {"spread_skill": 0.8, "error": 1.0, "desroziers_error": 1.2, "spread": 0.5}
NAMES |= {"desroziers_spread": 0.6, "rms_background": 1.1, "withheld_spread_skill_analysis": 0.9}
NAMES |= {"withheld_rmse_analysis": 1.5, "bias_background": -0.25}
OUTSIDE = {
    "network": "synop", "variable": "2m_temperature", "layer": "all", "statistic": "spread_skill",
    "value": 0.8, "low": 0.9, "high": 1.3, "cycles": 360,
}  # fmt: skip
"""What the last analysis says of its control limits."""
RANKS = {"synop": [4, 1, 1, 6], "temp": [2, 2, 2, 2]}


LIMITS = {
    ("synop", "spread_skill_limit_low"): {1: 0.9, 2: 0.95},
    ("synop", "spread_skill_limit_high"): {1: 1.3, 2: 1.25},
    ("temp", "spread_skill_limit_low"): {0: 0.5, 2: 0.6},
    ("temp", "spread_skill_limit_high"): {0: 1.1, 2: 1.2},
    ("synop", "withheld_rmse_analysis_limit_high"): {0: 2.0, 1: 2.2, 2: 2.1},
    ("synop", "bias_background_limit_low"): {0: -0.8, 1: -0.7, 2: -0.6},
    ("synop", "bias_background_limit_high"): {0: 0.4, 1: 0.5, 2: 0.6},
}
"""Control limits by network, statistic and hour; a side that is not watched has none."""


def put_rows(layout: Layout, entry: SeriesEntry, rows: list[tuple]) -> None:
    """Rows (network, variable, layer, statistic, value, count) of one analysis into the series."""
    about = (entry.valid_time, entry.flavour, entry.revision, entry.analysis_id)
    columns = [[x] * len(rows) for x in about]
    columns += [list(column) for column in zip(*rows, strict=True)]
    arrays = [
        pa.array(values, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for values, f in zip(columns, SERIES_SCHEMA, strict=True)
    ]
    path = entry.path(layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_arrays(arrays, names=SERIES_SCHEMA.names).cast(SERIES_SCHEMA), path
    )


def put_networks(layout: Layout, hour: int) -> None:
    """The series of one hour: every statistic of two networks, and what the withheld values say."""
    valid = START + timedelta(hours=hour)
    entry = SeriesEntry(valid, "final", 1, f"an-net-{hour}")
    kinds = (("synop", "2m_temperature"), ("temp", "temperature"))
    rows = [(n, v, "all", name, NAMES[name], 10) for n, v in kinds for name in NAMES]
    for (network, name), values in LIMITS.items():
        if hour in values:
            rows.append((network, dict(kinds)[network], "all", name, values[hour], 25))
    rows.append(("all", "all", "all", "outside_limits", 1.0 if hour == 2 else 0.0, 12))
    put_rows(layout, entry, rows)
    target = acting_worker.publish(
        layout, entry.analysis_id, {"a.nc": b"1"}, valid=valid, flavour="final"
    )
    manifest = json.loads((target / "manifest.json").read_text())
    sides = {n: {"analysis": {"ranks": r}, "background": None} for n, r in RANKS.items()}
    manifest["scores"] = {"withheld": [{"network": n, **side} for n, side in sides.items()]}
    if hour == 2:
        manifest["scores"]["control"] = {"cycles": 360, "checked": 12, "outside": [OUTSIDE]}
        manifest["flags"] = ["simulated"]
        manifest["provenance"] = {"checkpoint": "appa-test"}
    (target / "manifest.json").write_text(json.dumps(manifest))


def points(shape: Locator) -> list[tuple[float, float]]:
    """The corners of a line or an area, in units of its chart."""
    pairs = (pair.split(",") for pair in shape.get_attribute("points").split())
    return [(float(x), float(y)) for x, y in pairs]


def axis_value(panel: Locator, y: float) -> float:
    """What a height of a chart stands for, by the numbers beside its axis."""
    marks = [
        (float(text.get_attribute("y")) - 4, float(text.text_content()))
        for text in panel.locator("text.tick").all()
    ]
    assert len(marks) > 1
    heights, values = zip(*marks, strict=True)
    slope, start = np.polyfit(heights, values, 1)
    return slope * y + start


def limits_by_api(http: httpx.Client, statistic: str, network: str) -> dict[str, dict[str, float]]:
    """What the API has of the limits of one statistic: by end, then by valid time."""
    names = [f"{statistic}_limit_{end}" for end in ("low", "high")]
    query = {"statistic": ",".join(names), "network": network, "flavour": "final", "layer": "all"}
    found: dict[str, dict[str, float]] = {"low": {}, "high": {}}
    for row in http.get("/v1/verification", params=query).json()["items"]:
        found[row["statistic"].rsplit("_", 1)[1]][row["valid_time"]] = row["value"]
    return found


def save_picture(page: BrowserPage) -> None:
    """Save the charts, and look for the colours of lines and bars in the picture."""
    with page.expect_download() as download:
        page.click("#save")
    assert re.fullmatch(r"appa_verification_\d{8}T\d\dZ\.png", download.value.suggested_filename)
    pixels = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert pixels.shape[1] > 2 * 3 * 420  # three charts beside each other, at twice their size
    for colour in ((0xD1, 0x49, 0x5B), (0x8D, 0x99, 0xAE)):
        assert (np.abs(pixels - colour).max(-1) < 8).sum() > 100, colour
    ink = np.abs(pixels[16:44] - pixels[0, 0]).sum(-1)
    assert (ink > 300).sum() > 100  # its title


@pytest.fixture(scope="module")
def networks(valkey_url_shared: str, tmp_path_factory) -> Iterator[GatewayProcess]:
    """Three hours of two networks and one analysis of a job."""
    gateway = GatewayProcess(valkey_url_shared, tmp_path_factory.mktemp("networks")).start()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    with closing(stores.redis):
        acting_worker.report(stores)
    for hour in range(3):
        put_networks(gateway.layout, hour)
    put(gateway.layout, 1, "", 1, 1.0)
    acting_worker.publish(
        gateway.layout, "an-job", {"a.nc": b"1"}, valid=START + timedelta(hours=1)
    )
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all windows of this file: each shows its page with cookies and storage of its own."""
    with open_browser() as opened:
        yield opened


@needs_browser
def test_control_limits_are_bands_between_what_the_api_says(
    networks: GatewayProcess, browser: Browser
) -> None:
    with (
        httpx.Client(base_url=networks.url) as http,
        open_window(f"{networks.url}{PAGE}#show=ensemble", browser=browser) as page,
    ):
        page.wait_for_selector("#panels .band")
        panel = page.locator("#panels figure", has_text="synop")
        line = points(panel.locator("polyline[data-statistic=spread_skill]"))
        band = panel.locator(".band")
        assert band.count() == 1  # hours 1 and 2 follow each other, hour 0 has no limits
        corners = points(band)
        found = limits_by_api(http, "spread_skill", "synop")
        assert [len(found[end]) for end in ("low", "high")] == [2, 2]
        assert [x for x, _ in corners] == [x for x, _ in (*line[1:], *reversed(line[1:]))]
        expected = [*found["high"].values(), *reversed(found["low"].values())]
        drawn = [axis_value(panel, y) for _, y in corners]
        assert drawn == pytest.approx(expected, abs=0.01)
        assert "shaded" in page.inner_text("#legend")

        # Two analyses with limits and one between without: each has a band of its own.
        other = page.locator("#panels figure", has_text=re.compile("^temp"))
        assert other.locator(".band").count() == 2
        check_shade(page, panel, corners)

        page.select_option("#network", "temp")
        page.wait_for_function("() => document.querySelectorAll('#panels figure').length === 1")
        heights = {y for area in other.locator(".band").all() for _, y in points(area)}
        found = limits_by_api(http, "spread_skill", "temp")
        wanted = sorted([*found["low"].values(), *found["high"].values()])
        assert sorted(axis_value(other, y) for y in heights) == pytest.approx(wanted, abs=0.01)


def check_shade(page: BrowserPage, panel: Locator, corners: list[tuple[float, float]]) -> None:
    """Within the band the picture is darker than above it, and of the colour of its line."""
    box = panel.locator("svg").bounding_box()
    picture = Image.open(io.BytesIO(panel.locator("svg").screenshot())).convert("RGB")
    scale = box["width"] / 420
    (left, high), (right, _), (_, low), _ = corners

    def pixel(y: float) -> np.ndarray:
        x = (left + 0.3 * (right - left)) * scale
        return np.array(picture.getpixel((round(x), round(y * scale))), float)

    inside, above = pixel(low - 0.6 * (low - high)), pixel(high - 8)
    line = np.array([0x8D, 0x99, 0xAE], float)
    share = (above - inside) / (above - line)  # of the line's colour over the ground
    assert share == pytest.approx(np.full(3, 0.16), abs=0.03)


@needs_browser
def test_a_side_that_is_not_watched_is_shaded_to_the_edge(
    networks: GatewayProcess, browser: Browser
) -> None:
    with open_window(f"{networks.url}{PAGE}#show=departures", browser=browser) as page:
        panel = page.locator("#panels figure", has_text="synop")
        band = panel.locator(".band[data-statistic=withheld_rmse_analysis]")
        band.wait_for()
        assert panel.locator("text.units").text_content() == "K"
        values = [axis_value(panel, y) for _, y in points(band)]
        assert values == pytest.approx([2.0, 2.2, 2.1, 0, 0, 0], abs=0.01)


def test_the_command_draws_the_limits_that_the_series_has(
    networks: GatewayProcess, tmp_path: Path
) -> None:
    picture = tmp_path / "series.png"
    command = ["cycles", "--url", networks.url, "--png", str(picture), "--json"]
    rows = json.loads(CliRunner().invoke(verify.app, command).stdout)["rows"]
    found = {
        (r["network"], r["statistic"], int(r["valid_time"][11:13])): r["value"]
        for r in rows
        if "_limit_" in r["statistic"]
    }
    hours = {hour: (START + timedelta(hours=hour)).hour for hour in range(3)}
    assert found == {
        (network, name, hours[hour]): value
        for (network, name), values in LIMITS.items()
        for hour, value in values.items()
    }
    # The errors at withheld SYNOP stations are limited: their red at 16 % over white.
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    tint = 255 - 0.16 * (255 - np.array([0xD1, 0x49, 0x5B]))
    assert (np.abs(pixels - tint).max(-1) < 2).sum() > 50_000


@needs_browser
def test_biases_have_an_axis_with_both_signs(networks: GatewayProcess, browser: Browser) -> None:
    with open_window(f"{networks.url}{PAGE}#show=bias", browser=browser) as page:
        panel = page.locator("#panels figure", has_text="synop")
        line = panel.locator("polyline[data-statistic=bias_background]")
        line.wait_for(state="attached")  # a level line has no height, so it counts as hidden
        values = [axis_value(panel, y) for _, y in points(line)]
        assert values == pytest.approx([-0.25] * 3, abs=0.01)
        values = [axis_value(panel, y) for _, y in points(panel.locator(".band"))]
        assert values == pytest.approx([0.4, 0.5, 0.6, -0.6, -0.7, -0.8], abs=0.01)
        check_accessible(page)


@needs_browser
def test_axes_have_the_units_of_what_is_on_them(start_gateway, browser: Browser) -> None:
    """Ratios such as chi-square share no axis with kelvins or metres a second."""
    gateway = start_gateway()
    entry = SeriesEntry(START, "final", 1, "an-units")
    rows = [
        ("all", "all", "all", "chi2", 1.1, 50),
        ("temp", "u_component_of_wind", "all", "rms_background", 2.0, 20),
        ("temp", "u_component_of_wind", "all", "chi2", 7.0, 20),
        ("temp", "all", "all", "used", 40.0, 40),
    ]
    put_rows(gateway.layout, entry, rows)
    acting_worker.publish(gateway.layout, "an-units", {"a.nc": b"1"}, valid=START, flavour="final")
    with open_window(f"{gateway.url}{PAGE}", browser=browser) as page:
        page.wait_for_selector("#panels svg")
        found = {}
        for view in ("departures", "ensemble", "counts"):
            page.select_option("#show", view)
            page.wait_for_function(
                "view => document.getElementById('legend').textContent.includes(view)",
                arg={"departures": "O−A", "ensemble": "skill", "counts": "values used"}[view],
            )
            panels = page.locator("#panels figure").all()
            found[view] = {
                panel.locator("figcaption").text_content(): (
                    panel.locator("text.units").text_content(),
                    panel.locator("polyline").evaluate_all("l => l.map(e => e.dataset.statistic)"),
                )
                for panel in panels
            }
    wind = "temp: u component of wind"
    assert found["departures"] == {
        "all networks": ("ratio", ["chi2"]),
        wind: ("m s⁻¹", ["rms_background"]),
    }
    assert found["ensemble"] == {"all networks": ("ratio", ["chi2"]), wind: ("ratio", ["chi2"])}
    assert found["counts"] == {"temp": ("values", ["used"])}


@needs_browser
def test_a_link_without_a_flavour_shows_what_there_is(start_gateway, browser: Browser) -> None:
    gateway = start_gateway()
    put(gateway.layout, 1, "", 1, 1.0)
    valid = START + timedelta(hours=1)
    acting_worker.publish(gateway.layout, "an-job", {"a.nc": b"1"}, valid=valid)
    with open_window(f"{gateway.url}{PAGE}", browser=browser) as page:
        page.wait_for_selector("#panels svg")
        assert page.input_value("#flavour") == "job"
        page.goto(f"{gateway.url}{PAGE}#flavour=final")
        page.wait_for_function(
            "() => document.getElementById('note').textContent === 'no final analyses yet'"
        )
        assert page.locator("#panels svg").count() == 0


@needs_browser
def test_views_of_the_ensemble_and_of_errors_by_network(
    networks: GatewayProcess, browser: Browser
) -> None:
    with open_window(f"{networks.url}{PAGE}#show=ensemble", browser=browser) as page:
        page.wait_for_selector("#ranks rect")
        counts = [int(r.get_attribute("data-count")) for r in page.locator("#ranks rect").all()]
        assert counts == [18, 9, 9, 24]  # three hours of both networks
        assert "60 withheld values, analysis" in page.inner_text("#ranks")
        assert page.locator("#panels figure").count() == 2
        assert page.locator("#panels .perfect").count() == 2
        said = page.locator("#ranks text.units, #panels text.units").all_text_contents()
        assert said == ["values", "ratio", "ratio"]
        # Limits are drawn where they were passed: in the panel of that network, on its axis.
        assert "1 outside their control limits" in page.inner_text("#note")
        panel = page.locator("#panels figure", has_text="synop")
        assert page.locator("#panels .outside").count() == panel.locator(".outside").count() == 1
        limits = panel.locator(".limits")
        ends = [float(limits.get_attribute(f"data-{end}")) for end in ("low", "high")]
        assert ends == [OUTSIDE["low"], OUTSIDE["high"]]
        low, high = (
            float(part) for part in re.findall(r" (-?[\d.]+)h8", limits.get_attribute("d"))
        )
        one = float(panel.locator(".perfect").get_attribute("y1"))
        assert abs((low - one) / (one - high) - (1 - 0.9) / (1.3 - 1)) < 0.01
        said = page.inner_text("#outside")
        assert "synop, 2m temperature: spread skill 0.8, limits 0.9 to 1.3 of 360 cycles" in said
        save_picture(page)
        page.select_option("#network", "synop")
        page.wait_for_function("() => document.querySelectorAll('#panels figure').length === 1")
        counts = [int(r.get_attribute("data-count")) for r in page.locator("#ranks rect").all()]
        assert counts == [12, 3, 3, 18]
        assert "network=synop" in page.evaluate("location.hash")
        calls = calls_of(page, "synop: 2m temperature")
        items = json.loads(calls.run())["items"]
        assert {row["network"] for row in items} == {"synop"}
        panel = page.locator("#panels figure")
        for name in ("spread_skill", "withheld_spread_skill_analysis"):
            values = [row["value"] for row in items if row["statistic"] == name]
            line = panel.locator(f"polyline[data-statistic={name}]")
            drawn = [axis_value(panel, y) for _, y in points(line)]
            assert drawn == pytest.approx(values, abs=0.01) and len(values) == 3
        ranks = json.loads(calls_of(page, "ranks of withheld values").run())["items"]
        sums = [one["scores"]["withheld"][0]["analysis"]["ranks"] for one in ranks]
        assert np.sum(sums, axis=0).tolist() == counts
        limits = calls_of(page, "analyses outside their control limits")
        flagged = [r["value"] for r in json.loads(limits.run())["items"] if r["value"]]
        assert flagged == [1.0]
        check_accessible(page)
        page.select_option("#show", "errors")
        page.wait_for_function("() => document.querySelectorAll('#panels polyline').length === 4")
        legend = page.inner_text("#legend")
        assert "observation error, desired" in legend and "background spread, actual" in legend
        assert page.locator("#ranks rect").count() == 0
        # Desired lies above actual by the ratio of the two: 1.2 to 1.0 of an axis that begins at 0.
        rows = {}
        for line in page.locator("#panels polyline").all():
            key = (line.get_attribute("stroke"), line.get_attribute("stroke-dasharray"))
            rows[key] = float(line.get_attribute("points").split()[0].split(",")[1])
        zero = float(page.locator("#panels .axis").first.get_attribute("y1"))
        ratio = (zero - rows["#1f77b4", "5 3"]) / (zero - rows["#1f77b4", ""])
        assert abs(ratio - 1.2) < 0.01
        # The newest analysis of a job, though those of the cycles are newer.
        page.select_option("#network", "")
        page.select_option("#show", "departures")
        page.select_option("#flavour", "job")
        newest = START + timedelta(hours=1)
        page.wait_for_function(
            "text => document.getElementById('note').textContent.startsWith(text)",
            arg=f"1 analysis up to {newest:%Y-%m-%dT%H:%M}Z",
        )
