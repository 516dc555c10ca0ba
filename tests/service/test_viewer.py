"""The viewer: one page whose parts all come from the gateway itself."""

import re
from contextlib import closing
from pathlib import Path

import acting_worker
import httpx
from browser import needs_browser, open_page

from worker.contract.store import open_stores


def test_page_and_its_parts(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert {"web/viewer.js", "web/style.css"} <= set(parts)
    for part in parts:
        if not part.startswith("data:"):
            assert "://" not in part  # nothing from elsewhere
            assert http.get(f"/{part}").status_code == 200, part


@needs_browser
def test_the_page_shows_workers_jobs_uploads_and_results(start_gateway, tmp_path: Path) -> None:
    """A gateway of its own, so that the tables hold this test's records alone."""
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    with closing(stores.redis):
        acting_worker.report(stores)
        acting_worker.report(stores, queue="ingest")
        acting_worker.publish(gateway.layout, "an-seen", {"seen.nc": b"1"})
        told = {"analysis_id": "an-seen", "kind": "filtering", "valid_time": "2025-01-01T06:00:00Z"}
        stores.events.emit("analysis.published", "an-seen", told)
        failed = {"key": "20250101T07Z_final", "message": "out_of_memory: <b>42 GB</b>"}
        stores.events.emit("cycle.failed", "20250101T07Z_final:1", failed)
        with httpx.Client(base_url=gateway.url) as http:
            rows = b"time,lat,lon,variable,obs_value\n2025-01-01T06:00Z,50,8,2m_temperature,281\n"
            name = "<b>bold</b>.csv"
            posted = http.post("/v1/observations", params={"file_name": name}, content=rows)
            assert posted.status_code == 202, posted.text
            job = {"kind": "filtering", "valid_time": "2025-01-01T07:00:00Z"}
            assert http.post("/v1/jobs", json=job).status_code == 202
        page = open_page(gateway.url, tmp_path / "profile")
    assert page.texts["readiness"].split() == ["ready", "·", "t31"]
    assert "test.gpu.1 gpu cpu ready" in " ".join(page.texts["workers"].split())
    assert "filtering queued" in " ".join(page.texts["jobs"].split())
    assert "2025-01-01 06:00Z filtering" in " ".join(page.texts["analyses"].split())
    assert "seen.nc" in page.texts["files"]
    assert f"{name} received" in " ".join(page.texts["batches"].split())
    events = " ".join(page.texts["events"].split())
    assert events.index("cycle.failed 20250101T07Z_final · out_of_memory: <b>42 GB</b>") < (
        events.index("analysis.published 2025-01-01 06:00Z · filtering an-seen")
    )
    assert ("events", "b") not in page.counts
    assert ("batches", "b") not in page.counts  # a sender's text is never markup
