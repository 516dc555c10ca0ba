"""Complete the OpenAPI document: descriptions, documented problems of every route, example answers.

A test validates the examples against the models.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import PROBLEM_JSON, PROBLEMS
from service.problems import ProblemDocument
from service.settings import GatewaySettings

DESCRIPTION = """\
Observations in, analyses out: upload BUFR, GRIB or tables, submit filtering, forecast or
reanalysis jobs, follow them, download NetCDF. Every error is an RFC 9457 problem document with a
stable `code`. See `docs/api.md`.
"""

TAGS = [
    {"name": "observations", "description": "Uploads, and queries of stored observations."},
    {"name": "jobs", "description": "Filtering, forecast and reanalysis jobs."},
    {"name": "cycles", "description": "Hourly analyses: their state, explanation and reruns."},
    {"name": "analyses", "description": "Published results and their files."},
    {"name": "fields", "description": "Horizontal fields of results, for maps."},
    {
        "name": "ogc",
        "description": "OGC API - EDR, Maps and Tiles, and WMS over the published results.",
    },
    {"name": "catalogue", "description": "A STAC API over the published results."},
    {"name": "webhooks", "description": "Delivery of events over HTTP; for operators."},
    {"name": "system", "description": "Capabilities of running workers, health, metrics."},
]


ALWAYS = (
    "bad_request",
    "unauthenticated",
    "forbidden",
    "invalid_input",
    "rate_limited",
    "header_too_large",
    "request_timeout",
    "internal_error",
    "broker_unavailable",
    "issuer_unavailable",
)
"""Errors that any route may answer with."""


def problem_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Documentation of the errors a route answers with; those of every route are included."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in (*ALWAYS, *codes):
        kind = PROBLEMS[code]
        entry = found.setdefault(
            kind.status,
            {
                "description": kind.title,
                "content": {
                    PROBLEM_JSON: {
                        "schema": {"$ref": "#/components/schemas/ProblemDocument"},
                        "examples": {},
                    }
                },
            },
        )
        entry["content"][PROBLEM_JSON]["examples"][code] = {"value": _example(code)}
    return found


def _example(code: str) -> dict[str, Any]:
    kind = PROBLEMS[code]
    return {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": "What was expected, what came and what to do.",
        "code": code,
        "request_id": "0f4d1b7e",
    }


def describe(app: FastAPI) -> None:
    """Make `app` return the complete document, built once on first use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                tags=TAGS,
                license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas["ProblemDocument"] = schema
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            _name_issuer(document, app.state.gateway.settings)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_issuer(document: dict[str, Any], settings: GatewaySettings) -> None:
    """Add the issuer of tokens to what operations are secured by, where there is one."""
    if not settings.oidc_issuer:
        return
    document["components"]["securitySchemes"]["OpenIdConnect"] = {
        "type": "openIdConnect",
        "openIdConnectUrl": settings.oidc_issuer.rstrip("/") + "/.well-known/openid-configuration",
        "description": f"A token for '{settings.oidc_audience}', sent as `Authorization: Bearer …`.",
    }
    for path in document["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict) and operation.get("security"):
                operation["security"].append({"OpenIdConnect": []})


BATCH: dict[str, Any] = {
    "id": "batch-20250101t063012345-9f3c1a20",
    "state": "ingested",
    "created": "2025-01-01T06:30:12.345000Z",
    "started": "2025-01-01T06:30:12.360000Z",
    "finished": "2025-01-01T06:30:12.910000Z",
    "sha256": "7434083896dfd45b0a6028dbf6f7f2e3656ef68c3193a4fdf6340793be71ea6a",
    "size": 18432,
    "container": "bufr",
    "file_name": "synop.bufr",
    "options": {},
    "attempts": 1,
    "retry_at": None,
    "message": "",
    "worker": "ingest.1208@host",
    "summary": {
        "messages": 120,
        "undecoded": 1,
        "observations": 590,
        "used": 571,
        "by_variable": {"2m_temperature": 119, "surface_pressure": 117},
        "by_report_type": {"synop": 590},
        "by_rejection": {"bounds": 4, "duplicate": 15},
        "decode_report": {},
    },
    "error": None,
    "api_key": "5d0c1f2e",
    "request_id": "0f4d1b7e",
}
JOB: dict[str, Any] = {
    "id": "job-20250101t070012345-9f3c1a20",
    "spec": {
        "kind": "filtering",
        "valid_time": "2025-01-01T06:00:00Z",
        "window_hours": 6,
        "members": 8,
        "seed": 0,
    },
    "state": "running",
    "created": "2025-01-01T07:00:12.345000Z",
    "started": "2025-01-01T07:00:12.352000Z",
    "finished": None,
    "progress": {
        "phase": "sampling",
        "step": 12,
        "steps": 64,
        "eta_seconds": 21.5,
        "queue_position": None,
        "message": "",
    },
    "attempts": 1,
    "retry_at": None,
    "worker": "gpu.1210@host",
    "error": None,
    "analysis_id": "an-20250101t070012345-5b0e77d1",
    "api_key": "5d0c1f2e",
    "request_id": "0f4d1b7e",
    "flavour": "",
    "revision": 1,
    "cycle": {},
}
ANALYSIS: dict[str, Any] = {
    "id": "an-20250101t070012345-5b0e77d1",
    "job_id": "job-20250101t070012345-9f3c1a20",
    "kind": "filtering",
    "valid_time": "2025-01-01T06:00:00Z",
    "times": ["2025-01-01T06:00:00Z"],
    "flavour": "",
    "revision": 1,
    "cycle": {},
    "created": "2025-01-01T07:00:41.002000Z",
    "files": [
        {
            "name": "appa_an_20250101T06Z_v1.nc",
            "size": 4201337,
            "sha256": "e2cdf3b378bc419dd3affc6c9a2fa57ad8af42d10c7132f237e3b1afdc98a903",
            "media_type": "application/netcdf",
            "role": "data",
        }
    ],
    "members": 8,
    "mirrored": True,
    "window_start": "2025-01-01T00:00:00Z",
    "window_end": "2025-01-01T06:00:00Z",
    "cut_off": "2025-01-01T07:00:00Z",
    "observations": {"used": 5710, "background_check": 38, "thinned": 1204},
    "background": {"source": "previous_analysis", "age_hours": 1},
    "flags": [],
    "scores": {},
    "provenance": {"checkpoint_sha256": "6a6028db…", "version": "0.1.0"},
    "spec": {"kind": "filtering", "valid_time": "2025-01-01T06:00:00Z", "members": 8},
}

CYCLE: dict[str, Any] = {
    "id": "20250101T06Z_final",
    "valid_time": "2025-01-01T06:00:00Z",
    "flavour": "final",
    "cut_off": "2025-01-01T09:00:00Z",
    "state": "published",
    "job_id": "job-20250101t090003120-9f3c1a20",
    "analysis_id": "an-20250101t090003120-5b0e77d1",
    "revision": 2,
    "decided": "2025-01-01T09:00:03Z",
    "caught_up": False,
    "behind_seconds": 3.0,
    "message": "",
    "attempts": 1,
    "published": "2025-01-01T09:00:41Z",
    "forecast_job_id": "",
    "forecast_id": "",
    "cold_job_id": "",
    "cold_id": "",
    "asked_by": "",
}


CHALLENGER: dict[str, Any] = {
    "champion": {"suite_id": "", "since": None, "note": ""},
    "challenger": {
        "id": 1,
        "suite": {"name": "wider", "errors": {"representativeness": {"factor": 1.2}}},
        "suite_id": "wider-5b0e77d1",
        "champion_id": "",
        "begun": "2025-01-01T09:00:03Z",
        "first_time": "2025-01-01T06:00:00Z",
        "counted_from": "2025-01-03T06:00:00Z",
        "least_cycles": 48,
        "cycles": {"published": 120},
        "newest_time": "2025-01-06T05:00:00Z",
        "verdict": "better",
        "differences": [
            {
                "network": "all",
                "variables": "all",
                "cycles": 72,
                "values": 51840,
                "percent": -1.8,
                "low": -3.1,
                "high": -0.5,
                "correlation": 0.42,
            }
        ],
        "ended": None,
        "outcome": None,
        "by": "",
        "note": "",
    },
    "history": [],
    "reigns": [],
}

VERIFICATION: dict[str, Any] = {
    "valid_time": "2025-01-01T06:00:00Z",
    "flavour": "final",
    "revision": 2,
    "analysis_id": "an-20250101t070012345-5b0e77d1",
    "network": "temp",
    "variable": "temperature",
    "layer": "400-600 hPa",
    "statistic": "withheld_rmse_analysis",
    "value": 0.94,
    "count": 46,
}


def example_page(item: dict[str, Any]) -> dict[str, Any]:
    """Return an example of a page that holds one item."""
    return {"items": [item], "next_cursor": None, "total": 1}


def example_response(example: dict[str, Any]) -> dict[str, Any]:
    """Content of a response entry, with the example; the schema is added by the framework."""
    return {"content": {"application/json": {"example": example}}}
