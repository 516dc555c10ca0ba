"""The page of work in a real browser: uploads and jobs against what the API says of them."""

import json
from collections.abc import Iterator
from datetime import timedelta

import acting_worker
import httpx
import pytest
from browser import calls_of, check_accessible, needs_browser, open_window
from gateway_process import GatewayProcess
from playwright.sync_api import Page

from tests.service.openapi_document import openapi_document
from worker.contract.batches import IngestSummary
from worker.contract.kinds import KINDS
from worker.contract.store import Stores

pytestmark = needs_browser
NAME = "<b>many</b> stations.csv"
ROWS = "time,lat,lon,variable,obs_value\n2025-01-01T06:00Z,50,8,2m_temperature,281.25\n"
SUMMARY = IngestSummary(
    messages=41,
    undecoded=3,
    observations=37,
    used=30,
    by_variable={"2m_temperature": 37},
    by_report_type={"synop": 37},
    by_rejection={"bounds": 5, "duplicate": 2},
    decode_report={"skipped": {"<i>template</i> 307080": 3}},
)


@pytest.fixture(scope="module")
def page(gateway: GatewayProcess) -> Iterator[Page]:
    with open_window(gateway.url, refusals=True) as page:
        yield page


@pytest.fixture(autouse=True)
def workers(stores: Stores) -> None:
    acting_worker.report(stores)
    acting_worker.report(stores, queue="ingest")


