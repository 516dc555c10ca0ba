"""Every record of the client fits the schema that the gateway publishes for it."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import TypeAdapter

from appa_client import events, records
from appa_client.records import Answer, Job
from tests.service.openapi_document import openapi_document
from worker.contract.batches import BatchState
from worker.contract.cycles import CYCLE_DONE, CycleState, Flavour, cycle_key
from worker.contract.events import EventType, LoggedEvent
from worker.contract.jobs import TERMINAL, JobState

DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]
PUBLISHED = {
    records.Analysis: ["AnalysisView"],
    records.AnalysisFile: ["ManifestFile"],
    records.Batch: ["BatchView"],
    records.Challengers: ["ChallengersView"],
    records.Cycle: ["CycleView"],
    records.CycleChange: ["CycleChange"],
    records.CycleExplanation: ["CycleExplanation"],
    records.Difference: ["Difference"],
    records.IngestSummary: ["IngestSummary"],
    records.Job: ["JobView"],
    records.JobSpec: ["FilteringSpec", "ForecastSpec", "ReanalysisSpec"],
    records.LateNetwork: ["LateNetwork"],
    records.ObservationSelection: ["ObservationSelection"],
    records.OutcomeCount: ["OutcomeCount"],
    records.Problem: ["Problem"],
    records.Progress: ["Progress"],
    records.Readiness: ["Readiness"],
    records.ReadinessCheck: ["ReadinessCheck"],
    records.Reign: ["ReignView"],
    records.SeriesRow: ["SeriesRow"],
    records.SourceStatus: ["SourceStatus"],
    records.Trial: ["TrialView"],
    events.Attempt: ["AttemptView"],
    events.CreatedWebhook: ["CreatedWebhook"],
    events.Delivery: ["DeliveryView"],
    events.Webhook: ["WebhookView"],
}
"""Schemas of the gateway's OpenAPI document, by record of the client."""


def published(name: str) -> dict[str, Any]:
    """The schema of answers, where requests have another one."""
    return SCHEMAS.get(f"{name}-Output") or SCHEMAS[name]


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        *_, section, name = schema["$ref"].split("/")
        schema = document[section][name] if section in document else document[name]
    return schema


def options(schema: dict[str, Any], document: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema, one for each of its types."""
    schema = resolved(schema, document)
    parts = schema.get("anyOf") or schema.get("oneOf")
    return [o for p in parts for o in options(p, document)] if parts else [schema]


def accepts(own: dict[str, Any], sent: dict[str, Any], defs: dict[str, Any]) -> bool:
    """Whether all that fits `sent`, a schema of the gateway, fits the client's `own`."""
    return all(
        any(_accepts(mine, theirs, defs) for mine in options(own, defs))
        for theirs in options(sent, {"schemas": SCHEMAS})
    )


def _accepts(own: dict[str, Any], sent: dict[str, Any], defs: dict[str, Any]) -> bool:
    if "type" not in own and "enum" not in own and "const" not in own:
        return True  # any value
    numbers = own.get("type") == "number" and sent.get("type") == "integer"
    if not numbers and own.get("type") != sent.get("type"):
        return False
    if own.get("format") != sent.get("format"):
        return False
    if "enum" in own:
        return set(sent.get("enum", [sent.get("const")])) <= set(own["enum"])
    if own["type"] == "array":
        return accepts(own.get("items", {}), sent.get("items", {}), defs)
    if own["type"] == "object" and "properties" in own:
        return all(
            name in sent["properties"] and accepts(schema, sent["properties"][name], defs)
            for name, schema in own["properties"].items()
        )
    more = own.get("additionalProperties", True)
    return more is True or accepts(more, sent["additionalProperties"], defs)


def test_every_record_is_compared() -> None:
    own = {
        kind
        for module in (records, events)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Answer) and kind is not Answer
    }
    assert own == {*PUBLISHED, events.Event}


@pytest.mark.parametrize(
    ("record", "name"), [(r, n) for r, names in PUBLISHED.items() for n in names]
)
def test_record_fits_its_schema(record: type[Answer], name: str) -> None:
    own = record.model_json_schema()
    sent = published(name)
    for field, schema in own["properties"].items():
        assert field in sent["properties"], field
        assert accepts(schema, sent["properties"][field], own.get("$defs", {})), field


def test_event_fits_what_is_sent() -> None:
    event = LoggedEvent(
        id="evt_1", type=EventType.CYCLE_FAILED, time="2025-01-01T00:00:00+00:00", data={"key": 1}
    )
    heard = events.Event.model_validate_json(event.model_dump_json())
    assert heard.model_dump() == event.model_dump()
    assert set(events.EventType) == set(EventType)


def test_the_comparison_finds_differences() -> None:
    def own(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        schema = TypeAdapter(kind).json_schema()
        return schema, schema.get("$defs", {})

    job = published("JobView")["properties"]
    for kind, field in ((str, "created"), (datetime, "started"), (int, "id"), (str, "state")):
        schema, defs = own(kind)
        assert accepts(schema, job[field], defs) == (field == "state"), field
    schema, defs = own(list[int])
    assert not accepts(schema, published("AnalysisView")["properties"]["flags"], defs)


def test_states_and_their_ends_are_those_of_the_service() -> None:
    assert set(records.JobState) == set(JobState)
    assert set(records.BatchState) == set(BatchState)
    assert set(records.CycleState) == set(CycleState)
    assert set(records.Flavour) == set(Flavour)
    ended = [s for s in JobState if Job.model_construct(state=records.JobState(s)).done]
    assert set(ended) == TERMINAL
    over = [
        s for s in CycleState if records.Cycle.model_construct(state=records.CycleState(s)).done
    ]
    assert set(over) == CYCLE_DONE


@pytest.mark.parametrize("flavour", list(Flavour))
def test_cycle_keys_are_those_of_the_service(flavour: str) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    for time in (datetime(2003, 10, 1, 6, tzinfo=UTC), datetime(1999, 12, 31, 23, 30, tzinfo=east)):
        assert records.cycle_key(time, flavour) == cycle_key(time, flavour)
    with pytest.raises(ValueError, match="late"):
        records.cycle_key(datetime(2003, 10, 1, tzinfo=UTC), "late")


def test_fields_of_a_newer_gateway_are_kept() -> None:
    row = records.LateNetwork.model_validate(
        {"network": "synop", "count": 1, "first": "2025-01-01T00:00:00Z",
         "last": "2025-01-01T00:00:00Z", "median": 3.5}
    )  # fmt: skip
    assert row.model_dump()["median"] == 3.5
