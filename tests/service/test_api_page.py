"""The page about the API: all its parts come from the gateway, what it shows needs a key."""

import re
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest
from browser import needs_browser, open_browser
from gateway_process import GatewayProcess, StartGateway
from playwright.sync_api import Browser

from service.keys import KeyFile, Scope


def test_every_part_comes_from_the_gateway(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "<script>" not in page.text and "://" not in page.text
    parts = [p for p in re.findall(r'(?:href|src)="([^"]+)"', page.text) if p != "data:,"]
    assert "web/swagger/swagger-ui-bundle.js" in parts
    for part in parts:
        assert http.get(f"/{part}").status_code == 200, part


PAGES = ["", "docs", "web/map.html", "web/cycles.html", "web/verification.html"]


def test_every_page_leads_to_every_other(http: httpx.Client) -> None:
    links = {}
    for page in PAGES:
        [nav] = re.findall(r'<nav aria-label="pages">(.*?)</nav>', http.get(f"/{page}").text, re.S)
        found = re.findall(r'<a href="([^"]*)"( aria-current="page")?>(.*?)</a>', nav)
        links[page] = [(urljoin(f"/{page}", href), name) for href, _, name in found]
        [own] = [urljoin(f"/{page}", href) for href, current, _ in found if current]
        assert own == f"/{page}"
    assert [name for _, name in links[""]] == [
        "map", "observations", "cycles", "verification", "work", "API",
    ]  # fmt: skip
    assert all(found == links[""] for found in links.values())
    for address, _ in links[""]:
        assert http.get(address).status_code == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@needs_browser
def test_a_browser_shows_the_api_once_it_has_a_key(
    start_gateway: StartGateway, browser: Browser
) -> None:
    gateway = start_gateway(APPA_REQUIRE_KEYS="true")
    key, _ = KeyFile(gateway.layout.keys_file).create("person", [Scope.JOBS_WRITE])
    asked: list[str] = []
    said: list[str] = []
    page = browser.new_page()
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{gateway.url}/docs")
    page.wait_for_selector("#key-form:not([hidden])")
    assert "Expected an API key" in page.inner_text("#message")
    assert page.locator(".opblock").count() == 0
    assert len(said) == 1 and "401" in said[0]
    said.clear()
    page.fill("#key", key)
    page.click("#key-form button")
    page.locator("#operations-jobs-list_jobs .opblock-summary").click()
    page.locator("#operations-jobs-list_jobs .try-out__btn").click()
    page.locator("#operations-jobs-list_jobs .execute").click()
    answer = page.locator("#operations-jobs-list_jobs .live-responses-table .response-col_status")
    assert answer.last.inner_text().strip().startswith("200")  # called with the key
    assert page.locator(".opblock").count() > 40
    page.close()
    assert said == []  # no error of a script, no refusal of the content security policy
    assert {httpx.URL(url).netloc.decode() for url in asked if "data:" not in url} == {
        httpx.URL(gateway.url).netloc.decode()
    }


@needs_browser
def test_the_page_shows_the_data_sets_too(gateway: GatewayProcess, browser: Browser) -> None:
    assert (
        httpx.get(f"{gateway.url}/v1/data/docs", follow_redirects=True, timeout=60).status_code
        == 404
    )
    page = browser.new_page()
    page.goto(f"{gateway.url}/docs?data")
    page.wait_for_selector(".opblock")
    assert "Appa data sets" in page.inner_text("#api")
    page.close()
