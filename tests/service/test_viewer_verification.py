"""The page of verification: its parts come from the gateway itself, and so does what it asks for."""

import json
import re
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import urljoin

import acting_worker
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from browser import check_accessible, needs_browser, open_page, open_window
from test_gateway_verification import START, put

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
RANKS = {"synop": [4, 1, 1, 6], "temp": [2, 2, 2, 2]}


def put_networks(layout: Layout, hour: int) -> None:
    """The series of one hour: every statistic of two networks, and what the withheld values say."""
    valid = START + timedelta(hours=hour)
    entry = SeriesEntry(valid, "final", 1, f"an-net-{hour}")
    kinds = (("synop", "2m_temperature"), ("temp", "temperature"))
    rows = [(n, v, "all", name, NAMES[name], 10) for n, v in kinds for name in NAMES]
    columns = [[x] * len(rows) for x in (valid, "final", 1, entry.analysis_id)]
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
    target = acting_worker.publish(
        layout, entry.analysis_id, {"a.nc": b"1"}, valid=valid, flavour="final"
    )
    manifest = json.loads((target / "manifest.json").read_text())
    sides = {n: {"analysis": {"ranks": r}, "background": None} for n, r in RANKS.items()}
    manifest["scores"] = {"withheld": [{"network": n, **side} for n, side in sides.items()]}
    (target / "manifest.json").write_text(json.dumps(manifest))


@needs_browser
def test_views_of_the_ensemble_and_of_errors_by_network(start_gateway) -> None:
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    with closing(stores.redis):
        acting_worker.report(stores)
    for hour in range(3):
        put_networks(gateway.layout, hour)
    with open_window(f"{gateway.url}{PAGE}#show=ensemble") as page:
        page.wait_for_selector("#ranks rect")
        counts = [int(r.get_attribute("data-count")) for r in page.locator("#ranks rect").all()]
        assert counts == [18, 9, 9, 24]  # three hours of both networks
        assert "60 withheld values, analysis" in page.inner_text("#ranks")
        assert page.locator("#panels figure").count() == 2
        assert page.locator("#panels .perfect").count() == 2
        page.select_option("#network", "synop")
        page.wait_for_function("() => document.querySelectorAll('#panels figure').length === 1")
        counts = [int(r.get_attribute("data-count")) for r in page.locator("#ranks rect").all()]
        assert counts == [12, 3, 3, 18]
        assert "network=synop" in page.evaluate("location.hash")
        assert "network=synop" in page.text_content("#call")
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
