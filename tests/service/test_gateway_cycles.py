"""Cycles over HTTP, through the clients and on `/metrics`, on a real gateway and a real store."""

import io
from datetime import UTC, datetime, timedelta
from itertools import count

import acting_worker
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gateway_process import GatewayProcess, StartGateway
from prometheus_client.parser import text_string_to_metric_families

from appa_client import AppaClient, AsyncAppaClient, GatewayError
from service.openapi import CYCLE
from service.schemas import CycleView
from worker.contract.cycles import CycleRecord, CycleState, cycle_key
from worker.contract.record_store import MoveRefused
from worker.contract.store import Stores, open_stores
from worker.results.manifest import read_manifest

DAYS = count()
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def policy(gateway: GatewayProcess) -> None:
    gateway.layout.cycles_file.write_text("start: 2009-01-01T00:00:00Z")


@pytest.fixture
def day() -> datetime:
    """Each test cycles on a day of its own."""
    return datetime(2010, 1, 1, tzinfo=UTC) + timedelta(days=next(DAYS))


def put(stores: Stores, time: datetime, flavour: str, *states: str, **values) -> CycleRecord:
    """A cycle that went through these states."""
    minutes, revision = (20, 1) if flavour == "early" else (180, 2)
    cycle, _ = stores.cycles.create(
        CycleRecord(
            id=cycle_key(time, flavour),
            valid_time=time,
            flavour=flavour,
            cut_off=time + timedelta(minutes=minutes),
            revision=revision,
        )
    )
    for state in states:
        last = values if state == states[-1] else {}
        assert stores.cycles.change(cycle, CycleState(state), **last)
        cycle = stores.cycles.get(cycle.id)
    return cycle


DONE = ("due", "submitted", "published")


