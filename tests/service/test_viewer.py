"""The viewer: one page whose parts all come from the gateway itself."""

import re

import httpx


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


def test_the_script_asks_for_addresses_that_exist(http: httpx.Client) -> None:
    script = http.get("/web/viewer.js").text
    asked = re.findall(r'getJson\("([^"]+)"\)', script)
    assert len(asked) == 4
    for path in asked:
        assert http.get(f"/{path}").status_code == 200, path
