"""The board of cycles in a real browser, on a gateway with keys: what it says against the API."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import calls_of, check_accessible, needs_browser, open_window
from gateway_process import GatewayProcess
from playwright.sync_api import Page
from test_gateway_cycles import DONE, publish, put
from test_gateway_keys import make

from service.keys import Scope
from worker.contract.cycles import CycleState
from worker.contract.store import Stores, open_stores
from worker.results.manifest import read_manifest
from worker.results.verification.series import SERIES_SCHEMA, SeriesEntry

pytestmark = needs_browser
DAY = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
FINAL = "20240301T00Z_final"


def withheld(gateway: GatewayProcess, analysis_id: str, rows: list[tuple]) -> None:
    """Rows (variable, statistic, value, count) of the series of one analysis."""
    entry = SeriesEntry(DAY, "final", 2, analysis_id)
    kinds = [("synop", variable, "all", *rest) for variable, *rest in rows]
    columns = [[entry.valid_time], ["final"], [2], [analysis_id]]
    columns = [column * len(rows) for column in columns]
    columns += [list(column) for column in zip(*kinds, strict=True)]
    arrays = [
        pa.array(values, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for values, f in zip(columns, SERIES_SCHEMA, strict=True)
    ]
    path = entry.path(gateway.layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_arrays(arrays, names=SERIES_SCHEMA.names).cast(SERIES_SCHEMA)
    pq.write_table(table, path)


def fill(gateway: GatewayProcess, stores: Stores) -> None:
    early = [("b1", 0, "synop", DAY, None), ("b2", 0, "<i>temp</i>", DAY + 2 * HOUR, "late")]
    final = [
        ("b1", 0, "synop", DAY, None),
        ("b1", 1, "synop", DAY, "bounds"),
        ("b2", 0, "<i>temp</i>", DAY + 2 * HOUR, None),
        ("b3", 0, "ship", DAY + 4 * HOUR, "late"),
    ]
    publish(gateway, "an-e", DAY, "early", 1, early)
    publish(gateway, "an-f", DAY, "final", 2, final)
    manifest = read_manifest(gateway.layout, "an-f")
    manifest.observations = {"used": 2, "bounds": 1, "thinned": 4, "late": 1}
    manifest.flags = ["cold_start"]
    gateway.layout.manifest("an-f").write_text(manifest.model_dump_json())
    withheld(
        gateway,
        "an-f",
        [
            ("2m_temperature", "withheld_rmse_background", 2.0, 30),
            ("2m_temperature", "withheld_rmse_analysis", 1.0, 30),  # skill 0.75
            ("mean_sea_level_pressure", "withheld_rmse_background", 100.0, 10),
            ("mean_sea_level_pressure", "withheld_rmse_analysis", 100.0, 10),  # skill 0
        ],
    )
    cut_off = DAY + timedelta(minutes=180)
    put(stores, DAY, "early", *DONE, analysis_id="an-e", published=DAY + timedelta(minutes=27))
    put(stores, DAY, "final", *DONE, analysis_id="an-f", published=cut_off + 2 * HOUR)
    put(stores, DAY + HOUR, "early", "due", decided=DAY + 2 * HOUR, behind_seconds=600.0)
    put(stores, DAY + HOUR, "final")
    put(stores, DAY - HOUR, "early", "skipped", message="nobody <b>sent</b> anything")


@pytest.fixture(scope="module")
def guarded(guarded: GatewayProcess) -> GatewayProcess:
    """Yield a gateway that knows cycles in every state."""
    guarded.layout.cycles_file.write_text("start: 2009-01-01T00:00:00Z")
    stores = open_stores(guarded.redis_url, guarded.prefix)
    fill(guarded, stores)
    stores.redis.close()
    return guarded


@pytest.fixture(scope="module")
def page(guarded: GatewayProcess) -> Iterator[Page]:
    """The board after its key was entered."""
    with open_window(f"{guarded.url}/web/cycles.html#hours=72", refusals=True) as page:
        enter(page, make(guarded, Scope.ANALYSES_READ))
        page.wait_for_selector("#cycles tr")
        yield page


def enter(page: Page, key: str) -> None:
    page.wait_for_selector("#key-form:not([hidden])")
    page.fill("#key", key)
    page.keyboard.press("Enter")


def board(page: Page) -> dict[str, list[str]]:
    lines = page.locator("#cycles tr").all()
    cells = {line.locator("th").inner_text()[11:13]: line.locator("td") for line in lines}
    return {hour: [text.strip() for text in row.all_inner_texts()] for hour, row in cells.items()}


def test_the_board_says_what_became_of_each_cycle(page: Page) -> None:
    lines = board(page)
    assert list(lines) == ["01", "00", "23"]  # the latest hour first
    assert lines["01"] == ["due", "due: 10 min", "", "", "", "waiting", "", "", "", ""]
    early, final = lines["00"][:5], lines["00"][5:]
    assert early == ["published", "7 min", "1 / 0 / 0", "", ""]
    # used / late / rejected; (30 · 0.75 + 10 · 0) / 40 = 56 %
    assert final == ["published", "2 h", "2 / 1 / 5", "56 %", "cold start"]
    assert lines["23"] == ["skipped", "", "", "", "nobody <b>sent</b> anything", "", "", "", "", ""]
    assert page.locator("#cycles b, #cycles i").count() == 0  # text is never markup


def test_a_click_explains_a_cycle(page: Page) -> None:
    page.click(f'[aria-label^="{FINAL}"]')
    page.wait_for_selector("#explanation h2")
    said = " ".join(page.inner_text("#explanation").split())
    assert f"cycle={FINAL}" in page.evaluate("location.hash")
    assert "source previous_analysis" in said
    assert "used network values <i>temp</i> 1 synop 1" in said
    assert "after the cut-off network values first last ship 1 2024-03-01 04:00Z" in said
    assert "rejected network values check meaning synop 1 bounds outside the gross limits" in said
    assert "Against an-e (early, revision 1), 1 values were used by both." in said
    link = page.get_attribute("#explanation a", "href")
    assert "result=an-f" in link
    assert "obs=background" in link


def test_a_chosen_cycle_comes_into_sight_and_is_closed_again(page: Page) -> None:
    page.evaluate("scrollTo(0, 0)")
    page.click(f'[aria-label^="{FINAL}"]')
    page.wait_for_function("() => document.getElementById('explanation').textContent !== ''")
    page.wait_for_function(
        "() => document.getElementById('explained').getBoundingClientRect().top < innerHeight - 40"
    )
    page.click("#close")
    page.wait_for_selector("#explained", state="hidden")
    assert "cycle=" not in page.evaluate("location.hash")
    page.wait_for_function(
        f"() => document.activeElement.getAttribute('aria-label')?.startsWith('{FINAL}')"
    )
    page.keyboard.press("Enter")  # the same one again
    page.wait_for_selector("#explained:not([hidden])")


CLIPPED = """() => {
    const found = [], { left, right } = document.getElementById("board").getBoundingClientRect();
    for (const cell of document.querySelectorAll("#board th, #board td")) {
        if (getComputedStyle(cell.closest("thead") ?? cell).position === "absolute") continue;
        const box = cell.getBoundingClientRect();
        if (!box.width && !cell.textContent) continue; // empty cells take no room on a phone
        if (cell.scrollWidth > cell.clientWidth + 1 || box.left < left || box.right > right)
            found.push([cell.textContent, box.left, box.right, cell.scrollWidth, cell.clientWidth]);
    }
    return found;
}"""
"""Cells with more in them than fits, or that reach beyond the board."""


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1024, 768), (390, 844), (320, 568)])
def test_no_column_is_cut_off(long_board: Page, width: int, height: int) -> None:
    long_board.set_viewport_size({"width": width, "height": height})
    assert long_board.evaluate(CLIPPED) == []
    wide = long_board.evaluate(
        "['board', 'cycles'].map(id => document.getElementById(id))"
        ".concat(document.documentElement).map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert all(inside <= room for inside, room in wide), wide
    row = long_board.locator("#cycles tr").first
    said = row.inner_text()
    assert said.count("caught up") == 2  # once for early, once for final
    assert "caught_up" not in said
    for name in ("published", "8036 d", "1234567 / 12345 / 123456", "cycles worse than cold"):
        assert row.get_by_text(name).first.is_visible(), name


@pytest.fixture(scope="module")
def long_board(page: Page, valkey_url_shared: str, tmp_path_factory) -> Iterator[Page]:
    """A board whose cells hold the longest texts that there are."""
    gateway = GatewayProcess(valkey_url_shared, tmp_path_factory.mktemp("long")).start()
    gateway.layout.cycles_file.write_text("start: 2009-01-01T00:00:00Z")
    stores = open_stores(gateway.redis_url, gateway.prefix)
    flags = ["caught_up", "continued", "outside_control_limits", "cycles_worse_than_cold"]
    for flavour, revision in (("early", 11), ("final", 12)):
        name = f"an-{flavour}"
        publish(gateway, name, DAY, flavour, revision, [("b1", 0, "synop", DAY, None)])
        manifest = read_manifest(gateway.layout, name)
        manifest.observations = {"used": 1234567, "bounds": 123456, "late": 12345}
        manifest.flags = flags
        gateway.layout.manifest(name).write_text(manifest.model_dump_json())
        about = {"analysis_id": name, "revision": revision, "caught_up": True}
        published = DAY + timedelta(days=8036)
        put(stores, DAY, flavour, *DONE, published=published, **about)
    stores.redis.close()
    opened = page.context.browser.new_page()  # one browser at a time can be driven from here
    opened.goto(f"{gateway.url}/web/cycles.html#hours=72")
    opened.wait_for_selector("#cycles tr")
    yield opened
    opened.close()
    gateway.stop()


def test_keys_alone_choose_a_cycle(page: Page) -> None:
    page.focus(f'[aria-label^="{FINAL}"]')
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.hash.includes('20240301T00Z_early')")
    page.wait_for_function(
        "() => document.querySelector('#explanation h2').textContent.includes('early')"
    )
    assert not page.is_visible("#rerun")  # only a final analysis is computed again


def test_the_calls_of_a_panel_answer_what_it_shows(page: Page, guarded: GatewayProcess) -> None:
    page.click(f'[aria-label^="{FINAL}"]')
    page.wait_for_function("() => document.body.textContent.includes('/rerun')")
    key = {"APPA_API_KEY": page.evaluate("sessionStorage.getItem('appa-key')")}
    board, chosen = calls_of(page, "board"), calls_of(page, "this cycle")
    assert board.curl[0] == (
        f"curl '{guarded.url}/v1/cycles?limit=144' -H \"Authorization: Bearer $APPA_API_KEY\""
    )
    assert "appa_" not in "".join(page.locator(".calls").all_text_contents())  # no key
    cycles = json.loads(board.run(**key))["items"]
    shown = page.locator("#cycles button").evaluate_all("all => all.map(b => b.ariaLabel)")
    assert sorted(f"{c['id']}: {c['state']}" for c in cycles) == sorted(shown)
    assert json.loads(board.run_python(**key))["items"] == cycles
    analyses = {a["id"]: a for a in json.loads(board.run(1, **key))["items"]}
    used = analyses["an-f"]["observations"]["used"]
    assert f"{used} / 1 / 5" in page.inner_text("#cycles")
    assert {r["analysis_id"] for r in json.loads(board.run(2, **key))["items"]} == {"an-f"}
    explained = json.loads(chosen.run(**key))
    assert page.inner_text("#explanation h2") == explained["cycle"]["id"] == FINAL
    assert f"curl '{guarded.url}/v1/cycles/{FINAL}/rerun' " in chosen.curl[1]
    with pytest.raises(subprocess.CalledProcessError):  # without a key it is refused
        chosen.run()


@pytest.mark.parametrize("name", ["web/cycles.html", "web/verification.html", ""])
def test_pages_share_one_shell_and_one_key(page: Page, guarded: GatewayProcess, name: str) -> None:
    """The key was entered once, on the board."""
    page.goto(f"{guarded.url}/{name}" + ("#hours=72" if "cycles" in name else ""))
    shown = {"web/cycles.html": "#cycles tr", "web/verification.html": "#panels svg"}
    page.wait_for_selector(shown.get(name, "#analyses tbody tr"))
    assert page.is_hidden("#key-form")
    links = page.locator("nav a")
    names = ["map", "observations", "cycles", "verification", "work", "API"]
    assert links.all_inner_texts() == names
    found = links.evaluate_all("links => links.map(link => link.href.replace(/#.*/, ''))")
    for address in found:
        assert page.request.get(address).ok
    assert page.locator("nav [aria-current=page]").evaluate("link => link.href") == (
        f"{guarded.url}/{name}"
    )
    page.locator(".calls summary").first.click()
    assert "Authorization: Bearer $APPA_API_KEY" in page.locator(".calls").first.inner_text()
    check_accessible(page)
    page.emulate_media(color_scheme="dark")
    check_accessible(page)
    page.emulate_media(color_scheme="light")
    page.goto(f"{guarded.url}/web/cycles.html#hours=72")
    page.wait_for_selector("#cycles tr")


def test_only_a_key_with_the_scope_computes_again(page: Page, guarded: GatewayProcess) -> None:
    def ask_for_a_rerun() -> str:
        page.click("#rerun")
        page.click("#rerun-sure")
        page.wait_for_function("() => document.getElementById('rerun-said').textContent !== ''")
        return page.inner_text("#rerun-said")

    stores = open_stores(guarded.redis_url, guarded.prefix)
    page.click(f'[aria-label^="{FINAL}"]')
    page.wait_for_selector("#rerun:visible")
    assert "jobs:write" in ask_for_a_rerun()
    assert stores.cycles.get(FINAL).state is CycleState.PUBLISHED
    key = make(guarded, Scope.ANALYSES_READ, Scope.JOBS_WRITE)
    page.evaluate("key => sessionStorage.setItem('appa-key', key)", key)
    assert ask_for_a_rerun() == f"{FINAL} is due as revision 3"
    assert stores.cycles.get(FINAL).state is CycleState.DUE
    stores.redis.close()
    page.wait_for_function("() => document.getElementById('cycles').textContent.includes('due v3')")
