"""The series of verification over HTTP, and what `/metrics` says of the newest cycles."""

import json
from datetime import UTC, datetime, timedelta

import acting_worker
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gateway_process import GatewayProcess, StartGateway
from typer.testing import CliRunner

from appa_client import AppaClient, AsyncAppaClient, _requests
from deploy.commands import verify
from worker.contract.layout import Layout
from worker.results.verification.series import SERIES_SCHEMA, SeriesEntry

START = datetime(2003, 10, 31, 20, tzinfo=UTC)
HOURS = 8


def put(layout: Layout, hour: int, flavour: str, revision: int, chi2: float) -> None:
    """One analysis in the series: chi-square, and an error for each of two layers."""
    entry = SeriesEntry(START + timedelta(hours=hour), flavour, revision, f"an-{hour}-{revision}")
    rows = [
        ("all", "all", "all", "chi2", chi2, 900),
        ("temp", "temperature", "400-600 hPa", "rms_background", 0.8, 20),
        ("temp", "temperature", "all", "rms_background", 1.1, 90),
    ]
    columns = [[entry.valid_time] * 3, [flavour] * 3, [revision] * 3, [entry.analysis_id] * 3]
    columns += [list(column) for column in zip(*rows, strict=True)]
    arrays = [
        pa.array(values, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for values, f in zip(columns, SERIES_SCHEMA, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, names=SERIES_SCHEMA.names).cast(SERIES_SCHEMA)
    path = entry.path(layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def series(gateway: GatewayProcess) -> None:
    for hour in range(HOURS):
        put(gateway.layout, hour, "early", 1, 1.0 + hour / 10)
        put(gateway.layout, hour, "final", 2, 2.0 + hour / 10)
    put(gateway.layout, 3, "final", 3, 9.0)
    put(gateway.layout, 3, "", 1, 7.0)


def ask(http: httpx.Client, **params) -> dict:
    answer = http.get("/v1/verification", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_statistic_of_one_flavour_by_time(http, series) -> None:
    page = ask(http, statistic="chi2", flavour="early")
    assert page["next_cursor"] is None
    assert [row["value"] for row in page["items"]] == [1.0 + h / 10 for h in range(HOURS)]
    assert page["items"][0] == {
        "valid_time": "2003-10-31T20:00:00Z", "flavour": "early", "revision": 1,
        "analysis_id": "an-0-1", "network": "all", "variable": "all", "layer": "all",
        "statistic": "chi2", "value": 1.0, "count": 900,
    }  # fmt: skip


def test_filters_and_revisions(http, series) -> None:
    window = {"valid_from": "2003-10-31T23:00:00Z", "valid_to": "2003-10-31T23:00:00Z"}
    final = ask(http, statistic="chi2", flavour="final", **window)["items"]
    assert [(r["revision"], r["value"]) for r in final] == [(3, 9.0)]
    every = ask(http, statistic="chi2", flavour="final", revisions="all", **window)["items"]
    assert [r["revision"] for r in every] == [2, 3]
    assert [r["value"] for r in ask(http, statistic="chi2", flavour="job")["items"]] == [7.0]
    layers = ask(http, network="temp", layer="400-600 hPa", flavour="early")["items"]
    assert [r["value"] for r in layers] == [0.8] * HOURS
    both = ask(http, statistic=["chi2", "rms_background"], layer="all", flavour="early")["items"]
    assert len(both) == 2 * HOURS
    assert ask(http, statistic="nonsense")["items"] == []
    assert ask(http, valid_from="2004-01-01T00:00:00Z") == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_pages_join_without_gap_or_repeat(http, series, limit: int) -> None:
    whole = ask(http, revisions="all")["items"]
    assert len(whole) == 3 * (2 * HOURS + 2)
    found, cursor = [], None
    while True:
        page = ask(http, revisions="all", limit=limit, **({"cursor": cursor} if cursor else {}))
        found += page["items"]
        assert len(page["items"]) <= limit
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == whole


def test_a_wrong_cursor_is_said(http, series) -> None:
    answer = http.get("/v1/verification", params={"cursor": "../../etc"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


def published(layout: Layout, name: str, flavour: str, hour: int, scores: dict) -> None:
    folder = layout.analysis(name)
    valid = START + timedelta(hours=hour)
    acting_worker.publish(layout, name, {"a.nc": b"1"}, valid=valid, flavour=flavour)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": scores}))


def scores(rmse: float, outside: int) -> dict:
    side = {"rmse": rmse}
    line = {"network": "temp", "variable": "temperature"}
    return {
        "version": 1,
        "chi2": 1.25,
        "used": {"temp": 400, "synop": 0},
        "withheld": [line | {"background": side | {"rmse": 2 * rmse}, "analysis": side}],
        "departures": [line | {"error_ratio": 0.9, "spread_skill": None}],
        "control": {"cycles": 30, "checked": 5, "outside": [{}] * outside},
    }


def test_metrics_are_those_of_the_newest_cycle(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        assert "appa_verification_rmse{" not in http.get("/metrics").text
        published(gateway.layout, "an-old", "early", 0, scores(0.5, 3))
        published(gateway.layout, "an-new", "early", 1, scores(0.75, 1))
        published(gateway.layout, "an-foreign", "final", 1, {"chi2": 3.0})
        published(gateway.layout, "an-job", "", 5, scores(9.0, 0))
        text = http.get("/metrics").text
    about = 'flavour="early",network="temp"'
    time = (START + timedelta(hours=1)).timestamp()
    for line in (
        'appa_cycle_outside_limits{flavour="early"} 1.0',
        'appa_verification_chi2{flavour="early"} 1.25',
        f"appa_verification_used{{{about}}} 400.0",
        f'appa_verification_rmse{{{about},of="analysis",variable="temperature"}} 0.75',
        f'appa_verification_rmse{{{about},of="background",variable="temperature"}} 1.5',
        f'appa_verification_desroziers_ratio{{{about},variable="temperature"}} 0.9',
        f'appa_verification_valid_time_seconds{{flavour="early"}} {time!r}',
    ):
        name, _, value = line.rpartition(" ")
        found = [float(x.rpartition(" ")[2]) for x in text.splitlines() if x.startswith(name + " ")]
        assert found == [float(value)], line
    assert 'flavour="final"' not in "".join(
        x for x in text.splitlines() if x.startswith("appa_verification")
    )
    assert "appa_verification_spread_skill{" not in text


async def test_clients_read_all_pages(gateway: GatewayProcess, series, monkeypatch) -> None:
    monkeypatch.setattr(_requests.list_verification, "__defaults__", (5,))
    with AppaClient(gateway.url) as client:
        found = client.verification(statistic=["chi2", "rms_background"], flavour="early")
    assert len(found) == 3 * HOURS
    assert found[0].valid_time == START and found[-1].valid_time > START
    async with AsyncAppaClient(gateway.url) as client:
        same = await client.verification(statistic="chi2,rms_background", flavour="early")
    assert same == found


def test_command(gateway: GatewayProcess, series, tmp_path) -> None:
    published(gateway.layout, "an-command", "early", HOURS - 1, {})
    picture = tmp_path / "series.png"
    last = (START + timedelta(hours=HOURS - 1)).isoformat()
    arguments = ["cycles", "--url", gateway.url, "--flavour", "early", "--hours", "3"]
    arguments += ["--end", last]  # other tests publish newer ones on the same gateway
    result = CliRunner().invoke(
        verify.app, [*arguments, "--png", str(picture)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "4 analyses, 2003-11-01 00 to 2003-11-01 03 UTC, chi-square 1.55" in result.output
    assert "temperature (K)" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    answer = json.loads(CliRunner().invoke(verify.app, [*arguments, "--json"]).output)
    assert answer["summary"]["analyses"] == 4
    assert {row["statistic"] for row in answer["rows"]} == {"chi2", "rms_background"}
