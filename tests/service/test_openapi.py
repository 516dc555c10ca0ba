"""The OpenAPI document holds against the running gateway: schemathesis, bounded."""

from contextlib import suppress

import acting_worker
import pytest
import schemathesis
from gateway_process import GatewayProcess
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.openapi import ANALYSIS, BATCH, JOB
from service.schemas import AnalysisView, BatchView, JobView
from tests.service.openapi_document import openapi_document

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENT = openapi_document()
OPERATIONS = [
    (path, method)
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method != "head"
]
ENDLESS = "/v1/events"
"""Never ends by itself; its own test reads it."""


@pytest.fixture(scope="module")
def gateway(own_gateway: GatewayProcess) -> GatewayProcess:
    """One without the unreadable results that other files publish; these are answered with 503."""
    return own_gateway


@pytest.fixture(scope="module")
def schema(gateway: GatewayProcess):
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), [o for o in OPERATIONS if o[0] != ENDLESS])
def test_document_holds(schema, stores, path: str, method: str, mode: GenerationMode) -> None:
    acting_worker.report(stores)
    acting_worker.report(stores, queue="ingest")
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    def hold(case) -> None:
        if path.endswith("/events"):
            case.path_parameters["job_id"] = "job-none"  # a live one would not end
        response = case.call(timeout=20)
        if response.text == "Invalid HTTP request received.":
            return  # control characters in a header: refused by the HTTP parser, below the gateway
        case.validate_response(response, checks=CHECKS)

    with suppress(Unsatisfiable):  # some operations have nothing that could be wrong
        hold()


def test_every_operation_is_described() -> None:
    for path, method in OPERATIONS:
        operation = DOCUMENT["paths"][path][method]
        assert operation["description"], (path, method)
        errors = {s: r for s, r in operation["responses"].items() if s >= "400"}
        assert all("application/problem+json" in r["content"] for r in errors.values())
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["name"] == "file", parameter


def test_examples_are_what_is_answered() -> None:
    for record, example in ((BatchView, BATCH), (JobView, JOB), (AnalysisView, ANALYSIS)):
        shown = record.model_validate(example).model_dump(mode="json")
        assert set(shown) == set(example)
    for path in ("/v1/jobs", "/v1/batches", "/v1/analyses", "/v1/jobs/{job_id}"):
        answer = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        assert answer["example"], path
        assert answer["schema"], path
