"""The OpenAPI document: problem documents for every error, and descriptions of the whole."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import PROBLEM_JSON, PROBLEMS
from service.problems import ProblemDocument

DESCRIPTION = """\
Observations in, analyses out: upload BUFR, GRIB or tables, submit filtering, forecast or
reanalysis jobs, follow them, download NetCDF. Every error is an RFC 9457 problem document with a
stable `code`. See `docs/api.md`.
"""

TAGS = [
    {"name": "observations", "description": "Uploads, and queries of the stored observations."},
    {"name": "jobs", "description": "Filtering, forecast and reanalysis on a warm model."},
    {"name": "cycles", "description": "Hourly analyses: due, published, explained, made again."},
    {"name": "analyses", "description": "Published results and their files."},
    {"name": "catalogue", "description": "A STAC API over the published results."},
    {"name": "webhooks", "description": "Who is told of events over HTTP; for operators."},
    {"name": "system", "description": "What running workers can do, health, metrics."},
]


ALWAYS = (
    "bad_request",
    "unauthenticated",
    "forbidden",
    "invalid_input",
    "rate_limited",
    "internal_error",
    "broker_unavailable",
)
"""Errors that any route may answer with."""


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
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
    """Replaces the document of `app` by the complete one, made once on first use."""

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
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
