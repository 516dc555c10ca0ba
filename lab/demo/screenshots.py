"""Take the pictures of the web pages that the documentation shows, of any running system.

usage: python -m lab.demo.screenshots URL FOLDER [--view NAME …] [--key KEY]

Each picture is 1280 x 800 and shows the newest results. The process needs Playwright and Chromium
(Debian: `chromium`); `make screenshots URL=…` runs it over a demo or `appa up` and writes to
`docs/images`.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Error, Page, sync_playwright

from model.domain.errors import ConfigurationError, UnknownName

__all__ = ["VIEWS", "View", "shoot"]

SIZE = {"width": 1280, "height": 800}
WAIT = 60_000
"""Milliseconds until a page must have drawn."""


@dataclass(frozen=True)
class View:
    """A picture of a page.

    Attributes:
        path: Of the page, with its state.
        ready: JavaScript that is true once it is drawn.
        then: What a user does before the picture.
    """

    path: str
    ready: str
    then: Callable[[Page], None] = lambda page: None


_DRAWN = """() => window.appaMap?.chart.field && window.appaMap.settled === location.hash
    && document.getElementById("message").textContent === "" """


def _click_the_middle(page: Page) -> None:
    """Open the meteogram of a place in the middle of the map."""
    box = page.locator("#map").bounding_box()
    assert box is not None  # noqa: S101
    page.mouse.click(box["x"] + 0.53 * box["width"], box["y"] + 0.3 * box["height"])
    page.wait_for_selector("#point svg", timeout=WAIT)
    page.wait_for_function(_DRAWN, timeout=WAIT)


VIEWS: Mapping[str, View] = {
    "map": View("web/map.html#field=t&level=850&barbs=1", _DRAWN, _click_the_middle),
    "pole": View("web/map.html#field=gh&level=500&view=north", _DRAWN),
    "observations": View("web/map.html#field=t2m&obs=background", _DRAWN),
    "cycles": View(
        "web/cycles.html", "() => !/^(…|)$/.test(document.getElementById('note').textContent)"
    ),
    "verification": View(
        "web/verification.html", "() => document.getElementById('note').textContent !== '…'"
    ),
    "work": View("", "() => document.getElementById('readiness').textContent !== '…'"),
}
"""Pictures by the name of their file."""


@contextmanager
def _page(key: str | None) -> Iterator[Page]:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise ConfigurationError(
            "Expected Chromium to take pictures with; none is installed. Install it with: "
            "apt-get install chromium"
        )
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
        if key is not None:
            page.add_init_script(f"sessionStorage.setItem('appa-key', {key!r})")
        yield page
        browser.close()


def shoot(
    url: str, folder: Path, names: list[str] | None = None, key: str | None = None
) -> list[Path]:
    """Write the pictures of a running system as PNG, and return their paths.

    Arguments:
        url: Address of the gateway.
        folder: Where they go; created if it does not exist.
        names: Of `VIEWS`; None for all.
        key: API key, if one is needed.

    Raises:
        UnknownName: If there is no such view.
        ConfigurationError: If there is no browser, or a page does not draw.
    """
    for name in names or ():
        if name not in VIEWS:
            raise UnknownName(f"Expected a view, one of {', '.join(VIEWS)}; got '{name}'.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with _page(key) as page:
        for name in names or VIEWS:
            view = VIEWS[name]
            page.goto("about:blank")  # so that a page with another state is loaded anew
            try:
                page.goto(f"{url.rstrip('/')}/{view.path}")
                page.wait_for_function(view.ready, timeout=WAIT)
                view.then(page)
            except Error as error:
                raise ConfigurationError(
                    f"Expected the page of '{name}' at {url} to draw; {error.message}. Is a system "
                    "running there, with a published result?"
                ) from error
            path = folder / f"{name}.png"
            page.screenshot(path=path)
            written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo.screenshots")
    parser.add_argument("url", help="address of the gateway")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--view", action="append", choices=list(VIEWS), help="only this one")
    parser.add_argument("--key", help="API key, if one is needed")
    given = parser.parse_args(arguments)
    for path in shoot(given.url, given.folder, given.view, given.key):
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
