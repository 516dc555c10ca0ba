"""Open a page in a real browser, let its scripts run, and read what a person would see."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, sync_playwright
from playwright.sync_api import Page as BrowserPage

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")


class Page(HTMLParser):
    """The document after its scripts have run.

    Attributes:
        texts: Text inside the element of each id.
        counts: Number of elements of each tag inside the element of each id.
    """

    def __init__(self, document: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name in self._ids():
            self.counts[name, tag] = self.counts.get((name, tag), 0) + 1
        if tag not in ("meta", "link", "img", "input", "br"):
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for name in self._ids():
            self.texts[name] = self.texts.get(name, "") + data + " "

    def _ids(self) -> list[str]:
        return [name for _, name in self._open if name]


def open_page(url: str, profile: Path, seconds: int = 15) -> Page:
    """Load `url` in Chromium without a window; scripts have `seconds` of their own clock."""
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        f"--user-data-dir={profile}", f"--virtual-time-budget={1000 * seconds}", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium for several windows; while it is open, no event loop can be run in this thread."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_window(
    url: str, *, refusals: bool = False, browser: Browser | None = None
) -> Iterator[BrowserPage]:
    """A page of Chromium; no error may be written to its console.

    Arguments:
        url: What it shows first.
        refusals: Whether the gateway may refuse requests, which Chromium writes there.
        browser: Where to open it, with cookies and storage of its own; None for one that ends with it.
    """
    said: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        refused = refusals and message.text.startswith("Failed to load resource")
        if message.type == "error" and not refused:
            said.append(f"{message.text} ({message.location.get('url')})")

    with ExitStack() as opened:
        browser = browser or opened.enter_context(open_browser())
        page = browser.new_page(viewport={"width": 1280, "height": 720})  # in a context of its own
        page.on("console", listen)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        yield page
        page.close()
    assert said == [], said  # errors of scripts, refusals of the content security policy


@dataclass(frozen=True)
class Calls:
    """What a panel says of the calls it was made of."""

    curl: list[str]
    python: list[str]

    def run(self, number: int = 0, **env: str) -> bytes:
        """Run a call of curl as somebody who copied it, and return the answer."""
        with TemporaryDirectory() as folder:
            done = subprocess.run(
                f"{self.curl[number]} -sS --fail", shell=True, cwd=folder, timeout=60,
                check=True, capture_output=True, env={**os.environ, **env},
            )  # fmt: skip
            written = Path(folder) / "answer.bin"
            return written.read_bytes() if written.exists() else done.stdout

    def run_python(self, number: int = 0, **env: str) -> str | bytes:
        """Run a call of Python likewise."""
        said: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            exec(self.python[number], said)
        return said["answer"]


def calls_of(page: BrowserPage, panel: str) -> Calls:
    """The calls of the panel that names itself so, which are folded."""
    details = page.locator("details.calls").filter(
        has=page.locator("summary", has_text=re.compile(f"^API: {re.escape(panel)}$"))
    )
    details.wait_for(state="attached")
    texts = details.locator("pre").all_text_contents()
    return Calls(texts[::2], texts[1::2])


SIZES = {"desk": (1280, 720), "phone": (390, 844)}


def check_accessible(page: BrowserPage) -> None:
    """No rule of axe-core is broken and nothing lies beside the window, at a desk and on a phone."""
    before = page.viewport_size
    for name, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        found = Axe().run(page).response["violations"]
        said = [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in found]
        assert not said, (name, page.url, said)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, page.url)
    page.set_viewport_size(before)
