"""The page of verification: its parts come from the gateway itself, and so does what it asks for."""

import re
from urllib.parse import urljoin

import httpx

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


def test_the_script_asks_for_what_there_is(http: httpx.Client) -> None:
    script = http.get("/web/verification.js").text
    known = http.get("/openapi.json").json()["paths"]
    asked = set(re.findall(r"\.\./(v1/[a-z]+)\?", script))
    assert asked == {"v1/analyses", "v1/verification"}
    assert all(f"/{path}" in known for path in asked)
    (body,) = re.findall(r"new URLSearchParams\(\{(.*?)\}\)", script, re.DOTALL)
    given = set(re.findall(r"^\s*(\w+):", body, re.MULTILINE))
    parameters = {p["name"] for p in known["/v1/verification"]["get"]["parameters"]}
    assert (
        {"statistic", "layer", "flavour", "valid_from", "valid_to", "limit"} == given <= parameters
    )