def feedback(*rows: tuple) -> bytes:
    """Rows (batch, number, network, minutes after the valid time of arrival, outcome)."""
    batch, number, network, received, outcome = zip(*rows, strict=True)
    text = pa.dictionary(pa.int32(), pa.string())
    table = pa.table(
        {
            "batch_id": pa.array(batch, pa.string()).cast(text),
            "observation_id": pa.array(number, pa.int64()),
            "report_type": pa.array(network, pa.string()).cast(text),
            "received_time": pa.array(received, pa.timestamp("ns", tz="UTC")),
            "rejected_by": pa.array(outcome, pa.string()).cast(text),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def publish(gateway, analysis_id: str, time: datetime, flavour: str, revision: int, rows) -> None:
    name = f"appa_obsfb_{time:%Y%m%dT%H}Z_{flavour}_v{revision}.parquet"
    acting_worker.publish(
        gateway.layout, analysis_id, {name: feedback(*rows)}, valid=time, flavour=flavour,
        revision=revision,
    )  # fmt: skip
    manifest = read_manifest(gateway.layout, analysis_id)
    manifest.files[0].role = "feedback"
    manifest.cut_off = time + timedelta(minutes=20 if flavour == "early" else 180)
    manifest.background = {"source": "previous_analysis", "age_hours": 1.0}
    manifest.observations = {"used": 1}
    gateway.layout.manifest(analysis_id).write_text(manifest.model_dump_json())


def test_list_with_filters_and_pages(http, stores, day):
    for hour in range(3):
        put(stores, day + hour * HOUR, "early", *DONE)
        put(stores, day + hour * HOUR, "final", *(("due",) if hour else ()))
    period = {"valid_from": day.isoformat(), "valid_to": (day + 2 * HOUR).isoformat()}

    def keys(**query) -> list[str]:
        answer = http.get("/v1/cycles", params={**period, **query})
        assert answer.status_code == 200, answer.text
        return [item["id"][9:] for item in answer.json()["items"]]

    assert keys() == ["02Z_final", "02Z_early", "01Z_final", "01Z_early", "00Z_final", "00Z_early"]
    assert keys(flavour="early") == ["02Z_early", "01Z_early", "00Z_early"]
    assert keys(state="due") == ["02Z_final", "01Z_final"]
    assert keys(state="published", flavour="final") == []
    assert keys(valid_from=(day + HOUR).isoformat(), flavour="final") == ["02Z_final", "01Z_final"]
    page = http.get("/v1/cycles", params={**period, "limit": 4}).json()
    assert page["total"] == 6
    rest = http.get("/v1/cycles", params={**period, "cursor": page["next_cursor"]}).json()
    assert [item["id"][9:] for item in rest["items"]] == ["00Z_final", "00Z_early"]
    assert rest["next_cursor"] is None


def test_what_is_no_cycle(http):
    assert http.get("/v1/cycles/20090101T00Z_early").json()["code"] == "not_found"
    for key in ("20100101T00Z_late", "20101301T00Z_early"):
        assert http.get(f"/v1/cycles/{key}").json()["code"] == "invalid_input"


def test_the_example_is_a_cycle():
    assert CycleView.model_validate(CYCLE).model_dump(mode="json").keys() == CYCLE.keys()


def test_a_rerun_makes_the_cycle_due_again(gateway: GatewayProcess, stores, day):
    put(stores, day, "early", *DONE)
    put(stores, day, "final", *DONE)
    with AppaClient(gateway.url) as appa:
        before = datetime.now(UTC)
        again = appa.rerun_cycle(day)
        assert (again.state, again.revision) == (CycleState.DUE, 3)
        assert before <= again.cut_off <= datetime.now(UTC)
        with pytest.raises(GatewayError) as refused:
            appa.rerun_cycle(day)
        assert refused.value.code == "move_refused"
        for cut_off in (day - HOUR, datetime.now(UTC) + HOUR):
            with pytest.raises(GatewayError, match="cut-off"):
                appa.rerun_cycle(day, cut_off)
        with pytest.raises(GatewayError, match="final"):
            appa.rerun_cycle(cycle_key(day, "early"))


def test_a_repeated_request_starts_no_second_rerun(http, stores, day):
    """The answer was lost and the request is sent again: while it runs, and after its end."""
    put(stores, day, "final", *DONE)
    key = cycle_key(day, "final")

    def post(name: str, **body):
        headers = {"Idempotency-Key": name} if name else {}
        return http.post(f"/v1/cycles/{key}/rerun", json=body, headers=headers)

    def end() -> None:
        for state in (CycleState.SUBMITTED, CycleState.PUBLISHED):
            assert stores.cycles.change(stores.cycles.get(key), state)

    def told(answer) -> tuple:
        return answer.status_code, answer.json()["state"], answer.json()["revision"]

    assert told(post("again")) == (202, "due", 3)
    moves = len(stores.cycles.events(key))
    assert told(post("again")) == (200, "due", 3)
    assert post("").json()["code"] == "move_refused"  # without the key it is another request
    other = post("again", cut_off=day.isoformat())
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    end()
    assert told(post("again")) == (200, "published", 3)
    assert len(stores.cycles.events(key)) == moves + 2
    assert told(post("later", cut_off=(day + 5 * HOUR).isoformat())) == (202, "due", 4)
    end()
    assert told(post("again")) == (200, "published", 4)  # known although another came between
    assert told(post("later", cut_off=(day + 5 * HOUR).isoformat()))[::2] == (200, 4)
    assert told(post("")) == (202, "due", 5)


def test_two_requests_at_once_make_one_rerun(stores, day):
    """Both have read the ended cycle; one of them makes the move, both are told of it."""
    read = put(stores, day, "final", *DONE)
    for _ in range(2):
        record = stores.cycles.rerun(read, day + HOUR, day + HOUR, unique_key="k", request="all")
        assert (record.state, record.revision) == (CycleState.DUE, 3)
    assert stores.cycles.earlier_request(read.id, "k") == "all"
    with pytest.raises(MoveRefused):
        stores.cycles.rerun(read, day + HOUR, day + HOUR, unique_key="another", request="all")
    assert stores.cycles.earlier_request(read.id, "another") is None


def test_without_a_policy_there_is_no_rerun(gateway: GatewayProcess, stores, day):
    put(stores, day, "final", *DONE)
    gateway.layout.cycles_file.unlink()
    with AppaClient(gateway.url) as appa, pytest.raises(GatewayError, match="appa cycles init"):
        appa.rerun_cycle(day)
    assert stores.cycles.get(cycle_key(day, "final")).state is CycleState.PUBLISHED


def test_explain_says_what_was_used_late_rejected_and_changed(gateway, stores, day):
    def minutes(n: int) -> datetime:
        return day + timedelta(minutes=n)

    early = [
        ("b1", 0, "synop", minutes(5), None),
        ("b1", 1, "synop", minutes(5), None),
        ("b1", 2, "synop", minutes(5), "bounds"),
        ("b2", 0, "temp", minutes(30), "late"),
        ("b2", 1, "temp", minutes(50), "late"),
    ]
    final = [
        ("b1", 0, "synop", minutes(5), None),
        ("b1", 1, "synop", minutes(5), "buddy"),
        ("b1", 2, "synop", minutes(5), "bounds"),
        ("b2", 0, "temp", minutes(30), None),
        ("b2", 1, "temp", minutes(50), None),
        ("b3", 0, "ship", minutes(300), "late"),
    ]
    tag = f"{day:%m%d}"
    publish(gateway, f"an-e{tag}", day, "early", 1, early)
    publish(gateway, f"an-f{tag}", day, "final", 2, final)
    acting_worker.publish(gateway.layout, f"an-x{tag}", {"x": b"1"}, valid=day)  # of no cycle
    put(stores, day, "early", *DONE, analysis_id=f"an-e{tag}")
    put(stores, day, "final", *DONE, analysis_id=f"an-f{tag}")
    with AppaClient(gateway.url) as appa:
        found = appa.explain_cycle(day, "early")
        assert found.used == {"synop": 2}
        [late] = found.late
        assert (late.network, late.count) == ("temp", 2)
        assert (late.first, late.last) == (minutes(30), minutes(50))
        assert [(r.network, r.outcome, r.count) for r in found.rejected] == [("synop", "bounds", 1)]
        assert "gross limits" in found.rejected[0].meaning
        assert found.changed is None
        found = appa.explain_cycle(day)
        assert found.revisions == [f"an-e{tag}", f"an-f{tag}"]
        assert found.used == {"synop": 1, "temp": 2}
        assert [(r.network, r.count) for r in found.late] == [("ship", 1)]
        assert found.background["age_hours"] == 1.0
        changed = found.changed
        assert (changed.from_analysis, changed.from_revision) == (f"an-e{tag}", 1)
        assert (changed.added, changed.kept) == ({"temp": 2}, 1)
        assert [(r.network, r.outcome, r.count) for r in changed.dropped] == [("synop", "buddy", 1)]


def test_explain_a_cycle_without_an_analysis(gateway, stores, day):
    put(stores, day, "early", "skipped", message="too old")
    with AppaClient(gateway.url) as appa:
        found = appa.explain_cycle(day, "early")
    assert (found.cycle.message, found.used, found.revisions) == ("too old", None, [])


async def test_the_asyncio_client_has_the_same(gateway, stores, day):
    put(stores, day, "final", *DONE)
    async with AsyncAppaClient(gateway.url) as appa:
        [found] = await appa.cycles(valid_from=day, valid_to=day)
        assert found == await appa.cycle(day)
        assert (await appa.explain_cycle(day)).cycle == found
        assert (await appa.rerun_cycle(day, day + 5 * HOUR)).cut_off == day + 5 * HOUR


def test_metrics_tell_age_and_freshness_of_the_newest(start_gateway: StartGateway):
    gateway = start_gateway()
    stores = open_stores(gateway.redis_url, gateway.prefix)
    time = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 5 * HOUR
    cut_off = time + timedelta(minutes=20)
    put(stores, time - HOUR, "early", *DONE)
    put(stores, time, "early", *DONE, published=cut_off + timedelta(seconds=42))
    put(stores, time, "final")
    stores.redis.close()
    with AppaClient(gateway.url) as appa:
        text = appa._http.get("/metrics").text
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("appa_cycle")
    }
    assert values[("appa_cycles", "published")] == 2
    assert values[("appa_cycles", "waiting")] == 1
    assert values[("appa_cycle_freshness_seconds", "early")] == 42.0
    assert 5 * 3600 <= values[("appa_cycle_newest_age_seconds", "early")] < 6.1 * 3600
    assert ("appa_cycle_newest_age_seconds", "final") not in values
