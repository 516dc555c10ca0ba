"""The page of verification: its parts come from the gateway itself, and so does what it asks for."""

import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import urljoin

import acting_worker
import httpx
from browser import needs_browser, open_page
from test_gateway_verification import START, put

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
