"""Take the pictures of the web pages that the documentation shows, of a running system or its data.

usage: python -m lab.demo.screenshots URL|DATA FOLDER [--view NAME …] [--key KEY] [--model NAME]

Each picture is 1280 x 800 and shows the newest results. The process needs Playwright
and Chromium (Debian: `chromium`). `make screenshots` runs it over the data folder that `appa demo
--stay` leaves, or over the system at `URL=…`, and writes to `docs/images`.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error, Page, sync_playwright
from rich.console import Console

from deploy.local import LocalStack, StackOptions
from model.domain.errors import ConfigurationError, UnknownName

__all__ = ["VIEWS", "Screenshot", "shoot", "system_at"]

SIZE = {"width": 1280, "height": 800}
WAIT = 60_000
"""Milliseconds until a page must have drawn."""
LARGE = 350_000
"""Bytes above which a picture is written with a palette."""


@dataclass(frozen=True)
class Screenshot:
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


def _profile(page: Page) -> None:
    """Scroll to the last chart of a point."""
    page.locator("#point svg").last.scroll_into_view_if_needed()
    page.evaluate("document.getElementById('beside').scrollTo(0, 1e6)")


VIEWS: Mapping[str, Screenshot] = {
    "map": Screenshot("web/map.html#field=t&level=850&barbs=1&point=7.6,47.6", _DRAWN),
    "pole": Screenshot("web/map.html#field=gh&level=500&view=north", _DRAWN),
    "observations": Screenshot(
        "web/map.html#field=t2m&contours=0&obs=background&variable=2m_temperature", _DRAWN
    ),
    "cycles": Screenshot(
        "web/cycles.html", "() => !/^(…|)$/.test(document.getElementById('note').textContent)"
    ),
    "verification": Screenshot(
        "web/verification.html#show=departures",
        "() => document.getElementById('note').textContent !== '…'",
    ),
    "work": Screenshot(
        "",
        "() => document.getElementById('readiness').textContent !== '…'"
        " && document.querySelector('#job-fields label') && document.querySelector('#files td')"
        " && document.querySelector('#analyses td')",
    ),
    "chance": Screenshot(
        "web/map.html#field=si10&stat=probability&threshold=10&contours=0", _DRAWN
    ),
    "place": Screenshot("web/map.html#field=msl&point=7.6,47.6", _DRAWN, _profile),
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
            _write(page.screenshot(), path)
            written.append(path)
    return written


def _write(picture: bytes, path: Path) -> None:
    """Write a PNG: as it is, or with a palette of 256 colours if it is large."""
    if len(picture) <= LARGE:
        path.write_bytes(picture)
        return
    whole = Image.open(BytesIO(picture)).convert("RGB")
    palette = whole.quantize(256, method=Image.Quantize.FASTOCTREE)
    whole.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


@contextmanager
def system_at(where: str, models: Sequence[str]) -> Iterator[str]:
    """Yield the address of a system: the one given, or that of one started on a data folder.

    Arguments:
        where: An address, or the data folder of a system that does not run.
        models: Checkpoints of the latter.

    Raises:
        ConfigurationError: If there is neither, the folder is in use, or the system does not start.
    """
    if where.startswith(("http://", "https://")):
        yield where
        return
    if not Path(where).is_dir():
        raise ConfigurationError(
            f"Expected the address of a gateway or a data folder; got '{where}'. Make one with "
            "`appa demo --stay`."
        )
    options = StackOptions(
        data=Path(where), port=0, models=tuple(models), quiet=True, buckets=False
    )
    with LocalStack(options, Console(stderr=True)) as stack:
        if not stack.wait_ready(300):
            raise ConfigurationError(
                f"Expected the system on '{where}' to be ready within 300 s; its logs/appa.log says "
                "what happened."
            )
        yield stack.url


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo.screenshots")
    parser.add_argument("where", help="address of the gateway, or a data folder")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--view", action="append", choices=list(VIEWS), help="only this one")
    parser.add_argument("--key", help="API key, if one is needed")
    parser.add_argument("--model", default="appa-t31", help="checkpoint of a data folder's system")
    given = parser.parse_args(arguments)
    with system_at(given.where, [given.model]) as url:
        paths = shoot(url, given.folder, given.view, given.key)
    for path in paths:
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
