"""The meteogram of the map: what the nearest stations reported lies in it, by the store's values."""

import json
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import published
import pytest
from browser import calls_of, check_accessible, needs_browser, open_window
from gateway_process import GatewayProcess
from map_window import show
from playwright.sync_api import Page

from model.domain.observations import validate_table
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext
from worker.observations.store.store import ObservationStore

pytestmark = needs_browser
START = published.NOON + timedelta(days=60)
HOURS = [START + timedelta(hours=h) for h in (1, 2, 3)]
# Station, degrees north of the place, K; the fourth of four nearby is not shown, a far one neither.
STATIONS = [("near", 0.1, 281.0), ("<b>next</b>", 0.5, 282.0), ("third", 1.0, 283.0)]
BEYOND = [("fourth", 1.2, 300.0), ("far", 5.0, 310.0)]
LON, LAT = 45.0, 30.0


def reports() -> list[dict]:
    """Temperatures of every station at every hour, of which one is refused, and a wind of 3, 4 m/s."""
    rows = [
        {"station_id": name, "lat": LAT + north, "variable": "2m_temperature", "time": time,
         "obs_value": value + h, "rejected_by": "bounds" if (name, h) == ("near", 2) else None}
        for name, north, value in STATIONS + BEYOND
        for h, time in enumerate(HOURS)
    ]  # fmt: skip
    wind = {"station_id": "near", "lat": LAT + 0.1, "time": HOURS[0], "rejected_by": None}
    for component, value in (("u", 3.0), ("v", -4.0)):
        rows.append(wind | {"variable": f"10m_{component}_component_of_wind", "obs_value": value})
    return rows


@pytest.fixture(scope="module")
def page(gateway: GatewayProcess, tmp_path_factory) -> Iterator[Page]:
    wanted = {"st-fc": published.Wanted(valid=START, kind="forecast")}
    published.publish_all(gateway.layout, tmp_path_factory.mktemp("stations"), wanted)
    rows = reports()
    table = build_table(
        DecodeContext(batch_id="b-near", received_time=START),
        len(rows),
        report_type="synop",
        lon=LON,
        elevation=0.0,
        vertical_kind="surface",
        qc_flag=[12 if row["rejected_by"] else 0 for row in rows],
        **{
            name: [row[name] for row in rows]
            for name in ("station_id", "lat", "variable", "obs_value", "rejected_by")
        },
        time=np.array([row["time"].replace(tzinfo=None) for row in rows], dtype="datetime64[ns]"),
    )
    store = ObservationStore(str(gateway.layout.observations))
    store.publish(validate_table(table), "b-near", START, {})
    # Without a link it shows the newest result, of whichever tests shared the gateway before.
    state = {"result": "st-fc", "time": HOURS[0].isoformat()[:19] + "Z", "field": "t2m"}
    link = "&".join(f"{name}={value}" for name, value in state.items())
    with open_window(f"{gateway.url}/web/map.html#{link}") as page:
        show(page, **state, point=f"{LON},{LAT}")  # a click would be at the centre of a pixel
        page.wait_for_selector("#point svg circle.report")
        yield page


def chart(page: Page, title: str) -> list[tuple[float, str]]:
    """The reports in a chart: value, and whether it is filled."""
    dots = page.locator(f'#point svg[aria-label^="{title}"] circle.report')
    return [(float(d.get_attribute("data-value")), d.get_attribute("fill")) for d in dots.all()]


def test_the_nearest_stations_are_listed_by_distance(page: Page) -> None:
    listed = page.locator("#point .stations li").all_inner_texts()
    shown = [" ".join(text.split()) for text in listed]
    # A tenth of a degree of latitude is 11.1 km.
    assert shown == [
        "near · synop · 11 km",
        "<b>next</b> · synop · 56 km",
        "third · synop · 111 km",
    ]
    assert page.locator("#point .stations b b").count() == 0  # a name is no markup


def test_their_reports_lie_in_the_charts(page: Page) -> None:
    found = chart(page, "2 m temperature")
    expected = sorted(value + h - 273.15 for _, _, value in STATIONS for h in range(3))
    assert sorted(value for value, _ in found) == pytest.approx(expected)
    refused = [value for value, fill in found if fill == "none"]
    assert refused == pytest.approx([281.0 + 2 - 273.15])
    assert [value for value, _ in chart(page, "10 m wind")] == pytest.approx([5.0])
    assert chart(page, "mean sea level") == []
    # The first hour is the left edge of the chart, the last the right one.
    dots = page.locator('#point svg[aria-label^="2 m"] circle.report')
    across = [float(d.get_attribute("cx")) for d in dots.all()[:3]]
    assert across == pytest.approx([46.0, (46.0 + 452.0) / 2, 452.0], abs=0.1)


def test_the_calls_of_charts_answer_what_is_drawn(page: Page) -> None:
    """Stations and their reports; all members of the meteogram and of the profile."""
    reports = json.loads(calls_of(page, "stations").run())["features"]
    kelvin = [
        f["properties"]["obs_value"] - 273.15
        for f in reports
        if f["properties"]["variable"] == "2m_temperature"
        and f["properties"]["station_id"] in [name for name, _, _ in STATIONS]
    ]
    assert sorted(kelvin) == pytest.approx(sorted(v for v, _ in chart(page, "2 m temperature")))
    answer = json.loads(calls_of(page, "meteogram").run())
    members = [coverage["ranges"]["t2m"]["values"] for coverage in answer["coverages"]]
    shown = float(page.text_content('#point svg[aria-label^="2 m"] text.value'))
    assert shown == pytest.approx(np.mean([values[0] for values in members]) - 273.15, abs=0.006)
    lines = page.locator('#point svg[aria-label^="2 m"] polyline')
    assert lines.count() == len(members) + 1
    profile = json.loads(calls_of(page, "profile").run())
    assert {"t", "q", "u", "v"} == set(profile["coverages"][0]["ranges"])
    assert len(profile["coverages"]) == len(members)


def test_the_panel_is_accessible(page: Page) -> None:
    check_accessible(page)