def drop(page: Page, name: str, content: str) -> None:
    """Drop a file on the page as a person does with a mouse."""
    transfer = page.evaluate_handle(
        """([name, content]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([content], name, { type: "text/csv" }));
            return transfer;
        }""",
        [name, content],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def test_a_dropped_file_is_sent_and_its_report_shown(page, http: httpx.Client, stores) -> None:
    page.select_option("#report-type", "synop")
    drop(page, NAME, ROWS)
    page.wait_for_function(
        "() => document.getElementById('sent').textContent.includes(': received')"
    )
    [batch] = [b for b in http.get("/v1/batches").json()["items"] if b["file_name"] == NAME]
    assert batch["size"] == len(ROWS)
    assert batch["options"]["report_type"] == "synop"
    claimed = stores.batches.claim(batch["id"], "test.ingest.1", timedelta(seconds=30))
    stores.batches.finish(batch["id"], claimed.token, SUMMARY)
    page.wait_for_selector("#report table")
    said = " ".join(page.inner_text("#report").split())
    assert said.startswith(f"{NAME} · {batch['id']} ingested")
    assert "messages 41 undecoded 3 observations 37 used 30" in said
    assert "rejected by bounds 5 duplicate 2" in said
    page.click("#report summary")
    assert "<i>template</i> 307080" in page.inner_text("#report pre")
    assert page.locator("#report b, #report i, #sent b, #batches b").count() == 0


def test_a_refused_file_says_why(page) -> None:
    page.set_input_files(
        "#files-to-send", {"name": "x.xyz", "mimeType": "a/b", "buffer": b"\x00\x01\x02"}
    )
    page.wait_for_selector("#sent .bad")
    assert "Expected" in page.inner_text("#sent .bad")


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_form_has_what_the_schema_has(page, kind: str) -> None:
    page.select_option("#job-kind", kind)
    schemas = openapi_document()["components"]["schemas"]
    [schema] = [s for n, s in schemas.items() if n.lower() == f"{kind}spec"]
    found = page.locator("#job-fields [id]:not(small)").evaluate_all("all => all.map(e => e.id)")
    inner = {f"job-observations-{n}" for n in schemas["ObservationSelection"]["properties"]}
    wanted = {f"job-{n}" for n in schema["properties"]} - {"job-kind", "job-observations"}
    assert set(found) == wanted | inner
    needed = page.locator("#job-fields :required").evaluate_all("all => all.map(e => e.id)")
    assert needed == [f"job-{n}" for n in schema.get("required", []) if n != "kind"]
    members = schema["properties"]["members"]
    assert page.get_attribute("#job-members", "max") == str(int(members["maximum"]))
    assert members["description"] in page.text_content("#job-members-note")


def test_a_job_is_what_the_form_says_and_can_be_cancelled(page, http: httpx.Client) -> None:
    page.select_option("#job-kind", "filtering")
    page.click("#job-fields summary")
    page.fill("#job-valid_time", "2025-01-01T07:00Z")
    page.fill("#job-members", "6")
    page.select_option("#job-background", "climatology")
    page.fill("#job-observations-networks", "synop, temp")
    page.check("#job-warm_start")
    page.focus("#job-form button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#job-said.good")
    job_id = page.inner_text("#job-said").split()[0]
    job = http.get(f"/v1/jobs/{job_id}").json()
    spec = job["spec"]
    assert (spec["kind"], spec["valid_time"]) == ("filtering", "2025-01-01T07:00:00Z")
    assert (spec["members"], spec["background"], spec["warm_start"]) == (6, "climatology", True)
    assert spec["observations"]["networks"] == ["synop", "temp"]
    assert spec["seed"] == 0  # what was left alone is the default
    [call] = calls_of(page, "submit a job").curl
    assert '"observations":{"networks":["synop","temp"]}' in call
    assert "Authorization" not in call  # where the page needs no key, nobody does
    page.click(f'[aria-label="cancel {job_id}"]')
    page.wait_for_selector(f'[aria-label="cancel {job_id}"]', state="detached")
    assert http.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"


def test_every_panel_names_a_call_that_answers_what_it_shows(
    page: Page, gateway: GatewayProcess, http: httpx.Client, tmp_path, monkeypatch
) -> None:
    """Each list of the page against what its own call of curl answers."""
    acting_worker.publish(gateway.layout, "an-shown", {"a.nc": b"1"})
    page.reload()  # the list of before may lack what other tests of this gateway have published
    page.wait_for_selector("#analyses tbody tr")
    for table, panel, first in (
        ("jobs", "jobs", lambda job: job["spec"]["kind"]),
        ("analyses", "analyses", lambda one: str(one["members"])),
        ("batches", "uploads", lambda batch: batch["file_name"]),
    ):
        items = json.loads(calls_of(page, panel).run())["items"]
        shown = page.locator(f"#{table} tbody tr")
        assert shown.count() == len(items) > 0
        assert all(first(item) in shown.nth(i).inner_text() for i, item in enumerate(items))
    workers = json.loads(calls_of(page, "workers").run())["workers"]
    assert [w["name"] for w in workers] == page.locator(
        "#workers tbody td:first-child"
    ).all_inner_texts()
    assert (
        len(json.loads(calls_of(page, "events").run())["items"])
        == page.locator("#events tbody tr").count()
    )
    latest = json.loads(calls_of(page, "latest analysis").run())
    files = page.locator("#files td:first-child").all_inner_texts()
    assert [file["name"] for file in latest["files"]] == files
    # What sends: the same file, the same job; the answer is the record that is then listed.
    page.select_option("#report-type", "temp")
    page.wait_for_function("() => document.body.textContent.includes('report_type=temp')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "observations.bufr").write_text(ROWS.replace("8,", "9,"))
    sent = json.loads(calls_of(page, "send observations").run_python())
    assert http.get(f"/v1/observations/{sent['id']}").json()["options"]["report_type"] == "temp"
    page.fill("#job-valid_time", "2025-01-01T09:00Z")
    queued = json.loads(calls_of(page, "submit a job").run())
    assert queued["spec"]["valid_time"] == "2025-01-01T09:00:00Z"
    http.delete(f"/v1/jobs/{queued['id']}")


def test_a_job_that_cannot_be_says_why(page) -> None:
    page.fill("#job-valid_time", "2025-01-01T07:30Z")
    page.click("#job-form button")
    page.wait_for_selector("#job-said.bad")
    assert "full hour" in page.inner_text("#job-said")


def test_the_page_is_accessible(page) -> None:
    page.select_option("#job-kind", "reanalysis")
    page.click("#job-fields summary")
    page.locator("[aria-label^=report]").first.click()
    check_accessible(page)
